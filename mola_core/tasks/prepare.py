"""Rows of whatever a study prepares: of its tasks, and of instruction tuning."""

from pathlib import Path
from typing import Any

from mola_core.study.sections import INSTRUCTION
from mola_core.study.study import Study
from mola_core.tasks import task_config
from mola_core.tasks.instruction import instruction_identity, prepare_instruction
from mola_core.tasks.rows import data_identity, prepare_task


def check_tasks(study: Study) -> None:
    """Raise `MolaError` where a task of the study is not known or cannot be trained and compared: nothing is read for it."""
    for name in study.rows():
        if name != INSTRUCTION:
            task_config(name, study.protocol)


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
