"""Score matrices whose truth is known, to see whether the verdict's intervals and promises hold.

A document is answered correctly where a latent score is positive: the method's level in the task, how hard
the document is, how hard it is for this method, the luck of this training run, and noise. All parts are
normal, so the true accuracy is Φ(level / total standard deviation), and any accuracy can be asked for
exactly. A second generator (`logistic`) shares none of that: difficulties are logistic, answers are drawn from
probabilities, and the luck of a run is Student's t with 3 degrees of freedom, in points of accuracy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from mola_core.analysis.statistics.questions import find_shapes

SHAPES = ("mola-2468", "mola-2882", "mola-5555", "mola-8228", "mola-8642")
HARDNESS = 1.0
"""Standard deviation of a document's difficulty; the noise within one answer has 1."""
TASTE = 0.5
"""Standard deviation of how much harder a document is for one method than for another."""


FALL = 3.0
"""What a collapsed run loses in the latent score: 80 % accuracy becomes 12 %."""


@dataclass(frozen=True)
class Scenario:
    """A world to draw score matrices from: five shapes of budget 20 and one entry per task in each tuple.

    `run_noise` is the latent standard deviation between training runs: 0.05 moves an accuracy of 80 % by
    about 1 point from run to run. `depth` is the true accuracy difference, in points, between 2468 and 8642;
    `spread` that between 8228 and 2882. Both are linear in centre and spread, so the slopes are exact.
    """

    name: str
    documents: tuple[int, ...]
    accuracy: tuple[float, ...]
    run_noise: tuple[float, ...]
    seeds: int = 3
    depth: float = 0.0
    spread: float = 0.0
    common: float = 0.0
    """Share of the run noise's variance that a seed brings to all tasks alike; the verdict takes it to be none."""

    correlated: float = 0.0
    """Share of the run noise's variance that a seed brings to all methods of a task alike."""
    noisier: float = 1.0
    """How many times as large `noisy_method`'s run noise is."""
    noisy_method: str = "mola-2468"
    cluster: int = 1
    """Documents that belong together; what makes one hard for one method then makes all of them so."""
    told: bool = True
    """Whether the verdict is told of the clusters."""
    collapse: float = 0.0
    """Probability that a run of `noisy_method` collapses, by `FALL` in the latent score."""
    logistic: bool = False

    @property
    def clusters(self) -> list[np.ndarray | None]:
        """For each task, the cluster of each document, as the verdict is told."""
        known = self.cluster > 1 and self.told
        return [np.arange(documents) // self.cluster if known else None for documents in self.documents]

    def true_accuracy(self) -> np.ndarray:
        """(tasks, methods), as fractions."""
        shapes = {shape.method: shape for shape in find_shapes(SHAPES)}
        centre = np.array([shapes[method].centre for method in SHAPES])
        spread = np.array([shapes[method].spread for method in SHAPES])
        relative = self.depth * (centre - centre.mean()) / np.ptp(centre)
        relative += self.spread * (spread - spread.mean()) / np.ptp(spread)
        accuracy = np.array(self.accuracy)[:, None] + relative / 100
        if self.collapse:
            total = np.sqrt(1 + HARDNESS**2 + TASTE**2 + np.array(self.run_noise) ** 2)
            place = SHAPES.index(self.noisy_method)
            fallen = stats.norm.cdf(stats.norm.ppf(accuracy[:, place]) - FALL / total)
            accuracy[:, place] += self.collapse * (fallen - accuracy[:, place])
        return accuracy

    def draw(self, matrices: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """For each task, answers of `matrices` independent matrices: bool (matrices, methods, seeds,
        documents).
        """
        methods = len(SHAPES)
        shared = 0.0
        if self.common:
            shared = self.common**0.5 * rng.standard_normal(
                (matrices, methods, self.seeds, 1), dtype=np.float32
            )
        louder = np.array([self.noisier if name == self.noisy_method else 1.0 for name in SHAPES])
        for documents, noise, accuracy in zip(
            self.documents, self.run_noise, replace(self, collapse=0.0).true_accuracy(), strict=True
        ):
            own = rng.standard_normal((matrices, methods, self.seeds, 1), dtype=np.float32)
            if self.correlated:
                alike = rng.standard_normal((matrices, 1, self.seeds, 1), dtype=np.float32)
                own = self.correlated**0.5 * alike + (1 - self.correlated) ** 0.5 * own
            luck = (
                noise * (shared + (1 - self.common) ** 0.5 * own) * louder.astype(np.float32)[:, None, None]
            )
            if self.logistic:
                yield self._logistic(matrices, documents, noise, accuracy, rng)
                continue
            total = np.sqrt(1 + HARDNESS**2 + TASTE**2 + (noise * louder) ** 2)
            score = rng.standard_normal((matrices, methods, self.seeds, documents), dtype=np.float32)
            score += HARDNESS * self._of_documents(matrices, 1, documents, rng)
            score += TASTE * self._of_documents(matrices, methods, documents, rng)
            score += luck
            score += (stats.norm.ppf(accuracy) * total).astype(np.float32)[:, None, None]
            if self.collapse:
                fallen = rng.random((matrices, self.seeds, 1)) < self.collapse
                score[:, SHAPES.index(self.noisy_method)] -= FALL * fallen
            yield score > 0

    def _of_documents(
        self, matrices: int, methods: int, documents: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Standard normal, one number for each cluster of documents: (matrices, methods, 1, documents)."""
        groups = -(-documents // self.cluster)
        drawn = rng.standard_normal((matrices, methods, 1, groups), dtype=np.float32)
        return drawn if self.cluster == 1 else np.repeat(drawn, self.cluster, axis=-1)[..., :documents]

    def _logistic(
        self, matrices: int, documents: int, noise: float, accuracy: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Answers from probabilities: logistic difficulty and taste keep each method's mean, t noise moves its runs."""
        methods = len(SHAPES)
        shape = (matrices, methods, self.seeds, 1)
        # The average over documents of a difficulty that is symmetric in probability, not in its logit.
        hard = stats.logistic.cdf(rng.logistic(scale=0.7, size=(matrices, 1, 1, documents))) - 0.5
        taste = 0.1 * (rng.random((matrices, methods, 1, documents)) - 0.5)
        room = np.minimum(accuracy, 1 - accuracy)[:, None, None]
        runs = 0.28 * noise * rng.standard_t(3, size=shape) / 3**0.5
        chance = accuracy[:, None, None] + 1.2 * room * hard + taste + runs
        return rng.random((matrices, methods, self.seeds, documents)) < chance

    def frame(self, rng: np.random.Generator, methods: Sequence[str] = SHAPES) -> pd.DataFrame:
        """One matrix as the rows of a score file, the columns of `scores.COLUMNS`."""
        parts = []
        for task, (answers,) in enumerate(self.draw(1, rng)):
            documents = [f"{task}-{document}" for document in range(answers.shape[-1])]
            index = pd.MultiIndex.from_product(
                [methods, range(self.seeds), documents], names=["method", "seed", "document"]
            )
            rows = pd.DataFrame({"correct": answers[: len(methods)].astype(np.uint8).ravel()}, index=index)
            parts.append(rows.reset_index().assign(task=f"task{task}"))
        return pd.concat(parts, ignore_index=True).assign(study="simulated", model="simulated")


EQUAL = {"documents": (400,) * 6, "accuracy": (0.8,) * 6, "run_noise": (0.05,) * 6}
UNEQUAL = {
    "documents": (1500, 1000, 277, 2000, 1200, 500),
    "accuracy": (0.84, 0.86, 0.7, 0.92, 0.6, 0.78),
    "run_noise": (0.03, 0.03, 0.15, 0.05, 0.06, 0.1),
}
TWO = {"documents": (1000, 300), "accuracy": (0.85, 0.6), "run_noise": (0.05, 0.1)}
QUIET = {"documents": (400,) * 6, "accuracy": (0.8,) * 6, "run_noise": (0.0,) * 6}
LOUD = {"documents": (400,) * 6, "accuracy": (0.8,) * 6, "run_noise": (0.4,) * 6}

LARGE = {"documents": (1500,) * 6, "accuracy": (0.8,) * 6, "run_noise": (0.02,) * 6}

SCENARIOS = (
    Scenario("no effect, equal tasks", **EQUAL),
    Scenario("no effect, unequal tasks", **UNEQUAL),
    Scenario("no effect, two tasks", **TWO),
    Scenario("no effect, two tasks, 5 seeds", **TWO, seeds=5),
    Scenario("no effect, no seed noise", **QUIET),
    Scenario("no effect, seed noise dominates", **LOUD),
    Scenario("depth effect 3, equal tasks", **EQUAL, depth=3),
    Scenario("depth effect 3, unequal tasks", **UNEQUAL, depth=3),
    Scenario("spread effect 3, no depth effect", **UNEQUAL, spread=3),
    Scenario("no effect, seeds shared by shapes", **LOUD, correlated=0.95),
    Scenario("no effect, 2468 four times as noisy", **EQUAL, noisier=4),
    Scenario("no effect, 5555 eight times as noisy", **EQUAL, noisier=8, noisy_method="mola-5555"),
    Scenario("no effect, documents in clusters of 5", **EQUAL, cluster=5),
    Scenario("no effect, documents in clusters of 20", **EQUAL, cluster=20),
    Scenario("no effect, another generator", **UNEQUAL, logistic=True),
    Scenario("no effect, 1,500 documents, 8 seeds", **LARGE, seeds=8),
    Scenario("depth effect of the margin, 1,500 documents", **LARGE, depth=1),
    Scenario("depth effect of the margin, another generator", **LARGE, depth=1, logistic=True),
)
OUTSIDE = (
    Scenario("a fifth of the variance between runs is common to the six tasks", **EQUAL, common=0.2),
    Scenario("half of it", **EQUAL, common=0.5),
    Scenario("half of it, seed noise dominates", **LOUD, common=0.5),
    Scenario("documents in clusters of 20 that the scores do not name", **EQUAL, cluster=20, told=False),
    Scenario("2468 collapses in 5 % of its runs", **EQUAL, collapse=0.05),
)
"""Worlds that the verdict does not assume."""
PLANS = (
    Scenario("equal tasks", **EQUAL, depth=2.5),
    Scenario("unequal tasks", **UNEQUAL, depth=2.5),
    Scenario("two tasks, pilot of 5 seeds", **TWO, seeds=5, depth=4),
    Scenario("seed noise dominates", **LOUD, depth=8),
    Scenario("seeds shared by shapes", **LOUD, correlated=0.9, depth=4),
    Scenario("5555 eight times as noisy", **EQUAL, noisier=8, noisy_method="mola-5555", depth=2.5),
)
