"""What the tests of base models share: a folder as a source, and a refusal's one line."""

from pathlib import Path

import pytest

from mola_core.study.sections import DirectoryModel


def directory(path: Path) -> DirectoryModel:
    return DirectoryModel(name="local", source="directory", path=str(path))


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message
