"""From a score matrix to answers: supported, contradicted or undecided.

The claim of a question is that its estimate is above zero. It is *supported* where Holm's adjusted p-value
within its family is at most the level and the estimate is positive, *contradicted* where it is negative,
*undecided* otherwise. The interval shown is the question's own, unadjusted; its coverage is what
`calibration` measures. With one seed in a task the data hold no noise between trainings. The interval then
covers documents only and the answer stays undecided: it would be about two trained adapters, not about two
shapes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mola_core.analysis.scores import ScoreMatrix, load_scores, score_matrix
from mola_core.analysis.statistics.estimates import (
    Bootstrap,
    between_tasks,
    bootstrap,
    combine,
    components,
    holm,
    pool_runs,
)
from mola_core.analysis.statistics.planner import Planner
from mola_core.analysis.statistics.questions import (
    FAMILIES,
    Question,
    Shape,
    find_shapes,
    named_pair,
    possible_questions,
)
from mola_core.analysis.statistics.summaries import (
    BASE,
    depth_lines,
    mcnemar_tests,
    notes,
    points,
    summarise_methods,
    trained_seeds,
)
from mola_core.files import sha256_file, write_json, write_text
from mola_core.study.verdict import VerdictSettings


def decide(
    scores: pd.DataFrame | ScoreMatrix,
    settings: VerdictSettings | None = None,
    *,
    shapes: Mapping[str, Sequence[int] | None] | None = None,
    **stated: Any,
) -> dict[str, Any]:
    """Answer the questions that the methods of a score matrix allow. Accuracies are in points (0-100).

    `stated` overrides fields of `settings` (level, questions, resamples, seed, ...); `shapes` gives the
    experts per layer of methods whose name does not tell, None for those to keep out of the slopes. Raises `MolaError` for rows that cannot be paired.
    """
    settings = VerdictSettings.model_validate({**(settings or VerdictSettings()).model_dump(), **stated})
    matrix = scores if isinstance(scores, ScoreMatrix) else score_matrix(scores)
    methods = matrix.methods
    found = find_shapes(methods, shapes)
    questions, unanswered = _choose(settings, methods, found)
    drawn, ranked = _resample(matrix, settings)
    answers = [_answer(question, matrix, settings, questions, drawn, ranked) for question in questions]
    _correct(answers, settings.level)
    names = [answer["id"] for answer in answers]
    return {
        "level": settings.level,
        "headline": next((name for name in settings.hypotheses if name in names), None),
        "questions": answers,
        "unanswered": unanswered,
        "methods": summarise_methods(matrix, settings, drawn, ranked, found),
        "lines": depth_lines(matrix, settings, questions, found),
        "mcnemar": mcnemar_tests(matrix, questions),
        "notes": notes(matrix, ranked),
        "data": {
            "studies": list(matrix.studies),
            "models": list(matrix.models),
            "tasks": {
                block.name: {"documents": block.documents, "seeds": len(block.seeds)}
                for block in matrix.blocks
            },
        },
        "settings": settings.model_dump(mode="json"),
        "settings_sha256": hashlib.sha256(settings.model_dump_json().encode()).hexdigest(),
    }


def _choose(
    settings: VerdictSettings, methods: Sequence[str], shapes: Sequence[Shape]
) -> tuple[list[Question], list[dict[str, str]]]:
    """The questions to answer, and those that were asked for but that the methods do not allow."""
    standing = {question.id: question for question in possible_questions(methods, shapes)}
    asked = dict.fromkeys((*settings.hypotheses, *(settings.questions or ())))
    wanted = asked if settings.questions is not None else dict.fromkeys((*standing, *asked))
    chosen, unanswered = [], []
    for name in wanted:
        question = standing.get(name) or (
            named_pair(name, methods) if "-vs-" in name or "routing" in name else None
        )
        if question:
            chosen.append(question)
        else:
            needs = "three shapes of that budget" if "-vs-" not in name else "both methods"
            if name.startswith("routing-"):
                needs = "the shape with and without routing"
            unanswered.append({"id": name, "reason": f"needs {needs}"})
    order = list(FAMILIES)
    return sorted(chosen, key=lambda question: order.index(question.family)), unanswered


def _resample(matrix: ScoreMatrix, settings: VerdictSettings) -> tuple[Bootstrap | None, list[str]]:
    """The bootstrap, and the methods in it: those with all seeds of all tasks, the untrained base apart."""
    ranked = [
        method
        for method in matrix.methods
        if method != BASE
        and all(len(block.common_seeds([method])) == trained_seeds(block) for block in matrix.blocks)
    ]
    if not ranked:
        return None, []
    tasks = []
    for block in matrix.blocks:
        seeds = block.common_seeds(ranked)
        tasks.append(block.correct[[block.methods.index(method) for method in ranked]][:, seeds])
    return bootstrap(tasks, settings.resamples, np.random.default_rng(settings.seed)), ranked


def _answer(
    question: Question,
    matrix: ScoreMatrix,
    settings: VerdictSettings,
    questions: Sequence[Question],
    drawn: Bootstrap | None,
    ranked: Sequence[str],
) -> dict[str, Any]:
    """One question, without Holm's correction, which needs the others."""
    twin = question.twin(questions)
    family = (twin or question).family
    used = [block for block in matrix.blocks if len(block.common_seeds(list(question.weights)))]
    dropped = [block.name for block in matrix.blocks if block not in used]
    answer: dict[str, Any] = {
        "id": question.id,
        "family": question.family,
        "claim": question.claim,
        "answer": "undecided",
        "estimate": None,
        "low": None,
        "high": None,
        "minimum_detectable_effect": None,
        "seeds_needed": {f"{difference:g}": None for difference in settings.differences},
        "power": {f"{difference:g}": None for difference in settings.differences},
        "covers": None,
        "p": None,
        "p_holm": None,
        "same_test_as": twin and twin.id,
        "family_size": sum(other.family == family and not other.twin(questions) for other in questions),
        "standard_error": None,
        "degrees_of_freedom": None,
        "reach": round(question.reach, 6),
        "weights": {method: round(weight, 6) for method, weight in question.weights.items()},
        "tasks": {},
        "dropped_tasks": dropped,
        "reasons": [],
    }
    if dropped:
        answer["reasons"].append(f"{', '.join(dropped)}: not all of its methods share a seed, left out")
    if any(block.documents < 2 for block in used) or not used:
        answer["reasons"].append("no task with two or more documents and a seed that all its methods share")
        return answer
    parts = [components(block.contrast(dict(question.weights))) for block in used]
    estimate = combine(parts)
    low, high = estimate.interval(settings.level)
    answer |= {
        "estimate": points(estimate.value),
        "low": points(low),
        "high": points(high),
        "p": round(float(estimate.p_value()), 8),
        "standard_error": points(estimate.error),
        "degrees_of_freedom": round(float(estimate.df), 2),
        "tasks": {block.name: points(part.mean) for block, part in zip(used, parts, strict=True)},
        "seeds": [part.seeds for part in parts],
        "covers": "seeds and documents",
    }
    if len(used) == 1:
        answer["reasons"].append(f"one task ({used[0].name}): nothing is said about others")
    else:
        across = between_tasks([float(part.mean) for part in parts])
        answer["between_tasks"] = dict(
            zip(("low", "high"), map(points, across.interval(settings.level)), strict=True)
        )
    if twin:
        answer["reasons"].append(
            f"only {' and '.join(question.moved)} lie off the middle of the depth, so the slope is their difference in "
            f"another unit: the same test as {twin.id}, corrected and answered with it"
        )
    answer |= _resampled(question, drawn, ranked, settings)
    single = [block.name for block, part in zip(used, parts, strict=True) if part.seeds == 1]
    if single:
        answer["covers"] = "documents"
        answer["reasons"].append(f"one seed in {', '.join(single)}: the noise between trainings was not seen")
        return answer
    parts = [
        pool_runs(
            part,
            block.run_accuracy(block.common_seeds(list(question.weights))),
            list(question.weights.values()),
        )
        for block, part in zip(used, parts, strict=True)
    ]
    planner = Planner(parts, settings.level / answer["family_size"], settings.power)
    mde = planner.minimum_detectable_effect()
    answer["minimum_detectable_effect"] = None if mde is None else points(mde)
    for difference in settings.differences:
        wanted = difference / 100 / question.reach
        name = f"{difference:g}"
        answer["seeds_needed"][name] = planner.seeds_needed(wanted)
        answer["power"][name] = round(planner.power(wanted), 4)
    return answer


