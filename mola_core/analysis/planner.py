"""What a study could have found, and how many seeds would find it.

Power is that of the test in `statistics`: the probability that Student's t exceeds its two-sided threshold
*in the direction of the effect* (noncentral t). The variance is itself estimated, from few seeds: power is
therefore averaged over what the data leave open about it, variance = estimate · df / χ²_df (the "assurance"
of a planned study, O'Hagan, Stevens & Campbell 2005). Plugging the estimate in instead would promise 80 % and
deliver 62-75 % after three seeds.
"""

from collections.abc import Sequence

import numpy as np
from scipy import special, stats

from mola_core.analysis.statistics import Components, variance_terms

MOST_SEEDS = 1000
LARGEST_POINTS = 100.0
_NODES = (np.arange(24) + 0.5) / 24


def power(
    parts: Sequence[Components], difference: float, level: float, seeds: int | None = None
) -> np.ndarray:
    """Probability of finding a true mean `difference` (a fraction, as the contrast) with `seeds` seeds a
    task.
    """
    variance, plan, known = (np.asarray(term, dtype=float)[None] for term in variance_terms(parts, seeds))
    nodes = _NODES.reshape(-1, *[1] * (variance.ndim - 1))
    possible = variance * known / stats.chi2.ppf(nodes, known)
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(possible > 0, abs(difference) / np.sqrt(possible), np.inf)
    threshold = stats.t.ppf(1 - level / 2, plan)
    # nctdtr loses its way far in the tail, where the answer is certain anyway.
    found = 1 - special.nctdtr(plan, np.minimum(shift, 30.0), threshold)
    return np.where(shift > np.maximum(30.0, 3 * threshold), 1.0, np.nan_to_num(found, nan=1.0)).mean(0)


def minimum_detectable_effect(parts: Sequence[Components], level: float, target: float) -> float | None:
    """Smallest true mean difference found with probability `target` with the seeds seen; None above 100
    points.
    """
    low, high = 0.0, LARGEST_POINTS / 100
    if power(parts, high, level) < target:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(parts, middle, level) < target else (low, middle)
    return high


def seeds_needed(parts: Sequence[Components], difference: float, level: float, target: float) -> int | None:
    """Fewest seeds in every task (at least 2) that find `difference` with probability `target`.

    None where 1000 seeds do not: then the documents are the limit, and more of them are needed instead.
    """

    def enough(seeds: int) -> bool:
        return bool(power(parts, difference, level, seeds) >= target)

    if not enough(MOST_SEEDS):
        return None
    low, high = 1, 2
    while not enough(high):
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
