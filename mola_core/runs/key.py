"""Cache keys: everything that an adapter and its scores depend on, part by part, hashed; and whether a record has them.

The parts are contents: the examples as files, the hashes of the base model's files, the PEFT config, the effective
settings, the seed, the parent's key, and the code that computes the numbers (`mola_core.code_hash`). Where rows or model
are not prepared yet there is no key, and the cell is open.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mola_core.code_hash import code_hash
from mola_core.errors import MolaError, did_you_mean
from mola_core.files import read_json, remembered_sha256
from mola_core.methods.registry import adapter_config, family_of, outside_code, parse_method
from mola_core.methods.settings import MethodSettings
from mola_core.models.loading import FINGERPRINT as MODEL_RECORD
from mola_core.models.loading import model_identity
from mola_core.module_names import in_any_layer, is_named
from mola_core.records import digest
from mola_core.runs.choice import TUNING, Choice, of_cell, read_choices
from mola_core.runs.layout import Layout
from mola_core.study.effective import effective_training
from mola_core.study.sections import INSTRUCTION, ModelSource
from mola_core.study.study import Cell
from mola_core.study.tries import candidates, is_tuned
from mola_core.tasks import included, is_own, task_config
from mola_core.tasks.included import IncludedTasks
from mola_core.tasks.rows import CLUSTER_FILE
from mola_core.tasks.rows import FINGERPRINT as ROWS_RECORD

Parts = dict[str, Any]
"""A key's parts by name, as JSON."""

TRAIN = "mola_core.runs.training:TrainingRunner.train"
EVALUATE = "mola_core.runs.evaluation:EvaluationRunner.evaluate"
RENDER = "mola_core.tasks.examples:write_examples"
CHOICE = (
    "mola_core.runs.selection",
    "mola_core.runs.training:TrainingRunner._choose_epoch",
    "mola_core.runs.opened:OpenStudy._scorer",
)
"""Where an epoch is chosen, evaluation decides the adapter too; elsewhere neither this nor that counts."""
KEYS = (
    *("mola_core.runs.key", "mola_core.runs.state"),
    *("mola_core.runs.card", "mola_core.adapter.card"),
    *("mola_core.runs.progress", "mola_core.training.trackers"),
)
"""What names or describes a result, or tells how it comes along, does not decide it."""
ALLOCATION = ("mola_core.training.allocate", "mola_core.methods.allocation", "mola_core.models.layer_quality")


@dataclass(frozen=True)
class Keys:
    """The names of a cell's training and of its scores; None where what they depend on is not prepared."""

    training: str | None
    evaluation: str | None


def keys(layout: Layout, cell: Cell) -> Keys:
    """The keys that the cell has under today's study, rows, model and code."""
    parts = training_parts(layout, cell)
    training = digest(parts) if parts else None
    evaluation = evaluation_parts(layout, cell, training)
    return Keys(training, digest(evaluation) if evaluation else None)


def training_parts(layout: Layout, cell: Cell) -> Parts | None:
    """What the cell's adapter depends on; None for the untrained model and where something is not prepared.

    Raises `MolaError` where the method does not fit the model.
    """
    study = layout.study
    method = study.method_by_label[cell.method]
    model = _model(layout)
    if cell.is_base or model is None:
        return None
    chosen = method_of(layout, cell)
    if chosen is None:
        return None
    method = chosen
    settings = effective_training(study, cell, method=method)
    rows = study.trained_on(cell)
    selected = bool(settings.candidates)
    examples = examples_part(layout, rows, "train", settings.documents, study.holds_out(cell))
    if examples is None:
        return None
    parsed, adapter = parse_method(method), method.adapter(study.adapter)
    try:
        config = adapter_config(method, adapter, model["depth"])
        _check_modules(method.label, config, model["modules"])
    except ValueError as error:
        raise MolaError(str(error)) from None
    entries, without = [TRAIN], list(KEYS)
    if config is None:
        config = {"kind": parsed.kind}
    entries += family_of(method).code
    if not parsed.allocation:
        without += ALLOCATION
    if not selected:
        without += [*CHOICE, "mola_core.evaluation"]
    parts: Parts = {
        "examples": examples,
        "model": model["files"],
        "loading": {"dtype": study.model.dtype, "quantization": study.model.quantization},
        "adapter": config,
        "training": settings.model_dump(
            mode="json", exclude={"checkpoint_minutes", "documents", "report_to", "drop_shared"}
        ),
        "protocol": study.protocol,
        "seed": study.training_seed(cell),
        "code": code_hash(*entries, without=tuple(without)),
    }
    if selected:
        parts["validation"] = examples_part(layout, rows, "validation", None, False)
        parts["scoring"] = _scoring(layout, [rows])
        parts["precision_of_scoring"] = study.evaluation.precision
    foreign = outside_code(family_of(method))
    if foreign:
        parts["method code"] = foreign
    parent = study.parent(cell)
    if parent:
        before = training_parts(layout, parent)
        if before is None:
            return None
        parts["parent"] = digest(before)
    return parts


