"""Find a study's file, read it and check it: every complaint at once, on one line, each with its field and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mola_core.errors import MolaError, did_you_mean
from mola_core.locations import STUDIES
from mola_core.paths import given_path
from mola_core.study.complaints import complaints, listed, plain
from mola_core.study.study import Study
from mola_core.study.yaml_file import read_yaml


def study_file(name_or_path: str | Path) -> Path:
    """The file of a study: the path as given, or for a name the one that comes with the package (`mola where --studies`).

    A text without a folder is the name of a study that comes with the package (`.yaml` may follow), else a file here,
    whose `.yaml` may be left out.
    """
    path = given_path("study", str(name_or_path))
    if path.parent == Path() and "/" not in str(name_or_path):
        shipped = STUDIES / f"{path.name.removesuffix('.yaml')}.yaml"
        here = path.is_file() and path.name.endswith((".yaml", ".yml"))
        if shipped.is_file() and not here:
            return shipped
        written = Path(f"{path}.yaml")
        if written.is_file() and not path.exists():
            return written
    return path


def load_study(name_or_path: str | Path, data_root: str | Path | None = None) -> Study:
    """Read and check a study.

    `name_or_path` is as in `study_file`. `data_root` reads the tasks from a folder
    of parquet files instead of the study's own source. Raises `MolaError`, one line, naming every field that is wrong.
    """
    path = study_file(name_or_path)
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        known = sorted(file.stem for file in STUDIES.glob("*.yaml"))
        here = [file.name for file in Path().glob("*.y*ml")]
        raise MolaError(
            f"study {str(name_or_path)!r}: no such file{did_you_mean(path.stem, [*known, *here])}; shipped studies are "
            f"{', '.join(known)}"
        ) from None
    except (
        yaml.YAMLError,
        LookupError,
        AttributeError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
        OSError,
    ) as error:
        # The reader lets a tag that does not go with its text (`!!bool maybe`) end in any of these.
        raise MolaError(
            f"study {path}: cannot be read as YAML: {' '.join(str(error).split())[:300]}"
        ) from None
    if not isinstance(content, dict):
        raise MolaError(f"study {path}: must be a mapping of settings; `mola init` writes one")
    if data_root is None:
        return _checked(content, path)
    if "data" in content:  # what is replaced is checked too: the file must be right without the option
        _checked(content, path)
    root = str(given_path("data_root", str(data_root)))
    return _checked(content | {"data": {"source": "directory", "root": root}}, path)


def _checked(content: dict[Any, Any], path: Path) -> Study:
    found: list[str] = []
    while True:
        try:
            study = Study.model_validate(content)
        except ValidationError as error:
            found += complaints(error, content)
            # Without its unknown keys the file may still have sections that do not go together.
            unknown = [each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"]
            known = _without(content, [plain(location, content) for location in unknown])
            if len(unknown) == error.error_count() and known != content:
                content = known
                continue
        if found:
            raise MolaError(f"study {path}: {listed(found)}")
        return study


def _without(content: Any, locations: Sequence[tuple[int | str, ...]]) -> Any:
    """A mapping or list without the values at some places."""
    if isinstance(content, dict):
        return {
            key: _without(value, [place[1:] for place in locations if place[0] == key])
            for key, value in content.items()
            if (key,) not in locations
        }
    if isinstance(content, list):
        return [
            _without(value, [place[1:] for place in locations if place[0] == index])
            for index, value in enumerate(content)
        ]
    return content
