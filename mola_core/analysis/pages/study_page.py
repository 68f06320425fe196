"""The page of a study, `index.html`: the answer first, then the figures that carry it, then all tables, folded.

Everything on it is read from what `collect`, `tables`, `figures` and `verdict` wrote; what is not there is left out.
"""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mola_core.analysis import verdict_fields as fields
from mola_core.analysis.collect import read_cells
from mola_core.analysis.figures import registry
from mola_core.analysis.figures.study import study_data
from mola_core.analysis.notices import missing_cells, notices
from mola_core.analysis.pages import summary
from mola_core.analysis.pages.answer import (
    answer_sentence,
    beside_sentences,
    change_sentence,
    current_verdict,
)
from mola_core.analysis.pages.html import document, figure, folded, markdown_html, table
from mola_core.analysis.tables.accuracy import (
    accuracy_notes,
    accuracy_table,
    parameter_table,
    shown_accuracy,
    shown_parameters,
)
from mola_core.analysis.tables.parameters import layer_matrices
from mola_core.analysis.tables.questions import shown_questions
from mola_core.analysis.tables.render import EMPTY
from mola_core.files import read_json, write_text
from mola_core.runs.adapter_figures import ADAPTER_FIGURES
from mola_core.runs.layout import Layout

FILE = "index.html"
TITLE = "Do higher layers need more LoRA experts here?"
CONTINUAL = (
    "Continual learning",
    "What is still known of each topic after each was learnt, mean over seeds.",
)
SHOWN_ELSEWHERE = ("Every question", "Shapes and methods")
"""Sections of verdict.md that this page has as tables of its own."""


def write(layout: Layout) -> Path:
    """Write `index.html` of a study from its collected files.

    Raises `MolaError` where the cells are not collected.
    """
    folder = layout.folder
    study, cells = layout.study, read_cells(folder)
    missing = missing_cells(study, cells)
    verdict = current_verdict(layout)
    data = study_data(layout, folder)
    drawn = {
        entry.name: figure(folder, entry.name, entry.title, entry.caption(data))
        for entry in registry.entries("study")
    }
    accuracy = accuracy_table(study, cells)
    helped = summary.did_training_help(study, accuracy, cells.groupby("task")["documents"].max().to_dict())
    body = [
        f'<header><p class="meta">{html.escape(TITLE)}</p><h1>{html.escape(study.name)}</h1><p>{html.escape(study.description)}</p>',
        f'<p class="meta">{html.escape(_one_line(layout, cells))}</p>',
        *(f'<p class="notice" role="note">{html.escape(notice)}</p>' for notice in notices(study, missing)),
        "</header>",
        *(
            _answer(folder, verdict)
            if verdict
            else ["<p>No verdict of these scores and settings yet: run <code>mola verdict</code>.</p>"]
        ),
        drawn.pop("accuracy_parameters"),
        _change(verdict),
        folded("Every question", _questions(verdict), opened=True),
        folded(
            "Accuracy of every method (%)",
            table(shown_accuracy(study, accuracy)) + _notes(accuracy_notes(study, cells)),
            opened=True,
        ),
        folded("Did training help?", table(helped) + _notes([summary.HELPED_NOTE])),
        folded("Depth, ranks and likelihood", _verdict_figures(folder, verdict)),
        folded("Training and shapes", "\n".join(drawn.values())),
        folded("Methods by rank and place", methods_table(verdict)),
        folded(
            "Trained parameters",
            table(shown_parameters(parameter_table(study, cells, layer_matrices(layout.model)))),
        ),
        folded(
            "Inside the trained adapters",
            "\n".join(
                figure(folder, name, *words)
                for name, words in {**ADAPTER_FIGURES, "continual": CONTINUAL}.items()
            ),
        ),
        *_rest_of_verdict(folder, verdict),
        folded(
            "What was run",
            _list(summary.what_was_run(study, cells) + [f"Missing: {cell.path}" for cell in missing]),
        ),
        folded("Files", _files(folder), opened=True),
    ]
    return _write(folder / FILE, f"{study.name}: {TITLE}", body)


def write_verdict_page(folder: Path) -> Path:
    """Write `verdict.html` beside a verdict without a study: the same page with what a score file can tell."""
    verdict = read_json(folder / "verdict.json")
    body = [
        f'<header><h1>{html.escape(TITLE)}</h1><p class="meta">{html.escape(fields.data_line(verdict))}</p></header>',
        *_answer(folder, verdict),
        _change(verdict),
        folded("Every question", _questions(verdict), opened=True),
        folded("Depth, ranks and likelihood", _verdict_figures(folder, verdict), opened=True),
        folded("Methods by rank and place", methods_table(verdict)),
        *_rest_of_verdict(folder, verdict),
    ]
    return _write(folder / "verdict.html", TITLE, body)


