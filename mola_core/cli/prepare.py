"""Verbs that prepare a study's inputs: base model, rows, examples."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mola_core.cli.options import Verbs, owned, study_layout, study_options
from mola_core.errors import MolaError
from mola_core.files import locked

if TYPE_CHECKING:
    from mola_core.runs.layout import Layout


def model(arguments: argparse.Namespace) -> None:
    """Fetch and prepare a study's base model.

    Example: mola model --study quickstart
    """
    from mola_core.models.check import prepare_checked_model

    layout = study_layout(arguments)
    with locked(layout.model.with_suffix(".lock")):
        prepare_checked_model(layout.study.model, layout.model)


def data(arguments: argparse.Namespace) -> None:
    """Fetch and prepare the rows of a study's tasks (one task, or all).

    Example: mola data --study smollm2 --data-root ../data
    """
    from mola_core.tasks.prepare import prepare_rows

    layout = study_layout(arguments)
    for name in _named_rows(layout, arguments.task):
        prepare_rows(layout.study, name, layout.data(name))


def examples(arguments: argparse.Namespace) -> None:
    """Render the examples of a study's tasks (one task, or all): what training and evaluation read, as files.

    Example: mola examples --study smoke --task cola
    """
    from mola_core.models.loading import load_tokenizer
    from mola_core.runs.prepare import prepare_examples

    layout = study_layout(arguments)
    named = _named_rows(layout, arguments.task)
    owned(layout)
    for name in named:
        prepare_examples(layout, name, lambda: load_tokenizer(layout.model))


def _named_rows(layout: Layout, task: str | None) -> list[str]:
    rows = layout.study.rows()
    if task and task not in rows:
        raise MolaError(f"--task {task}: study {layout.study.name} has {', '.join(rows)}")
    return [task] if task else rows


def declare(verbs: Verbs) -> None:
    verbs.add(model, study_options)
    for action in (data, examples):
        verbs.add(action, study_options).add_argument("--task", help="only this task")
