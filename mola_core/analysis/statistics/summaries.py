"""What a verdict tells besides its answers: methods, lines over depth, McNemar tests, notes."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mola_core.analysis.scores import Block, ScoreMatrix, shared_runs
from mola_core.analysis.statistics.bootstrap import Bootstrap, ranks
from mola_core.analysis.statistics.estimates import Estimate, combine, components, holm, mcnemar
from mola_core.analysis.statistics.questions import Question, Shape, answer_id
from mola_core.methods.family import BASE
from mola_core.study.verdict import VerdictSettings


def points(fraction: Any) -> float:
    """A fraction as accuracy points, rounded so that the same input gives the same bytes on every machine."""
    return round(100 * float(fraction), 6) + 0.0


def trained_seeds(block: Block) -> int:
    """Seeds of a block at which anything was trained; the base model has none of its own."""
    rows = [row for row, method in enumerate(block.methods) if method != BASE]
    return int(block.present[rows].any(axis=0).sum())


def summarise_methods(
    matrix: ScoreMatrix,
    settings: VerdictSettings,
    drawn: Bootstrap | None,
    ranked: Sequence[str],
    shapes: Sequence[Shape],
    seeds_shared: bool,
) -> dict[str, dict[str, Any]]:
    """Mean accuracy over tasks of every method in all of them, best first, with its interval and ranks.

    Tasks of a single document (or cluster), which have no interval, are left out. `seeds_shared` is as `decide` takes it.
    """
    blocks = [block for block in matrix.blocks if block.units >= 2]
    places = ranks(drawn.means()) if drawn is not None else None
    by_name = {shape.method: shape for shape in shapes}
    rows: dict[str, dict[str, Any]] = {}
    for method in matrix.methods:
        if not blocks or any(len(block.common_seeds([method])) == 0 for block in blocks):
            continue
        parts = [components(block.contrast({method: 1.0}), block.clusters) for block in blocks]
        estimate = combine(
            parts, shared_runs(blocks, {method: 1.0}) if seeds_shared and method != BASE else None
        )
        low, high = estimate.interval(settings.level)
        seen = method == BASE or all(part.seeds > 1 for part in parts)
        rows[method] = {
            "accuracy": points(estimate.value),
            "low": points(low),
            "high": points(high),
            "median": points(np.mean([_median_run(block, method) for block in blocks])),
            "likelihood": None
            if any(block.likelihood is None for block in blocks)
            else points(np.mean([block.contrast({method: 1.0}, "likelihood").mean() for block in blocks])),
            "covers": "seeds and documents" if seen and method != BASE else "documents",
            "ranks": None
            if places is None or method not in ranked
            else [round(float(share), 4) for share in places[ranked.index(method)]],
        }
        if method in by_name:
            shape = by_name[method]
            rows[method] |= {
                "budget": shape.budget,
                "centre": round(shape.centre, 4),
                "spread": round(shape.spread, 4),
            }
    return dict(sorted(rows.items(), key=lambda item: (-item[1]["accuracy"], item[0])))


def _median_run(block: Block, method: str) -> float:
    return float(np.median(block.run_means([method], block.common_seeds([method]))))


def depth_lines(
    matrix: ScoreMatrix,
    settings: VerdictSettings,
    questions: Sequence[Question],
    shapes: Sequence[Shape],
    endpoints: Sequence[str],
    seeds_shared: bool,
) -> dict[str, dict[str, Any]]:
    """Per slope: each shape's value in points against its centre of depth, and the fitted line with its band.

    By the primary endpoint first; keys are the ids of the answers. Intervals are of the difference from the shapes'
    common mean: what all shapes share (hard documents) cancels in the slope too. The line is drawn at the shapes' mean
    spread.
    """
    lines = {}
    slopes = [question for question in questions if question.family == "depth"]
    for endpoint in sorted(endpoints, key=lambda name: name != settings.endpoint):
        for question in slopes:
            group = [shape for shape in shapes if shape.method in question.weights]
            used = [block for block in matrix.blocks if len(block.common_seeds(list(question.weights)))]
            used = [block for block in used if endpoint == "accuracy" or block.likelihood is not None]
            used = [block for block in used if block.units >= 2]
            if used:
                lines[answer_id(question.id, endpoint)] = {"endpoint": endpoint} | _depth_line(
                    question, group, used, settings.level, endpoint, seeds_shared
                )
    return lines


def _depth_line(
    question: Question,
    group: Sequence[Shape],
    used: Sequence[Block],
    alpha: float,
    endpoint: str,
    seeds_shared: bool,
) -> dict[str, Any]:
    share = 1 / len(group)

    def estimate(weights: dict[str, float]) -> Estimate:
        parts = [components(block.contrast(weights, endpoint), block.clusters) for block in used]
        return combine(parts, shared_runs(used, weights, endpoint) if seeds_shared else None)

    level = float(estimate({shape.method: share for shape in group}).value)

    def around(weights: dict[str, float]) -> dict[str, float]:
        found = estimate(weights)
        low, high = found.interval(alpha)
        return {
            "value": points(level + found.value),
            "low": points(level + low),
            "high": points(level + high),
        }

    centre = float(np.mean([shape.centre for shape in group]))
    ends = np.linspace(min(s.centre for s in group), max(s.centre for s in group), 21)
    return {
        "budget": group[0].budget,
        "shapes": {
            s.method: {"centre": round(s.centre, 4)} | around({o.method: (o is s) - share for o in group})
            for s in group
        },
        "line": [
            {"centre": round(float(x), 4)}
            | around({method: weight * (x - centre) for method, weight in question.weights.items()})
            for x in ends
        ],
    }


def mcnemar_tests(matrix: ScoreMatrix, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Exact McNemar for each pair and task where the pair shares one seed; not of documents in clusters, which are no draws of
    their own."""
    rows: list[dict[str, Any]] = []
    for question in (question for question in questions if question.is_pair):
        first, second = sorted(question.weights, key=question.weights.__getitem__, reverse=True)
        for block in matrix.blocks:
            seeds = block.common_seeds([first, second])
            if len(seeds) == 1 and block.clusters is None:
                answers = [block.correct[block.methods.index(name), seeds[0]] for name in (first, second)]
                only_first, only_second, p = mcnemar(*answers)
                rows.append(
                    {
                        "id": question.id,
                        "task": block.name,
                        "only_first": only_first,
                        "only_second": only_second,
                        "p": round(p, 8),
                    }
                )
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = round(adjusted, 8)
    return rows


