"""Noise between runs for a plan: a question's own, pooled with methods of its kind where they are equally noisy.

A test never pools: with what it would borrow from others, the p-value of a stated claim would move with whatever
else is in the file. A plan may: three seeds leave one difference two degrees of freedom a task, five shapes leave
eight. It borrows from methods of the same kind only (another kind may be many times as noisy), and only where the
question's own noise and the others' are not told apart by an F test.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy

from mola_core.analysis.scores import Block
from mola_core.analysis.statistics.estimates import Components
from mola_core.analysis.statistics.questions import method_kind

DOUBT = 0.2
"""p-value of equal noise below which nothing is pooled: a test before an estimate is done at a liberal level
(Bancroft & Han 1983)."""


def planning_noise(
    blocks: Sequence[Block], parts: Sequence[Components], weights: Mapping[str, float], endpoint: str
) -> tuple[list[Components], tuple[str, ...]]:
    """The parts with the noise between runs that a plan may take, and the methods that it comes from.

    The methods are those of the question's kind that have, in each task, all the seeds of the question.
    """
    own = tuple(method for method, weight in weights.items() if abs(weight) > 1e-9)
    kinds = {method_kind(method) for method in own}
    if len(kinds) > 1 or any(part.seeds < 2 for part in parts):
        return list(parts), own
    seeds = [block.common_seeds(list(weights)) for block in blocks]
    pool = tuple(
        method
        for method in blocks[0].methods
        if {method_kind(method)} == kinds
        and all(set(at) <= set(block.common_seeds([method])) for block, at in zip(blocks, seeds, strict=True))
    )
    if len(pool) <= len(own):
        return list(parts), own
    on_pool = np.array([weights.get(method, 0.0) for method in pool])
    runs = [block.run_means(pool, at, endpoint) for block, at in zip(blocks, seeds, strict=True)]
    if equally_noisy(parts, runs, on_pool) < DOUBT:
        return list(parts), own
    pooled = [pool_runs(part, run, on_pool) for part, run in zip(parts, runs, strict=True)]
    return pooled, pool


def pool_runs(part: Components, runs: np.ndarray, weights: Sequence[float] | np.ndarray) -> Components:
    """The same contrast with the noise between runs taken from all the methods of `runs`, (..., methods, seeds).

    From the methods x seeds interaction: what a seed does to all methods alike is in no contrast. Weights sum to zero.
    """
    methods, seeds = runs.shape[-2:]
    if methods < 2 or seeds < 2:
        return part
    df = (methods - 1) * (seeds - 1)
    between_runs = part.documents * _interaction(runs) / df
    return part._replace(seed=float(np.square(weights).sum()) * between_runs, seed_df=df)


def equally_noisy(parts: Sequence[Components], runs: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """p-value for the contrast's noise between runs being that of the rest of `runs`, over all tasks.

    Within a task the contrast's mean square against what the interaction leaves without it, F with seeds - 1 and
    (methods - 2)(seeds - 1) degrees of freedom, two-sided; over tasks by Fisher's method. 1 for two methods.
    """
    logs = 0.0
    for part, run in zip(parts, runs, strict=True):
        methods, seeds = run.shape[-2:]
        if methods < 3:
            return np.asarray(1.0)
        own = part.seed / part.documents / np.square(weights).sum()
        df, rest_df = seeds - 1, (methods - 2) * (seeds - 1)
        rest = np.maximum(_interaction(run) - own * df, 0) / rest_df
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where((own < 1e-15) & (rest < 1e-15), 1.0, own / rest)
        sides = scipy.stats.f.cdf(ratio, df, rest_df), scipy.stats.f.sf(ratio, df, rest_df)
        logs = logs - 2 * np.log(np.maximum(2 * np.minimum(*sides), 1e-300))
    return scipy.stats.chi2.sf(logs, 2 * len(parts))


def _interaction(runs: np.ndarray) -> np.ndarray:
    """Sum of squares of the methods x seeds interaction of (..., methods, seeds)."""
    rest = runs - runs.mean(-1, keepdims=True) - runs.mean(-2, keepdims=True)
    return ((rest + runs.mean((-2, -1), keepdims=True)) ** 2).sum((-2, -1))
