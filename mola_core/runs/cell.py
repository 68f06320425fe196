"""One cell from its settings to its manifest: what `mola train`, `mola evaluate` and `mola run` do."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import platform
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mola_core.distributed import from_main, is_main, join, world_size
from mola_core.errors import MolaError
from mola_core.files import atomic_write, read_json, remove, sha256_file
from mola_core.records import git_state, read_record, versions, write_record
from mola_core.runs.key import digests as digests  # callers of the Workbench ask for it here
from mola_core.runs.key import evaluation_facts
from mola_core.runs.layout import Layout
from mola_core.runs.recovery import check_weights, forget, train_once, weights_record
from mola_core.runs.selection import candidate_folder, choose_epoch, evaluate_candidates
from mola_core.study.study import INSTRUCTION, Cell, Study

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mola_core.methods.allocation import Allocation
    from mola_core.study.sections import TrainingSettings
    from mola_core.training.batches import Encoded


@dataclasses.dataclass
class Workbench:
    """The base model, loaded once, and the cells that are trained and evaluated on it."""

    layout: Layout
    deadline: float | None = None
    """Time (seconds since 1970) at which training stops with a checkpoint."""

    @property
    def study(self) -> Study:
        return self.layout.study

    @cached_property
    def base(self) -> PreTrainedModel:
        import torch

        from mola_core.models.loading import model_identity, verify_model

        threads = max(1, self.study.compute.threads // world_size())
        if torch.get_num_threads() != threads and not torch.cuda.is_available():
            torch.set_num_threads(threads)
        folder = self.layout.model
        verify_model(folder)
        if read_json(folder / "model.json")["identity"] != model_identity(self.study.model):
            raise MolaError(
                f"{folder}: not the model of study {self.study.name}; prepare that with `mola model`"
            )
        return self._load(folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from mola_core.models.loading import load_tokenizer

        return load_tokenizer(self.layout.model)

    def task(self, name: str, validated: bool = False) -> Any:
        from mola_core.tasks import load_task
        from mola_core.tasks.rows import verify_data

        folder = self.layout.data(name)
        verify_data(folder)
        return load_task(name, self.study.protocol, folder, validated)

    def train(self, cell: Cell) -> None:
        """Train the cell: `adapter/` (`model/` after full fine-tuning), train.jsonl and, last, training.json.

        Goes on from the parent's adapter where the cell has a parent, and from a checkpoint with the same digest
        where there is one; leaves a cell alone whose training is whole. Raises `MolaError` where the method does not
        fit the model or the parent is not trained, and `OutOfTime` at the deadline or after SIGTERM. Under torchrun
        all processes call it.
        """
        join()
        train_once(self, cell)

    def train_into(self, scratch: Path, cell: Cell, settings: TrainingSettings) -> None:
        """Train with `settings`: the weights into the cell's folder, log and record into `scratch`, by checkpoints there.

        `train` is what to call: it knows what was done before.
        """
        from transformers import set_seed

        from mola_core.methods.allocation import allocate
        from mola_core.models.weights import save_weights
        from mola_core.training.trainer import train, write_log

        study = self.study
        documents = self._documents(cell, settings)
        # What continues a parent has the parent's experts.
        allocation = None
        if not study.parent(cell):
            allocation = from_main(lambda: allocate(self, cell, documents, settings, scratch))
        seed = study.training_seed(cell)
        set_seed(seed)
        model, record = self._trainable(cell, scratch, allocation)

        def save(folder: Path) -> None:
            if is_main():
                _check_finite(cell, model)
                save_weights(model, folder, study.model.name, study.model.dtype, scratch)

        def keep(epoch: int) -> None:
            save(candidate_folder(scratch, epoch))

        try:
            outcome, log = train(
                model, self.tokenizer, documents, settings, seed, scratch, cell.path, self.deadline, keep
            )
            if not settings.candidates:
                save(self.layout.weights(cell))
        finally:
            self._release(model)
        if not is_main():
            return
        record = {"digest": digests(study, cell).training, **record, **outcome}
        record["micro_batch_size"] = settings.micro_batch_size
        if settings.candidates:
            record |= choose_epoch(self, cell, settings, scratch)
        write_log(scratch / "train.jsonl", log)
        record["log_sha256"] = sha256_file(scratch / "train.jsonl")
        record |= weights_record(self.layout.weights(cell))
        write_record(scratch / "training.json", record | _environment())
        forget(scratch)

    def evaluate(self, cell: Cell) -> None:
        """Evaluate the cell; its manifest is written last and says that the cell is complete."""
        import pandas as pd

        study, folder = self.study, self.layout.cell(cell)
        tasks = {name: self.task(name) for name in study.evaluated_on(cell)}
        training = None
        if not self._is_base(cell):
            training = self._training_record(cell)
        with self.opened(cell, self.layout.weights(cell)) as model:
            self._check_weights_act(cell, model)
            outcomes = {name: self.evaluated(model, name, task) for name, task in tasks.items()}
        for name, (frame, _) in outcomes.items():
            if not all(math.isfinite(value) for values in frame["loglikelihoods"] for value in values):
                raise MolaError(
                    f"cell {cell.path}: log-likelihoods of {name} are not finite; are the model's weights? For an adapter, "
                    "lower training.learning_rate or use precision fp32"
                )
        if list(tasks) == [cell.task]:
            samples, record = outcomes[cell.task]
        else:
            samples = pd.concat(
                [frame.assign(task=name) for name, (frame, _) in outcomes.items()], ignore_index=True
            )
            record = {"tasks": {name: record for name, (_, record) in outcomes.items()}}
        if study.evaluation.every_epoch and training and "epoch_choice" in training:
            record["epoch_choice"] = evaluate_candidates(
                self, cell, training["epoch_choice"], record["accuracy"]
            )
        with atomic_write(folder / "samples.parquet") as temporary:
            samples.to_parquet(temporary, index=False)
        fingerprints = {name: read_json(self.layout.data(name) / "fingerprint.json") for name in tasks}
        parent = study.parent(cell)
        manifest = {
            "study": study.name,
            "model": study.model.name,
            **dataclasses.asdict(cell),
            "digest": digests(study, cell).evaluation,
            "parent": parent.path if parent else None,
            "stand_in": study.stand_in,
            "settings": evaluation_facts(study, cell),
            "model_files": read_json(self.layout.model / "model.json"),
            "data_files": fingerprints.get(cell.task, fingerprints),
            "training": training,
            "evaluation": record | _environment(),
            "samples_sha256": sha256_file(folder / "samples.parquet"),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_record(folder / "manifest.json", manifest)
        remove(self.layout.checkpoints(digests(study, cell).training))

    def run(self, cell: Cell) -> None:
        """Train (unless an adapter with this digest is there) and evaluate."""
        if not self._is_base(cell):
            self.train(cell)
        if self.study.evaluated_on(cell):
            self.evaluate(cell)

    def is_trained(self, cell: Cell) -> bool:
        return self._recorded(cell, "training.json") == digests(self.study, cell).training

    def is_complete(self, cell: Cell) -> bool:
        """Whether its records are there, made with these settings, data and code, and the files that they name unaltered.

        Weights, which are large and may be gone, are compared where they are used."""
        if not self.study.evaluated_on(cell):
            return self.is_trained(cell)
        folder = self.layout.cell(cell)
        try:
            manifest = read_record(folder / "manifest.json")
            named = {"samples.parquet": manifest["samples_sha256"]}
            if manifest["training"]:
                named["train.jsonl"] = manifest["training"]["log_sha256"]
            same = all(sha256_file(folder / name) == value for name, value in named.items())
            return same and manifest["digest"] == digests(self.study, cell).evaluation
        except (MolaError, OSError, KeyError, TypeError):
            return False

    def _recorded(self, cell: Cell, name: str) -> str | None:
        """The digest in one of the cell's records; None where it is missing or damaged, and so to be made again."""
        try:
            return read_record(self.layout.cell(cell) / name)["digest"]
        except MolaError:
            return None

    def _is_base(self, cell: Cell) -> bool:
        return self.study.method_by_label[cell.method].method == "base"

    def _is_full(self, cell: Cell) -> bool:
        return self.study.method_by_label[cell.method].method == "full"

    def _load(self, folder: Path) -> PreTrainedModel:
        import torch

        from mola_core.models.loading import load_model

        source = self.study.model
        model = load_model(folder, dtype=source.dtype, quantization=source.quantization)
        return model.to("cuda") if torch.cuda.is_available() and source.quantization is None else model

    def _lent_base(self) -> PreTrainedModel:
        """The base model to put an adapter on; forgotten until `_release`, since a failure would leave half of one."""
        base = self.base
        del self.__dict__["base"]
        return base

    def _release(self, model: Any) -> None:
        """Take the adapter out of `base`, which the next cell uses again; forget it where that cannot be done."""
        import torch

        from mola_core.models.weights import unload

        self.__dict__.pop("base", None)
        base = unload(model)
        # bitsandbytes repacks the weights of a model that is evaluated on a CPU with bf16, and rounds their scales.
        rounded = self.study.model.quantization == "4bit" and not torch.cuda.is_available()
        if base is not None and not rounded:
            self.__dict__["base"] = base

    @contextlib.contextmanager
    def opened(self, cell: Cell, folder: Path) -> Iterator[Any]:
        """The base model with the cell's trained weights in `folder`."""
        from mola_core.models.weights import load_adapter

        if self._is_base(cell):
            yield self.base
            return
        if self._is_full(cell):
            self.__dict__.pop("base", None)
            model: Any = self._load(folder)
        else:
            model = load_adapter(self._lent_base(), folder)
        try:
            yield model
        finally:
            self._release(model)

    def _documents(self, cell: Cell, settings: TrainingSettings) -> list[Encoded]:
        """What the cell is trained on, as tokens."""
        from mola_core.tasks import examples
        from mola_core.tasks.rows import verify_data
        from mola_core.training.batches import encode, instruction_documents

        if cell.task == INSTRUCTION:
            verify_data(self.layout.data(INSTRUCTION))
            return instruction_documents(self.layout.data(INSTRUCTION), self.tokenizer, settings.max_length)
        task = self.task(self.study.trained_on(cell), validated=bool(settings.candidates))
        end = self.study.protocol == "generate"
        return [
            encode(self.tokenizer, example.prompt, example.completion, settings.max_length, end=end)
            for example in examples(task, "train")[: settings.documents]
        ]

    def _trainable(
        self, cell: Cell, scratch: Path, allocation: Allocation | None
    ) -> tuple[Any, dict[str, Any]]:
        """The model to train, and what its record says of it before training."""
        from mola_core.models.weights import continued_adapter, new_adapter, whole_model

        study, record = self.study, {}
        parent = study.parent(cell)
        start = self.layout.model
        if parent:
            trained = self._training_record(parent)
            start = self.layout.weights(parent)
            record["parent"] = {
                "cell": parent.path,
                **{key: trained[key] for key in ("digest", "adapter_sha256")},
            }
        if self._is_full(cell):
            if study.model.quantization:
                raise MolaError(
                    f"method {cell.method}: quantised weights cannot be trained; remove model.quantization"
                )
            self.__dict__.pop("base", None)
            model: Any = whole_model(start)
        elif parent:
            model = continued_adapter(self._lent_base(), start)
        else:
            method = study.method_by_label[cell.method]
            experts = allocation.experts if allocation else None
            model = new_adapter(self._lent_base(), method, method.adapter(study.adapter), scratch, experts)
            if allocation:
                record["allocation"] = dataclasses.asdict(allocation)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = (
            model.num_parameters()
            if self._is_full(cell)
            else model.get_nb_trainable_parameters()[1] - trainable
        )
        configs = getattr(model, "peft_config", {})
        experts = getattr(configs.get("default"), "num_experts", None)
        return model, {
            "trainable_parameters": trainable,
            "base_parameters": total,
            "experts": experts,
            **record,
        }

    def _training_record(self, cell: Cell) -> dict[str, Any]:
        """training.json of a trained cell, after its weights were compared with it."""
        file = self.layout.cell(cell) / "training.json"
        record = read_record(file) if file.is_file() else {}
        if record.get("digest") != digests(self.study, cell).training:
            raise MolaError(
                f"cell {cell.path}: not trained with these settings; train it first with `mola train`"
            )
        weights = self.layout.weights(cell)
        check_weights(weights, record)
        return record

    def _check_weights_act(self, cell: Cell, model: Any) -> None:
        from mola_core.evaluation.harness import check_adapter_acts
        from mola_core.models.weights import check_model_differs
        from mola_core.tasks import examples

        if self._is_full(cell):
            check_model_differs(self.layout.weights(cell), self.layout.model)
        elif not self._is_base(cell):
            prompt = examples(self.task(self.study.trained_on(cell)), "train", 1)[0].prompt
            check_adapter_acts(model, self.tokenizer, prompt)

    def evaluated(
        self, model: Any, name: str, task: Any, whole: bool = False
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        from mola_core.evaluation.harness import evaluate
        from mola_core.models.memory import free_memory, is_out_of_memory

        settings = self.study.evaluation
        settings = settings.model_copy(update={"documents": None}) if whole else settings
        while True:
            try:
                return evaluate(model, self.tokenizer, task, settings, name)
            except (MemoryError, RuntimeError) as error:
                if settings.batch_size == 1 or not is_out_of_memory(error):
                    raise
            free_memory()
            settings = settings.model_copy(update={"batch_size": settings.batch_size // 2})
            print(f"{name}: out of memory, goes on with batch_size {settings.batch_size}", file=sys.stderr)


def _check_finite(cell: Cell, model: Any) -> None:
    """Raise `MolaError` where training has diverged: the Trainer's log shows a loss that is not a number as 0."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise MolaError(
                f"cell {cell.path}: training diverged, {name} is not finite; lower training.learning_rate or use "
                "precision fp32"
            )


def _environment() -> dict[str, Any]:
    """What a measurement was taken with and on."""
    import torch

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
    return {
        "versions": versions(),
        "git": git_state(),
        "device": device,
        "threads": torch.get_num_threads(),
        "platform": f"{sys.platform} {platform.machine()}",
    }
