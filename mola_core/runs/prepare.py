"""Prepare what cells read: the base model, the tasks' rows and, from both, their examples as files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mola_core.errors import MolaError
from mola_core.files import locked, read_json
from mola_core.methods.registry import adapter_config_without_model
from mola_core.models.loading import model_identity, positions
from mola_core.runs.key import examples_identity
from mola_core.runs.layout import Layout
from mola_core.study.study import Study

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare_all(layout: Layout) -> None:
    """Prepare whatever of the study's model, rows and examples is not there. Raises `MolaError` where it cannot be had."""
    from mola_core.models.check import prepare_checked_model
    from mola_core.models.loading import load_tokenizer
    from mola_core.tasks.prepare import check_tasks, prepare_rows
    from mola_core.tasks.rows import FINGERPRINT

    check_tasks(layout.study)
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
    with locked(folder.with_name(f".{folder.name}.lock")):
        rendered: dict[str, Any] | None = None
        if current(folder, identity):
            with contextlib.suppress(MolaError):  # damaged: made again
                rendered = read_record(folder)
        if rendered is None:
            verify_data(layout.data(rows))
            settings = study.rendering_of(rows)
            most = positions(layout.model)
            if settings.max_length > most:
                raise MolaError(
                    f"training.max_length: {settings.max_length}, but the base model has {most} positions; lower it"
                )
            rendered = write_examples(
                rows,
                study.protocol,
                layout.data(rows),
                folder,
                tokenizer(),
                settings.max_length,
                identity,
                most,
                settings.drop_shared,
            )
    check_steps(study, rows, rendered)
    check_virtual_tokens(layout, rows, rendered)


def check_steps(study: Study, rows: str, record: Mapping[str, Any]) -> None:
    """Raise `MolaError` where a stage of the study that trains on `rows` has no step, or none after its warm-up.

    `record` is that of the rows' examples.
    """
    stages = {cell.task: cell for cell in study.all_cells() if study.trained_on(cell) == rows}
    part = record["parts"]["train"]
    for stage, cell in stages.items():
        settings = study.training_of(cell)
        held_out = part["held_out"] if settings.candidates else 0
        documents = min(part["documents"] - held_out, settings.documents or sys.maxsize)
        problem = settings.steps_problem(documents, study.section_of(cell))
        if problem:
            raise MolaError(f"task {stage}: {problem}")


def check_virtual_tokens(layout: Layout, rows: str, record: Mapping[str, Any]) -> None:
    """Raise `MolaError` where the base model's positions do not suffice for the texts of `rows` behind the virtual tokens of
    the study's methods (prompt tuning, p-tuning, prefix tuning).

    `record` is that of the rows' examples.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    study = layout.study
    taken = {
        method.label: adapter_config_without_model(method, study.adapter).get("num_virtual_tokens") or 0
        for method in study.methods
    }
    method, count = max(taken.items(), key=lambda item: item[1])
    if not count:
        return
    most = positions(layout.model)
    why = f"but the base model has {most} positions, of which {method} takes {count} for virtual tokens"
    longest = study.rendering_of(rows).max_length
    if longest > most - count:
        raise MolaError(f"training.max_length: {longest}, {why}; lower it, or their number")
    for part in sorted(record["parts"].keys() - {"train"}):
        table = pq.read_table(layout.examples(rows) / f"{part}.parquet", columns=["tokens"])
        longest = pc.max(table["tokens"]).as_py() or 0
        if longest > most - count:
            raise MolaError(
                f"task {rows}: a document of {part} has {longest} tokens, {why}; lower their number, or leave it out"
            )
