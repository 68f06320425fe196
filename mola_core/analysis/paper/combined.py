"""A combined estimate over the paper's tables: settings and tasks crossed, with heterogeneity and a prediction interval.

The tables are no independent studies. All test the same six tasks on the same documents, and Tables 1 and 8 are one
experiment with other seeds. So:

- Tables 1 and 8 count as one setting, weighted by their runs (one and three).
- What is left is a table z_kt of differences, settings x tasks, z_kt = μ + setting_k + task_t + rest_kt. Tasks that
  are hard for a shape in every setting, and documents that all settings share, are the task's term; that makes
  settings dependent, and a sum over settings that takes them as independent would be too sure.

With K settings, T tasks and the mean squares of the two-way table, for *these tasks* (fixed) the variance of the mean is
MS_setting / (K T) with K - 1 degrees of freedom, and for *tasks like these* (drawn) it is (MS_setting + max(MS_task -
MS_rest, 0)) / (K T) with Satterthwaite's (Searle, Casella & McCulloch 1992). Heterogeneity between settings is
τ² = max(MS_setting - MS_rest, 0) / T. The interval for the true difference in another setting like these, on these
tasks, is μ ± t(K - 2) · sqrt(τ² + variance) (Higgins, Thompson & Spiegelhalter 2009).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from mola_core.analysis.paper.sources import LLAMA, PRINTED_SEEDS, Source

LEVEL = 0.05
QUESTIONS = {
    "2468-vs-8642": ("mola-2468", "mola-8642"),
    "2468-vs-5555": ("mola-2468", "mola-5555"),
    "2882-vs-5555": ("mola-2882", "mola-5555"),
    "mola-2468-vs-lora-r64": ("mola-2468", "lora-r64"),
}
"""Pairs that three or more settings have: question -> (first, second)."""
PRIMARY = "2468-vs-8642"
"""The paper's claim, asked once of all its tables: the one test that needs no correction."""


class Combined(NamedTuple):
    """Points; intervals are of confidence 95 %."""

    estimate: float
    low: float
    high: float
    p: float
    drawn_low: float
    drawn_high: float
    drawn_p: float
    tau: float
    """Standard deviation of the true difference between settings."""
    task_sd: float
    """Standard deviation of the true difference between tasks."""
    predict_low: float
    predict_high: float
    settings: int
    tasks: int


def differences(tables: Sequence[Source], first: str, second: str) -> pd.DataFrame:
    """Settings x tasks, first minus second in points; Tables 1 and 8 in one row, weighted by their runs."""
    rows: dict[str, pd.Series] = {}
    direct: list[tuple[int, pd.Series]] = []
    for source in tables:
        if not source.ours or source.slopes_only or not {first, second} <= set(source.accuracy):
            continue
        difference = source.accuracy[first] - source.accuracy[second]
        if source.model == LLAMA and source.name.split(" (")[0] in ("Table 1", "Table 8"):
            direct.append((source.runs, difference))
        else:
            rows[source.name] = difference
    if direct:
        assert {runs for runs, _ in direct} <= {1, PRINTED_SEEDS}
        total = sum(runs for runs, _ in direct)
        rows = {"Tables 1 and 8": sum(runs * part for runs, part in direct) / total} | rows
    return pd.DataFrame(rows).T


def crossed(z: np.ndarray) -> Combined:
    """Combine differences, (settings, tasks). Raises ValueError for fewer than three settings or two tasks."""
    settings, tasks = z.shape
    if settings < 3 or tasks < 2:
        raise ValueError(f"{settings} settings and {tasks} tasks: needs three and two")
    mean = float(z.mean())
    by_setting, by_task = z.mean(axis=1) - mean, z.mean(axis=0) - mean
    rest = z - mean - by_setting[:, None] - by_task[None, :]
    ms_setting = tasks * (by_setting**2).sum() / (settings - 1)
    ms_task = settings * (by_task**2).sum() / (tasks - 1)
    ms_rest = (rest**2).sum() / ((settings - 1) * (tasks - 1))
    cells = settings * tasks
    fixed = ms_setting / cells
    between = max(ms_task - ms_rest, 0.0)
    drawn = (ms_setting + between) / cells
    parts = ms_setting**2 / (settings - 1)
    if between:
        parts += ms_task**2 / (tasks - 1) + ms_rest**2 / ((settings - 1) * (tasks - 1))
    df = (ms_setting + between) ** 2 / parts
    tau2 = max(ms_setting - ms_rest, 0.0) / tasks
    reach = stats.t.ppf(1 - LEVEL / 2, settings - 2) * np.sqrt(tau2 + fixed)
    low, high, p = _interval(mean, fixed, settings - 1)
    drawn_low, drawn_high, drawn_p = _interval(mean, drawn, df)
    return Combined(
        *(mean, low, high, p, drawn_low, drawn_high, drawn_p),
        *(float(np.sqrt(tau2)), float(np.sqrt(between / settings)), mean - reach, mean + reach),
        *(settings, tasks),
    )


