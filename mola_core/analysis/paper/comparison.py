"""Ours beside the paper's, field by field: mean over our seeds, the printed number, the difference."""

import math
from typing import Any

import pandas as pd

from mola_core.analysis.paper.catalogue import PaperTable, study_labels
from mola_core.analysis.reference import numbers as reference
from mola_core.analysis.statistics import continual
from mola_core.study.study import Study

MEASURES = ("ours", "ours_low", "ours_high", "paper", "paper_low", "paper_high", "difference")
Z = 1.96
"""Quantile of the paper's intervals (its appendix F): mean ± z sd / sqrt(seeds)."""


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
        None if ours is None or ours.empty else continual.summary(ours).groupby("method")[["op", "pd"]].mean()
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
