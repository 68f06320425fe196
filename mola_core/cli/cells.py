"""Verbs on cells: train, evaluate, run without Snakemake, list."""

from __future__ import annotations

import argparse
import re

from mola_core.cli.options import (
    Verbs,
    at_least,
    cell_options,
    model_options,
    named_cell,
    owned,
    study_layout,
    study_options,
    written,
)
from mola_core.errors import MolaError, OutOfTime


def train(arguments: argparse.Namespace) -> None:
    """Train the adapter of one cell.

    Example: mola train --study smoke --task cola --method mola-2468 --seed 0
    """
    from mola_core.distributed import become_torchrun, world_size
    from mola_core.runs.cell import CellRunner
    from mola_core.runs.gpus import gpu_slot

    layout, cell = named_cell(arguments)
    compute = layout.study.compute
    if world_size() > 1:
        CellRunner(layout).train(cell)  # one of torchrun's processes
        return
    with gpu_slot(compute.cells_per_gpu, max(1, compute.gpus)):
        if compute.gpus > 1:
            become_torchrun(compute.gpus, arguments.command)
        CellRunner(layout).train(cell)


def evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate one cell through lm-evaluation-harness.

    Example: mola evaluate --study smoke --task cola --method mola-2468 --seed 0
    """
    from mola_core.runs.cell import CellRunner
    from mola_core.runs.gpus import gpu_slot

    layout, cell = named_cell(arguments)
    with gpu_slot(layout.study.compute.cells_per_gpu):
        CellRunner(layout).evaluate(cell)


def cell(arguments: argparse.Namespace) -> None:
    """Train and evaluate cells in this process, one after another, on one copy of the base model.

    Example: mola cell --study smoke --cell cola base 0 --cell cola mola-2468 0
    """
    from mola_core.runs.cell import CellRunner
    from mola_core.runs.gpus import gpu_slot
    from mola_core.runs.several import run_in_turn

    layout = study_layout(arguments)
    cells = [layout.study.cell(*named) for named in arguments.cell]
    if layout.study.compute.gpus > 1:
        raise MolaError("compute.gpus: several cards train a cell; use `mola train`, then `mola evaluate`")
    owned(layout)
    with gpu_slot(layout.study.compute.cells_per_gpu):
        run_in_turn(CellRunner(layout), cells)


def run(arguments: argparse.Namespace) -> None:
    """Run a study's cells on this machine without Snakemake: several at once, spread over its cards, within a time budget.

    The exit code is 143 where the time was up before all cells were complete: the same command goes on.

    Example: mola run --study smoke --parallel 2 --time-budget 540
    """
    from mola_core.runs.local import run as run_cells

    layout = study_layout(arguments)
    if arguments.archive and arguments.archive.is_dir():
        raise MolaError(f"--archive {arguments.archive}: is a folder; name a file in it")
    owned(layout)
    outcomes = run_cells(
        layout, arguments.parallel, arguments.time_budget, not arguments.drop_adapters, arguments.archive
    )
    failed = [outcome.cell.path for outcome in outcomes if outcome.state == "failed"]
    if failed:
        raise MolaError(f"{len(failed)} cells failed, the first is {failed[0]}; the finished ones are kept")
    late = [outcome.cell.path for outcome in outcomes if outcome.state == "out of time"]
    if late:
        raise OutOfTime(f"stopped with {len(late)} cells to go, the first is {late[0]}")


def pack(arguments: argparse.Namespace) -> None:
    """Pack a study for a machine without a network: code, dependencies, model and rows in parts, and `start.py`.

    There `python start.py --time-budget 540` unpacks, installs, trains and evaluates, and goes on from what is there; it
    leaves results.tar.gz. At home `tar -xzf results.tar.gz -C results` brings cells that the workflow takes as finished.

    Example: mola pack --study smollm2 --data-root ../data --out pack --part-mb 60 --without torch
    """
    from mola_core.runs.pack import pack as make_pack

    if arguments.no_wheels and (arguments.without or arguments.platform or arguments.python_version):
        raise MolaError(
            "--no-wheels: goes without --without, --platform and --python-version, which choose wheels"
        )
    if arguments.python_version and not re.fullmatch(r"3\.\d{1,2}", arguments.python_version):
        raise MolaError(f"--python-version {arguments.python_version!r}: write two numbers, as 3.12")
    layout = owned(study_layout(arguments))  # what is stated here comes before any cell there
    parts = make_pack(
        layout,
        arguments.out,
        arguments.part_mb,
        arguments.without,
        arguments.platform,
        arguments.python_version,
        not arguments.no_wheels,
    )
    size = sum(part.stat().st_size for part in parts) / 1e6
    print(f"{arguments.out}: {len(parts)} parts, {size:.0f} MB; there: python start.py --time-budget SECONDS")


def cells(arguments: argparse.Namespace) -> None:
    """List a study's cells and which of them are complete; with --why what differs from the record of one.

    Example: mola cells --study smoke --why cola mola-2468 0
    """
    from mola_core.runs.differences import differences
    from mola_core.runs.state import as_json, cell_state, standing

    layout = study_layout(arguments)
    if arguments.why:
        if arguments.format == "json":
            raise MolaError("--format json: goes without --why, which writes lines")
        cell = layout.study.cell(*arguments.why)
        print("\n".join(differences(layout, cell)) or "nothing differs")
        return
    for part in filter(None, (layout.tries, layout)):
        for cell in part.study.all_cells():
            found = standing(part, cell)
            state = cell_state(part, cell, found)
            where = (
                part.cell(cell).relative_to(layout.folder / "cells")
                if part is layout
                else f"tuning/{cell.path}"
            )
            print(as_json(cell, state, found.keys) if arguments.format == "json" else f"{state:9} {where}")


def declare(verbs: Verbs) -> None:
    verbs.add(train, cell_options)
    verbs.add(evaluate, cell_options)
    verbs.add(cell, study_options).add_argument(
        "--cell",
        nargs=3,
        action="append",
        required=True,
        metavar=("TASK", "METHOD", "SEED"),
        help="a cell of the study (repeatable)",
    )
    listing = verbs.add(cells, study_options)
    listing.add_argument("--format", choices=["text", "json"], default="text", help="json: one object a cell")
    listing.add_argument(
        "--why", nargs=3, metavar=("TASK", "METHOD", "SEED"), help="what of its keys differs"
    )
    running = verbs.add(run, study_options, model_options)
    running.add_argument(
        "--parallel", type=at_least(1), default=1, help="cells at once (default: %(default)s)"
    )
    running.add_argument(
        "--time-budget",
        type=at_least(0, float),
        help="seconds after which nothing is begun and no training goes on",
    )
    running.add_argument("--drop-adapters", action="store_true", help="keep scores and records only")
    running.add_argument(
        "--archive", type=written, help="pack the finished cells' small files into this .tar.gz"
    )
    packing = verbs.add(pack, study_options, model_options)
    packing.add_argument("--out", type=written, required=True, help="folder to write; must not exist")
    packing.add_argument(
        "--part-mb",
        type=at_least(0.001, float),
        default=60,
        help="largest size of a part (default: %(default)s)",
    )
    packing.add_argument(
        "--without", action="append", default=[], metavar="PACKAGE", help="is there already (repeatable)"
    )
    packing.add_argument(
        "--platform", action="append", default=[], help="of that machine, as pip names it (repeatable)"
    )
    packing.add_argument("--python-version", help="of that machine, such as 3.12")
    packing.add_argument("--no-wheels", action="store_true", help="all dependencies are there already")
