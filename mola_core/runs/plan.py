"""What Snakemake plans with: options, and which files on disk are not what today's study, rows, model and code would make."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mola_core.code_hash import code_hash
from mola_core.errors import MolaError, did_you_mean
from mola_core.files import read_json, remembered_sha256
from mola_core.paths import given_path
from mola_core.records import digest
from mola_core.runs.adapter_figures import ADAPTER_FIGURES
from mola_core.runs.key import choices, examples_identity, keys, tuning_key
from mola_core.runs.layout import Layout
from mola_core.runs.prepare import check_steps
from mola_core.runs.state import Standing, claim, standing
from mola_core.runs.tuning import cost
from mola_core.study.loading import load_study, study_file
from mola_core.study.study import Cell
from mola_core.tasks import include
from mola_core.tasks.examples import RECORD, current
from mola_core.tasks.prepare import check_tasks
from mola_core.training.trackers import check_trackers

OPTIONS = ("study", "data_root", "results", "include", "include_functions")
"""What `--config` may name."""
COLLECTED = "collected.json"
"""In a study's folder, beside scores.parquet: the key of what it was gathered from, and its hash."""
ANALYSED = "analysed.json"
"""In a study's folder, written after tables, figures, verdict and summary: what they were made from."""


@dataclass
class Plan:
    """A study's files and which of them are out of date."""

    layout: Layout
    options: list[str]
    """What every `mola` verb is given: study, results, rows and task files as they were named."""
    fresh: bool
    """False in the jobs of a run, which do what was planned."""

    @property
    def marker(self) -> Path:
        """A file that is touched when a run is planned, where there is anything that could be out of date."""
        return self.layout.folder / ".planned"

    @cached_property
    def standings(self) -> dict[Cell, Standing]:
        return {cell: standing(self.layout, cell) for cell in self.layout.study.all_cells()}

    def rendered(self, rows: str) -> bool:
        """Whether the examples of a task, or of `instruction`, are there and current."""
        if not self.fresh:
            return True
        identity = examples_identity(self.layout, rows)
        return identity is not None and current(self.layout.examples(rows), identity)

    def trained(self, cell: Cell) -> bool:
        """Whether the cell's training is there under today's key, with its weights where something still needs them."""
        if not self.fresh:
            return True
        return self.standings[cell].trained and (
            cell not in self._needed or self.layout.weights(cell).is_dir()
        )

    def evaluated(self, cell: Cell) -> bool:
        """Whether the cell's scores are there and current, and its training is not to be made again."""
        if not self.fresh:
            return True
        trained = self.standings[cell].keys.training is None or self.trained(cell)
        return self.standings[cell].evaluated and trained

    def tried(self, cell: Cell) -> bool:
        """Whether a try's score is there and current."""
        assert self.layout.tries is not None
        return not self.fresh or standing(self.layout.tries, cell).evaluated

    @cached_property
    def tuned(self) -> bool:
        """Whether what tuning chose is there and current."""
        return not self.fresh or choices(self.layout) is not None

    @cached_property
    def _needed(self) -> set[Cell]:
        """Cells whose weights are still to be read: by their own evaluation, or by a cell that goes on from them."""
        study, found = self.layout.study, set[Cell]()
        for cell, found_of in reversed(self.standings.items()):  # children before their parents
            if study.evaluated_on(cell) and not found_of.evaluated:
                found.add(cell)
            parent = study.parent(cell)
            again = not found_of.trained or (cell in found and not self.layout.weights(cell).is_dir())
            if parent and again:
                found.add(parent)
        return found

    @cached_property
    def collected(self) -> bool:
        """Whether scores.parquet is that of today's cells."""
        return not self.fresh or self._recorded(COLLECTED) == scores_key(self.layout, self.standings)

    @cached_property
    def analysed(self) -> bool:
        """Whether tables, figures, verdict and pages are of today's scores, study and code."""
        return not self.fresh or (
            self.collected and self._recorded(ANALYSED) == analysis_key(self.layout, self.standings)
        )

    def _recorded(self, name: str) -> str | None:
        try:
            return str(read_json(self.layout.folder / name)["key"])
        except (MolaError, KeyError, TypeError):
            return None


def scores_key(layout: Layout, known: Mapping[Cell, Standing] | None = None) -> str:
    """What scores.parquet is gathered from: the cells' keys, and the code that gathers. `known` saves finding them."""
    cells = [cell for cell in layout.study.all_cells() if layout.study.evaluated_on(cell)]
    found = {cell.path: (known[cell].keys if known else keys(layout, cell)).evaluation for cell in cells}
    return digest({"cells": found, "code": code_hash("mola_core.analysis.collect:write")})


def analysis_key(layout: Layout, known: Mapping[Cell, Standing] | None = None) -> str:
    """What tables, figures, verdict and pages are made from: the scores, the study as it is written, and the code."""
    study = layout.study.model_dump(mode="json", exclude={"compute"})
    return digest(
        {
            "scores": scores_key(layout, known),
            "tries": tuning_key(layout) if layout.tries else None,
            "study": study,
            "code": code_hash("mola_core.analysis"),
            "files": _analysis_files(),
            "drawn": _adapter_figures(layout),
        }
    )