def evaluation_parts(layout: Layout, cell: Cell, training: str | None) -> Parts | None:
    """What the cell's scores depend on, `training` being the training's key; None where it is not evaluated or something
    is not prepared."""
    study = layout.study
    tasks = study.evaluated_on(cell)
    model = _model(layout)
    if not tasks or model is None:
        return None
    parts: Parts
    if cell.is_base:
        # The untrained model does not depend on how others are trained.
        loading = {"dtype": study.model.dtype, "quantization": study.model.quantization}
        parts = {"model": model["files"], "loading": loading}
    else:
        if training is None:
            return None
        parts = {"training": training}
    examples = {
        task: examples_part(layout, task, study.scored_part, study.evaluation.documents, False)
        for task in tasks
    }
    if None in examples.values():
        return None
    selected = bool(study.training_of(cell).candidates)
    every = study.evaluation.every_epoch and selected
    unused = {"batch_size", "documents"} | (set() if selected else {"every_epoch"})
    without = (*KEYS, *ALLOCATION, *(() if every else CHOICE))
    return parts | {
        "examples": examples,
        "scoring": _scoring(layout, tasks),
        "protocol": study.protocol,
        "evaluation": study.evaluation.model_dump(mode="json", exclude=unused),
        "code": code_hash(EVALUATE, without=without),
    }


def _scoring(layout: Layout, tasks: list[str]) -> dict[str, Any]:
    """How lm-eval scores the tasks: their configuration (prompts are in the examples) and the functions that it names."""
    return {task: _scoring_of(task, layout.study.protocol, included()) for task in tasks}


@functools.lru_cache(maxsize=4096)
def _scoring_of(task: str, protocol: str, folder: IncludedTasks | None) -> dict[str, Any]:
    text = json.dumps(task_config(task, protocol), sort_keys=True, default=str)
    named = sorted(set(re.findall(r"answers\.(\w+)", text))) if is_own(task) else []
    functions = [f"mola_core.tasks.answers:{name}" for name in named]
    code = code_hash(*functions) if functions else folder.code(task) if folder else None
    return {"config": digest(text), "code": code}


def examples_part(
    layout: Layout, rows: str, part: str, documents: int | None, without_held_out: bool
) -> str | None:
    """Hash of the examples that a cell reads; None where they are not made, or made of something else."""
    from mola_core.tasks.examples import current, examples_hash

    folder = layout.examples(rows)
    identity = examples_identity(layout, rows)
    if identity is None or not current(folder, identity):
        return None
    try:
        return examples_hash(folder, part, documents, without_held_out)
    except (MolaError, OSError):
        return None  # damaged: to be made again


def examples_identity(layout: Layout, rows: str) -> str | None:
    """What the examples of a task, or of `instruction`, are rendered from; None where that is not prepared."""
    study = layout.study
    model = _model(layout)
    folder = layout.data(rows)
    if model is None or not (folder / ROWS_RECORD).is_file():
        return None
    settings = study.rendering_of(rows)
    return digest(
        {
            "rows": _splits(folder / ROWS_RECORD),
            "clusters": {
                file.name: remembered_sha256(file) for file in sorted(folder.glob(CLUSTER_FILE.format("*")))
            },
            "task": _scoring(layout, [rows]) if rows != INSTRUCTION else None,
            "protocol": study.protocol,
            "tokenizer": model["tokenizer"],
            "max_length": settings.max_length,
            "drop_shared": settings.drop_shared,
            "code": code_hash(RENDER),
        }
    )


