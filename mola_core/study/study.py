"""A study: its sections put together and checked against each other, and the cells that it consists of.

`workflow/schemas/study.json` is generated from `Study` (`mola schema`).
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from mola_core.errors import MolaError, did_you_mean
from mola_core.methods.family import VIRTUAL_TOKENS
from mola_core.methods.registry import (
    adapter_config_without_model,
    family_of,
    name_pattern,
    parse_method,
    takes_start_from_base,
)
from mola_core.methods.settings import AdapterSettings, MethodSettings
from mola_core.section import Closed, Name, Seed
from mola_core.shapes import experts_per_layer
from mola_core.study.sections import (
    ComputeSettings,
    ContinualSettings,
    DataSource,
    EvaluationSettings,
    InstructionSettings,
    ModelSource,
    TrainingSettings,
    TuningSettings,
)
from mola_core.study.verdict import VerdictSettings

TUNED = ("learning_rates", "alphas", "seeds")
"""Lists of the section `tuning` in which nothing stands twice."""
INSTRUCTION = "instruction"
"""Name of the instruction-tuning stage: of its cells' task and of its rows."""
RESERVED = frozenset({"models", "data", "checkpoints", "reanalysis", "benchmark", "published"})
"""Folders of `results/` that are no study's."""
NOMINAL_DEPTH = 128
"""Of shapes that are compared with each other before the model is known."""
MAX_CELLS = 100_000
"""Of a study: planning compares each with its record on disk."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One (task, method, seed) of a study: the unit that is trained and evaluated."""

    task: str
    """A task of the study, or the name of a stage: `instruction`, `continual-1-biology`, ..."""
    method: str
    seed: int

    @property
    def path(self) -> str:
        """Folder of the cell below `results/<study>/cells`."""
        return f"{self.task}/{self.method}/seed{self.seed}"


def _written_out(method: Any) -> Any:
    """A method that is given by its name alone, as a mapping; anything else as it is."""
    if not isinstance(method, str):
        return method
    plain = method.removeprefix("pissa-")
    if plain == method:
        return {"method": plain}
    return {"method": plain, "name": method, "initialisation": "pissa"}


MethodName = Annotated[str, Field(json_schema_extra={"pattern": f"^(?:pissa-)?{name_pattern()}$"})]
StudyMethod = Annotated[
    MethodSettings, BeforeValidator(_written_out, json_schema_input_type=MethodName | MethodSettings)
]


