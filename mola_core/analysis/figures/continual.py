"""The matrix figure of continual learning: what is still known of each topic after each was learnt."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.image import AxesImage

from mola_core.analysis.figures.drawing import heading, save_figure
from mola_core.analysis.figures.style import TEXT, figure_style
from mola_core.analysis.statistics import continual

FIGURE = "continual"


def write_figure(frame: pd.DataFrame, folder: Path, said: list[str]) -> None:
    """Draw R of each method, mean over seeds, as a matrix: `folder/continual.{svg,png}`."""
    topics = continual.topic_order(frame)
    methods = list(dict.fromkeys(frame["method"]))
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    results = continual.summary(frame).groupby("method")[["op", "pd"]].mean()
    with figure_style():
        figure, axes = plt.subplots(
            rows, columns, figsize=(TEXT * columns / 3 + 0.6, 2.35 * rows + 0.4), squeeze=False, sharey=True
        )
        for axis, method in zip(axes.flat, methods, strict=False):
            own = frame[frame["method"] == method].groupby("seed", sort=False)
            accuracies = np.mean([continual.matrix(part, topics) for _, part in own], axis=0)
            image = _matrix(axis, accuracies, topics)
            op, pd_value = 100 * results.loc[method]
            axis.set_title(f"{method}\nOP {op:.1f}, PD {pd_value:+.1f}".replace(" -", " −"))
        for axis in axes.flat[len(methods) :]:
            axis.set_visible(False)
        for axis in axes[:, 0]:
            axis.set_ylabel("trained up to")
        for axis in axes[-1]:
            axis.set_xlabel("tested on")
        figure.colorbar(image, ax=axes, shrink=0.7, label="accuracy (%)", aspect=30)
        heading(figure, said)
        save_figure(figure, folder / FIGURE)


def _matrix(axis: plt.Axes, accuracies: np.ndarray, topics: list[str]) -> AxesImage:
    """One matrix; topics not learnt yet (above the diagonal) in pale type."""
    names = [topic.replace("-", "\n") for topic in topics]
    image = axis.imshow(100 * accuracies, cmap="cividis", vmin=0, vmax=100)
    axis.set_xticks(range(len(topics)), names, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(topics)), names)
    axis.grid(False)
    for (row, column), value in np.ndenumerate(accuracies):
        if not np.isnan(value):
            dark = value < 0.55
            learnt = column <= row
            axis.text(
                column,
                row,
                f"{100 * value:.0f}",
                ha="center",
                va="center",
                color="white" if dark else "black",
                alpha=1 if learnt else 0.6,
                fontweight="bold" if learnt else "normal",
                fontsize=7,
            )
    return image
