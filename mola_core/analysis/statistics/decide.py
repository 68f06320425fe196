"""From a score matrix to answers: supported, contradicted, equivalent or undecided, each test in its family.

The claim of a question is that its estimate is above zero. With Holm's adjusted p at most the level it is *supported*
where the estimate is positive, *contradicted* where it is negative. Where that is open and two one-sided tests,
adjusted alike, place the difference within the stated margin, it is *equivalent*; else *undecided*. At most one of the
two null hypotheses of a question (no difference; a difference of the margin or more) is true, so that for one question each
is tested at the full level (Goeman, Solari & Stijnen 2010). In a family of several the level holds for each sort of error by
itself: differences where there are none, and equivalence where there is a difference. The stated hypotheses are one family,
every other question and endpoint another: what is explored never moves what is stated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd

from mola_core.analysis.scores import ScoreMatrix, score_matrix
from mola_core.analysis.statistics.answer import answer_question
from mola_core.analysis.statistics.bootstrap import Bootstrap, bootstrap
from mola_core.analysis.statistics.estimates import holm
from mola_core.analysis.statistics.questions import (
    FAMILIES,
    Question,
    Shape,
    answer_id,
    find_shapes,
    free_pair,
    named_pair,
    possible_questions,
)
from mola_core.analysis.statistics.records import Answer, Looks, Verdict
from mola_core.analysis.statistics.runs import (
    collapsed_runs,
    exchange_rate,
    unlearnt,
    unlearnt_notes,
    without_floor,
)
from mola_core.analysis.statistics.summaries import (
    depth_lines,
    mcnemar_tests,
    notes,
    summarise_methods,
    trained_seeds,
)
from mola_core.errors import MolaError
from mola_core.methods.family import BASE
from mola_core.study.verdict import CLAIM, VerdictSettings


def decide(
    scores: pd.DataFrame | ScoreMatrix,
    settings: VerdictSettings | None = None,
    *,
    shapes: Mapping[str, Sequence[int] | None] | None = None,
    floors: Mapping[str, float] | None = None,
    look: int = 1,
    stated_beforehand: bool = False,
    seeds_shared: bool = True,
    **stated: Any,
) -> Verdict:
    """Answer the questions that the methods of a score matrix allow. Accuracies are in points (0-100).

    `stated` overrides fields of `settings` (level, questions, resamples, seed, ...); `shapes` gives the experts per
    layer of methods whose name does not tell, None for those to keep out of the slopes; `floors` the accuracy
    (fraction) in each task of knowing nothing (see `least_gain`); `look` counts the looks at this study so far,
    this one included; `seeds_shared` says that one training may have answered all tasks, which is not so in studies whose
    tasks have trainings of their own. Raises `MolaError` for rows that cannot be paired and a primary endpoint that is not there.
    """
    settings = VerdictSettings.model_validate({**(settings or VerdictSettings()).model_dump(), **stated})
    matrix = scores if isinstance(scores, ScoreMatrix) else score_matrix(scores)
    gains = unlearnt(matrix, floors or {}, settings.least_gain or 0.0)
    left_out = gains if settings.least_gain is not None else {}
    asked = replace(matrix, blocks=tuple(block for block in matrix.blocks if block.name not in left_out))
    endpoints = _endpoints(matrix, settings)
    # A look beyond those planned has no share of the level left; it is given ever less and marked by `Looks`: without an
    # effect, six looks from three to eight seeds at the whole level decide in 12.6 % of studies, so in 5.9 %.
    level, next_level = (settings.level / max(settings.looks, number) for number in (look, look + 1))
    found = find_shapes(matrix.methods, shapes)
    questions, unanswered, hypotheses = _choose(settings, matrix.methods, found)
    tests = _families(questions, endpoints, hypotheses)
    drawn, ranked = _resample(asked, settings)
    exchange = exchange_rate(asked) if "likelihood" in endpoints else None
    answers = [
        answer_question(
            question,
            endpoint,
            asked,
            settings,
            level,
            questions,
            tests,
            (drawn, ranked),
            exchange,
            seeds_shared,
            next_level,
        )
        for endpoint in endpoints
        for question in questions
    ]
    _correct(answers, level)
    collapsed = collapsed_runs(matrix)
    at_level = settings.model_copy(update={"level": level})
    unknown = [] if settings.least_gain is None else without_floor(matrix, floors or {})
    return {
        "level": level,
        "primary_endpoint": settings.endpoint,
        "estimand": "these tasks",
        "headline": _headline(answers, settings, hypotheses),
        "seeds_shared": seeds_shared and len(asked.blocks) > 1,
        "looks": Looks(planned=settings.looks, taken=look, level=level, stated_beforehand=stated_beforehand),
        "questions": answers,
        "unanswered": unanswered,
        "exchange": exchange,
        "left_out_tasks": left_out,
        "collapsed": collapsed,
        "methods": summarise_methods(
            matrix, at_level, *_everything(matrix, asked, drawn, ranked, settings), found, seeds_shared
        ),
        "lines": depth_lines(asked, at_level, questions, found, endpoints, seeds_shared),
        "mcnemar": mcnemar_tests(asked, questions),
        "notes": notes(matrix, ranked)
        + unlearnt_notes(gains, settings.least_gain, unknown)
        + _warnings(collapsed),
        "data": {
            "studies": list(matrix.studies),
            "models": list(matrix.models),
            "tasks": {
                block.name: {"documents": block.documents, "seeds": len(block.seeds)}
                | ({} if block.clusters is None else {"clusters": block.units})
                for block in matrix.blocks
            },
        },
        "settings": settings.model_dump(mode="json"),
        "settings_sha256": settings.sha256,
    }


def _endpoints(matrix: ScoreMatrix, settings: VerdictSettings) -> list[str]:
    there = [block.name for block in matrix.blocks if block.likelihood is not None]
    if settings.endpoint == "likelihood" and not there:
        lacking = [
            f"{block.name}, {method} seed {seed}"
            for block in matrix.blocks
            for method, seed in block.no_likelihood
        ][:3]
        raise MolaError(
            "verdict.endpoint is likelihood, but no task has a likelihood in every row (as of "
            f"{', '.join(lacking)}); evaluate with options (protocol choice) or state accuracy"
        )
    return ["accuracy", "likelihood"] if there else ["accuracy"]


def _everything(
    matrix: ScoreMatrix,
    asked: ScoreMatrix,
    drawn: Bootstrap | None,
    ranked: list[str],
    settings: VerdictSettings,
) -> tuple[Bootstrap | None, list[str]]:
    """The bootstrap over all tasks: methods are described in every one, learnt or not."""
    return (drawn, ranked) if len(asked.blocks) == len(matrix.blocks) else _resample(matrix, settings)


def _choose(
    settings: VerdictSettings, methods: Sequence[str], shapes: Sequence[Shape]
) -> tuple[list[Question], list[dict[str, str]], list[str]]:
    """The questions to answer, those that were asked for but that the methods do not allow, and the ids that are stated:
    the hypotheses, else the pairs, else the one claim."""
    standing = {question.id: question for question in possible_questions(methods, shapes)}
    pairs = [f"{first}-vs-{second}" for first, second in settings.pairs]
    stated = list(settings.hypotheses or pairs or CLAIM)
    asked = dict.fromkeys((*(settings.hypotheses or (() if pairs else CLAIM)), *(settings.questions or ())))
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
    for first, second in settings.pairs:
        pair = free_pair(first, second, methods)
        if pair is None:
            missing = " and ".join(name for name in (first, second) if name not in methods)
            unanswered.append({"id": f"{first}-vs-{second}", "reason": f"{missing} is not in the scores"})
        else:
            # The same two methods are one test, and what is asked says which is claimed to be ahead.
            twins = [other for other in chosen if pair.same_methods(other)]
            if pair.id not in [other.id for other in twins]:
                chosen = [other for other in chosen if other not in twins or other.id in asked]
                chosen.append(pair)
    _refuse_equal_ids(chosen)
    order = list(FAMILIES)
    return sorted(chosen, key=lambda question: order.index(question.family)), unanswered, stated


def _refuse_equal_ids(questions: Sequence[Question]) -> None:
    """Two questions of one id, as of methods `mola-2468` and `2468`, would be answered with one another's numbers."""
    by_id: dict[str, Question] = {}
    for question in questions:
        other = by_id.setdefault(question.id, question)
        if dict(other.weights) != dict(question.weights):
            first, second = (" and ".join(sorted(each.weights)) for each in (other, question))
            raise MolaError(
                f"question {question.id} could be about {first} or about {second}: rename one of these methods in the scores"
            )


