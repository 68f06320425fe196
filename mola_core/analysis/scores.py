"""The score matrix: one row per cell and document, checked and packed into arrays.

A *cell* is one trained and evaluated (study, model, task, method, seed). All cells of a task must have
answered the same documents: every later step pairs on them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mola_core.analysis.score_files import COLUMNS, NAMES, OPTIONAL, TEXT, frame_scores, load_scores, require
from mola_core.errors import MolaError, did_you_mean

__all__ = [
    "COLUMNS",
    "NAMES",
    "OPTIONAL",
    "Block",
    "ScoreMatrix",
    "frame_scores",
    "load_scores",
    "score_matrix",
]

SPARSE = 50
"""Times the rows that a task's methods x seeds x documents may be: beyond, hardly a cell shares a document with another."""

SATURATED = 0.02
"""Distance from 0 or 1 within which a probability is as good as an answer."""


@dataclass(frozen=True)
class Block:
    """One task (of one model): what its cells answered.

    `correct` is (methods, seeds, documents), 0 or 1; `present` is (methods, seeds), false where the file has
    no such cell (its `correct` is then 0 and means nothing). `likelihood`, the probability of the right option, is
    of the same shape, None where a row of the task has none; `no_likelihood` are then the cells of such rows, as (method,
    seed). `clusters` (documents,) are codes of what documents belong together, None where each stands for itself.
    """

    name: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    correct: np.ndarray
    present: np.ndarray
    likelihood: np.ndarray | None = None
    clusters: np.ndarray | None = None
    no_likelihood: tuple[tuple[str, int], ...] = ()

    @property
    def documents(self) -> int:
        return self.correct.shape[2]

    @property
    def units(self) -> int:
        """How many clusters of documents there are, or documents where they are not clustered."""
        return self.documents if self.clusters is None else len(np.unique(self.clusters))

    def common_seeds(self, methods: Sequence[str]) -> np.ndarray:
        """Positions of the seeds that all of `methods` have here; empty where a method is missing."""
        if any(method not in self.methods for method in methods):
            return np.empty(0, dtype=int)
        rows = [self.methods.index(method) for method in methods]
        return np.flatnonzero(self.present[rows].all(axis=0))

    def values(self, endpoint: str) -> np.ndarray:
        """What an endpoint measures, (methods, seeds, documents); `MolaError` for a likelihood that is not there."""
        if endpoint == "accuracy":
            return self.correct
        if self.likelihood is None:
            raise MolaError(f"task {self.name}: its scores have no likelihood; ask for accuracy instead")
        return self.likelihood

    def contrast(self, weights: Mapping[str, float], endpoint: str = "accuracy") -> np.ndarray:
        """Σ_m weight_m · value_m, (seeds, documents) float64, over the seeds that all the methods share."""
        seeds, values = self.common_seeds(list(weights)), self.values(endpoint)
        total = np.zeros((len(seeds), self.documents))
        for method, weight in weights.items():
            total += weight * values[self.methods.index(method)][seeds]
        return total

    def saturated(self, methods: Sequence[str], endpoint: str) -> float:
        """Share of the documents whose values are 0 or 1, to within `SATURATED`, in every run of the methods."""
        seeds = self.common_seeds(methods)
        rows = [self.methods.index(method) for method in methods]
        values = self.values(endpoint)[rows][:, seeds]
        return float((np.abs(values - np.round(values)) <= SATURATED).all(axis=(0, 1)).mean())

    def run_means(self, methods: Sequence[str], seeds: np.ndarray, endpoint: str = "accuracy") -> np.ndarray:
        """Mean over documents of each run, (methods, seeds) float64."""
        rows = [self.methods.index(method) for method in methods]
        return self.values(endpoint)[rows][:, seeds].mean(axis=2, dtype=float)


