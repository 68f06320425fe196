"""Router statistics of a study, from the cells' `routing.csv`: the paper's Figure 4 and what it leaves open.

An expert's number means nothing across modules, tasks or seeds: expert 3 of one router is not expert 3 of another.
Where experts are averaged they are therefore first sorted by how often they are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mola_core.analysis.experts.left_out import DIVERGED, LeftOut, told, with_file
from mola_core.analysis.experts.redundancy import mola_cells
from mola_core.errors import MolaError
from mola_core.files import atomic_write, read_table
from mola_core.runs.layout import ROUTING, Layout
from mola_core.study.study import Cell, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("routing", "routing_load")
"""Figures of a study's routers: `figures/<name>.{svg,png}`."""
WITHOUT = "without router statistics"
FIX = "remove the file and run `mola routing` again"
KEYS = ["task", "method", "seed", "layer", "module"]
COLUMNS = {"layer", "module", "expert", "tokens", "chosen", "mean_weight"}


def routed_cells(study: Study) -> list[Cell]:
    """The cells that have router statistics: those with experts that are evaluated."""
    return [cell for cell in mola_cells(study) if study.evaluated_on(cell)]


def read(layout: Layout) -> tuple[pd.DataFrame, LeftOut]:
    """The experts of all cells that have statistics (task, method, seed and the cell file's columns), and what is left out.

    Adds `load`, how often the expert is chosen relative to an even use of all experts (1 is even). Raises `MolaError`
    where no cell has them or a file lacks a column.
    """
    frames = []
    cells, left_out = with_file(
        layout, routed_cells(layout.study), lambda cell: layout.cell(cell) / ROUTING, WITHOUT
    )
    for cell in cells:
        path = layout.cell(cell) / ROUTING
        frame = read_table(path, FIX)
        if lacking := COLUMNS - set(frame.columns):
            raise MolaError(f"{path}: no column {min(lacking)}; {FIX}")
        if frame.empty:
            left_out[DIVERGED].append(cell)
            continue
        frames.append(frame.assign(task=cell.task, method=cell.method, seed=cell.seed))
    if not frames:
        raise MolaError(
            f"study {layout.study.name}: no cell has {ROUTING} that counts; make it with"
            " `mola routing --task T --method M --seed S`. " + " ".join(told(left_out))
        )
    experts = pd.concat(frames, ignore_index=True)
    experts["load"] = experts["chosen"] / experts.groupby(KEYS)["chosen"].transform("mean")
    return experts, left_out


def load_entropy(chosen: Sequence[float]) -> float:
    """Entropy of the experts' shares of all choices, divided by its largest value ln E: 1 is even, 0 one expert.

    nan for a single expert, whose entropy says nothing.
    """
    counts = np.asarray(chosen, dtype=float)
    if len(counts) < 2 or counts.sum() == 0:
        return float("nan")
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum() / math.log(len(counts)))


def summarise(experts: pd.DataFrame) -> pd.DataFrame:
    """One row a module of a cell: `KEYS`, experts, tokens, mean_weight, weight_spread, load_entropy, least_load, most_load.

    `mean_weight` is the mean gate over all choices, which is 1 / top-k whatever the router does; `weight_spread`, the
    standard deviation of the experts' mean gates, says how far the experts are from it.
    """
    rows = []
    for key, group in experts.groupby(KEYS, sort=False):
        chosen = group["chosen"]
        weight = (group["mean_weight"].fillna(0) * chosen).sum() / chosen.sum()
        spread = group["mean_weight"].std(ddof=0)
        loads = group["load"]
        entropy = load_entropy(chosen.tolist())
        rows.append(
            (*key, len(group), group["tokens"].iloc[0], weight, spread, entropy, loads.min(), loads.max())
        )
    names = ["experts", "tokens", "mean_weight", "weight_spread", "load_entropy", "least_load", "most_load"]
    return pd.DataFrame(rows, columns=[*KEYS, *names])


