"""One question on one endpoint: estimate, interval, p-values for a difference and for equivalence, and a plan."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from mola_core.analysis.scores import Block, ScoreMatrix, shared_runs
from mola_core.analysis.statistics.bootstrap import Bootstrap
from mola_core.analysis.statistics.estimates import (
    Components,
    between_tasks,
    combine,
    components,
    error_at_margin,
    run_noise,
)
from mola_core.analysis.statistics.noise import planning_noise
from mola_core.analysis.statistics.planner import Planner
from mola_core.analysis.statistics.questions import Question, answer_id
from mola_core.analysis.statistics.records import Answer, Drawn, Exchange, Inner
from mola_core.analysis.statistics.summaries import points
from mola_core.study.verdict import VerdictSettings

ROUNDING = 1e-12
"""Of a weighted sum of answers between 0 and 1: nothing smaller is a difference."""


def answer_question(
    question: Question,
    endpoint: str,
    matrix: ScoreMatrix,
    settings: VerdictSettings,
    level: float,
    questions: Sequence[Question],
    tests: Mapping[str, set[tuple[str, str]]],
    resampled: tuple[Bootstrap | None, list[str]],
    exchange: Exchange | None,
    seeds_shared: bool,
    next_level: float,
) -> Answer:
    """A question's answer but for Holm's correction, which needs the others; `undecided` until then.

    `tests` are the tests of the stated family and of all (id, endpoint); only the primary endpoint's are stated.
    `seeds_shared`: a seed's training may have answered all tasks. More seeds are planned for `next_level`, that of the next look.
    """
    answer = _empty(question, endpoint, settings, questions, tests)
    # A shape in the middle has no part in the slope, so neither have the seeds and tasks that it lacks.
    weights = {method: question.weights[method] for method in question.moved}
    used = []
    for block in matrix.blocks:
        lacking = _lacking(block, list(weights), endpoint)
        if lacking:
            answer["reasons"].append(f"{block.name}: {lacking}, left out")
            answer["dropped_tasks"].append(block.name)
        else:
            used.append(block)
    if not used:
        return answer
    # A slope's weights sum to zero but for rounding, which is no difference where all answers are the same.
    contrasts = [
        np.where(np.abs(z) < ROUNDING, 0.0, z) for z in (b.contrast(weights, endpoint) for b in used)
    ]
    parts = [components(z, block.clusters) for z, block in zip(contrasts, used, strict=True)]
    runs = shared_runs(used, weights, endpoint) if seeds_shared else None
    margin, reach = settings.margin / 100, question.reach
    shares = [block.saturated(list(weights), endpoint) for block in used]
    least_error = error_at_margin([part.document_df + 1 for part in parts], margin, shares) / reach
    _estimate(answer, used, contrasts, parts, runs, level, margin / reach, least_error)
    if exchange and endpoint == "likelihood":
        assert answer["estimate"] is not None, "it was just estimated"
        answer["worth"] = round(answer["estimate"] * exchange["rate"], 6)
    if endpoint == "accuracy":
        _resampled(answer, question, *resampled, level)
    single = [block.name for block, part in zip(used, parts, strict=True) if part.seeds == 1]
    if single:
        answer["covers"] = "documents"
        answer["reasons"].append(f"one seed in {', '.join(single)}: the noise between trainings was not seen")
    elif not any(z.any() for z in contrasts):
        answer["reasons"].append(
            "the answers are identical in every document and seed: nothing is left to plan"
        )
    elif _least_p(used) > level / answer["family_size"]:
        answer["reasons"].append(
            f"so few documents (or clusters of them) cannot decide anything: p is {_least_p(used):.2g} or more, whatever they say"
        )
    else:
        _plan(answer, question, endpoint, used, parts, settings, (level, next_level), least_error)
    return answer


def _lacking(block: Block, methods: Sequence[str], endpoint: str) -> str:
    """Why a task cannot be in a question; empty where it can."""
    if endpoint != "accuracy" and block.likelihood is None:
        return f"no {endpoint}"
    if not len(block.common_seeds(methods)):
        return "its methods share no seed"
    return "a single document (or cluster of them)" if block.units < 2 else ""


def _empty(
    question: Question,
    endpoint: str,
    settings: VerdictSettings,
    questions: Sequence[Question],
    tests: Mapping[str, set[tuple[str, str]]],
) -> Answer:
    twin = question.twin(questions)
    test = ((twin or question).id, endpoint)
    stated = {t for t in tests["stated"] if t[1] == settings.endpoint}
    is_stated = test in stated
    sizes = {f"{difference:g}": None for difference in settings.differences}
    reasons = []
    if twin:
        reasons.append(
            f"only {' and '.join(question.moved)} lie off the middle of the depth, so the slope is their difference in "
            f"another unit: the same test as {twin.id}, corrected and answered with it"
        )
    empty: dict[str, Any] = {
        "id": answer_id(question.id, endpoint),
        "endpoint": endpoint,
        "status": "stated" if is_stated else "exploratory",
        "family": question.family,
        "claim": question.claim.replace("accuracy rises", f"{endpoint} rises"),
        "answer": "undecided",
        "within_margin": False,
        "margin": settings.margin,
        **dict.fromkeys(("estimate", "low", "high", "inner", "median", "worth", "p", "p_adjusted")),
        **dict.fromkeys(("p_equivalence", "p_equivalence_adjusted", "drawn", "covers")),
        "standard_error": None,
        "degrees_of_freedom": None,
        "family_size": len(stated) if is_stated else len(tests["all"] - stated),
        "same_test_as": twin and answer_id(twin.id, endpoint),
        "minimum_detectable_effect": None,
        "seeds_needed": dict(sizes),
        "power": dict(sizes),
        "seeds_equivalent": None,
        "power_equivalent": None,
        "noise_from": [],
        "bootstrap": None,
        "probability_of_improvement": None,
        "reach": round(question.reach, 6),
        "weights": {method: round(weight, 6) for method, weight in question.weights.items()},
        "places": {method: round(place, 4) for method, place in question.places.items()},
        "tasks": {},
        "seeds": [],
        "dropped_tasks": [],
        "reasons": reasons,
    }
    return cast("Answer", empty)


def _least_p(used: Sequence[Block]) -> float:
    """The smallest p-value of any test of so many documents (or clusters), each of one sign or the other."""
    return 2.0 ** (1 - sum(block.units for block in used))


def _estimate(
    answer: Answer,
    used: Sequence[Block],
    contrasts: Sequence[np.ndarray],
    parts: Sequence[Components],
    runs: np.ndarray | None,
    level: float,
    margin: float,
    least_error: float,
) -> None:
    """Of `runs` see `combine`; `margin` and `least_error` (`error_at_margin`) are fractions, in the unit of the contrast."""
    estimate = combine(parts, runs)
    low, high = estimate.interval(level)
    inner = estimate.interval(2 * level)
    least_p = _least_p(used)
    answer |= {
        "estimate": points(estimate.value),
        "low": points(low),
        "high": points(high),
        "inner": Inner(low=points(inner[0]), high=points(inner[1])),
        "median": points(np.mean([np.median(z.mean(axis=1)) for z in contrasts])),
        "p": round(max(float(estimate.p_value()), least_p), 8),
        "p_equivalence": round(max(float(estimate.p_equivalence(margin, least_error)), least_p), 8),
        "standard_error": points(estimate.error),
        "degrees_of_freedom": round(float(estimate.df), 2),
        "tasks": {block.name: points(part.mean) for block, part in zip(used, parts, strict=True)},
        "seeds": [part.seeds for part in parts],
        "covers": "seeds and documents",
    }
    if len(used) == 1:
        answer["reasons"].append(f"one task ({used[0].name}): nothing is said about others")
        return
    common = None
    if runs is not None:
        shared, own, seeds = run_noise(runs)
        common = max(shared - own, 0.0), seeds
    across = between_tasks([float(part.mean) for part in parts], common)
    below, above = map(points, across.interval(level))
    answer["drawn"] = Drawn(
        low=below,
        high=above,
        p=round(float(across.p_value()), 8),
        p_equivalence=round(float(across.p_equivalence(margin)), 8),
    )


def _plan(
    answer: Answer,
    question: Question,
    endpoint: str,
    used: Sequence[Block],
    parts: Sequence[Components],
    settings: VerdictSettings,
    levels: tuple[float, float],
    least_error: float,
) -> None:
    """What such a study could have found or shown, at this look's level, and the seeds for it, at the next look's, both at
    the strictest step of Holm's correction."""
    weights = {method: question.weights[method] for method in question.moved}
    noisy, pool = planning_noise(used, parts, weights, endpoint)
    margin = settings.margin / 100 / question.reach
    now, later = (
        Planner(noisy, level / answer["family_size"], settings.power, least_error) for level in levels
    )
    smallest = now.minimum_detectable_effect()
    answer["noise_from"] = list(pool)
    answer["minimum_detectable_effect"] = None if smallest is None else points(smallest)
    for difference in settings.differences:
        wanted = difference / 100 / question.reach
        answer["seeds_needed"][f"{difference:g}"] = later.seeds_needed(wanted)
        answer["power"][f"{difference:g}"] = round(now.power(wanted), 4)
    answer["seeds_equivalent"] = later.seeds_for_equivalence(margin)
    answer["power_equivalent"] = round(now.power_equivalence(margin), 4)


def _resampled(
    answer: Answer, question: Question, drawn: Bootstrap | None, ranked: Sequence[str], level: float
) -> None:
    """Percentile intervals of the bootstrap, where all the question's methods are in it."""
    if drawn is None or any(method not in ranked for method in question.weights):
        return
    weights = np.array([question.weights.get(method, 0.0) for method in ranked])
    answer["bootstrap"] = _percentiles(drawn.means() @ weights, level)
    if question.is_pair:
        first, second = sorted(question.weights, key=question.weights.__getitem__, reverse=True)
        wins = drawn.improvement(ranked.index(first), ranked.index(second))
        answer["probability_of_improvement"] = {
            "estimate": round(float(wins.mean()), 4),
            **{key: round(value / 100, 4) for key, value in _percentiles(wins, level).items()},
        }


def _percentiles(values: np.ndarray, level: float) -> dict[str, float]:
    low, high = np.quantile(values, [level / 2, 1 - level / 2])
    return {"low": points(low), "high": points(high)}
