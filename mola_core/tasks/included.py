"""Task files of a folder of the user's (`--include DIR`, as lm-eval's `--include_path`): found, and checked before any is used.

A task stands in `<task>.yaml`, anywhere in the folder; files whose names begin with _ are there for others to `include:`.
Nothing here runs code that the folder holds: `!function` is read as a name.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mola_core.errors import MolaError, did_you_mean, one_line
from mola_core.files import sha256_file
from mola_core.section import SAFE_NAME
from mola_core.study.sections import SCIENCEQA_TOPICS
from mola_core.study.yaml_file import BoundedLoader, read_yaml

MAX_FILES = 10_000
"""In a folder of task files."""
OWN = Path(__file__).parent
TEXTS = (
    *("dataset_path", "dataset_name", "output_type", "training_split", "validation_split", "test_split"),
    *("description", "target_delimiter"),
)
"""Keys of a task file whose values are text."""
LOADERS = ("json", "csv", "parquet", "arrow", "text", "pandas", "xml", "webdataset")
"""What `datasets` takes for a kind of file, not for a dataset."""


class Function(str):
    """What stands after `!function`: a module's path from the file's folder and a name in it, with dots."""


class _Loader(BoundedLoader):
    """Reads lm-eval's YAML without importing the functions that it names."""


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))


@dataclass(frozen=True, eq=False)
class IncludedTasks:
    """The task files of a folder, all of them checked but for what only their use needs (`refused`)."""

    folder: Path
    functions: bool
    """Whether who typed the command lets the files' own functions run."""
    files: tuple[Path, ...]
    """One a task, named by it."""

    def file(self, name: str) -> Path | None:
        """The file of a task; None where the folder has none."""
        return next((file for file in self.files if file.stem == name), None)

    def refused(self, name: str) -> str | None:
        """Why a task of the folder is not used: it names functions, and nobody allowed that."""
        named = self._functions(name)
        if not named or self.functions:
            return None
        return f"it runs code, !function {named[0]}; add --include-functions if you trust {self.folder}"

    def code(self, name: str) -> str | None:
        """sha256 of the code that a task's functions are in and may read: every file of the folder that is no YAML file;
        None for a task without functions."""
        if not self._functions(name):
            return None
        digest = hashlib.sha256()
        for file in _files(self.folder):
            if file.suffix != ".yaml":
                digest.update(os.fsencode(file.relative_to(self.folder)) + sha256_file(file).encode())
        return digest.hexdigest()

    def travelling(self, names: Sequence[str]) -> list[Path]:
        """The files that these tasks need elsewhere: theirs, what they include, and for functions every one that is no
        YAML file."""
        found: dict[Path, None] = {}
        for name in names:
            file = self.file(name)
            if file is not None:
                found |= dict.fromkeys(path for path, _ in _with_included(file, self.folder))
                if self._functions(name):
                    found |= dict.fromkeys(path for path in _files(self.folder) if path.suffix != ".yaml")
        return list(found)

    def _functions(self, name: str) -> list[str]:
        file = self.file(name)
        if file is None:
            return []
        return [function for _, content in _with_included(file, self.folder) for function in _named(content)]


def read_included(folder: Path, functions: bool) -> IncludedTasks:
    """Find and check the task files of a folder.

    Raises `MolaError`, one line, where there is no folder or no task in it, where a file is no YAML, is named otherwise
    than its `task:` or as a task of this project or of lm-eval, has keys or types that lm-eval does not know, names a
    function that is not in the folder, or where something in the folder is a link out of it.
    """
    if not folder.is_dir():
        raise MolaError(f"--include {folder}: no such folder; name one that holds task files")
    root = folder.resolve()
    files = [file for file in _files(root) if file.suffix in (".yaml", ".yml") and file.name[0] != "_"]
    known: dict[str, Path] = {}
    for file in files:
        name, shown = file.stem, folder / file.relative_to(root)
        if file.suffix == ".yml":
            raise MolaError(f"{shown}: lm-eval reads files that end in .yaml; rename it")
        if name in known:
            raise MolaError(f"{shown}: {known[name]} is a task of that name too; rename one")
        known[name] = shown
        _check(shown, name, _merged(file, root))
    if not known:
        raise MolaError(f"--include {folder}: no task file (<task>.yaml) in it; put one there")
    own = {*SCIENCEQA_TOPICS, *(path.stem for path in OWN.glob("*.yaml"))}
    for name in sorted(known.keys() & (own | _lm_eval_names())):
        whose = "this project" if name in own else "lm-eval"
        raise MolaError(
            f"{known[name]}: {whose} has a task {name!r}; rename the file and its `task:`, so that results tell which it was"
        )
    return IncludedTasks(root, functions, tuple(files))


