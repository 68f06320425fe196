"""One cell from its settings to its manifest: train, evaluate, record. What `mola train`, `mola evaluate` and `mola run` do."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import platform
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mola_core.distributed import from_main, is_main, join, world_size
from mola_core.errors import MolaError
from mola_core.files import atomic_write, locked, read_json, remove, sha256_file, write_json, write_text
from mola_core.records import digest, git_state, read_record, versions, write_record
from mola_core.runs import recovery
from mola_core.runs.key import Keys, chosen, evaluation_parts, keys, method_of, training_parts
from mola_core.runs.layout import Layout
from mola_core.runs.progress import failure_noted
from mola_core.runs.selection import candidate_folder, choose_epoch, compare_candidates
from mola_core.runs.state import standing
from mola_core.study.effective import effective_training
from mola_core.study.study import INSTRUCTION, Cell, Study

if TYPE_CHECKING:
    import pandas as pd

    from mola_core.methods.settings import MethodSettings
    from mola_core.models.base import Base
    from mola_core.models.tokens import Encoded
    from mola_core.runs.records import Environment, Manifest, TrainingRecord
    from mola_core.study.sections import TrainingSettings

ROUTING, KNOCK_OUT = "routing.csv", "knockout.csv"
TRAINED, EVALUATED = "training.key", "evaluation.key"
"""In a cell's folder, each with the key that it has: what Snakemake waits for and may delete, unlike the records."""