def _write(path: Path, title: str, body: list[str]) -> Path:
    write_text(path, document(title, "<main>\n" + "\n".join(part for part in body if part) + "\n</main>"))
    return path


def _one_line(layout: Layout, cells: pd.DataFrame) -> str:
    study = layout.study
    documents = sum(int(count) for count in cells.groupby("task")["documents"].first())
    seeds = len(study.seeds)
    return (
        f"{study.model.name} · {', '.join(study.tasks)} · {documents:,} documents · {len(study.method_by_label)} methods · "
        f"{seeds} seed{'s' * (seeds != 1)} · {len(cells)} of {len(study.cells())} cells"
    )


def _answer(folder: Path, verdict: Mapping[str, Any]) -> list[str]:
    """The card and the forest plot."""
    question = fields.headline(verdict)
    answer = question["answer"] if question else "undecided"
    look = answer if answer in fields.ANSWERS else "undecided"
    lines = [
        f'<section class="card {look}" aria-label="Answer"><p><span class="badge">{html.escape(answer)}</span></p>'
    ]
    lines.append(f'<p class="answer">{html.escape(answer_sentence(verdict))}</p>')
    if question is not None:
        lines += [f'<p class="note">{html.escape(text)}</p>' for text in beside_sentences(verdict)]
    lines.append("</section>")
    entry = registry.entries("verdict")[0]
    return [*lines, figure(folder, entry.name, entry.title, entry.caption(verdict))]


def _change(verdict: Mapping[str, Any] | None) -> str:
    text = change_sentence(verdict) if verdict else ""
    return f"<h2>What would change it</h2>\n<p>{html.escape(text)}</p>" if text else ""


def _questions(verdict: Mapping[str, Any] | None) -> str:
    if not verdict or not verdict["questions"]:
        return ""
    notes = [
        "Differences in points, a slope per unit of depth; p after correction among the stated or among the exploratory questions. These tasks: the question's own interval over seeds and documents, tasks fixed. Tasks like these: "
        "Student's t over the tasks, tasks drawn. Smallest effect: found with the stated power. Seeds needed: a task, to decide so many points."
    ]
    asked = ", ".join(f"{row['id']} ({row['reason']})" for row in verdict["unanswered"])
    notes += [f"Not possible with these methods: {asked}."] if asked else []
    return table(
        shown_questions(verdict).drop(columns="Question"), left=("Claim", "Endpoint", "Status", "Answer")
    ) + _notes(notes)


def _verdict_figures(folder: Path, verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return ""
    rest = registry.entries("verdict")[1:]
    return "\n".join(figure(folder, entry.name, entry.title, entry.caption(verdict)) for entry in rest)


def methods_table(verdict: Mapping[str, Any] | None) -> str:
    """Each method's accuracy, rank and place as an HTML table; empty without a verdict."""
    if verdict is None or not verdict["methods"]:
        return ""
    rows = []
    for method, row in verdict["methods"].items():
        best = row.get("ranks")
        rows.append(
            {
                "Method": method,
                "Accuracy": f"{row['accuracy']:.2f}",
                "Interval": f"{row['low']:.2f} to {row['high']:.2f}",
                "Covers": row["covers"],
                "Best of all": f"{100 * best[0]:.0f} %" if best else EMPTY,
                "Centre of depth": f"{row['centre']:.3f}" if "centre" in row else EMPTY,
                "Spread": f"{row['spread']:.3f}" if "spread" in row else EMPTY,
            }
        )
    also = fields.also_counted(verdict)
    return table(pd.DataFrame(rows), left=("Covers",)) + (_notes([also]) if also else "")


def _rest_of_verdict(folder: Path, verdict: Mapping[str, Any] | None) -> list[str]:
    """The sections of verdict.md that explain: what it cannot say, how it was computed, and what else it has."""
    path = folder / "verdict.md"
    if verdict is None or not path.is_file():
        return []
    sections = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.M)[1:]
    found = []
    for section in sections:
        title, _, body = section.partition("\n")
        if title.strip() not in SHOWN_ELSEWHERE:
            found.append(folded(title.strip(), markdown_html(body, folder)))
    return found


def _notes(notes: list[str]) -> str:
    return f'<p class="note">{html.escape(" ".join(notes).replace("`", ""))}</p>'


def _list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line.replace('`', ''))}</li>" for line in lines) + "</ul>"


def _files(folder: Path) -> str:
    """Links to the data and to tables for a paper, those that are there."""
    named = [
        *("scores.parquet", "cells.csv", "verdict.json"),
        *(
            f"tables/{file.name}"
            for file in sorted((folder / "tables").glob("*"))
            if file.suffix in (".csv", ".tex")
        ),
    ]
    links = [
        f'<a href="{html.escape(name)}">{html.escape(name)}</a>'
        for name in named
        if (folder / name).is_file()
    ]
    return f"<p>{', '.join(links)}. Figures as SVG and PNG: <code>figures/</code>.</p>"
