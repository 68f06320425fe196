"""The sections of a study file but for its methods: each setting, its default and its limits.

Every class is closed: an unknown key is an error.
"""

import math
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mola_core.section import (
    SAFE_NAME,
    BatchSize,
    Closed,
    Coefficient,
    Count,
    Epochs,
    Few,
    Folder,
    Name,
    Rate,
    Seed,
)

CLOZE = "-cloze"
"""Ends the name of a task that compares options as text, none of them in the prompt: what a model too small for letters
can learn. The rows are those of the task without it."""
SCIENCEQA_TOPICS = {
    f"scienceqa-{topic}": topic for topic in ("biology", "physics", "chemistry", "economics", "earth-science")
}
"""Tasks that are parts of ScienceQA, in the order in which the paper's continual learning (its appendix C) learns them."""


def pinned_by(task: str) -> list[str]:
    """The names in `data.revisions` that pin a task's rows: its own, or that of the task with the same rows."""
    plain = task.removesuffix(CLOZE)
    return list(dict.fromkeys((task, plain, "scienceqa" if task in SCIENCEQA_TOPICS else plain)))


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

    @property
    def on_hub(self) -> tuple[str, str] | None:
        """Id and commit on the hub, where the model comes from there."""
        return None


class HubModel(BaseModelSettings):
    """A model of the Hugging Face hub, pinned to a commit."""

    source: Literal["hub"]
    """From the Hugging Face hub."""
    id: Annotated[str, Field(pattern=f"^{SAFE_NAME}(/{SAFE_NAME})?$")]
    """`organisation/model`, as the hub names it."""
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
    """Commit of the model's repository: a branch name would not be reproducible."""

    @property
    def on_hub(self) -> tuple[str, str] | None:
        return self.id, self.revision


class WheelPart(Closed):
    """A file inside a PyPI wheel, pinned by version and sha256."""

    package: Name
    """The wheel's name on PyPI."""
    version: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.]*$")]
    """The wheel's version."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Hash of the wheel, which is compared before it is opened."""
    file: Annotated[str, Field(pattern=rf"^({SAFE_NAME}/)*{SAFE_NAME}\.gguf([.-][A-Za-z0-9-]+)?$")]
    """Path of the GGUF file, or of a part of it, inside the wheel."""


