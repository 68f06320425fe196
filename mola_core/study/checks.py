"""What the sections of a study do not say together: each problem is a line that names the field and the fix."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mola_core.errors import MolaError
from mola_core.methods.family import VIRTUAL_TOKENS
from mola_core.methods.registry import (
    adapter_config,
    adapter_config_without_model,
    family_of,
    parse_method,
    saves_its_prompts_only,
    takes_start_from_base,
)
from mola_core.methods.settings import MethodSettings
from mola_core.shapes import budget
from mola_core.study.sections import (
    CLOZE,
    INSTRUCTION,
    SCIENCEQA_TOPICS,
    TrainingSettings,
    TuningSettings,
    pinned_by,
)
from mola_core.study.verdict import MAIN_BUDGET, compared

if TYPE_CHECKING:
    from mola_core.study.study import Cell, Study

TUNED = ("learning_rates", "alphas", "seeds")
"""Lists of the section `tuning` in which nothing stands twice."""
RESERVED = frozenset({"models", "data", "checkpoints", "reanalysis", "benchmark", "published"})
"""Folders of `results/` that are no study's."""
NOMINAL_DEPTH = 128
"""Of shapes that are compared with each other before the model is known."""
MAX_CELLS = 100_000
"""Of a study: planning compares each with its record on disk."""


def problems(study: Study) -> Iterator[str]:
    """What of the sections does not go together, a line each."""
    if study.name in RESERVED:
        yield f"name: {study.name!r} is a folder of results itself; give the study another name"
    listed: list[tuple[str, Sequence[object]]] = [
        ("tasks", study.tasks),
        ("continual.tasks", study.continual.tasks if study.continual else []),
        ("continual.methods", (study.continual and study.continual.methods) or []),
        ("training.report_to", study.training.report_to),
        ("methods", [method.label for method in study.methods]),
        ("seeds", study.seeds),
        *((f"tuning.{field}", getattr(study.tuning, field) or []) for field in TUNED if study.tuning),
    ]
    for field, values in listed:
        twice = sorted((value for value, count in Counter(values).items() if count > 1), key=str)
        yield from [f"{field}: {twice[0]!r} is listed twice"] if twice else []
    trained = study.trained_methods()
    strangers = [name for name in (study.continual and study.continual.methods) or [] if name not in trained]
    for name in strangers:
        yield f"continual.methods: {name!r} is no trained method of the study"
    for name in dict.fromkeys(name for pair in study.verdict.pairs for name in pair):
        if name not in study.method_by_label:
            yield f"verdict.pairs: {name!r} is no method of the study; name one of {', '.join(study.method_by_label)}"
    for field, names in listed[:2]:
        for task in map(str, names):
            if task == INSTRUCTION or task.startswith("continual-"):
                yield f"{field}: {task!r} is the name of a stage; use the sections instruction and continual"
    yield from _same_questions(study.tasks)
    yield from _impossible_questions(study)
    yield from _unused_revisions(study)
    if study.evaluation.every_epoch and not isinstance(study.training.epochs, list):
        yield "evaluation.every_epoch: goes with a list of training.epochs to choose from; remove it"
    try:
        study.training.shared_by(max(1, study.compute.gpus))
    except ValueError as error:
        yield str(error)
    for number, method in enumerate(study.methods):
        try:
            adapter_config_without_model(method, study.adapter)
        except (ValueError, MolaError) as error:
            yield f"methods.{number}: {error}"
            return
    yield from _same_adapters(study)
    if study.adapter.initialisation != "default":
        yield from _without_start(study)
    if study.training.shared_prefix:
        yield from _shared_prefix(study)
    if study.tuning:
        yield from _tuning(study, study.tuning)
    cells = len(study.tasks) * len(study.methods) * len(study.seeds)
    if cells > MAX_CELLS:
        yield f"seeds: {cells} cells (tasks x methods x seeds), at most {MAX_CELLS}; list fewer"
    elif not strangers:
        yield from _stages(study)


def _same_questions(tasks: Sequence[str]) -> Iterator[str]:
    """Tasks that ask the same: the verdict takes tasks as independent, and intervals would be too narrow."""
    parts = {}
    for task in tasks:
        plain = task.removesuffix(CLOZE)
        topic = SCIENCEQA_TOPICS.get(plain)
        parts[task] = ("scienceqa" if topic else plain, topic)
    for (one, of), (other, by) in itertools.combinations(parts.items(), 2):
        if of[0] == by[0] and (of[1] == by[1] or None in (of[1], by[1])):
            yield (
                f"tasks: {one!r} and {other!r} ask the same questions, and the verdict takes tasks as independent; give one of "
                "them a study of its own"
            )


def _impossible_questions(study: Study) -> Iterator[str]:
    """Hypotheses and questions of methods that the study does not have: after the run they could not be stated anew."""
    parsed = [parse_method(method) for method in study.methods]
    methods = list(study.method_by_label)
    # Experts that data choose, or that are listed, have their budget when the model is known.
    later = any(method.experts for method in study.methods) or any(each.allocation for each in parsed)
    shapes = [
        budget(each.shape)
        for each, method in zip(parsed, study.methods, strict=True)
        if each.kind == "mola" and each.shape and not method.own_settings
    ]
    for field, names in (("hypotheses", study.verdict.hypotheses), ("questions", study.verdict.questions)):
        for name in names or ():
            pair = compared(name)
            if pair is None:
                budget_of = re.search(r"-(\d+)$", name)
                possible = later or shapes.count(int(budget_of[1]) if budget_of else MAIN_BUDGET) >= 3
                needs = "three shapes of that budget"
            else:
                possible, needs = {*pair} <= {*methods}, " and ".join(pair)
            if possible:
                continue
            yield f"verdict.{field}: {name!r} needs {needs}; the methods are {', '.join(methods)}"


