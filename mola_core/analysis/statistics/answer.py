"""One question on one endpoint: estimate, interval, p-values for a difference and for equivalence, and a plan."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from mola_core.analysis.scores import Block, ScoreMatrix
from mola_core.analysis.statistics.bootstrap import Bootstrap
from mola_core.analysis.statistics.estimates import Components, between_tasks, combine, components
from mola_core.analysis.statistics.noise import planning_noise
from mola_core.analysis.statistics.planner import Planner
from mola_core.analysis.statistics.questions import Question, answer_id
from mola_core.analysis.statistics.records import Answer, Drawn, Exchange, Worth
from mola_core.analysis.statistics.summaries import points
from mola_core.study.verdict import VerdictSettings


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
) -> Answer:
    """A question's answer but for Holm's correction, which needs the others; `undecided` until then.

    `tests` are the tests of the stated family and of all (id, endpoint); only the primary endpoint's are stated.
    """
    answer = _empty(question, endpoint, settings, questions, tests)
    weights = dict(question.weights)
    there = [b for b in matrix.blocks if endpoint == "accuracy" or b.likelihood is not None]
    used = [block for block in there if len(block.common_seeds(list(weights)))]
    answer["dropped_tasks"] = [block.name for block in matrix.blocks if block not in used]
    if answer["dropped_tasks"]:
        lacking = "not all of its methods share a seed" + (
            ", or no likelihood" if endpoint != "accuracy" else ""
        )
        answer["reasons"].append(f"{', '.join(answer['dropped_tasks'])}: {lacking}, left out")
    if any(block.units < 2 for block in used) or not used:
        answer["reasons"].append(
            "no task with two or more documents (or clusters of them) and a seed that all its methods share"
        )
        return answer
    contrasts = [block.contrast(weights, endpoint) for block in used]
    parts = [components(z, block.clusters) for z, block in zip(contrasts, used, strict=True)]
    margin = settings.margin / 100 / question.reach
    _estimate(answer, question, used, contrasts, parts, level, margin)
    if exchange and endpoint == "likelihood":
        estimate, low, high = answer["estimate"], answer["low"], answer["high"]
        assert estimate is not None and low is not None and high is not None, "it was just estimated"
        rate = exchange["rate"]
        answer["worth"] = Worth(
            estimate=round(estimate * rate, 6), low=round(low * rate, 6), high=round(high * rate, 6)
        )
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
    else:
        _plan(answer, question, endpoint, used, parts, settings, level / answer["family_size"], margin)
    return answer


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
        **dict.fromkeys(("estimate", "low", "high", "median", "worth", "p", "p_adjusted")),
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
        "tasks": {},
        "seeds": [],
        "dropped_tasks": [],
        "reasons": reasons,
    }
    return cast("Answer", empty)


def _estimate(
    answer: Answer,
    question: Question,
    used: Sequence[Block],
    contrasts: Sequence[np.ndarray],
    parts: Sequence[Components],
    level: float,
    margin: float,
) -> None:
    estimate = combine(parts)
    low, high = estimate.interval(level)
    answer |= {
        "estimate": points(estimate.value),
        "low": points(low),
        "high": points(high),
        "median": points(np.mean([np.median(z.mean(axis=1)) for z in contrasts])),
        "p": round(float(estimate.p_value()), 8),
        "p_equivalence": round(float(estimate.p_equivalence(margin)), 8),
        "standard_error": points(estimate.error),
        "degrees_of_freedom": round(float(estimate.df), 2),
        "tasks": {block.name: points(part.mean) for block, part in zip(used, parts, strict=True)},
        "seeds": [part.seeds for part in parts],
        "covers": "seeds and documents",
    }
    if len(used) == 1:
        answer["reasons"].append(f"one task ({used[0].name}): nothing is said about others")
        return
    across = between_tasks([float(part.mean) for part in parts])
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
    level: float,
    margin: float,
) -> None:
    """What such a study could have found or shown, and the seeds for it, at the strictest step of Holm's correction."""
    noisy, pool = planning_noise(used, parts, question.weights, endpoint)
    planner = Planner(noisy, level, settings.power)
    smallest = planner.minimum_detectable_effect()
    answer["noise_from"] = list(pool)
    answer["minimum_detectable_effect"] = None if smallest is None else points(smallest)
    for difference in settings.differences:
        wanted = difference / 100 / question.reach
        answer["seeds_needed"][f"{difference:g}"] = planner.seeds_needed(wanted)
        answer["power"][f"{difference:g}"] = round(planner.power(wanted), 4)
    answer["seeds_equivalent"] = planner.seeds_for_equivalence(margin)
    answer["power_equivalent"] = round(planner.power_equivalence(margin), 4)


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
