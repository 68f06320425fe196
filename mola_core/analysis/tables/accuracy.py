"""The study's own tables: accuracies of every method on every task, and what each method costs in parameters."""

import itertools
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mola_core.analysis.collect import chance_label, chance_levels, read_cells, recorded_experts
from mola_core.analysis.notices import missing_cells, notices
from mola_core.analysis.reference import numbers as reference
from mola_core.analysis.tables.parameters import Sizes, closed_form, layer_matrices
from mola_core.analysis.tables.render import EMPTY, count, percent, write_table
from mola_core.errors import MolaError
from mola_core.methods.family import BASE
from mola_core.methods.registry import layer_experts, parse_method, size_hangs_on_data
from mola_core.runs.layout import Layout
from mola_core.shapes import budget
from mola_core.study.study import Study

TABLES = ("accuracy", "parameters")
"""Tables of every study: `tables/<name>.{csv,md,tex}`."""

MAJORITY = "majority class"
CHANCE = {
    MAJORITY: "always the most frequent answer",
    "chance": "knowing nothing of a document: the most frequent class, or one in the number of options where these differ",
}
"""What the first row is, in words."""


def write(layout: Layout) -> None:
    """Write `TABLES` from the files that `collect` wrote.

    Raises `MolaError` where those are missing, and where a trained adapter is larger or smaller than its closed form.
    """
    study, results = layout.study, layout.folder
    cells, folder = read_cells(results), results / "tables"
    said = notices(study, missing_cells(study, cells))
    accuracy = accuracy_table(study, cells)
    write_table(
        folder,
        "accuracy",
        f"Accuracy of {study.model.name} on the tasks of study {study.name}, in percent",
        in_percent(study, accuracy),
        shown_accuracy(study, accuracy),
        said,
        accuracy_notes(study, cells),
    )
    parameters = parameter_table(study, cells, layer_matrices(layout.model))
    notes = ["Closed form and trained count are compared whenever this table is written; they agree."]
    if parameters["closed_form"].isna().any():
        notes = ["The closed form is empty where it has none or where the base model's files are not there."]
    write_table(
        folder,
        "parameters",
        f"Trainable parameters of the methods of study {study.name} on {study.model.name}",
        parameters,
        shown_parameters(parameters),
        said,
        notes,
    )


def row_labels(study: Study) -> list[str]:
    """The methods of the study, the base model first whether or not the study evaluates it."""
    return [BASE, *study.trained_methods()]


def accuracy_table(study: Study, cells: pd.DataFrame) -> pd.DataFrame:
    """One row a method, shares between 0 and 1.

    Columns for each task: `<task>` (mean over seeds), `_sd` (standard deviation over seeds, of two or more),
    `_seeds`, `_documents` and `_paper`; then `mean` over tasks, its `mean_sd` and `mean_paper`, empty unless every
    task is there; trainable parameters (`_counted`), their share of the base model's, and seeds.
    """
    rows = [_majority_row(study, cells)]
    for label in row_labels(study):
        own = cells[cells["method"] == label]
        row: dict[str, Any] = {"method": label}
        own = own.assign(accuracy=own["correct"] / own["documents"])
        by_seed = own.pivot(index="seed", columns="task", values="accuracy").reindex(columns=study.tasks)
        for task in study.tasks:
            values = by_seed[task].dropna()
            row[task] = values.mean() if len(values) else None
            row[f"{task}_sd"] = values.std(ddof=1) if len(values) > 1 else None
            row[f"{task}_seeds"] = len(values)
            row[f"{task}_documents"] = _one(own.loc[own["task"] == task, "documents"])
            row[f"{task}_paper"] = _paper(study, label, task)
        row |= _means(study, row, by_seed.dropna())
        row |= _counted(study, label, own, "trainable_parameters")
        row["share"] = _share(row["trainable_parameters"], cells)
        row["seeds"] = by_seed.notna().any(axis=1).sum()
        rows.append(row)
    return pd.DataFrame(rows)


