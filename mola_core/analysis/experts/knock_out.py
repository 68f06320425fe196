"""Knock-out of a study: accuracy and likelihood lost with each quarter of the depth switched off, from the cells' knockout.csv."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mola_core.analysis.experts.left_out import DIVERGED, LeftOut, told, with_file
from mola_core.errors import MolaError
from mola_core.files import atomic_write, read_table
from mola_core.methods.registry import adapter_config_without_model
from mola_core.runs.layout import KNOCK_OUT, Layout
from mola_core.study.study import Cell, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("knock_out",)
"""`figures/<name>.{svg,png}`."""
WITHOUT = "without knock-out"
FIX = "remove the file and run `mola knockout` again"


def knocked_out_cells(study: Study) -> list[Cell]:
    """The cells of the score matrix whose adapter is in layers that can be switched off."""
    methods = {
        label
        for label, method in study.method_by_label.items()
        if adapter_config_without_model(method, study.adapter).get("target_modules")
    }
    return [cell for cell in study.cells() if cell.method in methods]


def losses(layout: Layout) -> tuple[pd.DataFrame, LeftOut]:
    """A row for each cell and part: `accuracy_lost` and `likelihood_lost`, in points, against nothing switched off; and
    the cells that are left out. Raises `MolaError` where no table counts, and for one that lacks a column or row."""
    frames = []
    cells, left_out = with_file(
        layout, knocked_out_cells(layout.study), lambda cell: layout.cell(cell) / KNOCK_OUT, WITHOUT
    )
    for cell in cells:
        file = layout.cell(cell) / KNOCK_OUT
        frame = read_table(file, FIX, dtype={"part": str}, keep_default_na=False, na_values=[""])
        if lacking := {"part", "documents", "accuracy", "likelihood"} - set(frame.columns):
            raise MolaError(f"{file}: no column {min(lacking)}; {FIX}")
        if frame.empty:
            left_out[DIVERGED].append(cell)
            continue
        if "none" not in set(frame["part"]):
            raise MolaError(f"{file}: no row `none`; {FIX}")
        whole = frame[frame["part"] == "none"].iloc[0]
        for name in ("accuracy", "likelihood"):
            frame[f"{name}_lost"] = 100 * (whole[name] - frame[name])
        frames.append(frame.assign(task=cell.task, method=cell.method, seed=cell.seed))
    if not frames:
        raise MolaError(
            f"study {layout.study.name}: no cell has {KNOCK_OUT} that counts; make it with `mola knockout --task T --method M --seed S`. "
            + " ".join(told(left_out))
        )
    together = pd.concat(frames, ignore_index=True)
    asked = together.groupby("task")["documents"].nunique()
    if (asked > 1).any():
        raise MolaError(
            f"study {layout.study.name}: {KNOCK_OUT} of {asked.idxmax()} is of other numbers of documents in some cells than in "
            "others; remove the older ones and run `mola knockout` again"
        )
    cuts = together.groupby(["task", "method", "seed"])["part"].agg(tuple)
    if cuts.nunique() > 1:
        other = "/".join(map(str, cuts[cuts != cuts.iloc[0]].index[0][:2]))
        raise MolaError(
            f"study {layout.study.name}: {KNOCK_OUT} of {other} is by other parts of the depth than the first cell's; make all by "
            "quarter or all by layer (`mola knockout --by`)"
        )
    return together, left_out


def write(layout: Layout) -> LeftOut:
    """Write the study's knockout.csv and draw its figure; returns the cells that are left out."""
    from mola_core.analysis.figures.adapters import save_adapter_figures
    from mola_core.analysis.figures.style import figure_style
    from mola_core.analysis.notices import notices

    frame, left_out = losses(layout)
    order = ["task", "method", "seed", *(name for name in frame if name not in ("task", "method", "seed"))]
    with atomic_write(layout.folder / KNOCK_OUT) as temporary:
        frame[order].to_csv(temporary, index=False)
    said = notices(layout.study) + told(left_out)
    with figure_style():
        save_adapter_figures(layout, {"knock_out": draw(layout.study, frame)}, said)
    return left_out


def draw(study: Study, frame: pd.DataFrame) -> Figure:
    """Two panels, accuracy and likelihood lost, against the part that is off; a line a method."""
    import matplotlib.pyplot as plt

    from mola_core.analysis.figures.drawing import legend_height, shared_legend
    from mola_core.analysis.figures.style import TEXT, study_styles

    parts = [part for part in dict.fromkeys(frame["part"]) if part not in ("none", "all")]
    labels = [label for label in study.method_by_label if (frame["method"] == label).any()]
    styles = study_styles(study)
    figure, axes = plt.subplots(1, 2, figsize=(TEXT, 2.8 + legend_height(len(labels))))
    for axis, what in zip(axes, ("accuracy", "likelihood"), strict=True):
        for shift, label in enumerate(labels):
            own = frame[frame["method"] == label]
            by_seed = own.groupby(["part", "seed"])[f"{what}_lost"].mean().unstack("seed").reindex(parts)
            mean = by_seed.mean(axis=1)
            places = [place + 0.06 * (shift - (len(labels) - 1) / 2) for place in range(len(parts))]
            spread = [mean - by_seed.min(axis=1), by_seed.max(axis=1) - mean]
            axis.errorbar(
                places, mean, yerr=spread, elinewidth=0.7, linestyle=styles[label].line, label=label,
                **styles[label].marker_options(),
            )  # fmt: skip
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_xticks(range(len(parts)), parts)
        quarters = parts[:1] == ["1"]  # layers count from 0
        axis.set_xlabel("quarter that is off, first layers first" if quarters else "layer that is off")
        axis.set_ylabel(f"{what} lost, points")
    shared_legend(figure, list(axes))
    return figure
