"""Rows of whatever a study prepares: of its tasks, and of instruction tuning."""

from pathlib import Path
from typing import Any

from mola_core.study.study import INSTRUCTION, Study
from mola_core.tasks.instruction import instruction_identity, prepare_instruction
from mola_core.tasks.rows import data_identity, prepare_task


def rows_identity(study: Study, name: str) -> dict[str, Any]:
    """What decides the rows of a task of the study, or of `instruction`, without reading them."""
    if name != INSTRUCTION:
        return data_identity(name, study.data)
    return instruction_identity(study)


def prepare_rows(study: Study, name: str, folder: str | Path) -> None:
    """Prepare the rows of a task of the study, or of `instruction`, in `folder`."""
    if name != INSTRUCTION:
        return prepare_task(name, study.data, folder)
    return prepare_instruction(study, folder)