class WheelModel(BaseModelSettings, WheelPart):
    """A GGUF file inside a PyPI wheel; it is dequantised to `dtype`."""

    source: Literal["wheel"]
    """A GGUF file that a Python wheel carries, or several wheels together."""
    further_parts: Annotated[list[WheelPart], Field(max_length=100)] = []
    """Other wheels with the rest of the file, in order: indexes limit the size of one."""
    joined_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Hash of the whole GGUF file; needed where it is in several wheels."""

    @model_validator(mode="after")
    def _check_joined(self) -> "WheelModel":
        if self.further_parts and self.joined_sha256 is None:
            raise ValueError(
                "joined_sha256: missing; add the sha256 of the whole file, whose parts have an order"
            )
        return self


class DirectoryModel(BaseModelSettings):
    """A local Hugging Face model folder with safetensors weights."""

    source: Literal["directory"]
    """A folder of this machine."""
    path: Folder
    """The folder with `config.json`, the tokenizer and safetensors weights."""


class RandomModel(BaseModelSettings):
    """A tiny Llama with random weights and a byte-level tokenizer, made on the spot: for tests only."""

    source: Literal["random"]
    """Made on the spot."""
    layers: Annotated[int, Field(ge=1, le=256)] = 4
    """Depth."""
    hidden: Annotated[int, Field(ge=8, le=8192, multiple_of=8)] = 32
    """Hidden size, a multiple of 8."""
    seed: Seed = 0
    """Seed of the weights."""


ModelSource = Annotated[HubModel | WheelModel | DirectoryModel | RandomModel, Field(discriminator="source")]


class HubData(Closed):
    """The benchmarks as the Hugging Face hub has them."""

    source: Literal["hub"]
    """From the Hugging Face hub."""
    revisions: dict[Name, Annotated[str, Field(pattern="^[0-9a-f]{40}$")]] = {}
    """Commit of each task's dataset repository; the newest where a task is not named. That of a task is also that of its
    `-cloze` form, and scienceqa's that of its topics. The rows' own fingerprint is recorded either way."""


class DirectoryData(Closed):
    """Parquet files laid out as `<dataset>/<split>.parquet`."""

    source: Literal["directory"]
    """A folder of this machine."""
    root: Folder
    """The folder; `--config data_root=DIR` replaces it."""


class BuiltinData(Closed):
    """Rows made by a seeded generator: a stand-in that can be learnt, no benchmark. Labelled in every output."""

    source: Literal["builtin"]
    """Generated: a stand-in, no benchmark."""
    train_documents: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Rows to train on, for each task."""
    test_documents: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Rows to evaluate on, for each task."""


DataSource = Annotated[HubData | DirectoryData | BuiltinData, Field(discriminator="source")]


class TrainingSettings(Closed):
    """How a cell is trained. Defaults are the paper's where it states them."""

    epochs: Epochs | Annotated[list[Annotated[int, Field(ge=1, le=100_000)]], Field(min_length=1)] = 10
    """Epochs; a list (the paper searches 10, 15, 20) trains to the last and keeps the one best on validation."""
    max_steps: Count | None = None
    """Stop after this many optimiser steps, whatever the epochs."""
    batch_size: BatchSize = 128
    """Documents per optimiser step."""
    micro_batch_size: BatchSize = 8
    """Documents per forward pass; gradients accumulate up to `batch_size`. Halved where memory does not suffice."""
    learning_rate: Rate = 3e-4
    """Peak learning rate of AdamW; a method may have its own."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = 100
    """Optimiser steps in which the learning rate rises from 0; fewer than the cell's steps."""
    weight_decay: Coefficient = 0.0
    """Weight decay of AdamW."""
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes on after the warm-up."""
    max_length: Annotated[int, Field(ge=8, le=1_000_000)] = 256
    """Tokens of prompt and answer; a longer prompt loses its beginning, never its answer."""
    loss_on: Literal["answer", "all"] = "answer"
    """Tokens that carry loss: the answer's, or the prompt's too (as the released code does)."""
    shared_prefix: bool = False
    """Compute the tokens with which all prompts of a micro-batch begin (the instruction) once, not once a document:
    the same training up to rounding and dropout masks, in a fraction of the time where sentences are short. For loss
    on answers and methods without virtual tokens."""
    documents: Count | None = None
    """Use only the first so many training documents (recorded in every table)."""
    drop_shared: bool = False
    """Leave training documents out that the evaluation, or the validation that chooses an epoch, asks too. They are
    counted and reported either way."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Mixed precision of the forward and backward pass."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time (1.44 times as much where we measured it)."""
    checkpoint_minutes: Annotated[float, Field(gt=0, le=1_000_000)] = 10
    """A checkpoint at least this often, so that a killed cell loses no more."""
    deterministic: bool = False
    """Ask for deterministic kernels on a GPU, at some cost in speed; the CPU is deterministic anyway."""
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    """Experiment trackers that follow each cell's loss and learning rate through the Trainer; never changes a result.
    TensorBoard's files are in `results/<study>/tensorboard`."""

    @model_validator(mode="after")
    def _check(self) -> "TrainingSettings":
        problems = []
        if self.batch_size % self.micro_batch_size:
            problems.append(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.shared_prefix and self.loss_on == "all":
            problems.append(
                "shared_prefix is for loss_on answer: shared tokens would carry the loss of one document"
            )
        if self.candidates and self.max_steps:
            problems.append("max_steps does not go with a list of epochs, whose ends are to be compared")
        if self.candidates != sorted(set(self.candidates)):
            problems.append("epochs: list them in ascending order, each once")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def steps(self, documents: int) -> int:
        """Optimiser steps of a training on so many documents; the last batch of an epoch may be smaller."""
        # As the number is written: 0.57 · 100 is 56.99… in binary.
        epochs = Fraction(str(self.last_epoch))
        return self.max_steps or math.floor(epochs * -(-documents // self.batch_size))

    def steps_problem(self, documents: int, section: str = "training") -> str | None:
        """Why so many documents cannot be trained on with these settings, which `section` of the study gives; or None."""
        steps = self.steps(documents)
        if steps < 1:
            return f"{section}.epochs: {self.epochs} gives no step with {documents} documents; raise it"
        if self.warmup_steps >= steps:
            return f"{section}.warmup_steps: {self.warmup_steps} is not below the {steps} steps of a cell; lower it"
        return None

    def shared_by(self, processes: int) -> "TrainingSettings":
        """These settings with the largest micro-batch of which so many processes can each take as many.

        Raises ValueError where they cannot share a batch evenly."""
        share, rest = divmod(self.batch_size, processes)
        if rest:
            raise ValueError(
                f"compute.gpus: {processes} cards cannot share training.batch_size {self.batch_size} evenly; change one"
            )
        return self.model_copy(update={"micro_batch_size": math.gcd(share, self.micro_batch_size)})

    @property
    def smaller_micro_batch(self) -> int | None:
        """The largest divisor of `batch_size` that is at most half of `micro_batch_size`; None below 1."""
        half = self.micro_batch_size // 2
        return next((size for size in range(half, 0, -1) if self.batch_size % size == 0), None)

    @property
    def last_epoch(self) -> float:
        return max(self.epochs) if isinstance(self.epochs, list) else self.epochs

    @property
    def candidates(self) -> list[int]:
        """Epochs of which the best is kept; empty where there is no choice."""
        return self.epochs if isinstance(self.epochs, list) else []


class StageSettings(Closed):
    """Training settings of a stage; what is not given is as in `training`. `max_steps` and `documents` are not taken
    over from there."""

    epochs: Epochs
    """Epochs of the stage."""
    max_steps: Count | None = None
    """Stop after this many optimiser steps, whatever the epochs."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    """In place of `training.warmup_steps`."""
    learning_rate: Rate | None = None
    """In place of `training.learning_rate`; a method's own stands here too, a tuned one is for the study's tasks only."""

    def training(self, settings: TrainingSettings) -> TrainingSettings:
        """`settings` with the stage's own in their place."""
        own = self.model_dump(include=set(StageSettings.model_fields), exclude_none=True)
        return settings.model_copy(update={"max_steps": None, "documents": None} | own)


INSTRUCTION = "instruction"
"""Name of the instruction-tuning stage: of its cells' task and of its rows."""


class InstructionSettings(StageSettings):
    """The paper's setting 2: every method is first trained on instructions, and each cell continues from there.

    The rows are OpenOrca's, from the study's own data source (built-in: a small stand-in), sampled in proportion to
    their sources; the text is `question`, a line break, `response`, and every token carries loss."""

    epochs: Epochs = 3
    """Epochs over the sampled instructions."""
    documents: Count = 50_000
    """Rows to sample."""
    seed: Seed = 0
    """Seed of the sample: all methods and seeds of a study see the same rows."""

    def training(self, settings: TrainingSettings) -> TrainingSettings:
        return super().training(settings).model_copy(update={"loss_on": "all"})


class ContinualSettings(StageSettings):
    """Continual learning: tasks learnt one after another, each from the last one's adapter; all tested after each.

    The first task starts from the base model, or from the instruction-tuned adapter where the study has one."""

    epochs: Epochs = 20
    """Epochs on each of the tasks."""
    tasks: Annotated[list[Name], Field(min_length=2)] = list(SCIENCEQA_TOPICS)
    """In the order of learning; the paper's are topics of ScienceQA."""
    methods: Annotated[list[Name], Field(min_length=1)] | None = None
    """Names of the methods that take part; every trained one by default."""

    @property
    def stages(self) -> list[str]:
        """Names of the stages: `continual-1-biology`, ..."""
        return [
            f"continual-{place}-{SCIENCEQA_TOPICS.get(task, task)}"
            for place, task in enumerate(self.tasks, 1)
        ]


class TuningSettings(Closed):
    """Choose each method's learning rate on validation before its cells are trained, with the same number of tries for
    each. A try is a training with one rate, from the base model, on a seed that the study does not use; of the rates the
    one with the highest score is taken, of equal ones the lower. Validation is carved out of train where a task is
    evaluated on validation or has none; tries are not trained on it. A method's own `learning_rate` stands."""

    learning_rates: Annotated[list[Rate], Field(min_length=2)]
    """The rates that are tried, at least two."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [100]
    """Seeds of the tries, none of them the study's."""
    steps: Count | None = None
    """Optimiser steps of a try; as many as a cell's where it is not given."""
    documents: Count | None = None
    """Validation documents that a try is scored on, the first so many of each task; all where it is not given."""
    by: Literal["method", "kind"] = "method"
    """`kind`: MoLA shapes of equal settings take the rate found for the flat one (of the budget that most of them have), and matched LoRAs likewise."""
    alphas: Annotated[list[Annotated[float, Field(gt=0, le=1_000_000)]], Field(min_length=2)] | None = None
    """Values of `alpha` to try with each rate; each method must take one."""
    per_task: bool = False
    """Choose for each task by itself, not by the mean over the tasks."""
    score: Literal["likelihood", "accuracy"] = "likelihood"
    """What tries are compared by: the mean probability of the right option among a document's options (where text is
    generated, of the right answer's tokens), or accuracy."""


class EvaluationSettings(Closed):
    """How a cell is evaluated."""

    batch_size: BatchSize = 16
    """Documents per forward pass."""
    documents: Count | None = None
    """Evaluate only the first so many documents (recorded in every table)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Mixed precision of the forward pass, as `training.precision` is that of training; the output layer stays in float32. bf16
    moves single answers where two options are nearly alike (docs/explanation/cost.md has a measurement)."""
    every_epoch: bool = False
    """Where `training.epochs` is a list, evaluate each of these epochs, not only the one chosen on validation. The
    manifest then also says what choosing on the evaluation set itself, probably the paper's way, would give."""


class ComputeSettings(Closed):
    """What one cell asks of the machine; never changes a result beyond rounding (and, on several cards, dropout)."""

    threads: Few = 2
    """CPU threads of a cell."""
    matmul: Literal["auto", "default", "onednn"] = "auto"
    """Library of float32 products on a CPU. `default` is PyTorch's choice (MKL), `onednn` is twice as fast on AMD processors
    with AVX-512; `auto` measures both at the start and takes oneDNN where it needs at most 0.8 of the time and is accurate to
    float32 (2e-6).
    Sums round differently, as with another number of threads: results are equal bit for bit at equal threads and equal
    kernels. The records name the kernel and the measurement."""
    gpus: Annotated[int, Field(ge=0, le=1024)] = 0
    """Cards that train one cell: with several, a process for each by torchrun. Where a cell fits one card, cells beside
    each other finish a study sooner. Evaluation takes one."""
    cells_per_gpu: Few = 1
    """Cells that share one card."""
    cells_per_job: Few = 1
    """Cells that one job trains and evaluates one after another, on one copy of the base model: they pay for imports and
    loading once. More is for many short cells; a job that fails runs again and finds the finished ones done."""
    memory_gb: Annotated[float, Field(gt=0, le=1_000_000)] = 4
    """Main memory of a cell, in GB: what Snakemake plans with and a cluster is asked for."""
    hours: Annotated[float, Field(gt=0, le=100_000)] = 4
    """Wall time to ask a cluster for."""
