"""Run a study's cells on one machine without Snakemake: several at once, within a time budget, resumable.

Meant for a machine without network and for one card that holds several small cells. What it leaves are the cell
folders that the workflow's own rules make, so a later `snakemake` takes them as finished.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import sys
import time
from pathlib import Path

from mola_core.cells import Workbench
from mola_core.data import prepare_task
from mola_core.errors import MolaError
from mola_core.files import remove
from mola_core.layout import Layout
from mola_core.models import prepare_model
from mola_core.study import Cell


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one cell: `complete`, `out of time` or `failed` with the reason."""

    cell: Cell
    state: str
    seconds: float = 0.0
    reason: str = ""


_bench: Workbench


def _open(layout: Layout, deadline: float | None) -> None:
    global _bench
    _bench = Workbench(layout, deadline)


def _run(cell: Cell, keep_adapters: bool) -> Outcome:
    from mola_core.training import OutOfTime

    started = time.time()
    if _bench.deadline and started > _bench.deadline:
        return Outcome(cell, "out of time")
    try:
        _bench.run(cell)
    except OutOfTime as stop:
        return Outcome(cell, "out of time", time.time() - started, str(stop))
    except Exception as error:  # one failed cell must not take the others with it
        return Outcome(cell, "failed", time.time() - started, f"{type(error).__name__}: {error}")
    if not keep_adapters:
        remove(_bench.layout.cell(cell) / "adapter")
    return Outcome(cell, "complete", time.time() - started)


def run(
    layout: Layout, parallel: int = 1, time_budget: float | None = None, keep_adapters: bool = True
) -> list[Outcome]:
    """Train and evaluate every cell that is not complete, `parallel` at a time, each worker loading the base once.

    No cell is begun and no training goes on after `time_budget` seconds; a stopped training leaves a checkpoint.
    Raises `MolaError` where a model or data source cannot be read.
    """
    deadline = time.time() + time_budget if time_budget else None
    if not (layout.model / "model.json").is_file():
        if layout.model_folder:
            raise MolaError(f"model folder {layout.model_folder}: no model.json; prepare it with `mola model`")
        prepare_model(layout.study.model, layout.model)
    for task in layout.study.tasks:
        if not (layout.data(task) / "fingerprint.json").is_file():
            prepare_task(task, layout.study.data, layout.data(task))
    bench = Workbench(layout)
    cells = [cell for cell in layout.study.cells() if not bench.is_complete(cell)]
    outcomes = []
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        max_workers=min(parallel, len(cells)) or 1,
        mp_context=context,
        initializer=_open,
        initargs=(layout, deadline),
    ) as workers:
        futures = [workers.submit(_run, cell, keep_adapters) for cell in cells]
        for done in concurrent.futures.as_completed(futures):
            outcome = done.result()
            outcomes.append(outcome)
            note = f": {outcome.reason}" if outcome.reason else ""
            print(f"{outcome.state:12} {outcome.cell.path} ({outcome.seconds:.0f} s){note}", file=sys.stderr, flush=True)
    return outcomes


def results_of(layout: Layout) -> list[Path]:
    """The small files of complete cells: what must come home from a borrowed machine."""
    names = ("manifest.json", "samples.parquet", "training.json", "train.jsonl")
    files = [layout.cell(cell) / name for cell in layout.study.cells() for name in names]
    return [file for file in files if (file.parent / "manifest.json").is_file() and file.is_file()]