@dataclass(frozen=True)
class ScoreMatrix:
    """The blocks of a score file, in the order of their names, and what it covers."""

    blocks: tuple[Block, ...]
    studies: tuple[str, ...]
    models: tuple[str, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(sorted({method for block in self.blocks for method in block.methods}))


def shared_runs(
    blocks: Sequence[Block], weights: Mapping[str, float], endpoint: str = "accuracy"
) -> np.ndarray | None:
    """A contrast's means by run, (tasks, seeds), NaN where a task lacks the seed: what two tasks or more of two seeds or more
    need to tell noise that they share; else None."""
    means = [block.contrast(weights, endpoint).mean(axis=1) for block in blocks]
    if len(blocks) < 2 or min(map(len, means)) < 2:
        return None
    names = [np.array(block.seeds)[block.common_seeds(list(weights))] for block in blocks]
    every = np.unique(np.concatenate(names))
    runs = np.full((len(blocks), len(every)), np.nan)
    for row, seeds, values in zip(runs, names, means, strict=True):
        row[np.searchsorted(every, seeds)] = values
    return runs


def score_matrix(scores: pd.DataFrame) -> ScoreMatrix:
    """Pack rows into one array per task. Where a file holds several studies or models, each has its own
    blocks.

    Raises `MolaError` for two rows of the same cell and document, for cells of one task that did not answer the
    same documents, and for a cluster that crosses tasks or a document of two clusters.
    """
    require(scores.columns, Path("scores"))
    codes, categories = {}, {}
    clustered = "cluster" in scores.columns
    for name in TEXT if clustered else TEXT[:-1]:
        column = scores[name].astype("category").cat.remove_unused_categories()
        if name in NAMES:
            column = column.cat.reorder_categories(sorted(column.cat.categories))
            categories[name] = column.cat.categories.astype(str).tolist()
        codes[name] = column.cat.codes.to_numpy()
    # One stable sort by block; the order of the rows in the file then has no influence on anything.
    block_of_row = codes["study"].astype(np.int64)
    for name in ("model", "task"):
        block_of_row = block_of_row * len(categories[name]) + codes[name]
    order = np.argsort(block_of_row, kind="stable")
    starts = np.flatnonzero(np.diff(block_of_row[order], prepend=-1))
    several = [name for name in ("study", "model") if len(categories[name]) > 1]
    if clustered:
        _refuse_crossing(codes, categories["task"], scores["cluster"])
    likelihood = scores["likelihood"].to_numpy() if "likelihood" in scores.columns else None
    blocks = []
    for rows in np.split(order, starts[1:]):
        label = "/".join(categories[name][codes[name][rows[0]]] for name in (*several, "task"))
        blocks.append(
            _block(
                label,
                categories["method"],
                codes["method"][rows],
                scores["seed"].to_numpy()[rows],
                codes["document"][rows],
                scores["correct"].to_numpy()[rows],
                None if likelihood is None else likelihood[rows],
                codes["cluster"][rows] if clustered else None,
            )
        )
    return ScoreMatrix(
        tuple(sorted(blocks, key=lambda block: block.name)),
        tuple(sorted(categories["study"])),
        tuple(sorted(categories["model"])),
    )


def require_methods(matrix: ScoreMatrix, pairs: Sequence[tuple[str, str]]) -> None:
    """Raise `MolaError` for a pair of which a method is not in the scores."""
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        if name not in matrix.methods:
            near = did_you_mean(name, matrix.methods) or f"; they have {', '.join(matrix.methods[:10])}"
            raise MolaError(f"pair: {name!r} is no method of the scores{near}")


def _refuse_crossing(codes: dict[str, np.ndarray], tasks: Sequence[str], clusters: pd.Series) -> None:
    pairs = pd.DataFrame({"cluster": codes["cluster"], "task": codes["task"]}).drop_duplicates()
    crossing = pairs[pairs["cluster"].duplicated(keep=False)]
    if len(crossing):
        code = crossing["cluster"].iloc[0]
        where = [tasks[task] for task in crossing.loc[crossing["cluster"] == code, "task"]]
        name = clusters.iloc[int(np.flatnonzero(codes["cluster"] == code)[0])]
        raise MolaError(
            f"cluster {str(name)[:60]!r} is in the tasks {', '.join(sorted(where)[:3])}: the verdict takes tasks to be "
            "independent; give clusters names of their own in each task, or join the tasks"
        )


def _block(
    name: str,
    names: Sequence[str],
    method: np.ndarray,
    seed: np.ndarray,
    document: np.ndarray,
    correct: np.ndarray,
    likelihood: np.ndarray | None,
    cluster: np.ndarray | None,
) -> Block:
    """Pack the rows of one block; `method` and `document` are codes, `names` what the former stand for."""
    found, m = np.unique(method, return_inverse=True)
    methods = [names[code] for code in found]
    seeds, s = np.unique(seed, return_inverse=True)
    documents, d = np.unique(document, return_inverse=True)
    shape = (len(methods), len(seeds), len(documents))
    if math.prod(shape) > SPARSE * len(correct) + 1_000_000:
        raise MolaError(
            f"task {name}: documents are not paired: {len(correct)} rows for {shape[0]} methods, {shape[1]} seeds and "
            f"{shape[2]} documents; name documents and seeds alike in all cells"
        )
    key = (m * shape[1] + s) * shape[2] + d
    seen = np.bincount(key, minlength=np.prod(shape)).reshape(shape)
    present = seen.any(axis=2)

    def cell(position: np.ndarray) -> str:
        return f"{methods[position[0]]}, seed {seeds[position[1]]}"

    if (seen > 1).any():
        first = np.argwhere(seen > 1)[0]
        raise MolaError(
            f"task {name}: {int((seen > 1).sum())} (cell, document) pairs have more than one row, first in "
            f"{cell(first)}; keep one row each"
        )
    if (seen[present] == 0).any():
        lacking = present & (seen == 0).any(axis=2)
        first = np.argwhere(lacking)[0]
        count = int(seen[tuple(first)].sum())
        raise MolaError(
            f"task {name}: documents are not paired: {cell(first)} has {count} of the {shape[2]} documents "
            "that the cells of this task answered; evaluate every cell on the same documents"
        )
    packed = np.zeros(shape, dtype=np.uint8)
    packed.reshape(-1)[key] = correct
    probability, clusters = None, None
    without = np.ones(len(key), dtype=bool) if likelihood is None else np.isnan(likelihood)
    if not without.any():
        probability = np.zeros(shape, dtype=np.float32)
        probability.reshape(-1)[key] = likelihood
    if cluster is not None:
        clusters = np.empty(shape[2], dtype=np.int64)
        clusters[d] = cluster
        if (clusters[d] != cluster).any():
            raise MolaError(
                f"task {name}: a document is in two clusters; give each document one in all cells"
            )
        if len(np.unique(clusters)) == len(clusters):
            clusters = None
    lacking = np.bincount((m * shape[1] + s)[without], minlength=shape[0] * shape[1]).reshape(shape[:2])
    no_likelihood = tuple((methods[row], int(seeds[column])) for row, column in np.argwhere(lacking))
    return Block(
        name, tuple(methods), tuple(map(int, seeds)), packed, present, probability, clusters, no_likelihood
    )
