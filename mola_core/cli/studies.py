"""Verbs of a study's life: a new study file, what its cells are at, an adapter to hand on."""

from __future__ import annotations

import argparse
import json
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mola_core.cli.options import Verbs, at_least, study_layout, study_options, written

if TYPE_CHECKING:
    from mola_core.runs.progress import CellProgress
    from mola_core.study.study import Study


def init(arguments: argparse.Namespace) -> None:
    """Write a commented study file from a model's, tasks' and methods' names.

    The model is a folder, a hub id (with --revision, a commit, unless the hub can be asked) or the name of a shipped
    study, whose model is taken. `mola tasks` lists tasks. Nothing is fetched and nothing runs: look the file over, then
    run it.

    Example: mola init mine --model quickstart --task cola --task scienceqa --seeds 4
    """
    from mola_core.study.draft import write_draft

    file = write_draft(
        arguments.file,
        model=arguments.model,
        revision=arguments.revision,
        tasks=arguments.task,
        methods=arguments.method,
        seeds=int(arguments.seeds),
        data=arguments.data,
        check=_check_sources,
    )
    workflow = "" if Path("Snakefile").is_file() else ' --snakefile "$(mola where --workflow)"'
    print(f"{file}: look it over, then")
    print(f"  snakemake --cores 2{workflow} --config study={shlex.quote(str(file))}")
    print(f"  mola status --study {shlex.quote(str(file))}")


def _check_sources(study: Study) -> None:
    """Raise `MolaError` where there is no such task, no rows of it in the study's source, or no model in its folder."""
    from mola_core.models.sources import check_folder
    from mola_core.study.sections import DirectoryModel
    from mola_core.tasks.prepare import rows_identity

    for rows in study.rows():
        rows_identity(study, rows)
    if isinstance(study.model, DirectoryModel):
        check_folder(Path(study.model.path), "--model")


def status(arguments: argparse.Namespace) -> None:
    """Tell what a study's cells are at: complete, trained, running, stopped, failed, open; last losses; an estimate of the time left.

    Read from files: ask while the study runs, from another terminal, as often as you like.

    Example: mola status --study quickstart
    """
    from mola_core.runs.progress import progress, seconds_left

    cells = progress(study_layout(arguments))
    left = seconds_left(cells)
    if arguments.format == "json":
        print(json.dumps({"seconds_left": left, "cells": [_as_json(each) for each in cells]}, indent=2))
        return
    counts = Counter(each.state for each in cells)
    told = ", ".join(f"{number} {state}" for state, number in counts.items() if state != "complete")
    rest = f"; about {_duration(left)} left, as many cells at a time as now" if left else ""
    tries = sum(each.tried for each in cells)
    of_them = f" ({tries} of them tries)" if tries else ""
    print(f"{counts['complete']} of {len(cells)} cells{of_them} complete{', ' if told else ''}{told}{rest}")
    for each in cells:
        if arguments.all or each.state not in ("complete", "open"):
            print(_line(each))


def _line(one: CellProgress) -> str:
    text = f"{one.state:9} {one.path}"
    if one.step is not None and one.loss is not None:
        text += f"  step {one.step}/{one.steps}  loss {one.loss:.4f}"
    if one.evaluated:
        text += "  is evaluated"
    if one.state == "running" and one.seconds_left is not None:
        text += f"  {_duration(one.seconds_left)} left"
    return f"{text}  {one.reason}".rstrip()


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{minutes} min"
        if minutes < 120
        else f"{seconds / 3600:.1f} h"
    )


def _as_json(one: CellProgress) -> dict[str, object]:
    return {
        "task": one.cell.task,
        "method": one.cell.method,
        "seed": one.cell.seed,
        "tried": one.tried,
        "state": one.state,
        "step": one.step,
        "steps": one.steps,
        "loss": one.loss,
        "seconds": one.seconds,
        "seconds_left": one.seconds_left,
        "reason": one.reason or None,
    }


def export(arguments: argparse.Namespace) -> None:
    """Copy a finished cell's adapter into a folder of its own, with a card, to load or to hand on.

    CELL is TASK/METHOD/seedN of the study. The folder names the base model by its hub id (the study's, or --base-model),
    holds no path of this machine, and is loaded by PEFT where `mola_core` is imported; `hf upload ORGANISATION/NAME DIR` shares it.

    Example: mola export cola/mola-2468/seed0 my-adapter --study smoke
    """
    from mola_core.runs.export import export_adapter

    layout = study_layout(arguments)
    folder = export_adapter(
        layout, arguments.cell, arguments.folder, base=arguments.base_model, licence=arguments.license
    )
    print(f"{folder}: read README.md in it before you share it")


def declare(verbs: Verbs) -> None:
    new = verbs.add(init)
    new.add_argument("file", type=written, metavar="NAME", help="name of the study, or the file to write")
    new.add_argument("--model", required=True, help="a folder, a hub id, or a shipped study's name")
    new.add_argument(
        "--revision", help="commit of the model on the hub (default: today's, if the hub answers)"
    )
    new.add_argument("--task", action="append", required=True, help="a task (repeatable)")
    new.add_argument(
        "--method",
        action="append",
        help="a method beside `base` (repeatable; default: MoLA 2468, 5555 and 8642, LoRA, and LoRA matched to 2468 and 8642)",
    )
    new.add_argument("--seeds", type=at_least(1), default=3, help="number of seeds (default: %(default)s)")
    new.add_argument(
        "--data", default="hub", help="hub, builtin or a folder of parquet files (default: %(default)s)"
    )
    asked = verbs.add(status, study_options)
    asked.add_argument("--all", action="store_true", help="a line for every cell")
    asked.add_argument("--format", choices=["text", "json"], default="text", help="json: one object")
    given = verbs.add(export, study_options)
    given.add_argument("cell", metavar="CELL", help="TASK/METHOD/seedN")
    given.add_argument("folder", type=written, metavar="DIR", help="folder to write; must not exist")
    given.add_argument("--base-model", help="hub id of the base model, where the study does not name one")
    given.add_argument("--license", help="licence of the base model, where its own card does not name one")
