"""Training losses of 102 runs by others: log loss against the experts' centre of depth, bootstrap over tasks.

The losses are those that LayerIF's authors published with their code (`reference/layerif_training_losses.csv`). For each
base model, least squares of log(mean training loss) on task, budget (both as categories) and centre of depth; the
slope times 100 is the change of the loss in log per cent when all experts move from the first layer to the last. The
interval is the 2.5 to 97.5 % quantile of the slope over all ways to draw as many tasks with replacement (the bootstrap
without its chance), all runs of a task together: a task's runs share their rows and their difficulty.
"""

import itertools
import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mola_core.analysis.reference import numbers as reference
from mola_core.shapes import experts_per_layer

SETS = (
    ("Mistral-7B, all", "Mistral-7B-v0.1", 1),
    ("Mistral-7B, two experts or more in every layer", "Mistral-7B-v0.1", 2),
    ("Gemma-7B, all", "gemma-7b", 1),
)
"""Name, base model, least experts that every layer must have."""
SHAPES = ("2468", "5555", "8642")
CAVEATS = (
    "A training loss is no test score: a shape may fit its training rows better and answer no better.",
    "Depth is confounded with the method that chose the shape: most shapes were chosen by LayerIF's or AlphaLoRA's "
    "rule, and a rule moves more than the centre.",
    "One run a cell: no noise between seeds is in these intervals, which hold tasks alone, five of them.",
    "Three epochs with a warm-up of 100 steps, which is longer than the whole training on MRPC (84 steps).",
)


class LossSlope(NamedTuple):
    """100 x slope of log loss per unit of depth; negative where the loss falls as experts move up."""

    name: str
    runs: int
    slope: float
    low: float
    high: float


def runs() -> pd.DataFrame:
    """One row a run: the columns of the file and `least`, the fewest experts that a layer of it has."""
    frame = pd.read_csv(reference.FOLDER / "layerif_training_losses.csv")
    return frame.assign(least=[min(map(int, experts.split())) for experts in frame["experts"]])


def slope(frame: pd.DataFrame) -> float:
    """100 x least-squares slope of log(train_loss_mean) on centre_of_depth, with tasks and budgets as categories."""
    columns = [
        *((frame["task"] == task).to_numpy(float) for task in frame["task"].unique()),
        *((frame["experts_total"] == total).to_numpy(float) for total in frame["experts_total"].unique()[1:]),
        frame["centre_of_depth"].to_numpy(float),
    ]
    fit, *_ = np.linalg.lstsq(
        np.column_stack(columns), np.log(frame["train_loss_mean"].to_numpy()), rcond=None
    )
    return 100 * float(fit[-1])


def slopes() -> list[LossSlope]:
    """The slope of each of `SETS` with its interval over tasks; the same on every machine."""
    every, found = runs(), []
    for name, model, least in SETS:
        frame = every[(every["base_model"] == model) & (every["least"] >= least)]
        groups = [part for _, part in frame.groupby("task")]
        drawn: list[float] = []
        for picks in itertools.combinations_with_replacement(range(len(groups)), len(groups)):
            # A task that is drawn twice is two tasks, each with its own level.
            parts = [groups[pick].assign(task=place) for place, pick in enumerate(picks)]
            orders = math.factorial(len(groups))
            for count in Counter(picks).values():
                orders //= math.factorial(count)
            drawn += [slope(pd.concat(parts))] * orders
        low, high = np.quantile(drawn, [0.025, 0.975])
        found.append(LossSlope(name, len(frame), slope(frame), float(low), float(high)))
    return found


def shape_losses() -> pd.DataFrame:
    """Mistral's mean training loss of `SHAPES` at budget 20: task, a column a shape, `percent` (2468 against 8642)."""
    every = runs()
    own = every[(every["base_model"] == "Mistral-7B-v0.1") & (every["experts_total"] == 160)]
    rows: list[dict[str, Any]] = []
    for task, part in own.groupby("task"):
        row: dict[str, Any] = {"task": task}
        for shape in SHAPES:
            named = " ".join(map(str, experts_per_layer(shape, 32)))
            row[shape] = float(part.loc[part["experts"] == named, "train_loss_mean"].iloc[0])
        rows.append(row | {"percent": 100 * (row["2468"] / row["8642"] - 1)})
    return pd.DataFrame(rows)
