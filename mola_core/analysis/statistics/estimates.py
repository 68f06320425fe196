"""Estimators for a score matrix, paired on documents and seeds.

Every question here is a contrast: weights on methods, the same in every task. In task t, seed s and document
d it is the number z_tsd = Σ_m weight_m · correct_tmsd, and its estimate is the mean over documents, seeds,
then tasks.

**Which interval decides, and why.** Tasks are fixed blocks: the answer is about the tasks tried. Seeds and
documents are random and crossed, z_tsd = μ_t + seed_ts + document_td + rest_tsd, so the variance of a task's
mean is estimated without bias from the mean squares of that two-way table,

    V_t = (MS_seed + MS_document - MS_rest) / (seeds · documents)

and the mean over tasks is compared with Student's t with Satterthwaite's degrees of freedom (Satterthwaite
1946; Searle, Casella & McCulloch 1992). With three seeds a task has two degrees of freedom, for which the t
quantile is 4.3, not 2. A claim is decided only where the documents alone, with the seeds taken as fixed, decide
it too (`Estimate.p_value`). A bootstrap over seeds and documents together has no such quantile, and it counts the
seed-by-document noise three times (Owen 2007, "The pigeonhole bootstrap"): measured by `mola calibrate`, its
percentile interval covers 96 to 100 % where 95 % is meant, at the price of power. It serves what has no
formula: ranks and the probability of improvement.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # its submodules load when used: Snakemake reads this file to plan

LEAST_SPREAD = 0.05
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
    seed_df: int
    """Degrees of freedom of `seed`: seeds - 1, or more where it was pooled over methods."""


class Estimate(NamedTuple):
    """A contrast's mean over tasks, its standard error and the degrees of freedom of that."""

    value: np.ndarray
    error: np.ndarray
    df: np.ndarray
    documents: tuple[np.ndarray, np.ndarray] | None = None
    """Standard error and degrees of freedom from the documents alone, as if seeds made no noise."""

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Two-sided interval of confidence 1 - level."""
        half = scipy.stats.t.ppf(1 - level / 2, self.df) * self.error
        return self.value - half, self.value + half

    def p_value(self) -> np.ndarray:
        """Two-sided p-value for a true value of zero; 1 for a contrast that is zero in every row.

        Never below that of the documents alone: where a few seeds agree by chance more closely than their noise
        allows, the unbiased variance is too small, and nothing is decided that the documents would leave open.
        """
        p = _two_sided(self.value, self.error, self.df)
        return p if self.documents is None else np.maximum(p, _two_sided(self.value, *self.documents))


def _two_sided(value: np.ndarray, error: np.ndarray, df: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * scipy.stats.t.sf(np.abs(value) / error, df)
    return np.where(np.asarray(error) > 0, p, np.where(np.asarray(value) == 0, 1.0, 0.0))


def components(z: np.ndarray) -> Components:
    """Mean and mean squares of a contrast, `z` being (..., seeds, documents) with at least two documents.

    With one seed the document mean square is all there is, and the seed and rest terms are zero.
    """
    seeds, documents = z.shape[-2:]
    by_seed, by_document = z.mean(-1), z.mean(-2)
    mean = by_seed.mean(-1)
    ss_document = seeds * ((by_document - mean[..., None]) ** 2).sum(-1)
    ms_document = ss_document / (documents - 1)
    if seeds == 1:
        return Components(mean, np.zeros_like(mean), ms_document, np.zeros_like(mean), 1, documents, 0)
    ss_seed = documents * ((by_seed - mean[..., None]) ** 2).sum(-1)
    ss_all = ((z - mean[..., None, None]) ** 2).sum((-2, -1))
    ms_rest = np.maximum(ss_all - ss_seed - ss_document, 0) / ((seeds - 1) * (documents - 1))
    return Components(mean, ss_seed / (seeds - 1), ms_document, ms_rest, seeds, documents, seeds - 1)


def pool_runs(part: Components, accuracy: np.ndarray, weights: Sequence[float]) -> Components:
    """The same contrast with the noise between runs taken from all methods of the task, for planning.

    `accuracy` is (..., methods, seeds). Assumes that methods are equally noisy, which a plan may and a test
    may not: three seeds leave a contrast two degrees of freedom a task, six methods leave ten.
    """
    methods, seeds = accuracy.shape[-2:]
    if methods < 2 or seeds < 2:
        return part
    rest = accuracy - accuracy.mean(-1, keepdims=True) - accuracy.mean(-2, keepdims=True)
    rest = rest + accuracy.mean((-2, -1), keepdims=True)
    df = (methods - 1) * (seeds - 1)
    between_runs = part.documents * (rest**2).sum((-2, -1)) / df
    return part._replace(seed=float(np.square(weights).sum()) * between_runs, seed_df=df)


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
            + part.document**2 / (documents - 1)
            + part.rest**2 / (max(seeds - 1, 1) * (documents - 1))
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(np.asarray(terms) > 0, floored**2 / terms, 1.0)
    return variance, np.maximum(df, 1.0)


def documents_alone(parts: Sequence[Components]) -> tuple[np.ndarray, np.ndarray]:
    """Standard error of the mean over tasks with the seeds taken as fixed, and its degrees of freedom."""
    fixed = [
        part._replace(
            seed=part.document, document=0 * part.document, rest=0 * part.rest, seed_df=part.documents - 1
        )
        for part in parts
    ]
    variance, df = variance_terms(fixed)
    return np.sqrt(variance), df


def combine(parts: Sequence[Components]) -> Estimate:
    """The contrast's mean over tasks, each task counting the same."""
    variance, df = variance_terms(parts)
    mean = sum(part.mean for part in parts) / len(parts)
    return Estimate(mean, np.sqrt(variance), df, documents_alone(parts))


