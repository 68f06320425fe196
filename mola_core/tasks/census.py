"""Census of lm-eval's tasks: which can be trained and compared by their options, and why the others cannot."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from mola_core.tasks import (
    SPLIT_KEYS,
    dataset_folder,
    included,
    task_config,
    task_names,
    unfit,
)
from mola_core.tasks.included import IncludedTasks


@dataclass(frozen=True)
class Entry:
    """A task: its name, why it cannot be used (None where it can), its dataset and the rows of its splits."""

    name: str
    reason: str | None
    dataset: str
    rows: dict[str, int]
    """Rows by role (`train`, `validation`, `test`), where a folder of parquet files has the split."""


def census(pattern: str = "", data_root: Path | None = None) -> Iterator[Entry]:
    """The tasks of the user's folder, of this project and of lm-eval whose names match a regular expression, each in the
    order of their names.

    Split sizes are those of the parquet files in `data_root`; lm-eval does not know any. Rows may still be refused when
    they are prepared: what is compared here is the configuration alone.
    """
    folder = included()
    if folder is not None:
        yield from _included_tasks(folder, pattern, data_root)
    found = {name: task_config(name) for name in task_names() if re.search(pattern, name)}
    yield from (_entry(name, config, None, data_root) for name, config in found.items())
    for name, config in sorted(_lm_eval_tasks(pattern)):
        if name not in found:
            yield _entry(name, config, unfit(config), data_root)


def _included_tasks(folder: IncludedTasks, pattern: str, data_root: Path | None) -> Iterator[Entry]:
    from lm_eval.tasks._yaml_loader import load_yaml

    for file in folder.files:
        if re.search(pattern, file.stem):
            config = load_yaml(file, resolve_func=False)
            yield _entry(file.stem, config, unfit(config) or folder.refused(file.stem), data_root)


def _entry(name: str, config: dict, reason: str | None, data_root: Path | None) -> Entry:  # type: ignore[type-arg]
    rows = {}
    if data_root is not None and config.get("dataset_path"):
        import pyarrow.parquet as pq

        for role, key in SPLIT_KEYS.items():
            file = data_root / dataset_folder(config) / f"{config.get(key)}.parquet"
            with contextlib.suppress(OSError, ValueError):
                rows[role] = pq.read_metadata(file).num_rows
    return Entry(name, reason, dataset_folder(config) if config.get("dataset_path") else "", rows)


def _lm_eval_tasks(pattern: str) -> Iterator[tuple[str, dict]]:  # type: ignore[type-arg]
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    named = re.compile(r"^[\"']?task[\"']?:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*(#.*)?$", re.MULTILINE)
    for path in sorted((Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml")):
        name = named.search(path.read_text(encoding="utf-8", errors="replace"))
        if name is None or not re.search(pattern, name[1]):
            continue
        with contextlib.suppress(OSError, ValueError, yaml.YAMLError, ImportError):
            config = load_yaml(path, resolve_func=False)
            if config.get("task") == name[1]:  # a group lists others
                yield name[1], config