def notes(matrix: ScoreMatrix, ranked: Sequence[str]) -> list[str]:
    """What the reader must know about the matrix as a whole."""
    told = []
    if len(matrix.studies) > 1 or len(matrix.models) > 1:
        told.append(
            "Several studies or models: each of their tasks counts as a task of its own. Where they answered the same "
            "documents, intervals are too narrow and p too small, since these documents are no draws of their own."
        )
    names = [block.name for block in matrix.blocks]
    twice = [name for name in names if f"{name}-cloze" in names]
    if twice:
        told.append(
            f"{twice[0]} and {twice[0]}-cloze ask the same documents in two forms, and are taken as independent: intervals over both are "
            "too narrow."
        )
    if len(matrix.blocks) == 1:
        told.append(f"One task ({matrix.blocks[0].name}): nothing can be concluded about other tasks.")
    single = [block.name for block in matrix.blocks if trained_seeds(block) == 1]
    if single:
        told.append(
            f"One seed in {', '.join(single)}: how much accuracy changes from one training to the next was "
            "not seen, so no question there can be decided; intervals cover documents only."
        )
    for block in matrix.blocks:
        gaps = _missing_runs(block)
        if gaps:
            told.append(
                f"No scores in {block.name} of {', '.join(gaps)}: a training that diverged is a result of its method, which "
                "a mean over the others hides; its seed is left out of the questions that need it."
            )
        apart = _without_a_common_seed(block)
        if apart:
            told.append(
                f"{apart[0]} and {apart[1]} have no seed in common in {block.name}, and runs are compared seed by seed: number "
                "seeds alike for all methods."
            )
        if 0 < len(block.no_likelihood) < block.present.sum():
            lacking = ", ".join(f"{method} seed {seed}" for method, seed in block.no_likelihood[:5])
            told.append(
                f"{block.name} has no question by likelihood, since there are documents without one in {lacking}"
                f"{' and others' * (len(block.no_likelihood) > 5)}: evaluate these cells again, or leave them out."
            )
    told += [note for block in matrix.blocks for note in _repeated_runs(block)]
    missing = [method for method in matrix.methods if method not in ranked and method != BASE]
    if missing:
        told.append(f"Not ranked, since some of their cells are missing: {', '.join(missing)}.")
    return told


def _repeated_runs(block: Block) -> list[str]:
    """Seeds of a method that answered every document alike, likelihoods included: likely one training under two names."""
    notes = []
    for row, method in enumerate(block.methods):
        seeds = np.flatnonzero(block.present[row])
        answers = block.correct if block.likelihood is None else block.likelihood
        runs = answers[row, seeds]
        if (
            method != BASE
            and len(seeds) > 1
            and 0 < block.correct[row, seeds].mean() < 1
            and (runs == runs[0]).all()
        ):
            named = ", ".join(str(block.seeds[seed]) for seed in seeds)
            notes.append(
                f"{method} in {block.name}: seeds {named} gave the same answers to every document. If they are one training "
                "evaluated again, the noise between trainings was not seen and what is decided here is not: give one of them."
            )
    return notes


def _without_a_common_seed(block: Block) -> tuple[str, str] | None:
    """Two trained methods of which no seed is the same; None where there are none."""
    tried = [row for row, method in enumerate(block.methods) if method != BASE and block.present[row].any()]
    for one, other in itertools.combinations(tried, 2):
        if not (block.present[one] & block.present[other]).any():
            return block.methods[one], block.methods[other]
    return None


def _missing_runs(block: Block) -> list[str]:
    """Runs that other methods have at the same seed of the task; a method with none at all is not tried here."""
    tried = [row for row, method in enumerate(block.methods) if method != BASE]
    wanted = block.present[tried].any(axis=0) if tried else np.zeros(0, dtype=bool)
    return [
        f"{block.methods[row]} seed {block.seeds[seed]}"
        for row in tried
        for seed in np.flatnonzero(wanted & ~block.present[row])
    ]
