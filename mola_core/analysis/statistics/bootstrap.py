"""Bootstrap over seeds and documents together, for ranks and the probability of improvement.

It decides nothing: it counts the seed-by-document noise three times (Owen 2007, "The pigeonhole bootstrap").
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Bootstrap(NamedTuple):
    """Resampled accuracies: `runs` is (tasks, resamples, methods, seeds), `weights` (tasks, resamples,
    seeds).

    Seeds are padded with weight zero where a task has fewer.
    """

    runs: np.ndarray
    weights: np.ndarray

    def means(self) -> np.ndarray:
        """Accuracy of each method, mean over seeds then tasks: (resamples, methods)."""
        return (self.runs * self.weights[:, :, None, :]).sum(-1).mean(0)

    def improvement(self, first: int, second: int) -> np.ndarray:
        """Probability that a run of the first method beats a run of the second on a task drawn from these.

        Ties count half; (resamples,) (Agarwal et al. 2021, "Deep RL at the edge of the statistical
        precipice").
        """
        total = np.zeros(self.runs.shape[1])
        # In parts: all pairs of hundreds of seeds would not fit in memory.
        step = max(1, 2_000_000 // self.runs.shape[3] ** 2)
        for runs, weights in zip(self.runs, self.weights, strict=True):
            for start in range(0, len(total), step):
                part = slice(start, start + step)
                a, b = runs[part, first, :, None], runs[part, second, None, :]
                wins = (a > b) + 0.5 * (a == b)
                pairs = weights[part, :, None] * weights[part, None, :]
                total[part] += (wins * pairs).sum((-2, -1))
        return total / len(self.runs)


def bootstrap(
    tasks: Sequence[np.ndarray],
    resamples: int,
    rng: np.random.Generator,
    clusters: Sequence[np.ndarray | None] | None = None,
) -> Bootstrap:
    """Resample seeds and documents together within each task; `tasks` are (methods, seeds, documents) of 0/1.

    Where `clusters` has the cluster of each document of a task, whole clusters are drawn instead (Davison & Hinkley 1997,
    section 3.8). The same seeds and documents are drawn for all methods, so differences stay paired. Of n seeds n - 1 are
    drawn: that makes the bootstrap variance over few seeds unbiased (Rao & Wu 1988); one seed is kept as it
    is. Counts are whole numbers below 2^24, which float32 adds exactly: the result is the same on every
    machine.
    """
    methods = tasks[0].shape[0]
    widest = max(task.shape[1] for task in tasks)
    runs = np.zeros((len(tasks), resamples, methods, widest), dtype=np.float32)
    weights = np.zeros((len(tasks), resamples, widest), dtype=np.float32)
    for t, (task, together) in enumerate(zip(tasks, clusters or [None] * len(tasks), strict=True)):
        _, seeds, documents = task.shape
        draws = max(seeds - 1, 1)
        weights[t, :, :seeds] = rng.multinomial(draws, np.full(seeds, 1 / seeds), size=resamples) / draws
        answers = task.reshape(-1, documents)
        # Units that all cells answered alike are interchangeable: draw how many of each kind.
        kinds, counts = _kinds(answers) if together is None else _sums(answers, together)
        units = int(counts.sum())
        step = max(1, 4_000_000 // len(counts))
        for start in range(0, resamples, step):
            stop = min(start + step, resamples)
            drawn = rng.multinomial(units, counts / units, size=stop - start).astype(np.float32)
            right, asked = np.split(drawn @ kinds, [methods * seeds], axis=1)
            runs[t, start:stop, :, :seeds] = (right / asked).reshape(-1, methods, seeds)
    return Bootstrap(runs, weights)


def _kinds(answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct columns of a 0/1 array (cells, documents), as float32 (kinds, cells + 1) with the number of documents (one)
    last, and how often each occurs."""
    packed = np.ascontiguousarray(np.packbits(answers, axis=0).T)
    keys, counts = np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_counts=True)
    rows = keys.view(np.uint8).reshape(len(keys), -1)
    kinds = np.unpackbits(rows, axis=1, count=answers.shape[0]).astype(np.float32)
    return np.pad(kinds, ((0, 0), (0, 1)), constant_values=1), counts


def _sums(answers: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of clusters: right answers of each cell in each cluster, and its size; every cluster occurs once."""
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    counted = np.pad(answers[:, order].T, ((0, 0), (0, 1)), constant_values=1)
    return np.add.reduceat(counted.astype(np.float32), starts), np.ones(len(starts), dtype=np.int64)


def ranks(accuracy: np.ndarray) -> np.ndarray:
    """Probability of each rank, (methods, ranks), best first, from resampled accuracies (resamples, methods).

    Methods that tie share their ranks evenly.
    """
    methods = accuracy.shape[1]
    better = (accuracy[:, :, None] < accuracy[:, None, :]).sum(-1)
    tied = (accuracy[:, :, None] == accuracy[:, None, :]).sum(-1)
    place = np.arange(methods)
    inside = (place >= better[..., None]) & (place < (better + tied)[..., None])
    return (inside / tied[..., None]).mean(0)