def write(layout: Layout) -> LeftOut:
    """Write the study's routing.csv and .parquet (`summarise`) and draw `FIGURES`; returns the cells that are left out.

    Raises `MolaError` as `read` does.
    """
    from mola_core.analysis.figures.adapters import save_adapter_figures
    from mola_core.analysis.figures.style import figure_style
    from mola_core.analysis.notices import notices

    experts, left_out = read(layout)
    summary = summarise(experts)
    with atomic_write(layout.folder / "routing.csv") as temporary:
        summary.to_csv(temporary, index=False)
    with atomic_write(layout.folder / "routing.parquet") as temporary:
        summary.to_parquet(temporary, index=False)
    said = notices(layout.study) + told(left_out)
    with figure_style():
        figures = {
            "routing": histograms(layout.study, experts),
            "routing_load": heat_map(layout.study, experts),
        }
        save_adapter_figures(layout, figures, said)
    return left_out


def _methods(study: Study, experts: pd.DataFrame) -> list[str]:
    return [label for label in study.method_by_label if (experts["method"] == label).any()]


def histograms(study: Study, experts: pd.DataFrame) -> Figure:
    """Experts by the mean weight with which they are chosen, and by how often: a row for each method."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from mola_core.analysis.figures.style import TEXT, study_styles

    methods = _methods(study, experts)
    figure, axes = plt.subplots(
        len(methods), 2, figsize=(TEXT, 0.7 + 1.35 * len(methods)), squeeze=False, sharex="col"
    )
    # The last bin also holds the few experts beyond it.
    widest = max(2.0, min(4.0, math.ceil(2 * experts["load"].max()) / 2))
    styles = study_styles(study)
    for method, (left, right) in zip(methods, axes, strict=True):
        own = experts[experts["method"] == method]
        colour = styles[method].colour
        left.hist(own["mean_weight"].dropna(), bins=np.linspace(0, 1, 41), color=colour)
        right.hist(own["load"].clip(upper=widest), bins=np.linspace(0, widest, 41), color=colour)
        left.set_ylabel("experts")
        left.set_title(method, loc="left")
        right.set_title(
            f"{len(own):,} experts, mean load entropy {summarise(own)['load_entropy'].mean():.3f}"
        )
        right.axvline(1, color="#7F7F7F", linestyle=":", linewidth=1)
        for axis in (left, right):
            axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes[-1, 0].set_xlabel("mean weight where chosen")
    axes[-1, 1].set_xlabel("times chosen, relative to even use (1)")
    return figure


def heat_map(study: Study, experts: pd.DataFrame) -> Figure:
    """Load by layer and expert, most used first; mean over modules, tasks and seeds. A panel for each method."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.ticker import MaxNLocator

    from mola_core.analysis.figures.style import TEXT

    methods = _methods(study, experts)
    ranked = experts.assign(place=experts.groupby(KEYS)["load"].rank(method="first", ascending=False))
    columns = min(4, len(methods))
    rows = -(-len(methods) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(min(TEXT, 1.2 + 1.75 * columns), 0.6 + 2.1 * rows), squeeze=False, sharey=True
    )
    grids = {
        method: ranked[ranked["method"] == method].pivot_table(values="load", index="layer", columns="place")
        for method in methods
    }
    # White is even use; the scale ends where one expert in a hundred is beyond.
    scale = TwoSlopeNorm(1, vmin=0, vmax=max(2.0, float(ranked["load"].quantile(0.99))))
    image = None
    for axis, (method, grid) in zip(axes.flat, grids.items(), strict=False):
        # A layer without an adapter has a place too.
        grid = grid.reindex(range(int(grid.index.max()) + 1))
        depth, most = len(grid), len(grid.columns)
        image = axis.imshow(
            grid,
            origin="lower",
            aspect="auto",
            cmap="RdBu_r",
            norm=scale,
            extent=(0.5, most + 0.5, 0.5, depth + 0.5),
            interpolation="nearest",
        )
        axis.set_facecolor("#E4E4E4")
        axis.grid(False)
        axis.set_title(method)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axis in axes.flat[len(methods) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("layer")
    figure.supxlabel("expert, most used first", fontsize=7.5)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("times chosen, relative to even use (1)")
    return figure
