"""Run a study's cells on one machine without Snakemake: several at once, within a time budget, resumable.

Meant for a machine without network and for one card that holds several small cells. What it leaves are the cell
folders that the workflow's own rules make, so a later `snakemake` takes them as finished.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import tarfile
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from mola_core.errors import MolaError, OutOfTime
from mola_core.files import atomic_write, remove
from mola_core.methods.registry import needs_layer_quality
from mola_core.models.layer_quality import layer_quality
from mola_core.models.loading import leave_out_bitsandbytes
from mola_core.runs.cell import CellRunner
from mola_core.runs.choice import TABLE, TUNING
from mola_core.runs.gpus import cards, gpu_slot
from mola_core.runs.key import choices
from mola_core.runs.layout import EVALUATED, TRAINED, Layout
from mola_core.runs.prepare import prepare_all
from mola_core.runs.state import cell_state
from mola_core.runs.tuning import choose, cost
from mola_core.study.study import Cell, Study
from mola_core.tasks import include, included
from mola_core.tasks.included import IncludedTasks
from mola_core.training.trackers import check_trackers


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one cell: `complete`, `out of time` or `failed` with the reason."""

    cell: Cell
    state: str
    seconds: float = 0.0
    reason: str = ""


_bench: CellRunner
_kept = contextlib.ExitStack()
"""This worker's card, until it ends."""
_busy = False
"""Whether this worker has a cell in hand."""


