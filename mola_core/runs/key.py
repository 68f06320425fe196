"""What decides a cell: the facts of its training and of its scores, and the digests that name them."""

from __future__ import annotations

import dataclasses
from typing import Any

from mola_core.methods.registry import parse_method
from mola_core.models.loading import model_identity
from mola_core.records import (
    ALLOCATION_CODE,
    EPOCH_CODE,
    EVALUATION_CODE,
    TRAINING_CODE,
    code_digest,
    digest,
)
from mola_core.study.study import Cell, Study
from mola_core.tasks.rows import rows_identity


def training_facts(study: Study, cell: Cell) -> dict[str, Any]:
    """Everything that decides a cell's adapter; its digest names the training."""
    method = study.method_by_label[cell.method]
    training = study.training_of(cell)
    rows = study.trained_on(cell)
    facts = {
        # Where an epoch is chosen, the evaluation decides the adapter too.
        "code": code_digest(EVALUATION_CODE if training.candidates else TRAINING_CODE),
        "model": model_identity(study.model),
        "dtype": study.model.dtype,
        "quantization": study.model.quantization,
        "data": rows_identity(study, rows),
        "task": rows,
        "protocol": study.protocol,
        "method": method.model_dump(exclude={"name"}, exclude_none=True),
        "adapter": method.adapter(study.adapter).model_dump(),
        "training": training.model_dump(exclude={"checkpoint_minutes"}),
        "seed": study.training_seed(cell),
    }
    if training.candidates:
        facts["epoch_choice"] = code_digest(EPOCH_CODE)
    if parse_method(method).allocation:
        facts["allocation"] = code_digest(ALLOCATION_CODE)
    parent = study.parent(cell)
    return facts | {"parent": digests(study, parent).training} if parent else facts


def evaluation_facts(study: Study, cell: Cell, training: dict[str, Any] | None = None) -> dict[str, Any]:
    """Everything that decides a cell's scores; its digest names the cell. `training`: its `training_facts`, if known."""
    base = study.method_by_label[cell.method].method == "base"
    training = training or training_facts(study, cell)
    if base:
        # The untrained model does not depend on how others are trained.
        training = {
            key: training[key] for key in ("model", "dtype", "quantization", "data", "task", "protocol")
        }
    facts = {
        "code": code_digest(EVALUATION_CODE),
        "training": training,
        "evaluation": study.evaluation.model_dump(exclude={"batch_size"}),
    }
    if study.evaluated_on(cell) != [cell.task]:
        facts["tasks"] = {task: rows_identity(study, task) for task in study.evaluated_on(cell)}
    return facts


@dataclasses.dataclass(frozen=True)
class Digests:
    """The names of a cell's training and of its scores: they change when, and only when, what decides them does."""

    training: str
    evaluation: str


def digests(study: Study, cell: Cell) -> Digests:
    training = training_facts(study, cell)
    return Digests(digest(training), digest(evaluation_facts(study, cell, training)))