def between_tasks(means: Sequence[float]) -> Estimate:
    """Student's t over the tasks' own differences, each from runs of its own.

    Honest without any knowledge of seed or document noise, because both are in the differences; conservative
    for unequal noise and where tasks truly differ (Ibragimov & Müller 2010, at levels up to 8.3 %). Needs two
    tasks.
    """
    values = np.asarray(means, dtype=float)
    error = values.std(ddof=1) / np.sqrt(len(values))
    return Estimate(values.mean(), error, np.float64(len(values) - 1))


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
    cannot be told apart, or spreads lie within `LEAST_SPREAD`, the second row is zero and the first is the slope on
    the centre alone. Returns None for fewer than three shapes or equal centres.
    """
    centre = np.asarray(centres, dtype=float) - np.mean(centres)
    spread = np.asarray(spreads, dtype=float) - np.mean(spreads)
    if len(centre) < 3 or np.ptp(centre) < 1e-6:
        return None
    design = np.stack([centre, spread], axis=1)
    if np.ptp(spread) >= LEAST_SPREAD and np.linalg.matrix_rank(design, tol=1e-6) == 2:
        return np.linalg.pinv(design)
    return np.stack([centre / (centre @ centre), np.zeros_like(centre)])


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


def bootstrap(tasks: Sequence[np.ndarray], resamples: int, rng: np.random.Generator) -> Bootstrap:
    """Resample seeds and documents together within each task; `tasks` are (methods, seeds, documents) of 0/1.

    The same seeds and documents are drawn for all methods, so differences stay paired. Of n seeds n - 1 are
    drawn: that makes the bootstrap variance over few seeds unbiased (Rao & Wu 1988); one seed is kept as it
    is. Counts are whole numbers below 2^24, which float32 adds exactly: the result is the same on every
    machine.
    """
    methods = tasks[0].shape[0]
    widest = max(task.shape[1] for task in tasks)
    runs = np.zeros((len(tasks), resamples, methods, widest), dtype=np.float32)
    weights = np.zeros((len(tasks), resamples, widest), dtype=np.float32)
    for t, task in enumerate(tasks):
        _, seeds, documents = task.shape
        draws = max(seeds - 1, 1)
        weights[t, :, :seeds] = rng.multinomial(draws, np.full(seeds, 1 / seeds), size=resamples) / draws
        # Documents that all cells answered alike are interchangeable: draw how many of each kind.
        kinds, counts = _kinds(task.reshape(-1, documents))
        share = counts / documents
        step = max(1, 4_000_000 // len(counts))
        for start in range(0, resamples, step):
            stop = min(start + step, resamples)
            drawn = rng.multinomial(documents, share, size=stop - start).astype(np.float32)
            runs[t, start:stop, :, :seeds] = (drawn @ kinds).reshape(-1, methods, seeds) / documents
    return Bootstrap(runs, weights)


def _kinds(answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct columns of a 0/1 array (cells, documents), as float32 (kinds, cells), and how often each
    occurs.
    """
    packed = np.ascontiguousarray(np.packbits(answers, axis=0).T)
    keys, counts = np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_counts=True)
    rows = keys.view(np.uint8).reshape(len(keys), -1)
    return np.unpackbits(rows, axis=1, count=answers.shape[0]).astype(np.float32), counts


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
