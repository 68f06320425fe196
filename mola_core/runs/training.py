"""Training a cell: lock, resume, micro-batch halving, the choice of an epoch, and the record that is written last."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mola_core.distributed import from_main, is_main, join, world_size
from mola_core.errors import MolaError
from mola_core.files import atomic_write, locked, read_json, remove, sha256_file, write_json, write_text
from mola_core.records import digest, read_record, write_record
from mola_core.runs import recovery
from mola_core.runs.key import chosen, training_parts
from mola_core.runs.layout import KNOCK_OUT, ROUTING, TRAINED
from mola_core.runs.opened import OpenStudy, environment
from mola_core.runs.progress import failure_noted
from mola_core.runs.selection import candidate_folder, choose_epoch
from mola_core.study.effective import effective_training
from mola_core.study.sections import INSTRUCTION
from mola_core.study.study import Cell

if TYPE_CHECKING:
    from mola_core.models.tokens import Encoded
    from mola_core.study.sections import TrainingSettings


@dataclasses.dataclass
class Training:
    """One training of a cell that is under way."""

    cell: Cell
    settings: TrainingSettings
    own_settings: TrainingSettings
    """As the study says them: neither cut for a small memory nor shared by several processes."""
    documents: list[Encoded]
    seed: int
    scratch: Path
    """Checkpoints, and what is measured once for all attempts."""
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What `training.json` will say of what was built."""


