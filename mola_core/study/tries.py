"""Tries: the trainings that choose learning rates, as the cells of a study of their own that is scored on validation."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from typing import ClassVar, Literal

from mola_core.errors import MolaError
from mola_core.methods.registry import family_of, parse_method
from mola_core.methods.settings import MethodSettings
from mola_core.shapes import budget
from mola_core.study.study import Cell, Study


@dataclasses.dataclass(frozen=True)
class Try:
    """One combination that is tried, on every task and tuning seed."""

    candidate: str
    """Label of the method that is tried."""
    learning_rate: float
    alpha: float | None


class TriesStudy(Study):
    """The tries of another study."""

    scored_part: ClassVar[Literal["evaluation", "validation"]] = "validation"


def is_tuned(study: Study, cell: Cell) -> bool:
    """Whether the learning rate of a cell is chosen by tuning: neither its method nor its stage has one."""
    method = study.method_by_label[cell.method]
    return (
        bool(study.tuning)
        and not method.is_base
        and method.learning_rate is None
        and cell.task in study.tasks
    )


def candidates(study: Study) -> dict[str, str]:
    """What each tuned method takes its rate from: label of the method -> label of the one that is tried."""
    return {label: candidate.label for candidate, labels in _groups(study) for label in labels}


def tries(study: Study) -> dict[str, Try]:
    """The tries by the label that each has as a method of `tries_study`."""
    return {label: attempt for attempt, label, _ in _tried(study)}


def tries_study(study: Study) -> TriesStudy | None:
    """The study whose cells are the tries; None where nothing is tuned."""
    tuning = study.tuning
    if tuning is None:
        return None
    labels = Counter(label for _, label, _ in _tried(study))
    if twice := [label for label, times in labels.items() if times > 1]:
        raise MolaError(f"tuning: two tries are called {twice[0]}; give the methods other names")
    training = study.training.model_copy(
        update={
            "epochs": study.training.last_epoch,
            "max_steps": tuning.steps or study.training.max_steps,
        }
    )
    return TriesStudy.model_construct(
        **dict(study)
        | {
            "methods": [method for _, _, method in _tried(study)],
            "seeds": tuning.seeds,
            "training": training,
            "continual": None,
            "tuning": None,
            "evaluation": study.evaluation.model_copy(
                update={"documents": tuning.documents, "every_epoch": False}
            ),
            "compute": study.compute.model_copy(update={"gpus": min(1, study.compute.gpus)}),
        }
    )


def _tried(study: Study) -> Iterator[tuple[Try, str, MethodSettings]]:
    """Each try, its label and its method, candidates in the study's order, rates ascending."""
    assert study.tuning is not None
    alphas: Sequence[float | None] = sorted(study.tuning.alphas) if study.tuning.alphas else [None]
    for candidate, _ in _groups(study):
        for rate, alpha in product(sorted(study.tuning.learning_rates), alphas):
            label = f"{candidate.label}.lr{rate!r}" + ("" if alpha is None else f".alpha{alpha:g}")
            own = {"name": label, "learning_rate": rate} | ({} if alpha is None else {"alpha": alpha})
            yield Try(candidate.label, rate, alpha), label, candidate.model_copy(update=own)


def _groups(study: Study) -> list[tuple[MethodSettings, list[str]]]:
    """Methods that share a rate: the one that is tried, and the labels of all that take its rate."""
    assert study.tuning is not None
    groups: dict[object, list[MethodSettings]] = {}
    for method in study.methods:
        if method.is_base or method.learning_rate is not None:
            continue
        role = family_of(method).role
        shared = study.tuning.by == "kind" and role in ("routed", "matched")
        group = (role, str(method.own_settings)) if shared else method.label
        groups.setdefault(group, []).append(method)
    shared = study.tuning.by == "kind"
    return [
        (_flat(study, methods) if shared else methods[0], [method.label for method in methods])
        for methods in groups.values()
    ]


def _flat(study: Study, methods: list[MethodSettings]) -> MethodSettings:
    """The flat shape of the budget that most of `methods` have; the first of them where they have none."""
    first = methods[0]
    parsed = [parse_method(method) for method in methods]
    budgets = [budget(one.shape) if one.shape else one.budget for one in parsed]
    whole = [number for number in budgets if number and number % 4 == 0]
    if not whole:
        return first
    each = Counter(whole).most_common(1)[0][0] // 4
    if family_of(first).role == "routed" and each < first.adapter(study.adapter).top_k:
        return first
    kind = "mola" if family_of(first).role == "routed" else "lora-matched"
    name = f"{kind}-" + (str(each) * 4 if each < 10 else "-".join([str(each)] * 4))
    known = next((method for method in methods if method.method == name), None)
    # Its usual label may be that of a method of other settings, which has tries of its own.
    taken = name in study.method_by_label
    label = f"flat-{first.label}" if first.own_settings or taken else None
    return known or first.model_copy(update={"method": name, "name": label, "experts": None})