def _unused_revisions(study: Study) -> Iterator[str]:
    pinned = {name for rows in study.rows() for name in pinned_by(rows)}
    for name in getattr(study.data, "revisions", {}):
        if name not in pinned:
            yield f"data.revisions: {name!r} is no task of the study; name one of {', '.join(study.rows())}"


def _without_start(study: Study) -> Iterator[str]:
    """LoRAs that cannot begin as the study's adapters do."""
    for method in study.methods:
        kind = parse_method(method).kind
        if kind in ("dora", "adalora"):
            yield (
                f"adapter.initialisation: {method.label} cannot start at {study.adapter.initialisation}; give the methods that can an "
                "`initialisation` of their own"
            )


def _same_adapters(study: Study) -> Iterator[str]:
    """Two names for one training: it would be trained twice and count twice in slopes and ranks."""
    known: dict[str, str] = {}
    depth = max((method.listed_layers() or 0 for method in study.methods), default=0) or NOMINAL_DEPTH
    for method in study.methods:
        parsed = parse_method(method)
        if parsed.allocation is not None:
            continue  # what data or a number of its own choose is known later
        try:
            config = adapter_config(method, method.adapter(study.adapter), depth)
        except ValueError:
            continue  # lists of other lengths, which are complained of elsewhere
        rate = method.learning_rate or (None if study.tuning else study.training.learning_rate)
        same = json.dumps([config or method.method, rate, method.loraplus_ratio], sort_keys=True)
        if known.setdefault(same, method.label) != method.label:
            yield f"methods: {method.label} is the same adapter as {known[same]}; leave one of them out"


def _stages(study: Study) -> Iterator[str]:
    cells = study.all_cells()
    for stage in dict.fromkeys(cell.task for cell in cells):
        cell = next(cell for cell in cells if cell.task == stage)
        settings = study.training_of(cell)
        documents = _most_documents(study, cell, settings)
        if documents is not None or settings.max_steps is not None:
            problem = settings.steps_problem(documents or 0, study.section_of(cell))
            yield from [problem] if problem else []
    for section in (study.instruction, study.continual):
        if section and section.learning_rate is not None:
            stage = INSTRUCTION if section is study.instruction else "continual"
            trained = {cell.method for cell in cells if study.section_of(cell) == stage}
            if all(study.method_by_label[name].learning_rate is not None for name in trained):
                yield f"{stage}.learning_rate: every method of it has a learning_rate of its own, which stands; leave one out"
    for name in {cell.method for cell in cells if study.parent(cell)}:
        yield from _continued(study, study.method_by_label[name])


def _most_documents(study: Study, cell: Cell, settings: TrainingSettings) -> int | None:
    """Training documents that the cell can have at most; None where only the rows say it."""
    known = [settings.documents]
    if cell.task == INSTRUCTION and study.instruction:
        known.append(study.instruction.documents)
    elif study.data.source == "builtin":
        known.append(study.data.train_documents)
    return min((count for count in known if count is not None), default=None)


def _continued(study: Study, method: MethodSettings) -> Iterator[str]:
    """A method whose adapter, as it is saved, would go on as another method's."""
    config = adapter_config_without_model(method, study.adapter)
    what = "AdaLoRA" if config.get("peft_type") == "ADALORA" else None
    if takes_start_from_base(config):
        what = "a LoRA that starts from the base weights, as with pissa"
    if saves_its_prompts_only(config):
        what = "virtual tokens that an encoder makes"
    if what:
        # PEFT saves the first with the ranks that it has come to, the second as a LoRA of twice the rank, of the third what
        # the encoder gives and not the encoder.
        yield (
            f"methods: {method.label!r} ({what}) cannot be continued; name other continual.methods, or leave it to a"
            " study without instruction"
        )


def _tuning(study: Study, tuning: TuningSettings) -> Iterator[str]:
    for seed in sorted({*tuning.seeds} & {*study.seeds}):
        yield f"tuning.seeds: {seed} is a seed of the study; choose others, so that no result was tuned on itself"
    if tuning.steps is not None and tuning.steps <= study.training.warmup_steps:
        yield (
            f"tuning.steps: {tuning.steps} is not above training.warmup_steps {study.training.warmup_steps}; raise it"
        )
    if study.instruction:
        yield "tuning: tries start from the base model, the cells of a study with `instruction` do not; give methods their learning_rate"
    if study.continual and study.continual.learning_rate is None:
        yield "tuning: is for the study's tasks; give continual.learning_rate"
    tuned = [m for m in study.methods if m.learning_rate is None and not m.is_base]
    if not tuned:
        yield "tuning: every method has a learning_rate of its own; remove tuning"
    for method in tuned if tuning.alphas else []:
        if "alpha" not in family_of(method).takes or method.alpha is not None:
            yield (
                f"tuning.alphas: {method.label} takes none or has its own, so it would have fewer tries; give it a"
                " learning_rate of its own or remove tuning.alphas"
            )


def _shared_prefix(study: Study) -> Iterator[str]:
    for method in study.methods:
        if adapter_config_without_model(method, study.adapter).get("peft_type") in VIRTUAL_TOKENS:
            yield f"training.shared_prefix: does not go with {method.label}; turn it off"
        if method.adapter(study.adapter).balance_loss:
            yield (
                f"training.shared_prefix: the balance loss of {method.label} would count shared tokens once; turn"
                " one of them off"
            )
