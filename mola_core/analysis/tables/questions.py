"""The questions of a verdict as a table for a paper: `tables/questions.{csv,md,tex}` (booktabs, siunitx)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mola_core.analysis import verdict_fields as fields
from mola_core.analysis.statistics.planner import MAX_SEEDS
from mola_core.analysis.tables.render import EMPTY, inert, latex_text, markdown, markdown_text, p_value
from mola_core.files import atomic_write, write_text

STEM = "questions"


def question_rows(verdict: Mapping[str, Any]) -> pd.DataFrame:
    """One row a question, numbers unrounded, as `statistics/records.py` explains them: differences in points (a slope: per
    unit of depth), seeds a task for each stated difference and for equivalence.

    `low` and `high` are for these tasks (fixed), `drawn_low` and `drawn_high` for tasks like these, empty for one task.
    """
    rows = []
    for question in verdict["questions"]:
        low, high = fields.drawn(question) or (None, None)
        row = {
            "question": question["id"],
            "endpoint": question["endpoint"],
            "status": question["status"],
            "family": question["family"],
            "claim": question["claim"],
            "answer": question["answer"],
            **{key: question[key] for key in ("estimate", "low", "high")},
            "drawn_low": low,
            "drawn_high": high,
            "median": question["median"],
            "p": question["p"],
            "p_adjusted": question["p_adjusted"],
            "p_equivalence": question["p_equivalence"],
            "p_equivalence_adjusted": question["p_equivalence_adjusted"],
            "margin": question["margin"],
            "within_margin": question["within_margin"],
            "reach": question["reach"],
            "smallest_effect": question["minimum_detectable_effect"],
        }
        needed = question["seeds_needed"]
        row |= {f"seeds_{size}": seeds for size, seeds in needed.items()}
        rows.append(row | {"seeds_equivalent": question["seeds_equivalent"]})
    frame = pd.DataFrame(rows)
    return frame.astype({name: "Int64" for name in frame if name.startswith("seeds_")})


def shown_questions(verdict: Mapping[str, Any]) -> pd.DataFrame:
    """The same as it is read, stated questions first, texts only: an estimate and interval in points, p after correction."""
    rows = []
    for question in fields.in_order(verdict):
        drawn = fields.drawn(question)
        p = question["p_adjusted"]
        rows.append(
            {
                "Question": question["id"],
                "Endpoint": question["endpoint"],
                "Claim": question["claim"],
                "Status": question["status"],
                "Answer": question["answer"]
                + (", one seed" if question.get("covers") == "documents" else ""),
                "Estimate": _signed(question["estimate"]),
                "These tasks": _between(question["low"], question["high"]),
                "Tasks like these": _between(*(drawn or (None, None))),
                "p (corrected)": EMPTY if p is None else p_value(p),
                "Smallest effect": _plain(question["minimum_detectable_effect"]),
                "Seeds needed": _seeds(question["seeds_needed"]),
            }
        )
    frame = pd.DataFrame(rows)
    dull = [name for name in ("Endpoint", "Tasks like these") if name in frame and frame[name].nunique() < 2]
    return frame.drop(columns=[n for n in dull if n == "Endpoint" or (frame[n] == EMPTY).all()])


def _signed(value: float | None) -> str:
    return EMPTY if value is None else f"{value:+.2f}".replace("-", "−")


def _plain(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.2f}"


def _between(low: float | None, high: float | None) -> str:
    return EMPTY if low is None or high is None else f"{_signed(low)} to {_signed(high)}"


def _seeds(needed: Mapping[str, int | None]) -> str:
    return (
        ", ".join(f"{f'> {MAX_SEEDS}' if n is None else n} for {size}" for size, n in needed.items()) or EMPTY
    )


def questions_latex(verdict: Mapping[str, Any], notices: Sequence[str]) -> str:
    """A table environment for booktabs and siunitx: decimal points in line, the interval for these tasks (fixed)."""
    caption = [*notices, f"Answers to the study's questions: {fields.asked_line(verdict)}."]
    caption.append(
        f"Differences in points with {fields.confidence(verdict)} intervals over seeds and documents for these tasks (fixed), a slope per unit of depth; "
        "p after correction for the questions asked."
    )
    lines = [
        "% needs \\usepackage{booktabs,siunitx}",
        "\\begin{table}[t]",
        "\\centering",
        f"\\caption{{{latex_text(' '.join(caption))}}}",
        f"\\label{{tab:{STEM}}}",
        "\\begin{tabular}{ll S[table-format=+3.2] S[table-format=+3.2] S[table-format=+3.2] S[table-format=<1.3]}",
        "\\toprule",
        "Question & Answer & {Estimate} & {Low} & {High} & {$p$} \\\\",
        "\\midrule",
    ]
    for question in fields.in_order(verdict):
        p = question["p_adjusted"]
        numbers = [question["estimate"], question["low"], question["high"]]
        cells = ["{--}" if value is None else f"{value:+.2f}" for value in numbers]
        cells.append("{--}" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}")
        name = f"\\texttt{{{latex_text(question['id'])}}}"
        lines.append(" & ".join([name, latex_text(question["answer"]), *cells]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def write_questions(verdict: Mapping[str, Any], folder: Path, notices: Sequence[str] = ()) -> None:
    """Write `folder/questions.{csv,md,tex}`; the notices of the study are in each of them."""
    numbers = question_rows(verdict).assign(notices=" ".join(notices))
    with atomic_write(folder / f"{STEM}.csv") as temporary:
        inert(numbers).to_csv(temporary, index=False)
    shown = shown_questions(verdict).map(markdown_text)
    notes = [
        "Differences in points; a slope per unit of depth. *These tasks*: interval over seeds and documents. *Tasks like these*: Student's t over "
        "the tasks. *Smallest effect* is found with the stated power; *seeds needed* decide so many points."
    ]
    write_text(folder / f"{STEM}.md", markdown("Every question of the study", shown, notices, notes))
    write_text(folder / f"{STEM}.tex", questions_latex(verdict, notices))
