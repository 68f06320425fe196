"""Find a study's file, read it and check it: every complaint at once, on one line, each with its field and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mola_core.errors import MolaError
from mola_core.locations import STUDIES
from mola_core.section import usable_path
from mola_core.study.study import Study
from mola_core.study.yaml_file import read_yaml

MAX_ERRORS = 10
"""Complaints about one file that are written out."""
SOURCES = ("hub", "wheel", "directory", "random", "builtin")


def given_path(option: str, text: str) -> Path:
    """A path as it was typed at the command line, `~` written out.

    Raises `MolaError`, which names the option, for an empty one, for one that begins with a dash, which other programs
    would take for an option, and for what no file system takes.
    """
    if not text.strip():
        raise MolaError(f"{option}: is empty; name a path")
    if text.startswith("-"):
        raise MolaError(f"{option}: {text!r} looks like an option; write ./{text}")
    try:
        return Path(usable_path(text)).expanduser()
    except ValueError as error:
        raise MolaError(f"{option}: {error}") from None


def study_file(name_or_path: str | Path) -> Path:
    """The file of a study: the path as given, or for a name the one in `workflow/studies/`.

    A text without a folder is the name of a study that comes with the package (`.yaml` may follow), else a file here.
    """
    path = given_path("study", str(name_or_path))
    if path.parent == Path() and "/" not in str(name_or_path):
        shipped = STUDIES / f"{path.name.removesuffix('.yaml')}.yaml"
        here = path.is_file() and path.name.endswith((".yaml", ".yml"))
        if shipped.is_file() and not here:
            return shipped
    return path


def load_study(name_or_path: str | Path, data_root: str | None = None) -> Study:
    """Read and check a study.

    `name_or_path` is a file, or the name of one in `workflow/studies/`. `data_root` reads the tasks from a folder
    of parquet files instead of the study's own source. Raises `MolaError`, one line, naming every field that is wrong.
    """
    path = study_file(name_or_path)
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        known = sorted(file.stem for file in STUDIES.glob("*.yaml"))
        raise MolaError(
            f"study {str(name_or_path)!r}: no such file{did_you_mean(path.stem, known)}; the studies here are "
            f"{', '.join(known)}"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, OSError) as error:
        raise MolaError(
            f"study {path}: cannot be read as YAML: {' '.join(str(error).split())[:300]}"
        ) from None
    if not isinstance(content, dict):
        raise MolaError(f"study {path}: must be a mapping of settings, see workflow/studies/quickstart.yaml")
    if data_root is None:
        return _checked(content, path)
    if "data" in content:  # what is replaced is checked too: the file must be right without the option
        _checked(content, path)
    root = str(given_path("data_root", str(data_root)))
    return _checked(content | {"data": {"source": "directory", "root": root}}, path)


def _checked(content: dict[Any, Any], path: Path) -> Study:
    complaints: list[str] = []
    while True:
        try:
            study = Study.model_validate(content)
        except ValidationError as error:
            complaints += _complaints(error)
            # Without its unknown keys the file may still have sections that do not go together.
            unknown = [each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"]
            known = _without(content, [_plain(location) for location in unknown])
            if len(unknown) == error.error_count() and known != content:
                content = known
                continue
        if complaints:
            raise MolaError(f"study {path}: {listed(complaints)}")
        return study


def _plain(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Where a value stands in the file: pydantic's place without the sections' kinds."""
    kind = location[:1] in (("model",), ("data",)) and location[1:2] and location[1] in SOURCES
    return location[:1] + location[2:] if kind else location


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


def listed(complaints: list[str]) -> str:
    """Complaints on one line, numbered where there are several."""
    complaints = [" ".join(complaint.split())[:500] for complaint in dict.fromkeys(complaints)]
    if len(complaints) == 1:
        return complaints[0]
    shown = [f"({number}) {text}" for number, text in enumerate(complaints[:MAX_ERRORS], 1)]
    more = f" … and {len(complaints) - MAX_ERRORS} more" if len(complaints) > MAX_ERRORS else ""
    return f"{len(complaints)} errors: {' '.join(shown)}{more}"


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` where one of the `known` names is close to `text`, else nothing."""
    near = difflib.get_close_matches(text, list(known), 1, 0.7)
    return f", did you mean {near[0]!r}?" if near else ""


def _complaints(error: ValidationError) -> Iterator[str]:
    """Each of pydantic's complaints as field, what is wrong, what was given; a ValueError's lines are one each."""
    for each in error.errors():
        field = ".".join(map(_shown, _plain(each["loc"]))) or "study"
        message = each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            yield f"{field}: unknown key{_suggestion(each['loc'])}; remove it or correct it"
        elif each["type"] == "missing":
            yield f"{field}: missing; add it"
        elif each["type"] == "value_error":
            yield from (line if field == "study" else f"{field}: {line}" for line in message.splitlines())
        else:
            yield f"{field}: {message}, not {_shown(each['input'])!r}{_fix(each)}"


def _fix(error: Any) -> str:
    """What to write instead, where the kind of error says it."""
    given = error["input"]
    if error["type"] == "string_type" and isinstance(given, int | float):
        return "; write it in quotes"
    if error["type"] == "string_pattern_mismatch" and error["loc"][-1] == "revision":
        return "; write the commit, 40 digits 0-9a-f, which the hub shows under `Files`, `History`"
    if error["type"] == "string_pattern_mismatch" and error["loc"][-1] == "sha256":
        return "; write the 64 digits 0-9a-f of `sha256sum`"
    if error["type"] == "string_pattern_mismatch":
        return "; use letters, digits, dots, dashes and underscores, a letter or digit first"
    if error["type"] == "bool_type" and str(given).lower() in ("yes", "no", "on", "off"):
        return "; write true or false"
    return ""


def _suggestion(location: tuple[int | str, ...]) -> str:
    """The key that an unknown one may stand for: a near one of its section, else the section that has it."""
    schema = Study.model_json_schema()
    sections = [schema]
    for part in location[:-1]:
        sections = list(_below(sections, part, schema))
    known = [key for section in sections for key in section.get("properties", {})]
    near = did_you_mean(str(location[-1]), known)
    if near:
        return near
    for name in schema["properties"]:
        inside = _below([schema], name, schema)
        if any(str(location[-1]) in section.get("properties", {}) for section in inside):
            return f", did you mean {f'{name}.{location[-1]}'!r}?"
    return ""


def _below(
    sections: list[dict[str, Any]], part: int | str, schema: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The parts of a JSON schema that describe what stands under a key, or a place of a list, of `sections`."""
    waiting = []
    for section in sections:
        if part in SOURCES and "const" in section.get("properties", {}).get("source", {}):
            if section["properties"]["source"]["const"] == part:
                yield section
        elif isinstance(part, int):
            waiting.append(section.get("items", {}))
        else:
            waiting.append(section.get("properties", {}).get(part, {}))
    while waiting:
        section = waiting.pop()
        if "$ref" in section:
            waiting.append(schema["$defs"][section["$ref"].rpartition("/")[2]])
            continue
        waiting += [*section.get("anyOf", []), *section.get("oneOf", [])]
        yield section


def _shown(value: Any) -> str:
    """The beginning of a value as text."""
    try:
        return str(value)[:60]
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
