"""The page and figure of a calibration: measured rates beside what they should be."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mola_core.analysis.calibration.constants import MARGIN, PILOTS, POWER


def calibration_page(result: dict[str, Any]) -> str:
    """Markdown of the measured rates beside what they should be."""
    error = 100 * float(np.sqrt(0.95 * 0.05 / result["simulations"]))
    rates = result["rates"]
    coverage = [row["coverage"] for row in rates]
    wrong = [row["false_positives"] for row in rates if row["false_positives"] is not None]
    gaps = [abs(plan["measured"] - plan["promised"]) for plan in result["plans"]]
    gaps += [abs(p["measured_at_own_effect"] - p["promised_at_own_effect"]) for p in result["plans"]]
    lines = [
        "# Is the verdict calibrated?",
        "",
        f"**Measured:** coverage {min(coverage):.1f} to {max(coverage):.1f} % (meant: 95, accepted: 93 to "
        f"97), false "
        f"positives at most {max(wrong):.1f} % (meant: 5, accepted: 7), power at most {max(gaps):.1f} "
        f"points off the "
        "planner's promise (accepted: 5).",
        "",
        f"{result['simulations']} simulated score matrices for each row (seed {result['seed']}; standard "
        f"error of a coverage about {error:.1f} points). Nominal: coverage 95 %, false positives 5 %. "
        "*Bootstrap* is the percentile interval over seeds and documents together, measured on a tenth of "
        "the matrices and used for ranks only; *family* is the chance of any false positive among the "
        "three pairs of shapes after Holm; *equivalent* how often two one-sided tests place 2468 - 8642 within "
        f"{MARGIN:g} point: right where it is truly zero, wrong (meant: at most 5 %) where it is {MARGIN:g} or more.",
        "",
        "| scenario | seeds | tasks | question | true | coverage % | false positives % | found % | equivalent % | family "
        "% | bootstrap coverage % |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rates"]:
        cells = [
            row["scenario"],
            str(row["seeds"]),
            str(row["tasks"]),
            f"`{row['question']}`",
            f"{row['true']:+.2f}",
            *(
                _cell(row[key])
                for key in (
                    "coverage",
                    "false_positives",
                    "found",
                    "equivalent",
                    "family_false_positives",
                    "bootstrap_coverage",
                )
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "## The planner's promises",
        "",
        f"{PILOTS} pilot studies each name the seeds that would find the true depth effect with "
        f"{100 * POWER:g} % power; *measured* is how often studies of that size find it. The last columns "
        "do the same for an effect as large as the pilot's own minimum detectable effect, with the pilot's "
        "seeds.",
        "",
        "| scenario | pilot seeds | effect (points) | planned seeds (median) | promised % | measured % | "
        "promised at own effect % | measured % |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for plan in result["plans"]:
        lines.append(
            f"| {plan['scenario']} | {plan['pilot_seeds']} | {plan['depth_effect']:g} | "
            f"{plan['planned_seeds']:g} | {plan['promised']:.1f} | {plan['measured']:.1f} | "
            f"{plan['promised_at_own_effect']:.0f} | {plan['measured_at_own_effect']:.1f} |"
        )
    lines += [
        "",
        "## What is assumed",
        "",
        "That what a seed does to one task says nothing of what it does to another. The harness trains so "
        "(`seeds_by_task`). Scores made elsewhere may not be: where one initial adapter serves all tasks, a part of the "
        "noise between runs may be common to them, and the verdict takes the wider of both intervals, which is not measured here. That documents stand for themselves unless a column `cluster` says "
        "what belongs together. That no training collapses: a mean over a few runs does not know how rare that is, so "
        "collapsed runs are named and the median stands beside the mean. What each costs (of a true value of zero but for "
        "the collapses, which lower 2468):",
        "",
        "| outside of it | coverage % | false positives % |",
        "| --- | ---: | ---: |",
        *(
            f"| {r['scenario']} | {r['coverage']:.1f} | {_cell(r['false_positives'])} |"
            for r in result["outside"]
        ),
    ]
    return "\n".join([*lines, "", "![Coverage and false positives](calibration.svg)", ""])


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def draw(result: dict[str, Any], out: Path) -> None:
    """Coverage and false positives of every scenario, with the bands that they are meant to stay in."""
    import matplotlib.pyplot as plt

    from mola_core.analysis.figures.drawing import save_figure
    from mola_core.analysis.figures.style import TEXT, figure_style

    names = list(dict.fromkeys(row["scenario"] for row in result["rates"]))
    looks = {"depth-slope": ("#0072B2", "o"), "spread": ("#E69F00", "D"), "2468-vs-8642": ("#D55E00", "s")}
    count = result["simulations"]
    with figure_style():
        figure, panels = plt.subplots(1, 2, sharey=True, figsize=(TEXT, 0.9 + 0.26 * len(names)))
        for axes, key, band, nominal, label in (
            (panels[0], "coverage", (93, 97), 95, "Coverage of the 95 % interval (%)"),
            (panels[1], "false_positives", (0, 7), 5, "False positives at level 5 % (%)"),
        ):
            axes.axvspan(*band, color="#009E73", alpha=0.12, linewidth=0)
            axes.axvline(nominal, color="black", linewidth=0.7)
            for offset, (question, (colour, marker)) in enumerate(looks.items()):
                rows = [r for r in result["rates"] if r["question"] == question and r[key] is not None]
                rates = np.array([row[key] for row in rows]) / 100
                spans = 100 * stats.norm.ppf(0.975) * np.sqrt(rates * (1 - rates) / count)
                axes.errorbar(
                    100 * rates,
                    [names.index(row["scenario"]) + 0.2 * (offset - 1) for row in rows],
                    xerr=spans,
                    linestyle="",
                    color=colour,
                    marker=marker,
                    markersize=3.5,
                    elinewidth=0.8,
                    label=question,
                )
            axes.set_xlabel(label)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        save_figure(figure, out / "calibration")