def _open(
    layout: Layout, deadline: float | None, parent: int, parallel: int, tasks: IncludedTasks | None
) -> None:
    global _bench
    # A terminal's Ctrl-C comes to all, and the parent says what it means; it was held back while this process started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    include(tasks)
    found = len(cards())
    if found > 1:  # on one card all cells of the run are beside each other, as --parallel says
        beside = max(layout.study.compute.cells_per_gpu, -(-parallel // found))
        _kept.enter_context(gpu_slot(beside))
    warnings.simplefilter("ignore", FutureWarning)  # a new process has none of its parent's filters
    if layout.study.model.quantization is None:
        leave_out_bitsandbytes()
    _bench = CellRunner(layout, deadline)
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _stop(number: int, frame: Any) -> None:
    """SIGTERM outside a training, which has a handler of its own and leaves a checkpoint: nothing more is begun."""
    _bench.deadline = 1.0
    if _busy:
        raise OutOfTime("stopped by SIGTERM")


def _leave_with(parent: int) -> None:
    """End this worker when the process that gives it cells has gone: it would wait, and hold a card, for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    while _busy:
        time.sleep(0.1)
    os._exit(143)


def _run(cell: Cell) -> Outcome:
    global _busy
    started = time.time()
    if _bench.deadline and started > _bench.deadline:
        return Outcome(cell, "out of time")
    _busy = True
    try:
        _bench.run(cell)
    except OutOfTime as stop:
        # What stopped this cell, a SIGTERM that its training took included, is meant for those after it too.
        _bench.deadline = 1.0
        return Outcome(cell, "out of time", time.time() - started, str(stop))
    except Exception as error:  # one failed cell must not take the others with it
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        return Outcome(cell, "failed", time.time() - started, reason)
    finally:
        _busy = False
    return Outcome(cell, "complete", time.time() - started)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Pass SIGTERM and Ctrl-C on to the workers as SIGTERM, so that each training leaves a checkpoint; their cells then come
    back as out of time. A second Ctrl-C kills the workers.

    A worker that ends without an answer is explained: one that was not ready yet ends by the signal itself.
    """
    stopped = False

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        stopped = True
        for worker in multiprocessing.active_children():
            worker.terminate()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, at_once)

    def at_once(number: int, frame: Any) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread()
    before = [signal.signal(number, stop) for number in numbers] if ours else []
    try:
        yield
    except BrokenProcessPool:
        if stopped:
            raise OutOfTime("stopped; the same command goes on from what is there") from None
        raise MolaError(
            "a worker was killed (out of memory? lower --parallel); run again, it goes on from what is there"
        ) from None
    finally:
        for number, handler in zip(numbers, before, strict=False):
            signal.signal(number, handler)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """For processes that are started meanwhile and cannot take a Ctrl-C yet; this one gets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(
    layout: Layout,
    parallel: int = 1,
    time_budget: float | None = None,
    keep_adapters: bool = True,
    archive: Path | None = None,
) -> list[Outcome]:
    """Train and evaluate every cell that is not complete, `parallel` at a time, each worker loading the base once.

    A cell begins when its parent is complete. No cell is begun and no training goes on after `time_budget` seconds; a
    stopped training leaves a checkpoint, an evaluation that has begun is finished. Without `keep_adapters` the weights of a cell go as soon as no open cell
    continues from them. Where the study is tuned its tries come first, and its cells when all of them are complete. What is
    complete then goes into `archive`, whatever ended the run once it had begun: a worker that was killed takes nothing with it. Raises
    `MolaError` where a model or data source cannot be read, or a cell is to have several cards.
    """
    deadline = None if time_budget is None else time.time() + time_budget
    gpus = layout.study.compute.gpus
    check_trackers(layout.study.training.report_to)
    if gpus > 1:
        raise MolaError(
            f"compute.gpus: {gpus} cards for a cell, but here each cell has one; lower it, or run the study with snakemake"
        )
    # Before this is done no cell is known to be complete, and an archive of an earlier run would be emptied.
    prepare_all(layout)
    try:
        outcomes: list[Outcome] = []
        if layout.tries is not None:
            print(cost(layout), file=sys.stderr, flush=True)
            outcomes = _run_cells(layout.tries, parallel, deadline, keep_adapters)
            if any(outcome.state != "complete" for outcome in outcomes):
                return outcomes
            if choices(layout) is None:
                choose(layout)
        return outcomes + _run_cells(layout, parallel, deadline, keep_adapters)
    finally:
        if archive:
            write_archive(layout, archive)


def _run_cells(layout: Layout, parallel: int, deadline: float | None, keep_adapters: bool) -> list[Outcome]:
    study = layout.study
    waiting = open_cells(layout)
    if any(needs_layer_quality(study.method_by_label[cell.method]) for cell in waiting):
        layer_quality(layout.model, layout.quality)  # here, so that workers do not all measure it
    for cell in waiting:
        if not layout.weights(cell).is_dir():
            # A record without its weights would say that there is nothing to train.
            remove(layout.cell(cell) / "training.json")
    outcomes: list[Outcome] = []
    running: dict[concurrent.futures.Future[Outcome], Cell] = {}
    context = multiprocessing.get_context("spawn")
    with (
        _stoppable(),
        concurrent.futures.ProcessPoolExecutor(
            max_workers=min(parallel, len(waiting)) or 1,
            mp_context=context,
            initializer=_open,
            initargs=(layout, deadline, os.getpid(), parallel, included()),
        ) as workers,
    ):
        while waiting or running:
            for cell in [cell for cell in waiting if study.parent(cell) not in {*waiting, *running.values()}]:
                waiting.remove(cell)
                with _interrupts_held_back():
                    running[workers.submit(_run, cell)] = cell
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                outcome = future.result()
                del running[future]
                outcomes.append(outcome)
                _tell(outcome, _time_left(outcomes, len(waiting) + len(running), parallel))
                if outcome.state != "complete":
                    for cell in _descendants(study, outcome.cell, waiting):
                        waiting.remove(cell)
                        outcomes.append(Outcome(cell, outcome.state, reason=f"after {outcome.cell.path}"))
                        _tell(outcomes[-1])
            if not keep_adapters:
                finished = [outcome.cell for outcome in outcomes if outcome.state == "complete"]
                unfinished = [outcome.cell for outcome in outcomes if outcome.state != "complete"]
                _drop_weights(layout, finished, [*waiting, *running.values(), *unfinished])
    return outcomes


def open_cells(layout: Layout) -> list[Cell]:
    """The cells to run, each after its parent: those that are not complete, and complete ones whose weights are gone
    though an open cell continues from them. Seed by seed, so that what a time budget cuts off is whole seeds."""
    study = layout.study
    cells: list[Cell] = []
    for cell in reversed(study.all_cells()):
        continued = any(study.parent(other) == cell for other in cells)
        if cell_state(layout, cell) != "complete" or (continued and not layout.weights(cell).is_dir()):
            cells.append(cell)
    return sorted(cells[::-1], key=lambda cell: study.seeds.index(cell.seed))


def _descendants(study: Study, cell: Cell, cells: list[Cell]) -> list[Cell]:
    """Those of `cells` that continue from `cell`, at any distance; children follow their parents in `cells`."""
    found = [cell]
    for other in cells:
        if study.parent(other) in found:
            found.append(other)
    return found[1:]


def _drop_weights(layout: Layout, finished: list[Cell], coming: list[Cell]) -> None:
    """Remove the weights of `finished` cells from which none of `coming` continues, in this run or a later one."""
    needed = {layout.study.parent(cell) for cell in coming}
    for cell in finished:
        if cell not in needed and (layout.cell(cell) / "training.json").is_file():
            remove(layout.weights(cell))
            remove(layout.candidates(cell))


def _tell(outcome: Outcome, study: str = "") -> None:
    note = f": {outcome.reason}" if outcome.reason else study
    print(
        f"{outcome.state:12} {outcome.cell.path} ({outcome.seconds:.0f} s){note}", file=sys.stderr, flush=True
    )


def _time_left(outcomes: list[Outcome], to_go: int, parallel: int) -> str:
    """How far the study is, and an estimate from the cells so far."""
    took = [outcome.seconds for outcome in outcomes if outcome.state == "complete"]
    if not took or not to_go:
        return ""
    minutes = sum(took) / len(took) * to_go / min(parallel, to_go) / 60
    return f"; {len(took)} done, {to_go} to go, about {minutes:.0f} min"


def write_archive(layout: Layout, archive: Path) -> None:
    """The files of `results_of` as a tar file, by their places below the results folder."""
    with atomic_write(archive) as temporary, tarfile.open(temporary, "w:gz") as packed:
        for file in results_of(layout):
            packed.add(file, file.relative_to(layout.root))


def results_of(layout: Layout) -> list[Path]:
    """The small files of complete cells: what must come home from a borrowed machine."""
    names = ("manifest.json", "samples.parquet", "training.json", "train.jsonl", TRAINED, EVALUATED)
    found = [layout.folder / name for name in (TUNING, TABLE)]
    for part in filter(None, (layout.tries, layout)):
        cells = [cell for cell in part.study.all_cells() if cell_state(part, cell) == "complete"]
        found += [part.cell(cell) / name for cell in cells for name in names]
    return [file for file in found if file.is_file()]
