"""How far a study has reproduced the paper: every table and figure with its state and what is missing."""

import dataclasses
from collections.abc import Collection, Iterable

import pandas as pd

from mola_core.analysis.collect import evaluation_state
from mola_core.analysis.paper.catalogue import (
    ACCURACY_TABLES,
    CONTINUAL_TABLES,
    PaperTable,
    continues_as_the_paper,
    stands_for,
    study_labels,
)
from mola_core.analysis.reference import numbers as reference
from mola_core.analysis.statistics import continual
from mola_core.files import read_table
from mola_core.runs.layout import Layout
from mola_core.study.study import Cell

SEEDS_OF_TABLE_8 = 3


@dataclasses.dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper that is computed from trained adapters."""

    name: str
    title: str
    methods: tuple[str, ...]
    file: str
    """What it is drawn from, in the study's folder: one row or more for each method, column `method`."""


PAPER_FIGURES = (
    PaperFigure(
        "Figure 3", "difference between experts by layer, 8888", ("mola-8888",), "redundancy.parquet"
    ),
    PaperFigure("Figure 4", "router statistics, 8888", ("mola-8888",), "routing.parquet"),
    PaperFigure(
        "Figure 5",
        "difference between experts, 8888 and 5555",
        ("mola-8888", "mola-5555"),
        "redundancy.parquet",
    ),
    PaperFigure(
        "Figure 6",
        "difference between experts, 2468, 8642, 8228",
        ("mola-2468", "mola-8642", "mola-8228"),
        "redundancy.parquet",
    ),
    PaperFigure(
        "Appendix H", "layer quality and the difference between experts", ("mola-8888",), "quality.parquet"
    ),
)


def reproduce(layout: Layout) -> pd.DataFrame:
    """One row for each table and figure of the paper: item, title, state, missing.

    `state` is `done`, `partly` or `not started`; `missing` names what the study lacks for it: cells that it has but
    that are not complete, and what it does not have at all.
    """
    every = [*layout.study.cells(), *layout.study.continual_cells()]
    states = {cell: evaluation_state(layout, cell) for cell in every}
    rows = [
        (table.number, f"Table {table.number}", table.title, *_table(layout, table, states))
        for table in ACCURACY_TABLES
    ]
    complete = {
        label
        for label in layout.study.method_by_label
        if all(state == "complete" for cell, state in states.items() if cell.method == label)
    }
    done = _continual_methods(layout, complete)
    wanted = list(dict.fromkeys(reference.continual()["method"]))
    for number, title in CONTINUAL_TABLES.items():
        rows.append((number, f"Table {number}", title, *_state(wanted, done, "continual learning of ")))
    for position, figure in enumerate(PAPER_FIGURES, start=10):
        there = _methods_in(layout, figure.file, complete)
        rows.append((position, figure.name, figure.title, *_state(figure.methods, there, f"{figure.file}: ")))
    return pd.DataFrame([row[1:] for row in sorted(rows)], columns=["item", "title", "state", "missing"])


def _table(layout: Layout, table: PaperTable, states: dict[Cell, str]) -> tuple[str, str]:
    study = layout.study
    if stands_for(study) not in table.base_models:
        return "not started", f"base model {' and '.join(table.base_models)}"
    done, missing = 0, []
    for base_model in table.base_models:
        labels = study_labels(table, study, base_model)
        if base_model != stands_for(study):
            missing.append(f"base model {base_model}")
            continue
        absent = [name for name in table.rows(base_model) if name not in labels]
        if absent:
            missing.append(
                f"methods {', '.join(absent)}" + (" after instruction tuning" if table.number == 4 else "")
            )
        printed = {labels[name] for name in table.rows(base_model) if name in labels}
        own = [cell for cell in states if cell.method in printed and cell.task in reference.TASKS]
        done += sum(states[cell] == "complete" for cell in own)
        missing_cells = [cell.path for cell in own if states[cell] != "complete"]
        if missing_cells:
            missing.append(f"{len(missing_cells)} of {len(own)} cells, the first is {missing_cells[0]}")
    tasks = [task for task in reference.TASKS if task not in study.tasks]
    if tasks:
        missing.append(f"tasks {', '.join(tasks)}")
    if table.intervals and len(study.seeds) < SEEDS_OF_TABLE_8:
        missing.append(f"seeds: {SEEDS_OF_TABLE_8} instead of {len(study.seeds)}")
    return _word(bool(done), bool(missing)), "; ".join(missing)


def _continual_methods(layout: Layout, complete: Collection[str]) -> set[str]:
    return _methods_in(layout, continual.FILE, complete) if continues_as_the_paper(layout.study) else set()


def _methods_in(layout: Layout, file: str, complete: Collection[str]) -> set[str]:
    """The paper's names of the `complete` methods that a file has rows of."""
    path, names = layout.folder / file, reference.paper_names(layout.study)
    if not path.is_file():
        return set()
    there = set(read_table(path, "remove it and make it again", columns=["method"])["method"])
    return {names[label] for label in there & {*complete} & names.keys()}


def _state(wanted: Iterable[str], there: set[str], what: str) -> tuple[str, str]:
    missing = [name for name in wanted if name not in there]
    done = bool(there & set(wanted))
    return _word(done, bool(missing)), what + ", ".join(missing) if missing else ""


def _word(done: bool, missing: bool) -> str:
    return "not started" if not done else "partly" if missing else "done"
