"""One cell from its settings to its manifest: what `mola train`, `mola evaluate` and `mola run` do."""

from __future__ import annotations

import dataclasses
import datetime
import platform
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mola_core.data import data_identity
from mola_core.errors import MolaError
from mola_core.files import atomic_write, read_json, remove, sha256_file, write_json
from mola_core.layout import Layout
from mola_core.methods import parse_method, peft_config
from mola_core.models import model_identity
from mola_core.provenance import EVALUATION_CODE, TRAINING_CODE, code_digest, digest, git_state, versions
from mola_core.study import Cell, Study

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_FILE = "adapter_model.safetensors"


def training_facts(study: Study, cell: Cell) -> dict[str, Any]:
    """Everything that decides a cell's adapter; its digest names the training."""
    method = study.method_by_label[cell.method]
    compute = {"checkpoint_minutes"}
    return {
        "code": code_digest(TRAINING_CODE),
        "model": model_identity(study.model),
        "dtype": study.model.dtype,
        "quantization": study.model.quantization,
        "data": data_identity(cell.task, study.data),
        "task": cell.task,
        "protocol": study.protocol,
        "method": method.model_dump(exclude={"name"}, exclude_none=True),
        "adapter": method.adapter(study.adapter).model_dump(),
        "training": study.training.model_dump(exclude=compute),
        "seed": cell.seed,
    }


def evaluation_facts(study: Study, cell: Cell) -> dict[str, Any]:
    """Everything that decides a cell's scores; its digest names the cell."""
    base = study.method_by_label[cell.method].method == "base"
    training = training_facts(study, cell)
    if base:
        # The untrained model does not depend on how others are trained.
        training = {key: training[key] for key in ("model", "dtype", "quantization", "data", "task", "protocol")}
    return {
        "code": code_digest(EVALUATION_CODE),
        "training": training,
        "evaluation": study.evaluation.model_dump(exclude={"batch_size"}),
    }


@dataclasses.dataclass(frozen=True)
class Digests:
    """The names of a cell's training and of its scores: they change when, and only when, what decides them does."""

    training: str
    evaluation: str


def digests(study: Study, cell: Cell) -> Digests:
    return Digests(digest(training_facts(study, cell)), digest(evaluation_facts(study, cell)))


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

        from mola_core.models import load_model, verify_model

        if torch.get_num_threads() != self.study.compute.threads and not torch.cuda.is_available():
            torch.set_num_threads(self.study.compute.threads)
        verify_model(self.layout.model)
        source = self.study.model
        model = load_model(self.layout.model, dtype=source.dtype, quantization=source.quantization)
        if torch.cuda.is_available() and source.quantization is None:
            model = model.to("cuda")
        return model

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from mola_core.models import load_tokenizer

        return load_tokenizer(self.layout.model)

    def task(self, name: str) -> Any:
        from mola_core.data import verify_data
        from mola_core.tasks import load_task

        folder = self.layout.data(name)
        verify_data(folder)
        return load_task(name, self.study.protocol, folder)

    def train(self, cell: Cell) -> None:
        """Train the cell's adapter; it, its log and its record are written when all is done."""
        from peft import get_peft_model
        from transformers import set_seed

        from mola_core.batches import encode
        from mola_core.tasks import examples
        from mola_core.training import save_adapter, train, write_log

        study = self.study
        settings = study.training
        method = study.method_by_label[cell.method]
        if method.learning_rate:
            settings = settings.model_copy(update={"learning_rate": method.learning_rate})
        name = digests(study, cell).training
        checkpoints = self.layout.checkpoints(name)
        documents = [
            encode(self.tokenizer, e.prompt, e.completion, settings.max_length, end=study.protocol == "generate")
            for e in examples(self.task(cell.task), "train")[: settings.documents]
        ]
        set_seed(cell.seed)
        try:
            depth = self.base.config.get_text_config().num_hidden_layers
            config = peft_config(method, method.adapter(study.adapter), depth)
            if config is None:
                raise MolaError(f"method {cell.method}: the base model is not trained")
            model = get_peft_model(self.base, config)
        except ValueError as error:
            raise MolaError(f"method {cell.method}: {error}") from None
        try:
            trainable, total = model.get_nb_trainable_parameters()
            record, log = train(model, self.tokenizer, documents, settings, cell.seed, checkpoints, cell.path, self.deadline)
            folder = self.layout.cell(cell)
            save_adapter(model, folder / "adapter", study.model.name)
        finally:
            # `base` is used again by the next cell: take the adapter's layers out of it.
            self.__dict__["base"] = model.unload()
        write_log(folder / "train.jsonl", log)
        record = {
            "digest": name,
            "trainable_parameters": trainable,
            "base_parameters": total - trainable,
            "experts": getattr(config, "num_experts", None),
            "adapter_sha256": sha256_file(folder / "adapter" / ADAPTER_FILE),
            **record,
            **_environment(),
        }
        write_json(folder / "training.json", record)
        remove(checkpoints)

    def evaluate(self, cell: Cell) -> None:
        """Evaluate the cell; its manifest is written last and says that the cell is complete."""
        from peft import PeftModel

        from mola_core.evaluation import check_adapter_acts, evaluate
        from mola_core.tasks import examples

        folder = self.layout.cell(cell)
        task = self.task(cell.task)
        method = self.study.method_by_label[cell.method]
        model: Any = self.base
        training = None
        if parse_method(method).kind != "base":
            training = read_json(folder / "training.json")
            if sha256_file(folder / "adapter" / ADAPTER_FILE) != training["adapter_sha256"]:
                raise MolaError(f"{folder / 'adapter' / ADAPTER_FILE}: altered since it was trained; delete the cell")
            model = PeftModel.from_pretrained(self.base, str(folder / "adapter"))
            check_adapter_acts(model, self.tokenizer, examples(task, "train")[0].prompt)
        try:
            samples, record = evaluate(model, self.tokenizer, task, self.study.evaluation, cell.task)
        finally:
            if model is not self.base:
                self.__dict__["base"] = model.unload()
        with atomic_write(folder / "samples.parquet") as temporary:
            samples.to_parquet(temporary, index=False)
        manifest = {
            "study": self.study.name,
            "model": self.study.model.name,
            **dataclasses.asdict(cell),
            "digest": digests(self.study, cell).evaluation,
            "stand_in": self.study.stand_in,
            "settings": evaluation_facts(self.study, cell),
            "model_files": read_json(self.layout.model / "model.json"),
            "data_files": read_json(self.layout.data(cell.task) / "fingerprint.json"),
            "training": training,
            "evaluation": record | _environment(),
            "samples_sha256": sha256_file(folder / "samples.parquet"),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_json(folder / "manifest.json", manifest)

    def run(self, cell: Cell) -> None:
        """Train (unless an adapter with this digest is there) and evaluate."""
        if self.study.method_by_label[cell.method].method != "base" and not self.is_trained(cell):
            self.train(cell)
        self.evaluate(cell)

    def is_trained(self, cell: Cell) -> bool:
        record = self.layout.cell(cell) / "training.json"
        return record.is_file() and read_json(record)["digest"] == digests(self.study, cell).training

    def is_complete(self, cell: Cell) -> bool:
        manifest = self.layout.cell(cell) / "manifest.json"
        return manifest.is_file() and read_json(manifest)["digest"] == digests(self.study, cell).evaluation


def _environment() -> dict[str, Any]:
    """What a measurement was taken with and on."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "versions": versions(),
        "git": git_state(),
        "device": device,
        "threads": torch.get_num_threads(),
        "platform": f"{sys.platform} {platform.machine()}",
    }