def _families(
    questions: Sequence[Question], endpoints: Sequence[str], hypotheses: Sequence[str]
) -> dict[str, set[tuple[str, str]]]:
    """All tests, as (id, endpoint), and those that the hypotheses come down to; a slope that is a pair is that test.

    Of the latter only those on the primary endpoint are stated (`answer_question`).
    """
    tests = {question.id: (question.twin(questions) or question).id for question in questions}
    stated = {tests[name] for name in hypotheses if name in tests}
    every = {(test, endpoint) for test in tests.values() for endpoint in endpoints}
    return {"stated": {(test, endpoint) for test, endpoint in every if test in stated}, "all": every}


def _resample(matrix: ScoreMatrix, settings: VerdictSettings) -> tuple[Bootstrap | None, list[str]]:
    """The bootstrap, and the methods in it: those with all seeds of all tasks, the untrained base apart."""
    ranked = [
        method
        for method in matrix.methods
        if method != BASE
        and all(len(block.common_seeds([method])) == trained_seeds(block) for block in matrix.blocks)
    ]
    if not ranked or not matrix.blocks:
        return None, []
    tasks = []
    for block in matrix.blocks:
        seeds = block.common_seeds(ranked)
        tasks.append(block.correct[[block.methods.index(method) for method in ranked]][:, seeds])
    clusters = [block.clusters for block in matrix.blocks]
    return bootstrap(tasks, settings.resamples, np.random.default_rng(settings.seed), clusters), ranked


