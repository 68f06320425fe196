"""The paper's tables in its layout: our number, the paper's, and the difference.

Only tables in which the study has something to put are written; what it lacks of them stays empty. Our number is the
mean over the study's seeds; the paper's is a single run, except in Table 8.
"""

from typing import Any

import pandas as pd

from mola_core.analysis.collect import read_cells
from mola_core.analysis.notices import continual_notices, missing_cells, notices
from mola_core.analysis.paper.catalogue import (
    ACCURACY_TABLES,
    ALL_PAPER_TABLES,
    CONTINUAL_TABLES,
    PaperTable,
    tables_of,
)
from mola_core.analysis.paper.comparison import MEASURES, accuracy_numbers, continual_detail, op_and_pd
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


def write(layout: Layout) -> None:
    """Write the tables that `tables_of` names from the files that `collect` wrote, and the
    matrix figure where the study has continual learning."""
    study, results = layout.study, layout.folder
    cells, folder = read_cells(results), results / "tables"
    said = notices(study, missing_cells(study, cells))
    frame = continual.read(results)
    wanted = set(tables_of(study))
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
    ours = None
    if frame is not None:
        ours = frame.assign(method=frame["method"].map(reference.paper_names(study))).dropna(subset="method")
    said_of_chains = continual_notices(study, frame)
    for number, builder in [(5, op_and_pd), (6, continual_detail)]:
        if f"paper-{number}" not in wanted:
            continue
        numbers = builder(ours)
        title = f"Table {number} of {reference.PAPER}: {CONTINUAL_TABLES[number]}"
        shown = _pivoted(numbers.assign(column=numbers["column"].replace({"op": "OP", "pd": "PD"})))
        note = _CONTINUAL_NOTE if number == 5 else _LEGEND
        own = said_of_chains + other_model(study, numbers)
        write_table(folder, f"paper-{number}", title, _wide(numbers), shown, own, [note])
    if frame is not None:
        from mola_core.analysis.figures import continual as continual_plot

        continual_plot.write_figure(frame, results / "figures", said_of_chains)


def other_model(study: Study, numbers: pd.DataFrame) -> list[str]:
    """What to say above a table that compares another base model with the paper's, or nothing at all."""
    if numbers["ours"].isna().all():
        return ["This study has none of this table's results: our fields are empty."]
    if study.model.paper:
        return []
    return [
        f"Our base model is {study.model.name}: differences to the paper's LLaMA-2-7B are between two models."
    ]


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