@dataclasses.dataclass
class TrainingRunner(OpenStudy):
    """Trains a study's cells, one after another."""

    deadline: float | None = None
    """Time (seconds since 1970) at which training stops with a checkpoint."""

    @failure_noted
    def train(self, cell: Cell) -> None:
        """Train the cell: `adapter/` (`model/` after full fine-tuning), train.jsonl and, last, training.json.

        Goes on from the parent's adapter where the cell has a parent, and from a checkpoint with the same key where
        there is one; leaves a cell alone whose training is whole. One process at a time works on a cell; others wait,
        then find it trained. A training that memory does not suffice for goes on with half the micro-batch. Raises
        `MolaError` where the method does not fit the model or the parent is not trained, and `OutOfTime` at the
        deadline or after SIGTERM. Under torchrun all processes call it.
        """
        join()
        self._prepared(cell)
        key = self._training_key(cell)
        scratch, folder = self.layout.checkpoints(key), self.layout.cell(cell)
        weights = self.layout.weights(cell)
        with locked(self.layout.lock(key)) if is_main() else contextlib.nullcontext():
            if from_main(lambda: recovery.training_is_whole(folder, weights, key)):
                if is_main():
                    print(f"{cell.path}: already trained", file=sys.stderr)
                    write_text(folder / TRAINED, key + "\n")
                return
            while not self._attempt(cell, key, scratch):
                pass
            if is_main():
                write_text(folder / TRAINED, key + "\n")

    def _training_key(self, cell: Cell) -> str:
        self._method(cell)
        key = self._keys(cell).training
        if key is None:
            raise MolaError(
                f"cell {cell.path}: base model or parent is not prepared; run `snakemake prefetch` or `mola model` first"
            )
        return key

    def _attempt(self, cell: Cell, key: str, scratch: Path) -> bool:
        """Train the cell into `scratch`; False where it needs a smaller micro-batch, which is noted there."""
        from mola_core.models.memory import free_memory, is_out_of_memory

        method = self._method(cell)
        whole = effective_training(self.study, cell, method=method)
        micro_batch = from_main(lambda: recovery.fitting_micro_batch(scratch, whole))
        settings = effective_training(self.study, cell, micro_batch, method).shared_by(world_size())
        if is_main():
            recovery.drop_damaged_checkpoints(scratch)
        try:
            self._train(cell, key, scratch, settings)
            return True
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler: the error keeps alive what the failed step had allocated.
        free_memory()
        recovery.halve_micro_batch(scratch, settings, cell.path, world_size())
        return False

    def _train(self, cell: Cell, key: str, scratch: Path, settings: TrainingSettings) -> None:
        """Train with `settings`: the weights into the cell's folder, log and record into `scratch`, by checkpoints there."""
        from transformers import set_seed

        from mola_core.runs.card import write_card
        from mola_core.training.trainer import write_log

        seed = self.study.training_seed(cell)
        own = effective_training(self.study, cell, method=self._method(cell))
        training = Training(cell, settings, own, self._documents(cell, settings), seed, scratch)
        # Of the documents that were just read: examples may be made anew before the training ends.
        parts = from_main(lambda: training_parts(self.layout, cell))
        choice = chosen(self.layout, cell)
        if parts is None or digest(parts) != key:
            raise MolaError(f"cell {cell.path}: its examples changed while they were read; run it again")
        experts = self._allocate(training)
        set_seed(seed)
        outcome, log = self._fit(training, experts)
        if not is_main():
            return
        weights, folder = self.layout.weights(cell), self.layout.cell(cell)
        record = {"key": key, "parts": parts, **training.record, **outcome}
        record["settings"] = settings.model_dump(mode="json")
        if choice:
            record["tuning"] = dataclasses.asdict(choice)
        kept = [epoch for epoch in settings.candidates if candidate_folder(scratch, epoch).is_dir()]
        if kept:
            record |= self._choose_epoch(cell, kept, scratch)
        elif "diverged" in record:
            with atomic_write(weights) as temporary:
                temporary.mkdir()
                write_json(temporary / recovery.DIVERGED, record["diverged"])
        write_log(folder / "train.jsonl", log)
        record["log_sha256"] = sha256_file(folder / "train.jsonl")
        record |= recovery.weights_record(weights)
        for name in (ROUTING, KNOCK_OUT):  # of an adapter before this one
            remove(folder / name)
        write_card(self.layout, cell, record)
        write_record(folder / "training.json", record | {**environment()})
        remove(scratch)

    def _fit(
        self, training: Training, experts: list[int] | None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Train, and save the weights unless they are not finite; returns the record of the training and its log."""
        from mola_core.methods.registry import takes_start_from_base
        from mola_core.models.weights import save_weights
        from mola_core.training.trackers import tracked
        from mola_core.training.trainer import not_finite, train, untrained

        study, cell, settings, scratch = self.study, training.cell, training.settings, training.scratch
        parent = study.parent(cell)
        if parent and recovery.diverged(self.layout.weights(parent)):
            record = read_record(self.layout.cell(parent) / "training.json")
            reason = f"{parent.path}, from which it goes on, diverged"
            return untrained(len(training.documents), record, reason), []
        model = self._trainable(training, experts)

        def save(folder: Path) -> None:
            if is_main() and not not_finite(model):
                base, revision = study.model.on_hub or (study.model.name, None)
                save_weights(model, folder, base, study.model.dtype, scratch, revision)

        def keep(epoch: int) -> None:
            save(candidate_folder(scratch, epoch))

        try:
            with tracked(settings.report_to, self.layout.folder, cell.path):
                outcome, log = train(
                    model,
                    self.base.tokenizer,
                    training.documents,
                    settings,
                    training.seed,
                    scratch,
                    cell.path,
                    self.deadline,
                    keep,
                )
            if not settings.candidates and "diverged" not in outcome:
                save(self.layout.weights(cell))
            if not self._is_full(cell) and takes_start_from_base(vars(model.peft_config["default"])):
                # The start was taken out of the base weights, so what the adapter adds is start and update together.
                outcome.pop("update_size", None)
        finally:
            self.base.take_back(model)
        return outcome, log

    def _choose_epoch(self, cell: Cell, candidates: list[int], scratch: Path) -> dict[str, Any]:
        record = read_json(self.layout.examples(cell.task) / "examples.json")["parts"]
        return choose_epoch(
            self._scorer(cell, validated=True),
            candidates,
            scratch,
            self.layout.weights(cell),
            self.layout.candidates(cell),
            "held out of train" if record["train"]["held_out"] else "validation",
        )

    def _documents(self, cell: Cell, settings: TrainingSettings) -> list[Encoded]:
        """What the cell is trained on, as tokens."""
        from mola_core.models.tokens import encode, encode_text

        tokenizer, length = self.base.tokenizer, settings.max_length
        examples = self._examples(
            self.study.trained_on(cell), "train", settings.documents, self.study.holds_out(cell)
        )
        if cell.task == INSTRUCTION:
            return [encode_text(tokenizer, example.completion, length) for example in examples]
        end = self.study.protocol == "generate"
        return [encode(tokenizer, example.prompt, example.completion, length, end) for example in examples]

    def _allocate(self, training: Training) -> list[int] | None:
        """The experts of each layer where data choose them; what continues a parent has the parent's."""
        from mola_core.methods.registry import parse_method

        study, cell = self.study, training.cell
        settings_of_method = self._method(cell)
        method = parse_method(settings_of_method)
        if method.allocation is None or study.parent(cell):
            return None
        from mola_core.training.allocate import allocate

        adapter, base = settings_of_method.adapter(study.adapter), self.base
        base.model  # noqa: B018 - loaded in every process: loading asks the others, which `from_main` cannot
        try:
            allocation = from_main(
                lambda: allocate(
                    method,
                    adapter,
                    base,
                    training.documents,
                    training.own_settings,
                    training.seed,
                    self.layout.quality,
                    training.scratch,
                )
            )
        except ValueError as error:
            raise MolaError(f"method {cell.method}: {error}") from None
        training.record["allocation"] = dataclasses.asdict(allocation)
        return allocation.experts

    def _trainable(self, training: Training, experts: list[int] | None) -> Any:
        """The model to train; what its record says of it before training is noted there."""
        from mola_core.methods.registry import needs_data
        from mola_core.models.weights import continued_adapter, new_adapter, whole_model

        study, cell, record = self.study, training.cell, training.record
        parent = study.parent(cell)
        start = self.layout.model
        if parent:
            trained = self._training_record(parent)
            start = self.layout.weights(parent)
            record["parent"] = {
                "cell": parent.path,
                "key": trained["key"],
                "adapter_sha256": trained["adapter_sha256"],
            }
        if self._is_full(cell):
            from mola_core.models.loading import stored_quantization

            if study.model.quantization or stored_quantization(self.layout.model):
                raise MolaError(
                    f"method {cell.method}: quantised weights cannot be trained; use a model that is not, without model.quantization"
                )
            self.base.forget()
            model: Any = whole_model(start)
            self.base.settle(model)
            total = model.num_parameters()
        elif parent:
            base = self.base.lend()
            total = base.num_parameters()
            model = continued_adapter(base, start)
        else:
            method = self._method(cell)
            adapter = method.adapter(study.adapter)
            batches = self._first_batches(training) if needs_data(method, adapter) else ()
            steps = training.settings.steps(len(training.documents))
            base = self.base.lend()
            # Before the adapter is there: what it freezes of its own (AdaLoRA's ranks) or trains of the base counts to neither.
            total = base.num_parameters()
            model = new_adapter(base, method, adapter, training.scratch, experts, batches, steps)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        config = getattr(model, "peft_config", {}).get("default")
        record |= {
            "trainable_parameters": trainable,
            "base_parameters": total,
            "experts": getattr(config, "num_experts", None),
        }
        return model

    def _first_batches(self, training: Training) -> list[dict[str, Any]]:
        """What a start that looks at data sees: the first micro-batches of the training."""
        from mola_core.models.starts import MICRO_BATCHES
        from mola_core.training.batches import first_micro_batches

        settings, pad = training.own_settings, self.base.tokenizer.pad_token_id
        sizes = settings.batch_size, settings.micro_batch_size
        return first_micro_batches(
            training.documents, *sizes, training.seed, pad, settings.loss_on, MICRO_BATCHES
        )