def _headline(answers: Sequence[Answer], settings: VerdictSettings, stated: Sequence[str]) -> str | None:
    """The first stated question that there is an answer to, on the primary endpoint; where nothing was asked, a slope."""
    there = {answer["id"]: answer["family"] for answer in answers if answer["endpoint"] == settings.endpoint}
    wanted = [answer_id(name, settings.endpoint) for name in stated]
    if not settings.hypotheses and not settings.pairs:
        wanted += [name for name, family in there.items() if family == "depth"]
    return next((name for name in wanted if name in there), None)


def _correct(answers: list[Answer], level: float) -> None:
    """Holm within the stated and within the exploratory family, over the tests that can be decided; then the answers."""
    decidable = [answer for answer in answers if answer["covers"] == "seeds and documents"]
    for status in ("stated", "exploratory"):
        members = [a for a in decidable if a["status"] == status]
        tested = {a["same_test_as"] or a["id"]: a for a in members}
        for key in ("p", "p_equivalence"):
            adjusted = dict(
                zip(tested, holm([cast("dict[str, float]", a)[key] for a in tested.values()]), strict=True)
            )
            for answer in members:
                cast("dict[str, float]", answer)[f"{key}_adjusted"] = round(
                    adjusted[answer["same_test_as"] or answer["id"]], 8
                )
    for answer in decidable:
        _decide(answer, level)


def _decide(answer: Answer, level: float) -> None:
    estimate, p, adjusted = answer["estimate"], answer["p"], answer["p_adjusted"]
    equivalence = answer["p_equivalence_adjusted"]
    assert None not in (estimate, p, adjusted, equivalence), "what covers seeds and documents was tested"
    estimate, p, adjusted, equivalence = map(
        float, cast("tuple[float, ...]", (estimate, p, adjusted, equivalence))
    )
    answer["within_margin"] = equivalence <= level
    if adjusted <= level and estimate:
        answer["answer"] = "supported" if estimate > 0 else "contradicted"
        smallest = answer["minimum_detectable_effect"]
        if answer["within_margin"]:
            answer["reasons"].append(
                f"the difference is there, but smaller than the margin of {answer['margin']:g}: of no practical weight"
            )
        elif smallest is not None and abs(estimate) < abs(smallest):
            answer["reasons"].append(
                "smaller than what such a study finds reliably: a decided effect of this size is probably "
                "overstated, and more seeds may undo it (Gelman & Carlin 2014)"
            )
        return
    if answer["within_margin"]:
        answer["answer"] = "equivalent"
    if p <= level:
        answer["reasons"].append(
            f"the interval excludes zero, but not after Holm's correction for {answer['family_size']} questions"
        )


def _warnings(collapsed: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"Collapsed run: {run['method']}, seed {run['seed']} of {run['task']}, has {run['accuracy']:.1f} where the median "
        f"of its runs is {run['median']:.1f}. It counts in the mean, not in the median beside it."
        for run in collapsed
    ]