def _interval(mean: float, variance: float, df: float) -> tuple[float, float, float]:
    error = float(np.sqrt(variance))
    half = float(stats.t.ppf(1 - LEVEL / 2, df)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, df)) if error else float(mean == 0)
    return mean - half, mean + half, p


def random_effects(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float, float, float]:
    """Estimate, low, high and τ of independent studies: Paule & Mandel's τ (1982), Hartung & Knapp's interval (2001)."""
    y, v = np.asarray(values, dtype=float), np.asarray(errors, dtype=float) ** 2

    def excess(tau2: float) -> float:
        w = 1 / (v + tau2)
        return float((w * (y - (w @ y) / w.sum()) ** 2).sum() - (len(y) - 1))

    tau2 = optimize.brentq(excess, 0, 1e4) if excess(0.0) > 0 else 0.0
    w = 1 / (v + tau2)
    mean = float((w @ y) / w.sum())
    scale = max(1.0, float((w * (y - mean) ** 2).sum()) / (len(y) - 1))
    half = float(stats.t.ppf(1 - LEVEL / 2, len(y) - 1)) * np.sqrt(scale / w.sum())
    return mean, mean - half, mean + half, float(np.sqrt(tau2))


def combine_all(tables: Sequence[Source]) -> dict[str, Combined]:
    """The combined estimate of each of `QUESTIONS`."""
    return {name: crossed(differences(tables, *pair).to_numpy()) for name, pair in QUESTIONS.items()}


def sensitivity(tables: Sequence[Source], question: str = PRIMARY) -> list[dict[str, str | float]]:
    """The same question under other treatments of what the tables share; one row each, points."""
    pair = QUESTIONS[question]
    frame = differences(tables, *pair)
    main = crossed(frame.to_numpy())
    rows = [
        _row(
            "five settings, crossed with the six tasks (above)", main.estimate, main.low, main.high, main.tau
        )
    ]
    named = {s.name: s.accuracy[pair[0]] - s.accuracy[pair[1]] for s in tables if _has(s, pair) and s.ours}
    single = crossed(pd.DataFrame(named).T.to_numpy())
    rows.append(
        _row("six tables, Tables 1 and 8 counted apart", single.estimate, single.low, single.high, single.tau)
    )
    llama = frame.drop(index=["Table 2", "Table 7"])
    models = crossed(np.stack([llama.mean(), frame.loc["Table 2"], frame.loc["Table 7"]]))
    rows.append(
        _row(
            "three base models, LLaMA-2's settings averaged",
            models.estimate,
            models.low,
            models.high,
            models.tau,
        )
    )
    errors = _errors({str(name): row for name, row in frame.iterrows()})
    rows.append(_row("five settings taken as independent", *random_effects(frame.mean(axis=1), errors)))
    reruns = {
        s.name: s.accuracy[pair[0]] - s.accuracy[pair[1]] for s in tables if _has(s, pair) and not s.ours
    }
    everything = [*frame.mean(axis=1), *(row.mean() for row in reruns.values())]
    rows.append(_row("the same with the reruns", *random_effects(everything, [*errors, *_errors(reruns)])))
    return rows


def _has(source: Source, pair: tuple[str, str]) -> bool:
    return set(pair) <= set(source.accuracy) and not source.slopes_only


def _errors(rows: Mapping[str, pd.Series]) -> list[float]:
    """Standard error of each row's mean over its tasks."""
    return [float(row.std(ddof=1) / np.sqrt(len(row))) for row in rows.values()]


def _row(treatment: str, estimate: float, low: float, high: float, tau: float) -> dict[str, str | float]:
    return {"treatment": treatment, "estimate": estimate, "low": low, "high": high, "tau": tau}
