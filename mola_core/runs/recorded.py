"""Results of an earlier version: cells whose keys differ from today's by code alone, so that their scores answer the study.

Rows, examples, model, settings, rates and parents are compared by content; of code, that one version made all cells.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mola_core.errors import MolaError
from mola_core.files import sha256_file
from mola_core.records import digest, read_record
from mola_core.runs.choice import read_choices
from mola_core.runs.differences import Difference, differing
from mola_core.runs.key import evaluation_parts, training_parts
from mola_core.runs.layout import Layout
from mola_core.runs.tuning import choices_of, score_tries
from mola_core.study.sections import EvaluationSettings, TrainingSettings
from mola_core.study.study import Cell, Study

NAMED = 5
"""Differences that an error names."""
CODE = {"code", "method code"}
OF_CODE = {("evaluation", "training"), ("training", "parent")}
"""Parts that are keys with code in them: the records that they stand for are compared instead."""
USUAL = {"training": TrainingSettings(), "evaluation": EvaluationSettings()}
"""A setting that one of two versions does not know counts as what it is where nobody sets it."""


class Maker(NamedTuple):
    """What made a cell's adapter, or its scores."""

    cell: Cell
    kind: tuple[str, ...]
    """Stage, and what else decides which code takes part: all of one kind are made by the same."""
    code: str
    version: str


def check_recorded(layout: Layout, cells: Sequence[Cell]) -> str:
    """The commit (of an installed package: the version) that made these cells, their parents and tries.

    Raises `MolaError` where anything but code differs from what the study, its prepared model, rows and examples say
    today, where something is not prepared, and for records that do not belong together, or to files of no commit.
    """
    checked = []
    if layout.tries is not None:
        checked += [_checked(layout.tries, cell) for cell in layout.tries.study.cells()]
        layout = _with_rates_of_tries(layout)
    checked += [_checked(layout, cell) for cell in _with_parents(layout, cells)]
    makers = [maker for _, of_cell in checked for maker in of_cell]
    found = [line for lines, _ in checked for line in lines] + _other_code(makers)
    if found:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise MolaError(
            f"study {layout.study.name}: its cells are not what the study says today: {'; '.join(found[:NAMED])}{more}; run it again"
        )
    versions: dict[str, Cell] = {}
    for maker in makers:
        versions.setdefault(maker.version, maker.cell)
    if len(versions) > 1:
        named = ", ".join(f"{version} ({cell.path})" for version, cell in versions.items())
        raise MolaError(
            f"study {layout.study.name}: its cells are of several versions: {named}; run it again"
        )
    return next(iter(versions))


def made_otherwise(layout: Layout, cell: Cell, scores: bool = True) -> list[str]:
    """What differs, code aside, between today's study and the records of a cell's training, of those that it goes on from
    and, with `scores`, of its evaluation. Nothing where no record is there (the adapter alone was brought), or no model and
    rows to compare with."""
    lines: list[str] = []
    stages = [(each, "training") for each in _with_parents(layout, [cell])]
    for each, stage in [*stages, *([(cell, "evaluation")] if scores else [])]:
        with contextlib.suppress(MolaError, KeyError, TypeError):
            lines += _told(differing(layout, each, stage))
    return lines


def _checked(layout: Layout, cell: Cell) -> tuple[list[str], list[Maker]]:
    """What differs in a cell, and who made it. Raises `MolaError` where a record is missing or lacks something."""
    study, folder = layout.study, layout.cell(cell)
    trained, evaluated = not cell.is_base, bool(study.evaluated_on(cell))
    for name, wanted in [("training.json", trained), ("manifest.json", evaluated)]:
        if wanted and not (folder / name).is_file():
            raise MolaError(f"cell {cell.path}: has no {name}; run it")
    if not _prepared(layout, cell, trained, evaluated):
        raise MolaError(
            f"cell {cell.path}: model, rows or examples are not there to compare with; prepare them with `mola model`, "
            "`mola data` and `mola examples`"
        )
    training = read_record(folder / "training.json") if trained else None
    manifest = read_record(folder / "manifest.json") if evaluated else None
    try:
        lines = list(_of_training(layout, cell, training)) if training else []
        lines += _of_scores(layout, cell, manifest, training) if manifest else []
        makers = list(_makers(study, cell, training, manifest))
    except (KeyError, TypeError, AttributeError) as error:
        raise MolaError(
            f"cell {cell.path}: its records lack {error}: of a version that did not record it, or damaged; run it again"
        ) from None
    return [f"{cell.path}: {line}" for line in lines], makers


