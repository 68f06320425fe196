"""Score matrices whose truth is known, to see whether the verdict's intervals and promises hold.

A document is answered correctly where a latent score is positive: the method's level in the task, how hard
the document is, how hard it is for this method, the luck of this training run, and noise. All parts are
normal, so the true accuracy is Φ(level / total standard deviation), and any accuracy can be asked for
exactly.
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

    def with_effect(self, depth: float) -> "Scenario":
        return replace(self, depth=depth)

    def true_accuracy(self) -> np.ndarray:
        """(tasks, methods), as fractions."""
        shapes = {shape.method: shape for shape in find_shapes(SHAPES)}
        centre = np.array([shapes[method].centre for method in SHAPES])
        spread = np.array([shapes[method].spread for method in SHAPES])
        relative = self.depth * (centre - centre.mean()) / np.ptp(centre)
        relative += self.spread * (spread - spread.mean()) / np.ptp(spread)
        return np.array(self.accuracy)[:, None] + relative / 100

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
        for documents, noise, accuracy in zip(
            self.documents, self.run_noise, self.true_accuracy(), strict=True
        ):
            total = np.sqrt(1 + HARDNESS**2 + TASTE**2 + noise**2)
            score = rng.standard_normal((matrices, methods, self.seeds, documents), dtype=np.float32)
            score += HARDNESS * rng.standard_normal((matrices, 1, 1, documents), dtype=np.float32)
            score += TASTE * rng.standard_normal((matrices, methods, 1, documents), dtype=np.float32)
            own = rng.standard_normal((matrices, methods, self.seeds, 1), dtype=np.float32)
            score += noise * (shared + (1 - self.common) ** 0.5 * own)
            score += (stats.norm.ppf(accuracy) * total).astype(np.float32)[:, None, None]
            yield score > 0

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
)
OUTSIDE = (
    Scenario("a fifth of it", **EQUAL, common=0.2),
    Scenario("half of it", **EQUAL, common=0.5),
    Scenario("half of it, seed noise dominates", **LOUD, common=0.5),
)
"""Worlds that the verdict does not assume: a seed does something to all tasks alike."""
PLANS = (
    Scenario("equal tasks", **EQUAL, depth=2.5),
    Scenario("unequal tasks", **UNEQUAL, depth=2.5),
    Scenario("two tasks, pilot of 5 seeds", **TWO, seeds=5, depth=4),
    Scenario("seed noise dominates", **LOUD, depth=8),
)
