"""Layer quality beside expert redundancy: do better trained layers have experts that are more alike (appendix H)?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mola_core.analysis.experts.redundancy import ATTENTION
from mola_core.analysis.reference.numbers import FOLDER
from mola_core.errors import MolaError
from mola_core.files import atomic_write, read_table
from mola_core.models.layer_quality import stored
from mola_core.runs.layout import Layout
from mola_core.study.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("layer_quality",)
ESTIMATES = {"fitted": "tail fitted (AlphaLoRA)", "median": "upper half"}
"""Columns of the scores, as `mola_core.models.layer_quality` has them, and what they are."""
PAPER_SCORES = FOLDER / "paper_layer_quality.csv"


def layer_means(layout: Layout) -> pd.DataFrame:
    """PL_Alpha_Hill of each layer, the mean over its matrices: layer (from 0), fitted, median.

    Raises `MolaError` where the base model was not measured.
    """
    if not layout.quality.is_file():
        raise MolaError(f"{layout.quality}: no such file; run `mola layers --study {layout.study.name}`")
    return stored(layout.quality)[1].groupby("layer")[list(ESTIMATES)].mean().reset_index()


def layer_differences(redundancy: pd.DataFrame) -> pd.DataFrame:
    """Mean difference between experts by method and layer: over the attention modules' BA, tasks and seeds.

    Columns: method, layer, difference. Takes the table that `redundancy.measure` gives.
    """
    own = redundancy[(redundancy["matrix"] == "BA") & redundancy["module"].isin(ATTENTION)]
    means = own.groupby(["method", "layer"], sort=False)["raw"].mean()
    return means.rename("difference").reset_index()


def correlations(scores: pd.DataFrame, differences: pd.DataFrame) -> pd.DataFrame:
    """Pearson's r, and the p-value of no correlation, over the layers: method, estimate, layers, r, p.

    Methods with fewer than three layers of at least two experts, or without any difference between layers, are left
    out: they have no correlation.
    """
    from scipy.stats import pearsonr

    rows = []
    for method, group in differences.dropna().groupby("method", sort=False):
        both = group.merge(scores, on="layer")
        for estimate in ESTIMATES:
            if len(both) < 3 or both["difference"].nunique() < 2 or both[estimate].nunique() < 2:
                continue
            found = pearsonr(both[estimate], both["difference"])
            rows.append((method, estimate, len(both), float(found.statistic), float(found.pvalue)))
    return pd.DataFrame(rows, columns=["method", "estimate", "layers", "r", "p"])


def write(layout: Layout) -> bool:
    """Write the study's layer_quality.csv and, where redundancy was measured, quality.csv and .parquet (`correlations`); draw.

    Returns whether redundancy.parquet was there.
    Raises `MolaError` as `layer_means` does.
    """
    from mola_core.analysis.figures.adapters import save_adapter_figures
    from mola_core.analysis.figures.style import figure_style
    from mola_core.analysis.notices import notices

    scores = layer_means(layout)
    with atomic_write(layout.folder / "layer_quality.csv") as temporary:
        scores.to_csv(temporary, index=False)
    measured = layout.folder / "redundancy.parquet"
    differences = found = None
    if measured.is_file():
        differences = layer_differences(read_table(measured, "run `mola redundancy` again"))
        found = correlations(scores, differences)
        with atomic_write(layout.folder / "quality.csv") as temporary:
            found.to_csv(temporary, index=False)
        with atomic_write(layout.folder / "quality.parquet") as temporary:
            found.to_parquet(temporary, index=False)
    with figure_style():
        figure = draw(layout.study, scores, differences, found)
        save_adapter_figures(layout, {"layer_quality": figure}, notices(layout.study))
    return differences is not None


def draw(
    study: Study, scores: pd.DataFrame, differences: pd.DataFrame | None, found: pd.DataFrame | None
) -> Figure:
    """Scores by layer, the paper's beside them, and a panel for each estimate of differences against scores."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from mola_core.analysis.figures.style import COLUMN, TEXT, study_styles

    estimates = list(ESTIMATES) if differences is not None else []
    below = 2.2 + 0.15 * differences["method"].nunique() if differences is not None else 0
    figure = plt.figure(figsize=(TEXT if estimates else COLUMN, 2.6 + below))
    grid = figure.add_gridspec(2 if estimates else 1, max(1, len(estimates)))
    curves = figure.add_subplot(grid[0, :])
    panels = [figure.add_subplot(grid[1, place]) for place in range(len(estimates))]
    for (estimate, words), colour in zip(ESTIMATES.items(), ("#0072B2", "#D55E00"), strict=True):
        curves.plot(
            scores["layer"] + 1, scores[estimate], color=colour, marker="o", markersize=2.5, label=words
        )
    paper = pd.read_csv(PAPER_SCORES)
    paper = paper[paper["base_model"] == study.model.paper]
    if not paper.empty:
        curves.plot(
            paper["layer"] + 1,
            paper["pl_alpha_hill"],
            color="#7F7F7F",
            linestyle="--",
            label="printed in the paper",
        )
    curves.set_xlabel("layer")
    curves.set_ylabel("PL_Alpha_Hill")
    curves.set_title(study.model.name, loc="left")
    curves.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    curves.set_ylim(bottom=1)
    curves.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.3, ncols=3)
    styles = study_styles(study)
    for estimate, axis in zip(estimates, panels, strict=True):
        assert differences is not None and found is not None
        for method, group in differences.dropna().groupby("method", sort=False):
            both = group.merge(scores, on="layer")
            own = found[(found["method"] == method) & (found["estimate"] == estimate)]
            words = (
                f"{method}: r = {own['r'].iloc[0]:+.2f}, p = {own['p'].iloc[0]:.2g}" if len(own) else method
            )
            axis.plot(
                both[estimate],
                both["difference"],
                linestyle="none",
                **{**styles[str(method)].marker_options(), "markersize": 3},
                label=words,
            )
        axis.set_xlabel(f"PL_Alpha_Hill, {ESTIMATES[estimate]}")
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), handletextpad=0.2)
    if panels:
        panels[0].set_ylabel("mean difference of two experts' BA")
    return figure