def _of_training(layout: Layout, cell: Cell, training: dict[str, Any]) -> Iterator[str]:
    yield from _told(differing(layout, cell, "training"))
    if digest(training["parts"]) != training["key"]:
        yield "training: its parts are not those of its key"
    if training["git"].get("dirty"):
        yield "training: by files that no commit has"
    parent = layout.study.parent(cell)
    if parent and read_record(layout.cell(parent) / "training.json")["key"] != training["parts"]["parent"]:
        yield f"training: went on from another training than that of {parent.path}"


def _of_scores(
    layout: Layout, cell: Cell, manifest: dict[str, Any], training: dict[str, Any] | None
) -> Iterator[str]:
    samples = layout.cell(cell) / "samples.parquet"
    yield from _told(differing(layout, cell, "evaluation"))
    if digest(manifest["parts"]) != manifest["evaluation_key"]:
        yield "evaluation: its parts are not those of its key"
    if manifest["evaluation"]["git"].get("dirty"):
        yield "evaluation: by files that no commit has"
    if training and manifest["parts"]["training"] != training["key"]:
        yield "evaluation: of another training"
    if manifest["training"] != training:
        yield "manifest: of another training"
    if (manifest["task"], manifest["method"], manifest["seed"]) != dataclasses.astuple(cell):
        yield f"manifest: of {manifest['task']}/{manifest['method']}/seed{manifest['seed']}"
    if not samples.is_file() or sha256_file(samples) != manifest["samples_sha256"]:
        yield "samples.parquet: missing or altered since"
    if manifest["stand_in"] != layout.study.stand_in:
        yield f"stand_in: {manifest['stand_in']} -> {layout.study.stand_in}"


def _makers(
    study: Study, cell: Cell, training: dict[str, Any] | None, manifest: dict[str, Any] | None
) -> Iterator[Maker]:
    selected = str(bool(study.training_of(cell).candidates))
    if training:
        yield Maker(cell, ("training", cell.method, selected), training["parts"]["code"], _version(training))
    if manifest:
        version = _version(manifest["evaluation"])
        yield Maker(cell, ("evaluation", selected), manifest["parts"]["code"], version)


def _version(made: dict[str, Any]) -> str:
    return str(made["git"].get("commit") or f"mola-core {made['versions']['mola-core']}")


def _other_code(makers: Sequence[Maker]) -> list[str]:
    """The cells whose code is not that of the first of their kind."""
    first: dict[tuple[str, ...], Maker] = {}
    return [
        f"{maker.cell.path}: {maker.kind[0]}: by other code than that of {first[maker.kind].cell.path}"
        for maker in makers
        if maker.code != first.setdefault(maker.kind, maker).code
    ]


def _prepared(layout: Layout, cell: Cell, trained: bool, evaluated: bool) -> bool:
    training = training_parts(layout, cell) if trained else None
    if trained and training is None:
        return False
    return not evaluated or evaluation_parts(layout, cell, digest(training) if training else None) is not None


def _told(found: Iterator[Difference]) -> Iterator[str]:
    """What differs beside code."""
    for one in found:
        if one.part in CODE or ((one.stage, one.part) in OF_CODE and one.then and one.now):
            continue
        if one.part == "scoring" and isinstance(one.then, dict) and isinstance(one.now, dict):
            if one.then.get("config") != one.now.get("config"):
                yield f"{one.stage}: the prompts or options of {one.name} differ"
            continue
        usual = getattr(USUAL.get(one.part), one.name or "", None)
        if one.part in USUAL and (one.then, one.now) in ((None, usual), (usual, None)):
            continue
        yield str(one)


def _with_parents(layout: Layout, cells: Sequence[Cell]) -> Iterator[Cell]:
    """The cells and what they go on from, each once."""
    waiting, seen = list(cells), set[Cell]()
    while waiting:
        cell = waiting.pop(0)
        if cell in seen:
            continue
        seen.add(cell)
        yield cell
        parent = layout.study.parent(cell)
        if parent:
            waiting.append(parent)


def _with_rates_of_tries(layout: Layout) -> Layout:
    """The layout with the rates that its tries, which were compared, give; `tuning.json` has to say the same."""
    found = choices_of(layout, score_tries(layout, complete=False))
    if read_choices(layout, earlier=True)[1] != found:
        raise MolaError(f"{layout.folder}: tuning.json does not say what its tries give; run the study again")
    return dataclasses.replace(layout, rates=found)
