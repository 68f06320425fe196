"""A study opened in this process: its base model, examples, keys and scores, which training and evaluation of cells share."""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mola_core.distributed import from_main, is_main
from mola_core.errors import MolaError
from mola_core.records import git_state, read_record, versions
from mola_core.runs import recovery
from mola_core.runs.key import Keys, keys, method_of
from mola_core.runs.layout import Layout
from mola_core.study.study import Cell, Study

if TYPE_CHECKING:
    import pandas as pd

    from mola_core.methods.settings import MethodSettings
    from mola_core.models.base import Base
    from mola_core.runs.records import Environment, TrainingRecord


@dataclasses.dataclass
class OpenStudy:
    """A study's files and one copy of its base model."""

    layout: Layout

    def __post_init__(self) -> None:
        git_state()  # of the code that is loaded, not of a commit that is checked out while it runs

    @property
    def study(self) -> Study:
        return self.layout.study

    @cached_property
    def base(self) -> Base:
        from mola_core.models.base import Base

        compute = self.study.compute
        return Base(self.layout.model, self.study.model, compute.threads, compute.matmul)

    def _is_base(self, cell: Cell) -> bool:
        return self.study.method_by_label[cell.method].method == "base"

    def _is_full(self, cell: Cell) -> bool:
        return self.study.method_by_label[cell.method].method == "full"

    def _prepared(self, cell: Cell) -> None:
        """Make the examples that the cell reads where they are missing, damaged or of other rows, prompts or lengths."""
        from mola_core.runs.prepare import prepare_examples

        if not is_main():
            return
        for name in self.study.rows_of([cell]):
            prepare_examples(self.layout, name, lambda: self.base.tokenizer)

    def _method(self, cell: Cell) -> MethodSettings:
        """The cell's method with what tuning chose for it. Raises `MolaError` where it has yet to choose."""
        method = method_of(self.layout, cell)
        if method is None:
            raise MolaError(f"cell {cell.path}: its learning rate is not chosen yet; run `mola tuning` first")
        return method

    def _keys(self, cell: Cell) -> Keys:
        return from_main(lambda: keys(self.layout, cell))

    def _examples(self, rows: str, part: str, documents: int | None, without_held_out: bool = False) -> Any:
        from mola_core.tasks.examples import read_examples

        return read_examples(self.layout.examples(rows), part, documents, without_held_out)

    def _training_record(self, cell: Cell) -> TrainingRecord:
        """training.json of a trained cell, after its weights were compared with it."""
        file = self.layout.cell(cell) / "training.json"
        record = read_record(file) if file.is_file() else {}
        key = self._keys(cell).training
        if key is None or record.get("key") != key:
            raise MolaError(
                f"cell {cell.path}: not trained with these settings; train it first with `mola train`"
            )
        recovery.check_weights(self.layout.weights(cell), record)
        return cast("TrainingRecord", record)

    def _scorer(self, cell: Cell, validated: bool) -> Callable[[Path], tuple[float, int]]:
        """A function from a folder of weights to accuracy and number of documents, on validation or the evaluation set."""

        def score(weights: Path) -> tuple[float, int]:
            with self.base.opened(weights, self._is_full(cell)) as model:
                record = self._evaluated(model, cell.task, validated)[1]
            return record["accuracy"], record["documents"]

        return score

    def _task(self, name: str, validated: bool) -> Any:
        from mola_core.tasks import load_task
        from mola_core.tasks.rows import verify_data

        folder = self.layout.data(name)
        verify_data(folder)
        return load_task(name, self.study.protocol, folder, validated)

    def _evaluated(self, model: Any, name: str, whole: bool = False) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Scores on the part of a task that the study is scored on, or (`whole`) on all of its validation documents; with
        half the batch where memory does not suffice."""
        from mola_core.evaluation.harness import evaluate
        from mola_core.models.memory import free_memory, is_out_of_memory

        settings = self.study.evaluation
        part = self.study.scored_part
        if whole:
            settings, part = settings.model_copy(update={"documents": None}), "validation"
        examples = self._examples(name, part, settings.documents)
        task = self._task(name, validated=part == "validation")
        while True:
            try:
                return evaluate(model, self.base.tokenizer, task, settings, name, examples)
            except (MemoryError, RuntimeError) as error:
                if settings.batch_size == 1 or not is_out_of_memory(error):
                    raise
            free_memory()
            settings = settings.model_copy(update={"batch_size": settings.batch_size // 2})
            print(f"{name}: out of memory, goes on with batch_size {settings.batch_size}", file=sys.stderr)


def environment() -> Environment:
    """What a measurement was taken with and on."""
    import torch

    from mola_core.models.kernels import cpu_name, kernels

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    return {
        "versions": versions(),
        "git": git_state(),
        "device": device,
        "threads": torch.get_num_threads(),
        "kernels": kernels(),
        "platform": f"{sys.platform} {platform.machine()}",
    }