def _resampled(
    question: Question, drawn: Bootstrap | None, ranked: Sequence[str], settings: VerdictSettings
) -> dict[str, Any]:
    """Percentile intervals of the bootstrap, where all the question's methods are in it."""
    if drawn is None or any(method not in ranked for method in question.weights):
        return {"bootstrap": None, "probability_of_improvement": None}
    weights = np.array([question.weights.get(method, 0.0) for method in ranked])
    result: dict[str, Any] = {
        "bootstrap": _percentiles(drawn.means() @ weights, settings.level),
        "probability_of_improvement": None,
    }
    if question.is_pair:
        first, second = sorted(question.weights, key=question.weights.__getitem__, reverse=True)
        wins = drawn.improvement(ranked.index(first), ranked.index(second))
        result["probability_of_improvement"] = {
            "estimate": round(float(wins.mean()), 4),
            **{key: round(value / 100, 4) for key, value in _percentiles(wins, settings.level).items()},
        }
    return result


def _percentiles(values: np.ndarray, level: float) -> dict[str, float]:
    low, high = np.quantile(values, [level / 2, 1 - level / 2])
    return {"low": points(low), "high": points(high)}


def _correct(answers: list[dict[str, Any]], level: float) -> None:
    """Holm within each family, over the questions that can be decided; then the answers."""
    decidable = [answer for answer in answers if answer["covers"] == "seeds and documents"]
    adjusted: dict[str, float] = {}
    for family in FAMILIES:
        tested = [a for a in decidable if a["family"] == family and a["same_test_as"] is None]
        adjusted |= zip((a["id"] for a in tested), holm([a["p"] for a in tested]), strict=True)
    for answer in decidable:
        answer["p_holm"] = round(adjusted.get(answer["same_test_as"] or answer["id"], 1.0), 8)
        if answer["p_holm"] <= level:
            answer["answer"] = "supported" if answer["estimate"] > 0 else "contradicted"
            smallest = answer["minimum_detectable_effect"]
            if smallest is not None and abs(answer["estimate"]) < abs(smallest):
                answer["reasons"].append(
                    "smaller than what such a study finds reliably: a decided effect of this size is probably "
                    "overstated, and more seeds may undo it (Gelman & Carlin 2014)"
                )
        elif answer["p"] > level and answer["low"] * answer["high"] > 0:
            answer["reasons"].append(
                "the interval excludes zero only because the seeds agree by chance more closely than their noise "
                f"allows: the documents alone leave it open (p = {answer['p']:.3f})"
            )
        elif answer["p"] <= level:
            answer["reasons"].append(
                f"the interval excludes zero, but not after Holm's correction for {answer['family_size']} questions"
            )