class Study(Closed):
    """A study: everything that decides its results."""

    scored_part: ClassVar[Literal["evaluation", "validation"]] = "evaluation"
    """The part of a task's examples that cells are scored on."""

    model_config = ConfigDict(json_schema_extra={"$schema": "https://json-schema.org/draft/2020-12/schema"})

    name: Name
    """Name of the study and of its folder below `results/`."""
    description: Annotated[str, Field(min_length=1)]
    """What the study is, in a sentence: it stands at the head of every page."""
    model: ModelSource
    """The base model, and where its weights come from."""
    data: DataSource
    """Where the tasks' rows come from."""
    tasks: Annotated[list[Name], Field(min_length=1)]
    """Our six tasks, or any lm-eval multiple-choice task with a training split."""
    methods: Annotated[list[StudyMethod], Field(min_length=1)]
    """What is trained and compared: names (`base`, `lora-r40`, `mola-2468`, `pissa-mola-2468`), or mappings with the
    method's own settings. Begin with `base`, the untrained model."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    """Each method is trained once a seed and task. Differences are tested over seeds: one seed decides nothing."""
    seeds_by_task: bool = True
    """Train each task from a number made of its name and the seed, the same for all methods: what one seed does to two
    tasks is then independent, as the verdict takes it to be. False: from the seed itself, in every task."""
    protocol: Literal["choice", "generate"] = "choice"
    """`choice` compares the options' log-likelihoods; `generate` is the paper's greedy generation and regex."""
    adapter: AdapterSettings = AdapterSettings()
    """What all adapters share."""
    training: TrainingSettings = TrainingSettings()
    """How each cell is trained."""
    instruction: InstructionSettings | None = None
    """Tune each adapter on instructions before its task (the paper's setting 2)."""
    continual: ContinualSettings | None = None
    """Learn tasks one after another (the paper's continual learning)."""
    tuning: TuningSettings | None = None
    """Choose each method's learning rate first, on validation."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How each cell is evaluated."""
    compute: ComputeSettings = ComputeSettings()
    """What a cell asks of the machine."""
    verdict: VerdictSettings = VerdictSettings()
    """What is claimed and asked, stated before the first result."""

    @model_validator(mode="after")
    def _check(self) -> "Study":
        problems = list(self._problems())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _same_adapters(self) -> Iterator[str]:
        """Two names for one training: it would be trained twice and count twice in slopes and ranks."""
        known: dict[str, str] = {}
        for method in self.methods:
            if parse_method(method).allocation is not None:
                continue  # what data or a number of its own choose is known later
            own = method.model_dump(mode="json", exclude={"method", "name"})
            shape, kind = parse_method(method).shape, family_of(method).kind
            named = method.method if shape is None else [kind, experts_per_layer(shape, NOMINAL_DEPTH)]
            same = json.dumps([named, own])
            if known.setdefault(same, method.label) != method.label:
                yield f"methods: {method.label} is the same adapter as {known[same]}; leave one of them out"

    def _problems(self) -> Iterator[str]:
        """What of the sections does not go together, a line each."""
        if self.name in RESERVED:
            yield f"name: {self.name!r} is a folder of results itself; give the study another name"
        listed: list[tuple[str, Sequence[object]]] = [
            ("tasks", self.tasks),
            ("continual.tasks", self.continual.tasks if self.continual else []),
            ("methods", [method.label for method in self.methods]),
            ("seeds", self.seeds),
            *((f"tuning.{field}", getattr(self.tuning, field) or []) for field in TUNED if self.tuning),
        ]
        for field, values in listed:
            twice = sorted((value for value, count in Counter(values).items() if count > 1), key=str)
            yield from [f"{field}: {twice[0]!r} is listed twice"] if twice else []
        trained = self._trained_methods()
        strangers = [
            name for name in (self.continual and self.continual.methods) or [] if name not in trained
        ]
        for name in strangers:
            yield f"continual.methods: {name!r} is no trained method of the study"
        for name in dict.fromkeys(name for pair in self.verdict.pairs for name in pair):
            if name not in self.method_by_label:
                yield f"verdict.pairs: {name!r} is no method of the study; name one of {', '.join(self.method_by_label)}"
        for task in self.tasks:
            if task == INSTRUCTION or task.startswith("continual-"):
                yield f"tasks: {task!r} is the name of a stage; use the sections instruction and continual"
        try:
            self.training.shared_by(max(1, self.compute.gpus))
        except ValueError as error:
            yield str(error)
        for number, method in enumerate(self.methods):
            try:
                adapter_config_without_model(method, self.adapter)
            except (ValueError, MolaError) as error:
                yield f"methods.{number}: {error}"
                return
        yield from self._same_adapters()
        if self.training.shared_prefix:
            yield from self._shared_prefix_problems()
        if self.tuning:
            yield from self._tuning_problems(self.tuning)
        cells = len(self.tasks) * len(self.methods) * len(self.seeds)
        if cells > MAX_CELLS:
            yield f"seeds: {cells} cells (tasks x methods x seeds), at most {MAX_CELLS}; list fewer"
        elif not strangers:
            yield from self._stage_problems()

    def _stage_problems(self) -> Iterator[str]:
        cells = self.all_cells()
        for stage in dict.fromkeys(cell.task for cell in cells):
            cell = next(cell for cell in cells if cell.task == stage)
            settings = self.training_of(cell)
            documents = self._most_documents(cell, settings)
            if documents is not None or settings.max_steps is not None:
                problem = settings.steps_problem(documents or 0, self.section_of(cell))
                yield from [problem] if problem else []
        for name in {cell.method for cell in cells if self.parent(cell)}:
            yield from self._continued_problems(self.method_by_label[name])

    def _continued_problems(self, method: MethodSettings) -> Iterator[str]:
        """A method whose adapter, as it is saved, would go on as another method's."""
        config = adapter_config_without_model(method, self.adapter)
        what = "AdaLoRA" if config.get("peft_type") == "ADALORA" else None
        if takes_start_from_base(config):
            what = "a LoRA that starts from the base weights, as with pissa"
        if what:
            # PEFT saves the one with the ranks that it has come to, the other as a LoRA of twice the rank.
            yield (
                f"methods: {method.label!r} ({what}) cannot be continued; name other continual.methods, or leave it to a"
                " study without instruction"
            )

    def _tuning_problems(self, tuning: TuningSettings) -> Iterator[str]:
        for seed in sorted({*tuning.seeds} & {*self.seeds}):
            yield f"tuning.seeds: {seed} is a seed of the study; choose others, so that no result was tuned on itself"
        if tuning.steps is not None and tuning.steps <= self.training.warmup_steps:
            yield (
                f"tuning.steps: {tuning.steps} is not above training.warmup_steps {self.training.warmup_steps}; raise it"
            )
        if self.instruction:
            yield "tuning: tries start from the base model, the cells of a study with `instruction` do not; give methods their learning_rate"
        if self.continual and self.continual.learning_rate is None:
            yield "tuning: is for the study's tasks; give continual.learning_rate"
        tuned = [m for m in self.methods if m.learning_rate is None and family_of(m).role != "untrained"]
        if not tuned:
            yield "tuning: every method has a learning_rate of its own; remove tuning"
        for method in tuned if tuning.alphas else []:
            if "alpha" not in family_of(method).takes or method.alpha is not None:
                yield (
                    f"tuning.alphas: {method.label} takes none or has its own, so it would have fewer tries; give it a"
                    " learning_rate of its own or remove tuning.alphas"
                )

    def _most_documents(self, cell: Cell, settings: TrainingSettings) -> int | None:
        """Training documents that the cell can have at most; None where only the rows say it."""
        known = [settings.documents]
        if cell.task == INSTRUCTION and self.instruction:
            known.append(self.instruction.documents)
        elif self.data.source == "builtin":
            known.append(self.data.train_documents)
        return min((count for count in known if count is not None), default=None)

    def _shared_prefix_problems(self) -> Iterator[str]:
        for method in self.methods:
            if adapter_config_without_model(method, self.adapter).get("peft_type") in VIRTUAL_TOKENS:
                yield f"training.shared_prefix: does not go with {method.label}; turn it off"
            if method.adapter(self.adapter).balance_loss:
                yield (
                    f"training.shared_prefix: the balance loss of {method.label} would count shared tokens once; turn"
                    " one of them off"
                )

    @property
    def stand_in(self) -> bool:
        """True where the results say nothing about a benchmark: built-in rows or a random model."""
        return self.data.source == "builtin" or self.model.source == "random"

    @cached_property
    def method_by_label(self) -> dict[str, MethodSettings]:
        return {method.label: method for method in self.methods}

    def _trained_methods(self) -> list[str]:
        return [method.label for method in self.methods if method.method != "base"]

    def cells(self) -> list[Cell]:
        """The cells of the score matrix. The base model has no training and so no seed noise: it is evaluated once, at
        the first seed."""
        return [
            Cell(task, method.label, seed)
            for task in self.tasks
            for method in self.methods
            for seed in (self.seeds[:1] if method.method == "base" else self.seeds)
        ]

    def instruction_cells(self) -> list[Cell]:
        """The cells of instruction tuning, which are trained and not evaluated."""
        methods = self._trained_methods() if self.instruction else []
        return [Cell(INSTRUCTION, method, seed) for method in methods for seed in self.seeds]

    def continual_cells(self) -> list[Cell]:
        """The cells of continual learning, chain by chain, each evaluated on all of its tasks."""
        if not self.continual:
            return []
        methods = self.continual.methods or self._trained_methods()
        stages = self.continual.stages
        return [Cell(stage, method, seed) for method in methods for seed in self.seeds for stage in stages]

    def all_cells(self) -> list[Cell]:
        """Every cell of the study, each after its parent."""
        return self.instruction_cells() + self.cells() + self.continual_cells()

    @cached_property
    def _known_cells(self) -> dict[str, Cell]:
        return {cell.path: cell for cell in self.all_cells()}

    def cell(self, task: str, method: str, seed: int | str) -> Cell:
        """One cell by name. Raises `MolaError` where the study has no such cell."""
        path = f"{task}/{method}/seed{seed}"
        if path not in self._known_cells:
            near = did_you_mean(path, self._known_cells)
            raise MolaError(f"study {self.name}: no cell {path}{near}; `mola cells` lists them")
        return self._known_cells[path]

    def _continual_place(self, cell: Cell) -> int | None:
        """Place of a cell in its chain, from 0; None for other cells."""
        stages = self.continual.stages if self.continual else []
        return stages.index(cell.task) if cell.task in stages else None

    def parent(self, cell: Cell) -> Cell | None:
        """The cell whose adapter this one goes on training; None where it starts from the base model."""
        place = self._continual_place(cell)
        if self.continual and place:
            return dataclasses.replace(cell, task=self.continual.stages[place - 1])
        if (
            self.instruction
            and cell.task != INSTRUCTION
            and self.method_by_label[cell.method].method != "base"
        ):
            return dataclasses.replace(cell, task=INSTRUCTION)
        return None

    def trained_on(self, cell: Cell) -> str:
        """The rows that a cell is trained on: a task, or `instruction`."""
        place = self._continual_place(cell)
        return cell.task if self.continual is None or place is None else self.continual.tasks[place]

    def evaluated_on(self, cell: Cell) -> list[str]:
        """The tasks that a cell is evaluated on; none for instruction tuning."""
        if cell.task == INSTRUCTION:
            return []
        return [cell.task] if self._continual_place(cell) is None else self.continual.tasks  # type: ignore[union-attr]

    def holds_out(self, cell: Cell) -> bool:
        """Whether the cell is not trained on the documents that validation takes out of train, where it takes some."""
        return self.scored_part == "validation" or bool(self.training_of(cell).candidates)

    def in_one_job(self) -> list[Cell]:
        """The cells that one process trains and evaluates: not those that are only evaluated, or that another cell
        continues from while they are evaluated, nor any where torchrun trains on several cards."""
        if self.compute.gpus > 1:
            return []
        cells = self.all_cells()
        parents = {self.parent(cell) for cell in cells}
        return [
            cell
            for cell in cells
            if self.evaluated_on(cell)
            and cell not in parents
            and self.method_by_label[cell.method].method != "base"
        ]

    def jobs(self) -> list[list[Cell]]:
        """`in_one_job`, `compute.cells_per_job` at a time: decided by the study alone, whatever is finished."""
        cells, size = self.in_one_job(), self.compute.cells_per_job
        return [cells[start : start + size] for start in range(0, len(cells), size)]

    def rows_of_training(self, cell: Cell) -> list[str]:
        """What the cell and those before it, whose training it goes on from, are trained on."""
        parent = self.parent(cell)
        return [self.trained_on(cell), *(self.rows_of_training(parent) if parent else [])]

    def rows_of(self, cells: Sequence[Cell]) -> list[str]:
        """Everything that `cells` are trained and evaluated on."""
        found = [rows for cell in cells for rows in (*self.rows_of_training(cell), *self.evaluated_on(cell))]
        return list(dict.fromkeys(found))

    def parents_of(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells that some of `cells` go on from."""
        return [parent for parent in dict.fromkeys(map(self.parent, cells)) if parent]

    def training_seed(self, cell: Cell) -> int:
        """What the random numbers of a cell's training start from: initial adapter, order of documents, dropout."""
        if not self.seeds_by_task:
            return cell.seed
        return int.from_bytes(hashlib.sha256(f"{cell.task}/{cell.seed}".encode()).digest()[:4], "big")

    def training_of(self, cell: Cell) -> TrainingSettings:
        """The training settings of a cell's stage (a method's own learning rate is not yet in them)."""
        if cell.task == INSTRUCTION and self.instruction:
            return self.instruction.training(self.training)
        if self.continual and self._continual_place(cell) is not None:
            return self.continual.training(self.training)
        return self.training

    def section_of(self, cell: Cell) -> str:
        """The section of the study file that sets the training of a cell's stage."""
        if cell.task == INSTRUCTION:
            return INSTRUCTION
        return "training" if self._continual_place(cell) is None else "continual"

    def rows(self) -> list[str]:
        """Everything that must be prepared: the tasks, those of continual learning, and `instruction`."""
        names = [
            *self.tasks,
            *(self.continual.tasks if self.continual else []),
            *([INSTRUCTION] if self.instruction else []),
        ]
        return list(dict.fromkeys(names))
