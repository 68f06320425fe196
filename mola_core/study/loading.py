"""Read a study file: YAML without merges or repeated keys, checked, every complaint one line that names the field."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mola_core.errors import MolaError
from mola_core.locations import STUDIES
from mola_core.study.study import Study

MAX_VALUES = 100_000
"""Values that a study file may hold, aliases written out."""


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once; `<<`, which can stand for more than memory holds, is not read."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "<< is not read; write it out", key.start_mark
                )

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is there twice", node.start_mark)
        return mapping


def study_file(name_or_path: str | Path) -> Path:
    """The file of a study: the path as given, or for a name the one in `workflow/studies/`."""
    path = Path(name_or_path)
    return path if path.suffix else STUDIES / f"{name_or_path}.yaml"


def load_study(name_or_path: str | Path, data_root: str | None = None) -> Study:
    """Read and check a study.

    `name_or_path` is a file, or the name of one in `workflow/studies/`. `data_root` reads the tasks from a folder
    of parquet files instead of the study's own source. Raises `MolaError`, one line, naming the field.
    """
    path = study_file(name_or_path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        _check_size(content)
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in STUDIES.glob("*.yaml")))
        raise MolaError(f"study {str(name_or_path)!r}: no such file; the studies here are {known}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, OSError) as error:
        raise MolaError(
            f"study {path}: cannot be read as YAML: {' '.join(str(error).split())[:300]}"
        ) from None
    if not isinstance(content, dict):
        raise MolaError(f"study {path}: must be a mapping of settings, see workflow/studies/quickstart.yaml")
    if data_root is not None:
        content["data"] = {"source": "directory", "root": str(data_root)}
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise MolaError(f"study {path}: {' '.join(_first_error(error).split())[:500]}") from None


def _check_size(content: Any) -> None:
    """Raise ValueError where a few lines of aliases stand for more than anyone would write, or for themselves."""
    waiting, seen = [content], 0
    while waiting:
        entry = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values; write fewer, or fewer aliases (&, *)")
        if isinstance(entry, dict):
            waiting += [*entry.keys(), *entry.values()]
        elif isinstance(entry, list | tuple | set):
            waiting += entry


def _first_error(error: ValidationError) -> str:
    """The first of pydantic's complaints as one line: field, what is wrong, what was given."""
    first = error.errors()[0]
    unions = {"hub", "wheel", "directory", "random", "builtin"}
    field = ".".join(_shown(part) for part in first["loc"] if part not in unions) or "study"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key; remove it or check its spelling"
    if first["type"] == "missing":
        return f"{field}: missing; add it"
    if first["type"] == "value_error":
        return f"{field}: {message}"
    return f"{field}: {message}, not {_shown(first['input'])!r}"


def _shown(value: Any) -> str:
    """The beginning of a value as text."""
    try:
        return str(value)[:60]
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