def write_verdict(
    scores: str | Path,
    out: str | Path,
    settings: VerdictSettings | None = None,
    *,
    shapes: Mapping[str, Sequence[int] | None] | None = None,
    parameters: Mapping[str, int] | None = None,
    stand_in: bool = False,
) -> dict[str, Any]:
    """Write verdict.json, verdict.md and figures/ into `out` for a score file; returns the verdict.

    `parameters` (method -> trainable parameters) draws accuracy against size; `stand_in` marks results of
    built-in rows or a random model. Same file, same settings: same bytes. Raises `MolaError` for a score file
    that is not one.
    """
    from mola_core.analysis.figures.verdict import draw_verdict
    from mola_core.analysis.pages.verdict_text import verdict_page

    scores, out = Path(scores), Path(out)
    verdict = decide(score_matrix(load_scores(scores)), settings, shapes=shapes)
    verdict |= {"stand_in": stand_in, "scores_sha256": sha256_file(scores)}
    for method, row in verdict["methods"].items():
        row["parameters"] = (parameters or {}).get(method)
    page = verdict_page(verdict)
    write_json(out / "verdict.json", verdict)  # before the rest: it refuses numbers that JSON lacks
    write_text(out / "verdict.md", page)
    draw_verdict(verdict, out / "figures")
    return verdict