def in_percent(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """The accuracy table as its CSV has it: percent, columns task by task, without columns that are empty throughout."""
    keys = [key for task in [*study.tasks, "mean"] for key in (task, f"{task}_sd", f"{task}_paper")]
    shares = (100 * table[[*keys, "share"]].astype(float)).round(4)
    counts = table[["trainable_parameters", *_ends("trainable_parameters"), "seeds"]].astype("Int64")
    whole = pd.concat([table["method"], shares, counts], axis=1)
    optional = [key for key in keys if key.endswith("_paper")] + _ends("trainable_parameters")
    return whole.drop(columns=[key for key in optional if whole[key].isna().all()])


def _means(study: Study, row: dict[str, Any], complete: pd.DataFrame) -> dict[str, Any]:
    """Means over tasks; the standard deviation is that of the seeds' means, over seeds that have every task."""
    ours = [row[task] for task in study.tasks]
    paper = [row[f"{task}_paper"] for task in study.tasks]
    return {
        "mean": None if None in ours else sum(ours) / len(ours),
        "mean_sd": complete.mean(axis=1).std(ddof=1) if len(complete) > 1 else None,
        "mean_paper": None if None in paper else sum(paper) / len(paper),
    }


def _majority_row(study: Study, cells: pd.DataFrame) -> dict[str, Any]:
    levels = chance_levels(cells)
    row: dict[str, Any] = {"method": chance_label(cells)}
    for task in study.tasks:
        row[task] = levels.get(task)
    values = [row[task] for task in study.tasks]
    return row | {"mean": None if None in values else sum(values) / len(values)}


def _paper(study: Study, label: str, task: str) -> float | None:
    value = reference.accuracy(study, label, task)
    return None if value is None else value / 100


def _one(values: pd.Series, what: str = "documents") -> Any:
    """The one value that all cells share; None where there are no cells."""
    found = values.dropna().unique()
    if len(found) > 1:
        raise MolaError(f"{what}: the cells differ ({', '.join(map(str, found))}); run the older ones again")
    return found[0].item() if len(found) else None


def _counted(study: Study, label: str, own: pd.DataFrame, name: str) -> dict[str, Any]:
    """Trainable parameters of a method's cells as `name`; their mean where data decide them in each cell, and then the
    least and the most as `_ends`. Raises `MolaError` where they differ otherwise."""
    found = own["trainable_parameters"].dropna()
    by_data = label in study.method_by_label and size_hangs_on_data(
        study.method_by_label[label], study.adapter
    )
    if not by_data or found.nunique() < 2:
        return {name: _one(found, f"method {label}: trainable parameters")} | dict.fromkeys(_ends(name))
    ends = (int(found.min()), int(found.max()))
    return {name: round(found.mean()), **dict(zip(_ends(name), ends, strict=True))}


def _ends(name: str) -> list[str]:
    return [f"{name}_from", f"{name}_to"]


def _shown_count(row: dict[str, Any], name: str) -> str:
    """A count as it is read: `49,152`, or `49,152 to 49,792`."""
    ends = [row[key] for key in _ends(name) if pd.notna(row.get(key))]
    return " to ".join(map(count, ends or [row[name]]))


def _share(trainable: int | None, cells: pd.DataFrame) -> float | None:
    base = _one(cells["base_parameters"], "base_parameters")
    return None if trainable is None or base is None else trainable / base


def shown_accuracy(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """The accuracy table as it is read: `85.13 ± 0.42 (86.87)`, the paper's number in parentheses."""
    rows = []
    for row in table.to_dict("records"):
        shown = {"Method": row["method"]}
        for task in study.tasks:
            short = 0 < row[f"{task}_seeds"] < len(study.seeds) and row["trainable_parameters"] != 0
            seeds = f" [{row[f'{task}_seeds']:.0f} of {len(study.seeds)} seeds]" if short else ""
            shown[reference.task_title(task)] = _shown(row, task) + seeds
        if len(study.tasks) > 1:
            shown["Mean"] = _shown(row, "mean")
        shown["Parameters"] = _shown_count(row, "trainable_parameters")
        shown["Share %"] = percent(row["share"])
        shown["Seeds"] = EMPTY if pd.isna(row["seeds"]) else f"{row['seeds']:.0f}"
        rows.append(shown)
    return pd.DataFrame(rows)


def _shown(row: dict[str, Any], key: str) -> str:
    text = percent(row[key])
    if pd.notna(row.get(f"{key}_sd")):
        text += f" ± {percent(row[f'{key}_sd'])}"
    if pd.notna(row.get(f"{key}_paper")):
        text += f" ({percent(row[f'{key}_paper'])})"
    return text


def accuracy_notes(study: Study, cells: pd.DataFrame) -> list[str]:
    documents = [
        f"{reference.task_title(task)} {own['documents'].iloc[0]:,}"
        for task in study.tasks
        if not (own := cells[cells["task"] == task]).empty
    ]
    notes = [
        f"Evaluated documents: {', '.join(documents)}. Every accuracy is k of them; the mean weighs tasks equally.",
        f"`{chance_label(cells)}`: {CHANCE[chance_label(cells)]}. The base model is evaluated once: it has no seed noise.",
    ]
    if len(study.seeds) > 1:
        notes.append("± is the standard deviation over seeds, not an interval.")
    if study.model.paper:
        notes.append(f"In parentheses: {reference.PAPER}, {study.model.paper}, its single run.")
    return notes


def parameter_table(study: Study, cells: pd.DataFrame, layers: Sizes) -> pd.DataFrame:
    """One row a method: experts (or rank) per layer, budget, parameters in closed form and as trained (`_counted`), share.

    Raises `MolaError` where the two counts differ: then the adapter is not what the study says it is.
    """
    rows = []
    for label in row_labels(study):
        counted = _counted(study, label, cells[cells["method"] == label], "trained")
        trained = counted["trained"]
        expected = closed_form(study, label, layers) if layers and label in study.method_by_label else None
        ends = [each for each in counted.values() if each is not None]
        if expected is not None and any(each != expected for each in ends):
            raise MolaError(
                f"method {label}: {_shown_count(counted, 'trained')} trained parameters, but its closed form gives {expected:,}; "
                "the adapter is not the study's: delete the method's cells and run them again"
            )
        rows.append(
            {"method": label, **_capacity(study, label, cells, layers)}
            | {"closed_form": expected, **counted, "share": _share(trained, cells)}
        )
    frame = pd.DataFrame(rows)
    ends_of = _ends("trained")
    frame = frame.astype({name: "Int64" for name in ("budget", "closed_form", "trained", *ends_of)})
    return frame.drop(columns=[name for name in ends_of if frame[name].isna().all()])


def _capacity(study: Study, label: str, cells: pd.DataFrame, layers: Sizes) -> dict[str, Any]:
    """What stands in each layer, in runs of equal layers: `8 × 2, 7 × 4` is eight layers of two, seven of four."""
    nothing = {"rank": None, "experts_per_layer": None, "experts": None, "budget": None}
    if label not in study.method_by_label:
        return nothing
    settings = study.method_by_label[label]
    method, depth = parse_method(settings), model_depth(cells, layers)
    rank = runs(settings.rank) if isinstance(settings.rank, list) else settings.adapter(study.adapter).rank
    if method.rank:
        return nothing | {"rank": method.rank}
    if method.budget is not None and label in (chosen := recorded_experts(cells)):
        same = cells.loc[cells["method"] == label, "experts"].dropna().nunique() == 1
        return {
            "rank": rank,
            "experts_per_layer": runs([int(count) for count in chosen[label]]) if same else "differ by cell",
            "experts": round(sum(chosen[label])),
            "budget": method.budget,
        }
    if not (method.shape or settings.experts) or depth is None:
        return nothing
    experts = layer_experts(settings, depth)
    assert experts is not None
    if isinstance(experts, dict):
        by_module = "; ".join(f"{name} {runs(counts)}" for name, counts in experts.items())
        return nothing | {"rank": rank, "experts_per_layer": by_module}
    return {
        "rank": rank,
        "experts_per_layer": runs(experts),
        "experts": sum(experts),
        "budget": budget(method.shape) if method.shape else None,
    }


def runs(experts: Sequence[int]) -> str:
    return ", ".join(f"{len(list(group))} × {value}" for value, group in itertools.groupby(experts))


def model_depth(cells: pd.DataFrame, layers: Sizes) -> int | None:
    """Layers of the base model: from its tensors, else from the experts that a MoLA cell was trained with."""
    if layers:
        return len(layers)
    return next((len(experts) for experts in recorded_experts(cells).values()), None)


def shown_parameters(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for row in table.to_dict("records"):
        experts = row["experts_per_layer"]
        rows.append(
            {
                "Method": row["method"],
                "Layers × experts": experts if isinstance(experts, str) else EMPTY,
                "Rank": row["rank"] if isinstance(row["rank"], str) else count(row["rank"]),
                "Budget": count(row["budget"]),
                "Closed form": count(row["closed_form"]),
                "Trained": _shown_count(row, "trained"),
                "Share %": percent(row["share"]),
            }
        )
    return pd.DataFrame(rows)