@functools.cache
def _lm_eval_names() -> frozenset[str]:
    import lm_eval

    line = re.compile(rb"^[\"']?task[\"']?:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*(#.*)?$", re.MULTILINE)
    files = (Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml")
    return frozenset(match[1].decode() for file in files if (match := line.search(file.read_bytes())))


def _files(root: Path) -> list[Path]:
    """The files below a folder in order, hidden ones left out. Raises `MolaError` where one is a link out of it."""
    found: list[Path] = []
    for path in root.rglob("*"):
        if len(found) >= MAX_FILES:
            raise MolaError(
                f"--include {root}: more than {MAX_FILES} files; name a folder of task files alone"
            )
        if any(part[0] == "." or part == "__pycache__" for part in path.relative_to(root).parts):
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise MolaError(f"{path}: is a link out of the folder of --include; put a copy there")
        if not path.is_dir() and not path.is_file():
            raise MolaError(f"{path}: is no file; remove it from the folder of --include")
        if path.is_file():
            found.append(path)
    return sorted(found)


def _with_included(
    file: Path, root: Path, seen: list[Path] | None = None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A file and those that it includes, each with its content, in the order in which lm-eval merges them."""
    place = file.resolve().parent  # of a link in the folder, as lm-eval reads it
    seen = [] if seen is None else seen
    seen.append(file.resolve())
    try:
        content = read_yaml(file, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, OSError) as error:
        raise MolaError(f"{file}: cannot be read as YAML: {one_line(error)}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise MolaError(f"{file}: must be a mapping of lm-eval's settings of a task; correct it")
    included = content.get("include", [])
    for name in included if isinstance(included, list) else [included]:
        if not isinstance(name, str):
            raise MolaError(f"{file}: include: {str(name)[:40]!r} is no file; name one")
        other = (place / name).resolve()
        if not other.is_relative_to(root):
            raise MolaError(
                f"{file}: include: {name} is outside of the folder of --include; put a copy there"
            )
        if not other.is_file():
            raise MolaError(f"{file}: include: {name}: no such file; correct it")
        if other in seen:  # lm-eval reads each once
            raise MolaError(f"{file}: include: {name} is read already, by a circle or twice; remove it here")
        yield from _with_included(other, root, seen)
    for function in _named(content):
        module = (place / f"{function.rpartition('.')[0].replace('.', '/')}.py").resolve()
        if not (module.is_file() and module.is_relative_to(root)):
            raise MolaError(f"{file}: !function {function}: {module.name} is not beside it; put it there")
    yield file, content


def _merged(file: Path, root: Path) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for _, content in _with_included(file, root):
        merged |= content
    return merged


def _named(content: Any) -> Iterator[str]:
    """The functions that a file names."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Function):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _check(file: Path, name: str, config: dict[str, Any]) -> None:
    """Raise `MolaError` where a task's settings are not what lm-eval and this project take."""
    import dataclasses

    from lm_eval.config.task import TaskConfig

    if config.get("task") != name:
        said = f"its `task:` is {str(config['task'])[:60]!r}" if "task" in config else "it has no `task:`"
        raise MolaError(
            f"{file}: {said}; give file and task one name (files for others to include begin with _)"
        )
    if not re.fullmatch(SAFE_NAME, name):
        raise MolaError(f"{file}: {name!r} is no name of a task; use letters, digits, dots, dashes and _")
    keys = {field.name for field in dataclasses.fields(TaskConfig)} | {"include", "tag", "group"}
    for key in config:
        if key not in keys:
            raise MolaError(
                f"{file}: {key}: lm-eval has no such setting{did_you_mean(key, keys)}; correct it"
            )
    for key in TEXTS:
        if not isinstance(config.get(key), str | None):
            raise MolaError(f"{file}: {key}: must be text, not {str(config[key])[:40]!r}")
    if not config.get("dataset_path"):
        raise MolaError(f"{file}: it has no dataset_path, so no rows; name the dataset")
    if config["dataset_path"] in LOADERS:
        raise MolaError(
            f"{file}: dataset_path: {config['dataset_path']!r} is a kind of file; name the dataset, whose rows are read from "
            "<data_root>/<dataset>/<split>.parquet"
        )
    if config.get("num_fewshot"):
        raise MolaError(f"{file}: num_fewshot: {config['num_fewshot']}: a study is zero-shot; leave it out")
    for entry in config.get("metric_list") or []:
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("metric"), str)
            or entry.get("hf_evaluate")
        ):
            raise MolaError(
                f"{file}: metric_list: {str(entry)[:60]!r} is no metric of lm-eval's; write - metric: acc"
            )
