"""Estimators for a score matrix, paired on documents and seeds.

Every question here is a contrast: weights on methods, the same in every task. In task t, seed s and document
d it is the number z_tsd = Σ_m weight_m · y_tmsd, y being 0 or 1 (correct) or a probability (likelihood), and
its estimate is the mean over documents, seeds, then tasks.

**Which interval decides, and why.** Tasks are fixed blocks: the answer is about the tasks tried. Seeds and
documents are random and crossed, z_tsd = μ_t + seed_ts + document_td + rest_tsd, so the variance of a task's
mean is estimated without bias from the mean squares of that two-way table,

    V_t = (MS_seed + MS_document - MS_rest) / (seeds · documents)

and the mean over tasks is compared with Student's t with Satterthwaite's degrees of freedom (Satterthwaite
1946; Searle, Casella & McCulloch 1992). With three seeds a task has two degrees of freedom, for which the t
quantile is 4.3, not 2. A claim is decided only where the documents alone, with the seeds taken as fixed, decide
it too, and no interval is narrower than theirs (`Estimate.interval`). A bootstrap over seeds and documents together has no such quantile, and it counts the
seed-by-document noise three times (Owen 2007, "The pigeonhole bootstrap"): measured by `mola calibrate`, its
percentile interval covers 96 to 100 % where 95 % is meant, at the price of power. It serves what has no
formula: ranks and the probability of improvement (`bootstrap`).
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import scipy  # its submodules load when used: Snakemake reads this file to plan

MIN_SPREAD = 0.05
"""Range of the shapes' spreads below which no slope on spread is estimated: 5555 lies 0.03 above 2468 and 8642, and to
conclude from that about both ends or the middle would be to extrapolate. 8228 lies 0.06 above 5555, 2882 0.08 below."""


class Components(NamedTuple):
    """One task's contrast: its mean and the mean squares of the seeds x documents table.

    The fields are arrays of any leading shape (one value for each simulated matrix) or plain floats.
    """

    mean: np.ndarray
    seed: np.ndarray
    document: np.ndarray
    rest: np.ndarray
    seeds: int
    documents: int
    seed_df: float
    """Degrees of freedom of `seed`: seeds - 1, or more where it was pooled over methods."""
    clusters: float | None = None
    """Effective number of clusters of documents; None where each document stands for itself."""

    @property
    def document_df(self) -> float:
        """Degrees of freedom of `document`."""
        return max((self.documents if self.clusters is None else self.clusters) - 1, 1)


class Estimate(NamedTuple):
    """A contrast's mean over tasks, its standard error and the degrees of freedom of that."""

    value: np.ndarray
    error: np.ndarray
    df: np.ndarray
    documents: tuple[np.ndarray, np.ndarray] | None = None
    """Standard error and degrees of freedom from the documents alone, as if seeds made no noise."""
    shared: tuple[np.ndarray, np.ndarray] | None = None
    """The same where what a seed does to one task it may do to all of them (`seeds_shared`)."""

    @property
    def _scales(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The standard errors that an interval and a p-value must both satisfy.

        Where a few seeds agree by chance more closely than their noise allows, the unbiased variance is too small:
        nothing is decided that the documents alone would leave open, and no interval is narrower than theirs.
        """
        others = (self.documents, self.shared)
        return [(self.error, self.df), *(scale for scale in others if scale is not None)]

    def half_width(self, level: float) -> np.ndarray:
        """Half of the two-sided interval of confidence 1 - level, the widest of `_scales`."""
        return np.maximum.reduce([scipy.stats.t.ppf(1 - level / 2, df) * error for error, df in self._scales])

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Two-sided interval of confidence 1 - level; it excludes zero exactly where `p_value` is below level."""
        half = self.half_width(level)
        return self.value - half, self.value + half

    def p_value(self) -> np.ndarray:
        """Two-sided p-value for a true value of zero; 1 for a contrast that is zero in every row."""
        return np.maximum.reduce([2 * _tail(np.abs(self.value), *scale) for scale in self._scales]).clip(0, 1)

    def p_equivalence(self, margin: float, least_error: float = 0.0) -> np.ndarray:
        """p-value for a true value of at least `margin` in size: two one-sided tests, the larger of their p-values.

        At most the level exactly where the interval of confidence 1 - 2 level lies within ±margin (Schuirmann 1987), and
        the standard error is taken to be `least_error` or more (`error_at_margin`).
        """
        room = margin - np.abs(self.value)
        known = (np.asarray(least_error), np.asarray(np.inf))
        scales = [*self._scales, *([known] if least_error else [])]
        return np.maximum.reduce([_tail(room, *scale) for scale in scales])


def _tail(distance: np.ndarray, error: np.ndarray, df: np.ndarray) -> np.ndarray:
    """P(T > distance / error); without any noise 0 for a positive distance, 1 for a negative and 0.5 for none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = scipy.stats.t.sf(distance / error, df)
    return np.where(np.asarray(error) > 0, p, (1 - np.sign(distance)) / 2)


def components(z: np.ndarray, clusters: np.ndarray | None = None) -> Components:
    """Mean and mean squares of a contrast, `z` being (..., seeds, documents) with at least two documents.

    With one seed the document mean square is all there is, and the seed and rest terms are zero. `clusters`
    (documents,) names the cluster of each document: documents of one cluster may then be answered alike, and the mean
    squares of documents and rest are sums over clusters instead (Liang & Zeger 1986; Miller 2024, "Adding error bars
    to evals"), each for what a mean without its cluster would be (CR3, the jackknife: Bell & McCaffrey 2002), with Σn²
    of the clusters' sizes n deciding how many count (Carter, Schnepel & Steigerwald 2017).
    """
    seeds, documents = z.shape[-2:]
    by_seed, by_document = z.mean(-1), z.mean(-2)
    mean = by_seed.mean(-1)
    off_document = by_document - mean[..., None]
    ms_document = seeds * _mean_square(off_document, clusters)
    effective = None if clusters is None else _effective_clusters(clusters)
    if seeds == 1:
        zero = np.zeros_like(mean)
        return Components(mean, zero, ms_document, zero, 1, documents, 0, effective)
    ss_seed = documents * ((by_seed - mean[..., None]) ** 2).sum(-1)
    if clusters is None:
        ss_all = ((z - mean[..., None, None]) ** 2).sum((-2, -1))
        ss_document = ms_document * (documents - 1)
        ms_rest = np.maximum(ss_all - ss_seed - ss_document, 0) / ((seeds - 1) * (documents - 1))
    else:
        rest = z - by_seed[..., None] - off_document[..., None, :]
        ms_rest = _mean_square(rest, clusters).sum(-1) / (seeds - 1)
    return Components(
        mean, ss_seed / (seeds - 1), ms_document, ms_rest, seeds, documents, seeds - 1, effective
    )


def _mean_square(deviations: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    """documents x the estimated variance of a mean whose deviations (..., documents) sum to zero."""
    documents = deviations.shape[-1]
    if clusters is None:
        return (deviations**2).sum(-1) / (documents - 1)
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=clusters[order[0]] - 1))
    sums = np.add.reduceat(deviations[..., order], starts, axis=-1)
    count, sizes = len(starts), np.diff(starts, append=documents)
    if count == 1:
        return (sums**2).sum(-1) / documents
    # A large cluster draws the mean to itself, so that its own deviations are too small.
    return ((sums / (1 - sizes / documents)) ** 2).sum(-1) / documents * ((count - 1) / count)


def _effective_clusters(clusters: np.ndarray) -> float:
    """(Σn)² / Σn² over the sizes n of the clusters: their number where they are equal, fewer where they are not."""
    sizes = np.unique(clusters, return_counts=True)[1].astype(float)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def variance_terms(parts: Sequence[Components]) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the mean over tasks and its Satterthwaite degrees of freedom."""
    variance, floored, terms = 0.0, 0.0, 0.0
    for part in parts:
        seeds, documents = part.seeds, part.documents
        weight = 1 / (len(parts) ** 2 * seeds * documents)
        between = np.maximum(part.document - part.rest, 0)
        variance = variance + weight * (part.seed + between)
        # MS_seed has MS_rest as its floor in expectation. Using that floor in the degrees of freedom (only
        # there) keeps a chance value near zero from claiming that seeds do not matter, which undercovers at
        # 2-3 seeds.
        seed = np.maximum(part.seed, part.rest)
        floored = floored + weight * (seed + between)
        terms = terms + weight**2 * (
            seed**2 / max(part.seed_df, 1)
            + part.document**2 / part.document_df
            + part.rest**2 / (max(seeds - 1, 1) * part.document_df)
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(np.asarray(terms) > 0, floored**2 / terms, 1.0)
    return np.asarray(variance), np.maximum(df, 1.0)


def documents_alone(parts: Sequence[Components]) -> tuple[np.ndarray, np.ndarray]:
    """Standard error of the mean over tasks with the seeds taken as fixed, and its degrees of freedom."""
    fixed = [
        part._replace(
            seed=part.document, document=0 * part.document, rest=0 * part.rest, seed_df=part.document_df
        )
        for part in parts
    ]
    variance, df = variance_terms(fixed)
    return np.sqrt(variance), df


def combine(parts: Sequence[Components], runs: np.ndarray | None = None) -> Estimate:
    """The contrast's mean over tasks, each task counting the same.

    `runs` (tasks, seeds) are the contrast's means by seed, NaN where a task lacks the seed, given where one adapter a seed may
    have answered all tasks.
    """
    variance, df = variance_terms(parts)
    mean = sum(part.mean for part in parts) / len(parts)
    shared = None if runs is None else seeds_shared(parts, runs)
    return Estimate(cast("np.ndarray", mean), np.sqrt(variance), df, documents_alone(parts), shared)


def run_noise(runs: np.ndarray) -> tuple[float, float, float]:
    """Variance of the mean over tasks by the noise between `runs` (tasks, seeds; NaN where there is none): where a seed moves
    tasks alike, and where each task's noise is its own; and the mean number of seeds a task.

    The first sums over tasks what each seed adds to the mean, as over clusters: with the same seeds in every task it is the
    variance of the seeds' means; seeds that one task has alone add what they add without sharing.
    """
    counts = np.isfinite(runs).sum(axis=1)
    added = (runs - np.nanmean(runs, axis=1, keepdims=True)) / (len(runs) * counts[:, None])
    free = counts / (counts - 1)
    own = float((np.nansum(added**2, axis=1) * free).sum())
    return float((np.nansum(added, axis=0) ** 2).sum() * free.mean()), own, float(counts.mean())


def seeds_shared(parts: Sequence[Components], runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard error of the mean over tasks, and its degrees of freedom, where a seed may move all tasks alike.

    The noise between runs is that of `run_noise`, unbiased whether tasks share it or not, with as many degrees of freedom as
    seeds a task less one. What documents add is as in `variance_terms`.
    """
    between_runs, _, seeds = run_noise(runs)
    least, documents, terms = 0.0, 0.0, np.asarray(0.0)
    for part in parts:
        weight = 1 / (len(parts) ** 2 * part.seeds * part.documents)
        documents = documents + weight * max(float(part.document - part.rest), 0.0)
        least = least + weight * float(part.rest)
        terms = terms + weight**2 * (
            part.document**2 / part.document_df + part.rest**2 / ((part.seeds - 1) * part.document_df)
        )
    floored = np.maximum(between_runs, least)  # as in `variance_terms`
    terms = terms + floored**2 / (seeds - 1)
    df = (floored + documents) ** 2 / terms if terms > 0 else 1.0
    return np.sqrt(between_runs + documents), np.maximum(df, 1.0)


def error_at_margin(units: Sequence[float], margin: float, shares: Sequence[float] | None = None) -> float:
    """Least standard error of a mean over tasks of differences of 0/1 answers whose true value is `margin` (a fraction).

    Such a difference is -1, 0 or 1, so its variance is margin - margin² or more: as in a score test, the error is taken
    where the null hypothesis ends. Where hardly a document is answered differently the one that is seen is far too small, and
    five documents would show that nothing differs. `units` are the independent documents (or clusters) of each task, `shares`
    the part of them whose values are 0 or 1 (default: all): what the rest does to the variance is seen.
    """
    shares = [1.0] * len(units) if shares is None else shares
    parts = (share * (margin - margin**2) / count for count, share in zip(units, shares, strict=True))
    return float(np.sqrt(sum(parts)) / len(units))


def between_tasks(means: Sequence[float], common: tuple[float, float] | None = None) -> Estimate:
    """Student's t over the tasks' own differences, each from runs of its own.

    Honest without any knowledge of seed or document noise, because both are in the differences; conservative
    for unequal noise and where tasks truly differ (Ibragimov & Müller 2010, at levels up to 8.3 %). Needs two
    tasks. `common` is the variance that runs common to all tasks add, which no difference between tasks shows, and the number of seeds.
    """
    values = np.asarray(means, dtype=float)
    added, seeds = common or (0.0, len(values))
    error = np.sqrt(values.var(ddof=1) / len(values) + added)
    return Estimate(values.mean(), error, np.asarray(min(len(values), seeds) - 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values)[order] * (len(order) - np.arange(len(order)))
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Exact two-sided McNemar test of two 0/1 vectors over the same documents.

    Returns the documents that only the first and only the second answered correctly, and the p-value.
    """
    only_first = int(np.sum((first == 1) & (second == 0)))
    only_second = int(np.sum((first == 0) & (second == 1)))
    tail = scipy.stats.binom.cdf(min(only_first, only_second), only_first + only_second, 0.5)
    return only_first, only_second, float(min(1.0, 2 * tail))


def slope_weights(centres: Sequence[float], spreads: Sequence[float]) -> np.ndarray | None:
    """Weights on the shapes that give the least-squares slopes of accuracy on centre and on spread, (2,
    shapes).

    With tasks and seeds as blocks and every shape in every block, the regression with block intercepts is the
    mean of the blocks' own regressions, so the slopes are contrasts of the shapes. Where centre and spread
    cannot be told apart, or spreads lie within `MIN_SPREAD`, the second row is zero and the first is the slope on
    the centre alone. Returns None for fewer than three shapes or equal centres.
    """
    centre = np.asarray(centres, dtype=float) - np.mean(centres)
    spread = np.asarray(spreads, dtype=float) - np.mean(spreads)
    if len(centre) < 3 or np.ptp(centre) < 1e-6:
        return None
    design = np.stack([centre, spread], axis=1)
    if np.ptp(spread) >= MIN_SPREAD and np.linalg.matrix_rank(design, tol=1e-6) == 2:
        return np.linalg.pinv(design)
    return np.stack([centre / (centre @ centre), np.zeros_like(centre)])
