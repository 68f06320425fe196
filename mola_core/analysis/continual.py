"""Continual learning: what a model that learns topics one after another still knows of each.

A tidy frame has one row for each method, seed, `trained_up_to` and `tested_on` topic, with the accuracy there.
R_{k,i} below is the accuracy on topic i after topics 1 to k were learnt.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa

from mola_core.analysis.drawing import heading, save_figure
from mola_core.analysis.reference import TOPIC_DOCUMENTS
from mola_core.analysis.style import TEXT, figure_style
from mola_core.errors import MolaError

COLUMNS = ("method", "seed", "trained_up_to", "tested_on", "accuracy")
FILE = "continual.parquet"
"""Where a study keeps its tidy frame; accuracies between 0 and 1."""
FIGURE = "continual"


def read(folder: Path) -> pd.DataFrame | None:
    """The study's tidy frame; None where the study has no continual learning. Raises `MolaError` for other columns."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return pd.read_parquet(path, columns=list(COLUMNS))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise MolaError(
            f"{path}: needs the columns {', '.join(COLUMNS)} ({str(error).splitlines()[0]})"
        ) from None


def topic_order(frame: pd.DataFrame) -> list[str]:
    """The topics in the order of learning: the paper's where they are its topics, else the order of the rows."""
    seen = list(dict.fromkeys(frame["trained_up_to"]))
    return list(TOPIC_DOCUMENTS) if set(seen) == set(TOPIC_DOCUMENTS) else seen


def matrix(frame: pd.DataFrame, topics: list[str]) -> np.ndarray:
    """R of one method and seed, (topics, topics): row trained up to, column tested on.

    Topics that were not learnt yet may be missing (NaN). Raises `MolaError` where another accuracy is missing.
    """
    table = frame.pivot(index="trained_up_to", columns="tested_on", values="accuracy")
    values = table.reindex(index=topics, columns=topics).to_numpy(dtype=float)
    gaps = np.argwhere(np.isnan(np.tril(values)))
    if len(gaps):
        trained, tested = (topics[index] for index in gaps[0])
        raise MolaError(f"continual learning: no accuracy on {tested} after {trained}; evaluate that cell")
    return values


def overall_performance(accuracies: np.ndarray) -> float:
    """OP = (1/t) Σ_i R_{t,i}: the mean accuracy on all topics at the end (paper, appendix C)."""
    return float(accuracies[-1].mean())


def performance_drop(accuracies: np.ndarray) -> float:
    """PD = 2/(t(t-1)) · Σ_{k=2..t} Σ_{i<k} (R_{k,i} - R_{k-1,i}) (paper, appendix C).

    The mean change on a topic learnt before when one more is learnt; negative where the model forgets.
    """
    changes = np.diff(accuracies, axis=0)
    return float(changes[np.tril_indices(len(changes))].mean())


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and seed: method, seed, op, pd, in the unit of the accuracies."""
    topics = topic_order(frame)
    rows = []
    for (method, seed), own in frame.groupby(["method", "seed"], sort=False):
        accuracies = matrix(own, topics)
        rows.append(
            {
                "method": method,
                "seed": seed,
                "op": overall_performance(accuracies),
                "pd": performance_drop(accuracies),
            }
        )
    return pd.DataFrame(rows)


def write_figure(frame: pd.DataFrame, folder: Path, said: list[str]) -> None:
    """Draw R of each method, mean over seeds, as a matrix: `folder/continual.{svg,png}`."""
    topics = topic_order(frame)
    methods = list(dict.fromkeys(frame["method"]))
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    results = summary(frame).groupby("method")[["op", "pd"]].mean()
    with figure_style():
        figure, axes = plt.subplots(
            rows, columns, figsize=(TEXT * columns / 3 + 0.6, 2.35 * rows + 0.4), squeeze=False, sharey=True
        )
        for axis, method in zip(axes.flat, methods, strict=False):
            own = frame[frame["method"] == method].groupby("seed", sort=False)
            accuracies = np.mean([matrix(part, topics) for _, part in own], axis=0)
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


def _matrix(axis: plt.Axes, accuracies: np.ndarray, topics: list[str]):  # noqa: ANN202
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