def _splits(file: Path) -> Any:
    record = _read(file, file.stat().st_mtime_ns)
    return record.get("splits") if isinstance(record, dict) else None


def _model(layout: Layout) -> dict[str, Any] | None:
    """Depth and hashes of the prepared base model of this study; None where it is not there."""
    file = layout.model / MODEL_RECORD
    if not file.is_file():
        return None
    record = _read(file, file.stat().st_mtime_ns)
    if not isinstance(record, dict) or record.get("identity") != _identity(layout.study.model):
        return None
    files, depth = record.get("files"), record.get("depth")
    if not isinstance(files, dict) or not isinstance(depth, int):
        return None  # of an earlier version, or damaged: to be prepared again
    tokenizer = {name: value for name, value in files.items() if not name.endswith(".safetensors")}
    return {
        "depth": depth,
        "files": digest(files),
        "tokenizer": digest(tokenizer),
        "modules": record.get("modules"),
    }


def _check_modules(label: str, config: Mapping[str, Any] | None, modules: Sequence[str] | None) -> None:
    """Raise ValueError for a listed target that the base model does not have: building the adapter would, hours later."""
    targets = (config or {}).get("target_modules")
    if not modules or not isinstance(targets, list):
        return
    for target in targets:
        if not any(is_named(name, in_any_layer(target)) for name in modules):
            known = sorted({name.rpartition(".")[2] for name in modules} - {"0"})
            raise ValueError(
                f"method {label}: target_modules: {target!r} is no module of the base model{did_you_mean(target, known)} "
                f"(it has {', '.join(known)})"
            )


@functools.lru_cache(maxsize=64)
def _read(file: Path, changed: int) -> Any:
    return read_json(file)


_identities: dict[str, Any] = {}


def _identity(source: ModelSource) -> Any:
    """`model_identity`, once for each source: lists in it make no key of a cache."""
    text = source.model_dump_json()
    if text not in _identities:
        _identities[text] = model_identity(source)
    return _identities[text]


def method_of(layout: Layout, cell: Cell) -> MethodSettings | None:
    """The cell's method with the rate and alpha that tuning chose; None where it has yet to choose them."""
    method = layout.study.method_by_label[cell.method]
    if not is_tuned(layout.study, cell):
        return method
    found = chosen(layout, cell)
    return found.given_to(method) if found else None


def chosen(layout: Layout, cell: Cell) -> Choice | None:
    """What tuning chose for a cell; None where it is not tuned, or its tries are not those of today."""
    if not is_tuned(layout.study, cell):
        return None
    return of_cell(choices(layout) or {}, cell)


def choices(layout: Layout) -> dict[str, dict[str, Choice]] | None:
    """By method and task what was chosen; None where it was not, or from other tries than today's."""
    if layout.rates is not None:
        return layout.rates
    file = layout.folder / TUNING
    if layout.tries is None or not file.is_file():
        return None
    place = ("choices", file.stat().st_mtime_ns)
    if place not in layout.remembered:
        try:
            key, found = read_choices(layout)
            layout.remembered[place] = found if key == tuning_key(layout) else None
        except MolaError:
            layout.remembered[place] = None  # damaged or altered: to be chosen again
    return layout.remembered[place]


def tuning_key(layout: Layout) -> str | None:
    """What the choice is made from: the scores of the tries, the rule, and who takes whose rate; None where a try is
    not prepared."""
    assert layout.tries is not None and layout.study.tuning is not None
    found = {cell.path: keys(layout.tries, cell).evaluation for cell in layout.tries.study.cells()}
    if None in found.values():
        return None
    rule = layout.study.tuning.model_dump(include={"per_task", "score"})
    code = code_hash("mola_core.runs.tuning:choose")
    return digest({"tries": found, "rule": rule, "candidates": candidates(layout.study), "code": code})
