"""Continual learning: what a model that learns topics one after another still knows of each.

A tidy frame has one row for each method, seed, `trained_up_to` and `tested_on` topic, with the accuracy there.
R_{k,i} below is the accuracy on topic i after topics 1 to k were learnt.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from mola_core.errors import MolaError

COLUMNS = ("method", "seed", "trained_up_to", "tested_on", "accuracy")
FILE = "continual.parquet"
"""Where a study keeps its tidy frame; accuracies between 0 and 1."""


def topic(task: str) -> str:
    """`biology` of the task `scienceqa-biology`; other tasks are their own topic."""
    return task.removeprefix("scienceqa-")


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
    """The topics in the order of learning, which is that of the rows."""
    return list(dict.fromkeys(frame["trained_up_to"]))


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
