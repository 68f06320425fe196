"""Prepare what cells read: the base model, the tasks' rows and, from both, their examples as files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mola_core.errors import MolaError
from mola_core.files import locked, read_json
from mola_core.models.loading import model_identity
from mola_core.runs.key import examples_identity
from mola_core.runs.layout import Layout
from mola_core.study.study import Cell

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare_all(layout: Layout) -> None:
    """Prepare whatever of the study's model, rows and examples is not there. Raises `MolaError` where it cannot be had."""
    from mola_core.models.check import prepare_checked_model
    from mola_core.models.loading import load_tokenizer
    from mola_core.tasks.prepare import prepare_rows
    from mola_core.tasks.rows import FINGERPRINT

    if layout.model_folder is None:
        prepare_checked_model(layout.study.model, layout.model)
    elif not (layout.model / "model.json").is_file():
        raise MolaError(f"model folder {layout.model_folder}: no model.json; prepare it with `mola model`")
    for rows in layout.study.rows():
        if not (layout.data(rows) / FINGERPRINT).is_file():
            prepare_rows(layout.study, rows, layout.data(rows))
        prepare_examples(layout, rows, lambda: load_tokenizer(layout.model))


def prepare_examples(layout: Layout, rows: str, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> None:
    """Render the examples of a task, or of `instruction`, unless they are there, whole, and of today's rows and prompts.

    Raises `MolaError` where model or rows are not prepared, or the rows give no examples.
    """
    from mola_core.tasks.examples import current, read_record, write_examples
    from mola_core.tasks.rows import verify_data

    study = layout.study
    folder = layout.examples(rows)
    identity = examples_identity(layout, rows)
    if identity is None:
        record = layout.model / "model.json"
        if record.is_file() and read_json(record).get("identity") != model_identity(study.model):
            raise MolaError(
                f"{layout.model}: not the model of study {study.name}; prepare that with `mola model`"
            )
        raise MolaError(
            f"task {rows}: base model or rows are not prepared; run `mola model` and `mola data` first"
        )
    with locked(folder.with_suffix(".lock")):
        if current(folder, identity):
            try:
                read_record(folder)
                return
            except MolaError:
                pass  # damaged: made again
        verify_data(layout.data(rows))
        settings = study.training_of(Cell(rows, study.methods[-1].label, study.seeds[0]))
        write_examples(
            rows,
            study.protocol,
            layout.data(rows),
            folder,
            tokenizer(),
            settings.max_length,
            identity,
        )
