"""What a study could have found, and how many seeds would find it.

Power is measured on the very test of `statistics`: draw what the true noise between runs may be, given how
well the data know it; draw the mean squares that a new study would see; and ask with what probability its
interval lies beyond zero on the effect's side. It is therefore an average over what the data leave open about
the noise (the "assurance" of a study, O'Hagan, Stevens & Campbell 2005); taking the estimated noise as known
promises 80 % and delivers 62-75 % after three seeds. The noise between runs is the question's own,
pooled only with methods of its kind that are equally noisy (`noise.planning_noise`).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from scipy import special, stats

from mola_core.analysis.statistics.estimates import Components, documents_alone, variance_terms

MAX_SEEDS = 1000
_DRAWS = 8
"""Power of two of the number of draws."""


@lru_cache(maxsize=8)
def _uniforms(tasks: int) -> np.ndarray:
    """Quasi-random numbers, the same every time: (1 + tasks, draws), so that power is smooth in its
    arguments.
    """
    return stats.qmc.Sobol(1 + tasks, seed=0).random_base2(_DRAWS).T


class Planner:
    """Power of one question's tests, from its tasks' components as plain numbers, at a two-sided `level`.

    Differences and margins are fractions, in the unit of the contrast. Equivalence is two one-sided tests at `level`, with
    `least_error` or more (`estimates.error_at_margin`).
    """

    def __init__(
        self, parts: Sequence[Components], level: float, target: float, least_error: float = 0.0
    ) -> None:
        self.parts, self.level, self.target, self.least_error = parts, level, target, least_error
        self._outlooks: dict[tuple[int | None, float], tuple[np.ndarray, np.ndarray]] = {}

    def _outlook(self, seeds: int | None, level: float) -> tuple[np.ndarray, np.ndarray]:
        """What studies with `seeds` seeds a task may meet: the true standard error and the half-width they see of the
        two-sided interval of confidence 1 - `level`.
        """
        if (seeds, level) not in self._outlooks:
            doubt, *luck = _uniforms(len(self.parts))
            _, known = variance_terms(self.parts)
            scale = known / stats.chi2.ppf(doubt, known)
            true, seen = [], []
            for part, draw in zip(self.parts, luck, strict=True):
                count = seeds or part.seeds
                between = max(float(part.document - part.rest), 0.0) / part.seeds * scale
                runs, rest = float(part.seed) * scale, float(part.rest) * scale
                study = part._replace(
                    mean=rest,
                    seed=runs,
                    document=count * between + rest,
                    rest=rest,
                    seeds=count,
                    seed_df=count - 1,
                )
                true.append(study)
                seen.append(study._replace(seed=runs * stats.chi2.ppf(draw, count - 1) / (count - 1)))
            truth, _ = variance_terms(true)
            variance, df = variance_terms(seen)
            halves = [
                stats.t.ppf(1 - level / 2, freedom) * error
                for error, freedom in ((np.sqrt(variance), df), documents_alone(seen))
            ]
            self._outlooks[seeds, level] = np.sqrt(truth), np.maximum(*halves)
        return self._outlooks[seeds, level]

    def power(self, difference: float, seeds: int | None = None) -> float:
        """Probability of finding a true mean `difference` with `seeds` seeds a task (default: those seen)."""
        error, half = self._outlook(seeds, self.level)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = special.ndtr((abs(difference) - half) / error)
        return float(np.where(error > 0, found, float(difference != 0)).mean())

    def power_equivalence(self, margin: float, seeds: int | None = None) -> float:
        """Probability of showing that the difference is below `margin` where it is truly zero."""
        error, half = self._outlook(seeds, 2 * self.level)
        half = np.maximum(half, stats.norm.isf(self.level) * self.least_error)
        with np.errstate(divide="ignore", invalid="ignore"):
            shown = np.maximum(2 * special.ndtr((margin - half) / error) - 1, 0)
        return float(np.where(error > 0, shown, 1.0).mean())

    def minimum_detectable_effect(self) -> float | None:
        """Smallest true difference found with the target power and the seeds seen; None above 100 points."""
        low, high = 0.0, 1.0
        if self.power(high) < self.target:
            return None
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if self.power(middle) < self.target else (low, middle)
        return high

    def seeds_needed(self, difference: float) -> int | None:
        """Fewest seeds in every task (at least 2) that find `difference` with the target power.

        None where 1000 seeds do not: then the documents are the limit, and more of them are needed instead.
        """
        return self._fewest(lambda seeds: self.power(difference, seeds))

    def seeds_for_equivalence(self, margin: float) -> int | None:
        """Fewest seeds in every task that show a true zero to be within `margin` with the target power, or None."""
        return self._fewest(lambda seeds: self.power_equivalence(margin, seeds))

    def _fewest(self, power: Callable[[int], float]) -> int | None:
        if power(MAX_SEEDS) < self.target:
            return None
        low, high = 1, 2
        while power(high) < self.target:
            low, high = high, min(2 * high, MAX_SEEDS)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if power(middle) < self.target else (low, middle)
        return high
