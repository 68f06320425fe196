"""The paper's tables 1-9 in its layout: our number, the paper's, and the difference.

Only tables in which the study has something to put are written; what it lacks of them stays empty. Our number is the mean over the study's seeds; the paper's is a single run,
except in Table 8.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd

from mola_core.analysis.collect import read_cells
from mola_core.analysis.notices import missing_cells, notices
from mola_core.analysis.reference import numbers as reference
from mola_core.analysis.statistics import continual
from mola_core.analysis.tables.render import EMPTY, KINDS, count, percent, points, write_table
from mola_core.runs.layout import Layout
from mola_core.study.study import Study

SYMBOLS = {"5555": "□", "8888": "□", "4444": "□"} | {
    **dict.fromkeys(["8642", "6532"], "△"),
    **dict.fromkeys(["8228", "6226"], "▷◁"),
    **dict.fromkeys(["2468", "2356"], "▽"),
    **dict.fromkeys(["2882", "2662"], "✸"),
}
MEASURES = ("ours", "ours_low", "ours_high", "paper", "paper_low", "paper_high", "difference")
Z = 1.96
"""Quantile of the paper's intervals (its appendix F): mean ± z sd / sqrt(seeds)."""


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables of accuracies: which rows of the reference file it prints, and what stands beside."""

    number: int
    title: str
    base_models: tuple[str, ...]
    setting: str
    parameters: bool = False
    mean: bool = False
    intervals: bool = False

    @property
    def stem(self) -> str:
        return f"paper-{self.number}"

    @property
    def key(self) -> str:
        """Its name in the reference file."""
        return f"naacl-{self.number}"

    def rows(self, base_model: str) -> list[str]:
        frame = reference.results()
        own = frame[(frame["table"] == self.key) & (frame["base_model"] == base_model)]
        return list(dict.fromkeys(own["method"]))


ACCURACY_TABLES = (
    PaperTable(1, "direct fine-tuning, LLaMA-2-7B", ("Llama-2-7b",), "direct", parameters=True),
    PaperTable(2, "direct fine-tuning, Mistral-7B", ("Mistral-7B",), "direct"),
    PaperTable(3, "extreme shapes", ("Llama-2-7b", "Mistral-7B"), "direct", mean=True),
    PaperTable(4, "instruction tuning, then fine-tuning, LLaMA-2-7B", ("Llama-2-7b",), "instruction-tuned"),
    PaperTable(7, "direct fine-tuning, Gemma", ("Gemma-7b",), "direct"),
    PaperTable(8, "95 % intervals over seeds, LLaMA-2-7B", ("Llama-2-7b",), "direct", intervals=True),
    PaperTable(9, "PiSSA initialisation, LLaMA-2-7B", ("Llama-2-7b",), "direct-pissa"),
)
CONTINUAL_TABLES = {5: "continual learning, LLaMA-2-7B", 6: "continual learning in detail, LLaMA-2-7B"}
ALL_PAPER_TABLES = tuple(f"paper-{number}" for number in range(1, 10))
"""Stems of every table that `write` may write, `tables/<stem>.{csv,md,tex}`."""


def tables_of(study: Study) -> tuple[str, ...]:
    """Stems of the paper's tables in which the study has anything to put, by the study's file alone.

    The workflow plans by it, before a cell is there. A table is filled where a task of the study is the paper's and a
    method of it is a row of the table after the same kind of tuning; Table 8 needs two seeds; Tables 5 and 6 continual learning.
    """
    stems = []
    tasks = set(reference.TASKS) & set(study.tasks)
    for table in ACCURACY_TABLES:
        rows = {
            name
            for base in table.base_models
            if study_labels(table, study, base)
            for name in table.rows(base)
        }
        labels = {name for base in table.base_models for name in study_labels(table, study, base)}
        seeds = not table.intervals or len(study.seeds) > 1
        if tasks and labels & rows and seeds:
            stems.append(table.stem)
    if study.continual_cells() and set(reference.paper_names(study).values()) & set(
        reference.continual()["method"]
    ):
        stems += [f"paper-{number}" for number in CONTINUAL_TABLES]
    return tuple(sorted(stems))


def write(layout: Layout, out_dir: Path | None = None) -> None:
    """Write the tables that `tables_of` names from the files that `collect` wrote into `out_dir` (default: the study's folder), and the
    matrix figure where the study has continual learning."""
    study, results = layout.study, Path(out_dir or layout.folder)
    cells, folder = read_cells(results), results / "tables"
    said = notices(study, missing_cells(study, cells))
    frame = continual.read(results)
    wanted = set(tables_of(study)) | (
        {f"paper-{n}" for n in CONTINUAL_TABLES} if frame is not None else set()
    )
    for stem in set(ALL_PAPER_TABLES) - wanted:
        for kind in KINDS:
            (folder / f"{stem}.{kind}").unlink(missing_ok=True)
    for table in ACCURACY_TABLES:
        if table.stem not in wanted:
            continue
        numbers = accuracy_numbers(table, study, cells)
        title = f"Table {table.number} of {reference.PAPER}: {table.title}"
        own = said + other_model(study, numbers)
        write_table(
            folder, table.stem, title, _wide(numbers), _shown(table, numbers), own, _notes(table, numbers)
        )
    ours = None if frame is None else frame.assign(method=frame["method"].map(reference.paper_names(study)))
    for number, builder in [(5, op_and_pd), (6, continual_detail)]:
        if f"paper-{number}" not in wanted:
            continue
        numbers = builder(ours)
        title = f"Table {number} of {reference.PAPER}: {CONTINUAL_TABLES[number]}"
        shown = _pivoted(numbers.assign(column=numbers["column"].replace({"op": "OP", "pd": "PD"})))
        note = _CONTINUAL_NOTE if number == 5 else _LEGEND
        own = said + other_model(study, numbers)
        write_table(folder, f"paper-{number}", title, _wide(numbers), shown, own, [note])
    if frame is not None:
        from mola_core.analysis.figures import continual as continual_plot

        continual_plot.write_figure(frame, results / "figures", notices(study))


def stands_for(study: Study) -> str:
    """The paper's base model whose tables the study fills; models that it does not have fill those of LLaMA-2."""
    return study.model.paper or "Llama-2-7b"


def other_model(study: Study, numbers: pd.DataFrame) -> list[str]:
    """What to say above a table that compares another base model with the paper's, or nothing at all."""
    if numbers["ours"].isna().all():
        return ["This study has none of this table's results: our fields are empty."]
    if study.model.paper:
        return []
    return [
        f"Our base model is {study.model.name}: differences to the paper's LLaMA-2-7B are between two models."
    ]


def study_labels(table: PaperTable, study: Study, base_model: str) -> dict[str, str]:
    """The paper's row -> method of the study, for one of the paper's tables."""
    if base_model != stands_for(study):
        return {}
    return {
        name: label
        for label, name in reference.paper_names(study).items()
        if reference.setting(study, label) == table.setting
    }


def accuracy_numbers(table: PaperTable, study: Study, cells: pd.DataFrame) -> pd.DataFrame:
    """One row for each number that the paper's table prints.

    Columns: base_model, row (the paper's name), column (task, or `parameters` or `mean`), ours and paper (percent,
    or a count), difference, ours_low and ours_high and paper_low and paper_high (Table 8), seeds, on_grid.
    """
    frame = reference.results()
    frame = frame[frame["table"] == table.key]
    rows = []
    for base_model in table.base_models:
        labels = study_labels(table, study, base_model)
        for name in table.rows(base_model):
            own = cells[cells["method"] == labels.get(name)]
            printed = frame[(frame["base_model"] == base_model) & (frame["method"] == name)].set_index("task")
            found = [
                _number(table, own[own["task"] == task], printed.loc[task], documents) | {"column": task}
                for task, (_, documents) in reference.TASKS.items()
            ]
            if table.parameters:
                found.append(_parameters(own, base_model, name))
            if table.mean:
                found.append(_mean(found))
            rows += [{"base_model": base_model, "row": name} | entry for entry in found]
    return pd.DataFrame(rows)


def _number(table: PaperTable, own: pd.DataFrame, printed: pd.Series, documents: int) -> dict[str, Any]:
    values = 100 * own["correct"] / own["documents"]
    entry: dict[str, Any] = {"ours": values.mean() if len(own) else None, "seeds": len(own)}
    entry |= {"paper": printed["accuracy"], "on_grid": reference.on_grid(printed["accuracy"], documents)}
    if table.intervals:
        half = Z * values.std(ddof=1) / math.sqrt(len(own)) if len(own) > 1 else None
        entry["ours_low"], entry["ours_high"] = (
            (None, None) if half is None else (values.mean() - half, values.mean() + half)
        )
        # One run has no interval; the midpoints that the paper's Table 8 stands for are on no grid.
        entry |= {"ours": None if half is None else entry["ours"], "on_grid": True}
        entry |= {"paper_low": printed["ci_low"], "paper_high": printed["ci_high"]}
    return entry | {"difference": _minus(entry["ours"], entry["paper"])}


def _parameters(own: pd.DataFrame, base_model: str, name: str) -> dict[str, Any]:
    frame = reference.parameters()
    found = frame.loc[(frame["base_model"] == base_model) & (frame["method"] == name), "trainable_parameters"]
    ours = None if own.empty else int(own["trainable_parameters"].iloc[0])
    paper = None if found.empty else int(found.iloc[0])
    return {
        "column": "parameters",
        "ours": ours,
        "paper": paper,
        "difference": _minus(ours, paper),
        "on_grid": True,
    }


def _mean(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of the row, empty unless the row is whole."""
    ours = [entry["ours"] for entry in entries]
    mean = None if None in ours else sum(ours) / len(ours)
    paper = sum(entry["paper"] for entry in entries) / len(entries)
    return {
        "column": "mean",
        "ours": mean,
        "paper": paper,
        "difference": _minus(mean, paper),
        "on_grid": True,
    }


def _minus(ours: float | None, paper: float | None) -> float | None:
    return None if ours is None or paper is None else ours - paper


def op_and_pd(ours: pd.DataFrame | None) -> pd.DataFrame:
    """The paper's Table 5: OP and PD in percent, ours and those that follow from the paper's Table 6."""
    paper = continual.summary(reference.continual().assign(seed=0)).set_index("method")
    mine = (
        None
        if ours is None
        else continual.summary(ours.dropna(subset="method")).groupby("method")[["op", "pd"]].mean()
    )
    rows = []
    for name in paper.index:
        for measure in ("op", "pd"):
            value = None if mine is None or name not in mine.index else 100 * mine.loc[name, measure]
            printed = paper.loc[name, measure]
            rows.append(
                {
                    "row": name,
                    "column": measure,
                    "ours": value,
                    "paper": printed,
                    "difference": _minus(value, printed),
                }
            )
    return pd.DataFrame(rows).assign(on_grid=True)


def continual_detail(ours: pd.DataFrame | None) -> pd.DataFrame:
    """The paper's Table 6: a row for each pair trained up to - tested on, a column for each method."""
    keys = ["method", "trained_up_to", "tested_on"]
    mine = {} if ours is None else ours.groupby(keys)["accuracy"].mean().to_dict()
    rows = []
    for entry in reference.continual().itertuples():
        value = mine.get((entry.method, entry.trained_up_to, entry.tested_on))
        value = None if value is None else 100 * value
        rows.append(
            {
                "row": f"{entry.trained_up_to} – {entry.tested_on}",
                "column": entry.method,
                "ours": value,
                "paper": entry.accuracy,
                "difference": _minus(value, entry.accuracy),
                "on_grid": reference.on_grid(entry.accuracy, reference.TOPIC_DOCUMENTS[entry.tested_on]),
            }
        )
    return pd.DataFrame(rows)


def _wide(numbers: pd.DataFrame) -> pd.DataFrame:
    """The paper's layout with three columns (ours, paper, difference) for each of its own."""
    measures = [name for name in MEASURES if name in numbers]
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in numbers.to_dict("records"):
        names = {key: entry[key] for key in ("base_model", "row") if key in entry}
        row = rows.setdefault(tuple(names.values()), names)
        row |= {f"{entry['column']}_{measure}": entry[measure] for measure in measures}
    wide = pd.DataFrame(list(rows.values())).round(4)
    counts = [name for name in wide if name.startswith("parameters_")]
    return wide.astype(dict.fromkeys(counts, "Int64"))


_LEGEND = "Each field: ours (the paper's, the difference in points)."
_CONTINUAL_NOTE = (
    f"{_LEGEND} The paper's are computed from its Table 6; what it prints agrees within its rounding."
)


def _notes(table: PaperTable, numbers: pd.DataFrame) -> list[str]:
    notes = [_LEGEND]
    if table.intervals:
        notes = [
            "Each field: our interval (the paper's), mean ± 1.96 sd / sqrt(seeds); empty with fewer than two seeds."
        ]
    if table.mean:
        notes.append(
            "The means are those of the rows; for Mistral the paper prints others, 0.15 to 0.27 higher."
        )
    if not numbers["on_grid"].all():
        notes.append("† The paper's number is no k/n of the documents that it evaluates.")
    return notes


def row_title(name: str) -> str:
    """`MoLA-▽ (2468)` as the paper writes it, for a shape that it gives a symbol."""
    plain = name.removeprefix("pissa-")
    shape = plain.removeprefix("mola-")
    if shape in SYMBOLS:
        plain = f"MoLA-{SYMBOLS[shape]} ({shape})"
    return f"PiSSA + {plain}" if name.startswith("pissa-") else plain


def _shown(table: PaperTable, numbers: pd.DataFrame) -> pd.DataFrame:
    titles = {task: title for task, (title, _) in reference.TASKS.items()} | {
        "parameters": "Parameters",
        "mean": "Mean",
    }
    numbers = numbers.assign(row=numbers["row"].map(row_title), column=numbers["column"].map(titles))
    if len(table.base_models) > 1:
        numbers["row"] = numbers["base_model"] + " " + numbers["row"]
    return _pivoted(numbers)


def _pivoted(numbers: pd.DataFrame) -> pd.DataFrame:
    rows: dict[str, dict[str, str]] = {}
    for entry in numbers.to_dict("records"):
        rows.setdefault(entry["row"], {"": entry["row"]})[entry["column"]] = _text(entry)
    return pd.DataFrame(list(rows.values())).fillna(EMPTY)


def _text(entry: dict[str, Any]) -> str:
    if entry["column"] == "Parameters":
        paper = "" if pd.isna(entry["paper"]) else f" ({count(entry['paper'])})"
        return count(entry["ours"]) + paper
    if "paper_low" in entry:
        return f"{_interval(entry['ours_low'], entry['ours_high'])} ({_interval(entry['paper_low'], entry['paper_high'])})"
    mark = "" if entry["on_grid"] else "†"
    paper = f"{entry['paper']:.2f}{mark}".replace("-", "−")
    if pd.isna(entry["ours"]):
        return f"{EMPTY} ({paper})"
    return f"{percent(entry['ours'] / 100)} ({paper}, {points(entry['difference'] / 100)})"


def _interval(low: float | None, high: float | None) -> str:
    return EMPTY if low is None or pd.isna(low) else f"{low:.2f}–{high:.2f}"
