"""A study: its sections put together and checked against each other, and the cells that it consists of.

`workflow/schemas/study.json` is generated from `Study` (`mola schema`).
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from mola_core.errors import MolaError, did_you_mean
from mola_core.methods.family import BASE
from mola_core.methods.registry import name_pattern
from mola_core.methods.settings import AdapterSettings, MethodSettings
from mola_core.section import Closed, Name, Seed
from mola_core.study.checks import problems
from mola_core.study.sections import (
    INSTRUCTION,
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


@dataclasses.dataclass(frozen=True)
class Cell:
    """One (task, method, seed) of a study: the unit that is trained and evaluated."""

    task: str
    """A task of the study, or the name of a stage: `instruction`, `continual-1-biology`, ..."""
    method: str
    """The method's label in the study."""
    seed: int

    @property
    def is_base(self) -> bool:
        """Whether it is the untrained model: no other method may be called so, nor that by another name."""
        return self.method == BASE

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
        found = list(problems(self))
        if found:
            raise ValueError("\n".join(found))
        return self

    @property
    def stand_in(self) -> bool:
        """True where the results say nothing about a benchmark: built-in rows or a random model."""
        return self.data.source == "builtin" or self.model.source == "random"

    @property
    def seeds_shared(self) -> bool:
        """Whether what one training does may move several tasks: each starts from the same number, or goes on from the same
        instruction tuning."""
        return not self.seeds_by_task or self.instruction is not None

    @cached_property
    def method_by_label(self) -> dict[str, MethodSettings]:
        return {method.label: method for method in self.methods}

    def trained_methods(self) -> list[str]:
        return [method.label for method in self.methods if not method.is_base]

    def cells(self) -> list[Cell]:
        """The cells of the score matrix. The base model has no training and so no seed noise: it is evaluated once, at
        the first seed."""
        return [
            Cell(task, method.label, seed)
            for task in self.tasks
            for method in self.methods
            for seed in (self.seeds[:1] if method.is_base else self.seeds)
        ]

    def instruction_cells(self) -> list[Cell]:
        """The cells of instruction tuning, which are trained and not evaluated."""
        methods = self.trained_methods() if self.instruction else []
        return [Cell(INSTRUCTION, method, seed) for method in methods for seed in self.seeds]

    def continual_cells(self) -> list[Cell]:
        """The cells of continual learning, chain by chain, each evaluated on all of its tasks."""
        if not self.continual:
            return []
        methods = self.continual.methods or self.trained_methods()
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
        if self.instruction and cell.task != INSTRUCTION and not cell.is_base:
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
            cell for cell in cells if self.evaluated_on(cell) and cell not in parents and not cell.is_base
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

    def rendering_of(self, rows: str) -> TrainingSettings:
        """What decides how the examples of a task, or of `instruction`, are rendered: alike for all methods and seeds."""
        return self.training_of(Cell(rows, self.methods[-1].label, self.seeds[0]))

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