def _adapter_figures(layout: Layout) -> dict[str, str]:
    """The figures of trained adapters that are there, which the study's page shows."""
    files = [layout.folder / "figures" / f"{name}.svg" for name in ADAPTER_FIGURES]
    return {file.name: remembered_sha256(file) for file in files if file.is_file()}


def _analysis_files() -> dict[str, str]:
    """What pages are made of beside code: the published numbers, the page's look."""
    folder = Path(__file__).parents[1] / "analysis"
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    return {path.relative_to(folder).as_posix(): remembered_sha256(path) for path in sorted(files)}


def plan(config: Mapping[str, Any], fresh: bool) -> Plan:
    """Read Snakemake's `--config`. With `fresh`, examples that are out of date are rendered anew first: keys need them.

    Raises `MolaError` for unknown options, a broken study, tasks that cannot be used, and a results folder that belongs to
    another study.
    """
    typed = sys.argv if fresh else ()
    functions = _allowed(config.get("include_functions"), sys.argv if fresh else None)
    given = {
        option: _as_typed(option, value, typed)
        for option, value in config.items()
        if option != "include_functions"
    }
    name, data_root, folder = given.get("study", "quickstart"), given.get("data_root"), given.get("include")
    results = given_path("--config results", given.get("results", "results"))
    if functions and folder is None:
        raise MolaError(
            "--config include_functions: goes with include=DIR; name the folder of the task files"
        )
    if results.exists() and not results.is_dir():
        raise MolaError(f"--config results: {results} is no folder; name another")
    include(None if folder is None else given_path("--config include", folder), functions)
    layout = Layout(load_study(name, data_root), results, file=study_file(name))
    options = ["--study", name, "--results", str(layout.root)]
    options += ["--data-root", data_root] if data_root is not None else []
    options += ["--include", folder] if folder is not None else []
    options += ["--include-functions"] if functions else []
    planned = Plan(layout, options, fresh)
    if fresh:
        check_tasks(layout.study)
        check_trackers(layout.study.training.report_to)
        if layout.folder.is_dir():
            claim(layout)
            planned.marker.touch()
        _render(planned)
        for rows in layout.study.rows():
            if planned.rendered(rows):
                check_steps(layout.study, rows, read_json(layout.examples(rows) / RECORD))
        if layout.tries is not None:
            print(cost(layout), file=sys.stderr)
    return planned


def _as_typed(option: str, value: Any, typed: Sequence[str]) -> str:
    """The text of a `--config` option. `typed` are the words of the command line.

    Raises `MolaError` for an unknown option, and where Snakemake made of the text a number, a truth value or another
    text: `results=2026_11_24` comes as 20261124.
    """
    if option not in OPTIONS:
        raise MolaError(
            f"--config {option}: unknown{did_you_mean(option, OPTIONS)}; give {', '.join(OPTIONS[:-1])} or {OPTIONS[-1]}"
        )
    words = [word.partition("=")[2] for word in typed if word.startswith(f"{option}=")]
    text = words[-1] if words else value
    if value is None or text == "":
        raise MolaError(f"--config {option}: is empty; name a {'study' if option == 'study' else 'folder'}")
    if not isinstance(value, str) or text not in (value, f'"{value}"', f"'{value}'"):
        raise MolaError(
            f"--config {option}: Snakemake reads {text!r} as {value!r}; write {option}=./… or choose another name"
        )
    if set(value) & set("{}"):
        raise MolaError(f"--config {option}: {value}: braces have a meaning for Snakemake; rename it")
    return value


def _allowed(value: Any, typed: Sequence[str] | None) -> bool:
    """Whether task files' own code may run. `typed` are the words of the command line; None in a run's jobs.

    Raises `MolaError` where a file says it (`--configfile`, a profile, a module), since only who types may.
    """
    if value is None:
        return False
    if str(value).lower() not in ("true", "false"):
        raise MolaError(
            f"--config include_functions: {str(value)[:40]!r}; write include_functions=true or leave it out"
        )
    allowed = str(value).lower() == "true"
    if allowed and typed is not None and f"include_functions={value}".lower() not in map(str.lower, typed):
        raise MolaError(
            "--config include_functions: comes from a file; type include_functions=true behind --config, since it runs the "
            "code of task files"
        )
    return allowed


def _render(planned: Plan) -> None:
    """Render examples whose rows and model are prepared but which were made from others, in a process of its own."""
    layout = planned.layout
    for rows in layout.study.rows():
        if examples_identity(layout, rows) is None or planned.rendered(rows):
            continue
        command = [sys.executable, "-m", "mola_core.cli", "examples", *planned.options, "--task", rows]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MolaError((done.stderr.strip().splitlines() or ["mola examples failed"])[-1])
