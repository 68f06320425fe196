"""What every table, figure and summary must say about its study before anyone reads a number."""

from collections.abc import Sequence

import pandas as pd

from mola_core.study.sections import InstructionSettings, TrainingSettings
from mola_core.study.study import Cell, Study


def notices(study: Study, missing: Sequence[Cell] = ()) -> list[str]:
    """One sentence for each reason why the numbers are less than a benchmark's; empty for a full study."""
    found = _limited(study, study.training)
    if missing:
        found.append(
            f"Incomplete: {len(missing)} of {len(study.cells())} cells are missing; they are left empty."
        )
    return found


def continual_notices(study: Study, frame: pd.DataFrame | None) -> list[str]:
    """`notices` of continual learning, whose trainings have limits of their own, and its chains that are not in `frame`."""
    training = study.continual.training(study.training) if study.continual else study.training
    return _limited(study, training) + ([] if frame is None else _missing_chains(study, frame))


def _limited(study: Study, training: TrainingSettings) -> list[str]:
    """Stand-ins, and the limits of what is trained with these settings."""
    found = []
    if study.data.source == "builtin":
        found.append("Stand-in data: built-in generated rows, not the benchmarks whose names they carry.")
    if study.model.source == "random":
        found.append("Stand-in model: a tiny random Llama; its accuracies mean nothing.")
    instruction, evaluation = study.instruction, study.evaluation
    limits = []
    if instruction and instruction.documents < InstructionSettings().documents:
        limits.append(f"tuned on {instruction.documents:,} instructions first")
    if instruction and instruction.max_steps:
        limits.append(f"on instructions at most {instruction.max_steps:,} steps")
    if training.documents:
        limits.append(f"trained on at most the first {training.documents:,} documents of a task")
    if training.max_steps:
        limits.append(f"at most {training.max_steps:,} steps")
    if evaluation.documents:
        limits.append(f"evaluated on at most the first {evaluation.documents:,} documents of a task")
    if limits:
        found.append("Limited run: " + ", ".join(limits) + ".")
    return found


def _missing_chains(study: Study, frame: pd.DataFrame) -> list[str]:
    """What to say of the chains of continual learning that have no row in `frame` (columns method, seed)."""
    chains = dict.fromkeys((cell.method, cell.seed) for cell in study.continual_cells())
    there = set(zip(frame["method"], frame["seed"], strict=True))
    missing = [chain for chain in chains if chain not in there]
    if not missing:
        return []
    method, seed = missing[0]
    return [
        f"Incomplete: {len(missing)} of {len(chains)} chains of continual learning are missing, the first is"
        f" {method} seed {seed}; means are over the seeds that are there."
    ]


def missing_cells(study: Study, cells: pd.DataFrame) -> list[Cell]:
    """The study's cells that have no row in `cells` (columns task, method, seed)."""
    there = set(zip(cells["task"], cells["method"], cells["seed"], strict=True))
    return [cell for cell in study.cells() if (cell.task, cell.method, cell.seed) not in there]