@dataclasses.dataclass
class CellRunner:
    """Trains and evaluates a study's cells in this process, one after another, on one copy of the base model."""

    layout: Layout
    deadline: float | None = None
    """Time (seconds since 1970) at which training stops with a checkpoint."""

    @property
    def study(self) -> Study:
        return self.layout.study

    @cached_property
    def base(self) -> Base:
        from mola_core.models.base import Base

        compute = self.study.compute
        return Base(self.layout.model, self.study.model, compute.threads, compute.matmul)

    def run(self, cell: Cell) -> None:
        """Train (unless an adapter with this key is there) and evaluate."""
        if not self._is_base(cell):
            self.train(cell)
        if self.study.evaluated_on(cell):
            self.evaluate(cell)

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
            while not self._attempt(cell, scratch):
                pass
            if is_main():
                write_text(folder / TRAINED, key + "\n")

    def _attempt(self, cell: Cell, scratch: Path) -> bool:
        """Train the cell into `scratch`; False where it needs a smaller micro-batch, which is noted there."""
        from mola_core.models.memory import free_memory, is_out_of_memory

        method = self._method(cell)
        whole = effective_training(self.study, cell, method=method)
        micro_batch = from_main(lambda: recovery.fitting_micro_batch(scratch, whole))
        settings = effective_training(self.study, cell, micro_batch, method).shared_by(world_size())
        if is_main():
            recovery.drop_damaged_checkpoints(scratch)
        try:
            self._train(cell, scratch, settings)
            return True
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler: the error keeps alive what the failed step had allocated.
        free_memory()
        recovery.halve_micro_batch(scratch, settings, cell.path, world_size())
        return False

    def _train(self, cell: Cell, scratch: Path, settings: TrainingSettings) -> None:
        """Train with `settings`: the weights into the cell's folder, log and record into `scratch`, by checkpoints there."""
        from transformers import set_seed

        from mola_core.runs.card import write_card
        from mola_core.training.trainer import write_log

        study = self.study
        documents = self._documents(cell, settings)
        seed = study.training_seed(cell)
        record: dict[str, Any] = {}
        experts = self._allocate(cell, documents, settings, seed, scratch, record)
        set_seed(seed)
        outcome, log = self._fit(cell, documents, settings, seed, scratch, experts, record)
        if not is_main():
            return
        weights, folder = self.layout.weights(cell), self.layout.cell(cell)
        parts = training_parts(self.layout, cell)
        record = {"key": digest(parts), "parts": parts, **record, **outcome}
        record["settings"] = settings.model_dump(mode="json")
        choice = chosen(self.layout, cell)
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
        write_record(folder / "training.json", record | {**_environment()})
        remove(scratch)

    def _fit(
        self,
        cell: Cell,
        documents: list[Encoded],
        settings: TrainingSettings,
        seed: int,
        scratch: Path,
        experts: list[int] | None,
        record: dict[str, Any],
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Train, and save the weights unless they are not finite; returns the record of the training and its log."""
        from mola_core.models.weights import save_weights
        from mola_core.training.trackers import tracked
        from mola_core.training.trainer import not_finite, train, untrained

        study = self.study
        parent = study.parent(cell)
        if parent and recovery.diverged(self.layout.weights(parent)):
            return untrained(len(documents), f"{parent.path}, from which it goes on, diverged"), []
        model = self._trainable(cell, scratch, experts, documents, settings, record)

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
                    documents,
                    settings,
                    seed,
                    scratch,
                    cell.path,
                    self.deadline,
                    keep,
                )
            if not settings.candidates and "diverged" not in outcome:
                save(self.layout.weights(cell))
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

    def _scorer(self, cell: Cell, validated: bool) -> Callable[[Path], tuple[float, int]]:
        """A function from a folder of weights to accuracy and number of documents, on validation or the evaluation set."""

        def score(weights: Path) -> tuple[float, int]:
            with self.base.opened(weights, self._is_full(cell)) as model:
                record = self._evaluated(model, cell.task, validated)[1]
            return record["accuracy"], record["documents"]

        return score

    @failure_noted
    def evaluate(self, cell: Cell) -> None:
        """Evaluate the cell, unless its scores are there; its manifest, written last, says that the cell is complete."""
        self._prepared(cell)
        key = self._keys(cell).evaluation
        with locked(self.layout.lock(key)) if key else contextlib.nullcontext():
            found = standing(self.layout, cell)
            if found.evaluated:
                print(f"{cell.path}: already evaluated", file=sys.stderr)
            else:
                self._evaluate(cell)
            write_text(self.layout.cell(cell) / EVALUATED, f"{found.keys.evaluation}\n")

    def _evaluate(self, cell: Cell) -> None:
        import pandas as pd

        from mola_core.runs.card import write_card

        study, folder = self.study, self.layout.cell(cell)
        tasks = study.evaluated_on(cell)
        training = None if self._is_base(cell) else self._training_record(cell)
        weights = None if self._is_base(cell) else self.layout.weights(cell)
        if weights and recovery.diverged(weights):
            outcomes = {name: self._unanswered(name) for name in tasks}
        else:
            with self.base.opened(weights, self._is_full(cell)) as model:
                self._check_weights_act(cell, model)
                outcomes = {name: self._evaluated(model, name) for name in tasks}
        for name, (frame, _) in outcomes.items():
            if all(math.isfinite(value) for values in frame["loglikelihoods"] for value in values):
                continue
            if self._is_base(cell):
                raise MolaError(
                    f"cell {cell.path}: log-likelihoods of {name} are not finite; are the model's weights?"
                )
            print(f"{cell.path}: log-likelihoods of {name} are not finite: no answers", file=sys.stderr)
            outcomes[name] = self._unanswered(name)
        if tasks == [cell.task]:
            samples, record = outcomes[cell.task]
        else:
            samples = pd.concat(
                [frame.assign(task=name) for name, (frame, _) in outcomes.items()], ignore_index=True
            )
            record = {"tasks": {name: record for name, (_, record) in outcomes.items()}}
        if study.evaluation.every_epoch and training and "epoch_choice" in training:
            record["epoch_choice"] = compare_candidates(
                self._scorer(cell, validated=False),
                training["epoch_choice"],
                record["accuracy"],
                self.layout.candidates(cell),
            )
        with atomic_write(folder / "samples.parquet") as temporary:
            samples.to_parquet(temporary, index=False)
        if training is not None:
            write_card(self.layout, cell, {**training}, record)
        write_record(folder / "manifest.json", self._manifest(cell, training, record))

    def _unanswered(self, name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
        from mola_core.evaluation.unanswered import unanswered

        return unanswered(self._examples(name, self.study.scored_part, self.study.evaluation.documents))

    def knock_out(self, cell: Cell, by: str = "quarter") -> None:
        """Write the cell's knockout.csv: its scores with the adapter off in no layer, in each quarter (or layer), in all.

        A training that diverged has no rows. Raises `MolaError` where the cell is not trained or adapts no layer.
        """
        import pandas as pd

        from mola_core.evaluation.knock_out import COLUMNS, parts, row, switched_off

        self._prepared(cell)
        self._training_record(cell)
        rows = []
        if not recovery.diverged(self.layout.weights(cell)):
            with self.base.opened(self.layout.weights(cell), self._is_full(cell)) as model:
                depth = model.config.get_text_config().num_hidden_layers
                for part, layers in parts(depth, by).items():
                    with switched_off(model, layers) as modules:
                        if part == "all" and not modules:
                            raise MolaError(
                                f"cell {cell.path}: its method adapts no layer that could be switched off"
                            )
                        rows.append(row(part, layers, self._evaluated(model, cell.task)[0]))
        with atomic_write(self.layout.cell(cell) / KNOCK_OUT) as temporary:
            pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(temporary, index=False)

    def count_routing(self, cell: Cell) -> None:
        """Write the cell's routing.csv: its routing on the prompts of the documents that it is evaluated on.

        Raises `MolaError` where the cell has no router or is not trained.
        """
        from mola_core.evaluation.router_counts import routing_frame
        from mola_core.models.tokens import encode

        self._prepared(cell)
        self._training_record(cell)
        settings, tokenizer = self.study.evaluation, self.base.tokenizer
        found = [
            example
            for name in self.study.evaluated_on(cell)
            for example in self._examples(name, "evaluation", settings.documents)
        ]
        with self.base.opened(self.layout.weights(cell), self._is_full(cell)) as model:
            limit = model.config.get_text_config().max_position_embeddings
            encoded = [encode(tokenizer, one.prompt, one.completion, limit) for one in found]
            documents = [document.tokens[: document.prompt_length] for document in encoded]
            frame = routing_frame(model, documents, settings.batch_size, tokenizer.pad_token_id)
        with atomic_write(self.layout.cell(cell) / ROUTING) as temporary:
            frame.to_csv(temporary, index=False)

    def _manifest(self, cell: Cell, training: TrainingRecord | None, evaluation: dict[str, Any]) -> Manifest:
        study, layout = self.study, self.layout
        parent = study.parent(cell)
        parts = evaluation_parts(layout, cell, training["key"] if training else None)
        assert parts is not None, "it was just evaluated"
        tasks = study.evaluated_on(cell)
        trained = [] if training is None else [study.trained_on(cell)]
        rows = list(dict.fromkeys([*tasks, *trained]))
        return {
            "study": study.name,
            "model": study.model.name,
            "task": cell.task,
            "method": cell.method,
            "seed": cell.seed,
            "training_key": training["key"] if training else None,
            "evaluation_key": digest(parts),
            "parts": parts,
            "parent": parent.path if parent else None,
            "stand_in": study.stand_in,
            "model_files": read_json(layout.model / "model.json"),
            "data_files": {name: read_json(layout.data(name) / "fingerprint.json") for name in rows},
            "examples": {name: read_json(layout.examples(name) / "examples.json") for name in rows},
            "training": training,
            "evaluation": evaluation | {**_environment()},
            "samples_sha256": sha256_file(layout.cell(cell) / "samples.parquet"),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

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

    def _training_key(self, cell: Cell) -> str:
        self._method(cell)
        key = self._keys(cell).training
        if key is None:
            raise MolaError(
                f"cell {cell.path}: base model or parent is not prepared; run `snakemake prefetch` or `mola model` first"
            )
        return key

    def _examples(self, rows: str, part: str, documents: int | None, without_held_out: bool = False) -> Any:
        from mola_core.tasks.examples import read_examples

        return read_examples(self.layout.examples(rows), part, documents, without_held_out)

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

    def _allocate(
        self,
        cell: Cell,
        documents: list[Encoded],
        settings: TrainingSettings,
        seed: int,
        scratch: Path,
        record: dict[str, Any],
    ) -> list[int] | None:
        """The experts of each layer where data choose them; what continues a parent has the parent's."""
        from mola_core.methods.registry import parse_method

        study = self.study
        settings_of_method = self._method(cell)
        method = parse_method(settings_of_method)
        if method.allocation is None or study.parent(cell):
            return None
        from mola_core.training.allocate import allocate

        adapter = settings_of_method.adapter(study.adapter)
        try:
            allocation = from_main(
                lambda: allocate(
                    method, adapter, self.base, documents, settings, seed, self.layout.quality, scratch
                )
            )
        except ValueError as error:
            raise MolaError(f"method {cell.method}: {error}") from None
        record["allocation"] = dataclasses.asdict(allocation)
        return allocation.experts

    def _trainable(
        self,
        cell: Cell,
        scratch: Path,
        experts: list[int] | None,
        documents: list[Encoded],
        settings: TrainingSettings,
        record: dict[str, Any],
    ) -> Any:
        """The model to train; what the record says of it before training goes into `record`."""
        from mola_core.methods.registry import needs_data
        from mola_core.models.weights import continued_adapter, new_adapter, whole_model

        study = self.study
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
            if study.model.quantization:
                raise MolaError(
                    f"method {cell.method}: quantised weights cannot be trained; remove model.quantization"
                )
            self.base.forget()
            model: Any = whole_model(start)
            self.base.settle(model)
        elif parent:
            model = continued_adapter(self.base.lend(), start)
        else:
            method = self._method(cell)
            adapter = method.adapter(study.adapter)
            batches = self._first_batches(cell, documents, settings) if needs_data(method, adapter) else ()
            steps = settings.steps(len(documents))
            model = new_adapter(self.base.lend(), method, adapter, scratch, experts, batches, steps)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = (
            model.num_parameters()
            if self._is_full(cell)
            else model.get_nb_trainable_parameters()[1] - trainable
        )
        config = getattr(model, "peft_config", {}).get("default")
        record |= {
            "trainable_parameters": trainable,
            "base_parameters": total,
            "experts": getattr(config, "num_experts", None),
        }
        return model

    def _first_batches(
        self, cell: Cell, documents: list[Encoded], settings: TrainingSettings
    ) -> list[dict[str, Any]]:
        """What a start that looks at data sees: the first micro-batches of the training."""
        from mola_core.models.starts import MICRO_BATCHES
        from mola_core.training.batches import first_micro_batches

        sizes = settings.batch_size, settings.micro_batch_size
        seed, pad = self.study.training_seed(cell), self.base.tokenizer.pad_token_id
        return first_micro_batches(documents, *sizes, seed, pad, settings.loss_on, MICRO_BATCHES)

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

    def _check_weights_act(self, cell: Cell, model: Any) -> None:
        from mola_core.evaluation.harness import check_adapter_acts
        from mola_core.models.weights import check_model_differs

        if self._is_full(cell):
            check_model_differs(self.layout.weights(cell), self.layout.model)
        elif not self._is_base(cell):
            [example] = self._examples(self.study.trained_on(cell), "train", 1)
            check_adapter_acts(model, self.base.tokenizer, example.prompt)

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


def _environment() -> Environment:
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
