"""Does the verdict keep its promises? False positives, coverage and power, measured on simulated score
matrices.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mola_core.analysis.calibration.constants import (
    CHUNK,
    LEVEL,
    MARGIN,
    MAX_PLANNED,
    PILOTS,
    POWER,
    RESAMPLES,
)
from mola_core.analysis.calibration.page import calibration_page, draw
from mola_core.analysis.calibration.simulation import OUTSIDE, PLANS, SCENARIOS, SHAPES, Scenario
from mola_core.analysis.statistics.bootstrap import bootstrap
from mola_core.analysis.statistics.estimates import (
    Components,
    Estimate,
    combine,
    components,
    error_at_margin,
    slope_weights,
)
from mola_core.analysis.statistics.noise import DOUBT, equally_noisy, pool_runs
from mola_core.analysis.statistics.planner import Planner
from mola_core.analysis.statistics.questions import PAIRS, find_shapes
from mola_core.files import write_json, write_text


def contrast_weights() -> dict[str, np.ndarray]:
    """The contrasts that are measured, as weights on `SHAPES`."""
    shapes = {shape.method: shape for shape in find_shapes(SHAPES)}
    rows = slope_weights([shapes[m].centre for m in SHAPES], [shapes[m].spread for m in SHAPES])
    if rows is None:
        raise AssertionError("the simulated shapes differ in their centres")
    weights = {"depth-slope": rows[0], "spread": rows[1]}
    for first, second in PAIRS:
        weights[f"{first}-vs-{second}"] = np.array(
            [(method == f"mola-{first}") - (method == f"mola-{second}") for method in SHAPES], dtype=float
        )
    return weights


def simulated_components(
    scenario: Scenario,
    weights: np.ndarray,
    matrices: int,
    rng: np.random.Generator,
    seeds: Sequence[int],
) -> dict[int, list[list[Components]]]:
    """Mean squares of each contrast (rows of `weights`), for the first `seeds` of each matrix.

    Returns seeds -> contrast -> task, each with arrays over `matrices`.
    """
    chunks: dict[int, list[list[list[Components]]]] = {count: [] for count in seeds}
    for start in range(0, matrices, CHUNK):
        tasks: dict[int, list[list[Components]]] = {count: [] for count in seeds}
        drawn = scenario.draw(min(CHUNK, matrices - start), rng)
        for answers, clusters in zip(drawn, scenario.clusters, strict=True):
            scores = answers.astype(np.float32)
            for count in seeds:
                some = scores[:, :, :count]
                tasks[count].append(
                    [components(np.tensordot(some, row, (1, 0)), clusters) for row in weights]
                )
        for count in seeds:
            chunks[count].append(tasks[count])
    joined: dict[int, list[list[Components]]] = {}
    for count, pieces in chunks.items():
        joined[count] = [
            [
                Components(
                    *(
                        np.concatenate([piece[task][contrast][field] for piece in pieces])
                        for field in range(4)
                    ),
                    *pieces[0][task][contrast][4:],
                )
                for task in range(len(scenario.documents))
            ]
            for contrast in range(len(weights))
        ]
    return joined


def measure(scenario: Scenario, matrices: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Coverage, false positives and the rate of finding for each contrast of a scenario; rates in percent."""
    weights = contrast_weights()
    truth = scenario.true_accuracy().mean(0)
    table = np.stack(list(weights.values()))
    drawn = simulated_components(scenario, table, matrices, rng, [scenario.seeds])[scenario.seeds]
    estimates = [combine(parts) for parts in drawn]
    family = np.stack([estimates[list(weights).index(f"{a}-vs-{b}")].p_value() for a, b in PAIRS])
    rows = []
    for (name, row), estimate in zip(weights.items(), estimates, strict=True):
        true = float(row @ truth)
        low, high = estimate.interval(LEVEL)
        significant = estimate.p_value() <= LEVEL
        null = abs(true) < 1e-9
        rows.append(
            {
                "scenario": scenario.name,
                "question": name,
                "seeds": scenario.seeds,
                "tasks": len(scenario.documents),
                "true": round(100 * true, 4),
                "coverage": _percent((low <= true) & (true <= high)),
                "false_positives": _percent(significant) if null else None,
                "found": None if null else _percent(significant & (estimate.value * true > 0)),
                "equivalent": None,
                "bootstrap_coverage": None,
                "family_false_positives": None,
            }
        )
    if scenario.depth == scenario.spread == 0:
        # Holm rejects at least one of a family exactly where the smallest p-value passes Bonferroni's step.
        rows[2]["family_false_positives"] = _percent(family.min(0) <= LEVEL / len(PAIRS))
    least_error = error_at_margin([part.document_df + 1 for part in drawn[2]], MARGIN / 100)
    rows[2]["equivalent"] = _percent(estimates[2].p_equivalence(MARGIN / 100, least_error) <= LEVEL)
    rows[2]["bootstrap_coverage"] = _bootstrap_coverage(scenario, table[2], max(matrices // 10, 20), rng)
    return rows


def _bootstrap_coverage(
    scenario: Scenario, row: np.ndarray, matrices: int, rng: np.random.Generator
) -> float:
    """Coverage of the percentile interval of the bootstrap for one contrast, for comparison."""
    true = float(row @ scenario.true_accuracy().mean(0))
    methods = np.flatnonzero(row)
    hits = []
    for _ in range(matrices):
        tasks = [answers[0][methods].astype(np.uint8) for answers in scenario.draw(1, rng)]
        low, high = np.quantile(
            bootstrap(tasks, RESAMPLES, rng).means() @ row[methods], [LEVEL / 2, 1 - LEVEL / 2]
        )
        hits.append(low <= true <= high)
    return _percent(np.array(hits))


def check_plan(
    scenario: Scenario, matrices: int, rng: np.random.Generator, studies: int = PILOTS
) -> dict[str, Any]:
    """What the planner promises from pilot studies, and what studies so planned find.

    Each pilot, drawn from the scenario, names the seeds that its depth effect needs, with a promised power,
    and its own minimum detectable effect with the pilot's seeds. Fresh matrices then measure how often the
    effect is found; rates are means over pilots, in percent.
    """
    row = contrast_weights()["depth-slope"][None]
    own, runs = [], []
    for answers, clusters in zip(scenario.draw(studies, rng), scenario.clusters, strict=True):
        scores = answers.astype(np.float32)
        own.append(components(np.tensordot(scores, row[0], (1, 0)), clusters))
        runs.append(scores.mean(-1))
    alike = equally_noisy(own, runs, row[0]) >= DOUBT
    pooled = [pool_runs(part, run, row[0]) for part, run in zip(own, runs, strict=True)]
    true = float(row[0] @ scenario.true_accuracy().mean(0))
    grid = sorted({2, 3, 4, 5, 6, 8, 10, 14, 20, 28, MAX_PLANNED, scenario.seeds})
    many = Scenario(**{**vars(scenario), "seeds": MAX_PLANNED})
    fresh = simulated_components(many, row, matrices, rng, grid)
    found = [_found(combine(fresh[count][0])).mean() for count in grid]
    chosen, promised, measured, at_own = [], [], [], []
    again = combine(fresh[scenario.seeds][0])
    for pilot in range(studies):
        pilots = pooled if alike[pilot] else own
        parts = [Components(*(field[pilot] for field in part[:4]), *part[4:]) for part in pilots]
        planner = Planner(parts, LEVEL, POWER)
        seeds = min(planner.seeds_needed(true) or MAX_PLANNED, MAX_PLANNED)
        chosen.append(seeds)
        promised.append(planner.power(true, seeds))
        measured.append(float(np.interp(seeds, grid, found)))
        effect = planner.minimum_detectable_effect()
        moved = again._replace(value=again.value - true + (1.0 if effect is None else effect))
        at_own.append(_found(moved).mean())
    return {
        "scenario": scenario.name,
        "pilot_seeds": scenario.seeds,
        "depth_effect": scenario.depth,
        "planned_seeds": float(np.median(chosen)),
        "promised": round(100 * float(np.mean(promised)), 2),
        "measured": round(100 * float(np.mean(measured)), 2),
        "promised_at_own_effect": 100 * POWER,
        "measured_at_own_effect": round(100 * float(np.mean(at_own)), 2),
    }


def _found(estimate: Estimate) -> np.ndarray:
    return (estimate.value > 0) & (estimate.p_value() <= LEVEL)


def _percent(hits: np.ndarray) -> float:
    return round(100 * float(np.mean(hits)), 2)


def calibrate(out: str | Path, simulations: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Measure every scenario, print the page and write calibration.{json,csv,md} and its figure into `out`.

    `simulations` is the number of matrices for each rate; 2000 know a rate of 95 % within one
    point.
    """
    rng = np.random.default_rng(seed)
    rows = [row for scenario in SCENARIOS for row in measure(scenario, simulations, rng)]
    plans = [check_plan(scenario, max(simulations // 4, 100), rng) for scenario in PLANS]
    outside = [row for scenario in OUTSIDE for row in measure(scenario, simulations, rng)]
    result = {"simulations": simulations, "seed": seed, "level": LEVEL, "rates": rows, "plans": plans}
    result["outside"] = [row for row in outside if row["question"] == "2468-vs-8642"]
    out = Path(out)
    text = calibration_page(result)
    print(text)
    draw(result, out)
    write_text(out / "calibration.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    write_text(out / "calibration.md", text)
    write_json(out / "calibration.json", json.loads(json.dumps(result)))
    return result
