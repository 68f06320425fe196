"""Several cells in one process, one after another: what a job of the workflow does with `mola cell`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mola_core.errors import MolaError, OutOfTime
from mola_core.files import read_json, storage_problem
from mola_core.runs.layout import EVALUATED

if TYPE_CHECKING:
    from mola_core.runs.cell import CellRunner
    from mola_core.runs.layout import Layout
    from mola_core.study.study import Cell


def run_in_turn(runner: CellRunner, cells: Sequence[Cell]) -> None:
    """Train and evaluate `cells`; one that fails does not hold up the others.

    Raises what failed where there is one cell, else `MolaError` at the end, which names the cells that failed; at once
    `OutOfTime`, and what the disk refused, which the next cell would meet too.
    """
    if len(cells) == 1:
        runner.run(cells[0])
        print(told(runner.layout, cells[0]), flush=True)
        return
    failed = []
    for cell in cells:
        try:
            runner.run(cell)
            print(told(runner.layout, cell), flush=True)
        except OutOfTime:
            raise
        except Exception as error:
            if storage_problem(error):
                raise
            failed.append(cell.path)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            print(f"{cell.path}: failed: {reason}", file=sys.stderr, flush=True)
    if failed:
        raise MolaError(
            f"{len(failed)} of {len(cells)} cells failed, the first is {failed[0]}; the finished ones are kept"
        )


def told(layout: Layout, cell: Cell) -> str:
    """One line on a cell that has just been completed, and on how far the study is."""
    scored = [each for each in layout.study.all_cells() if layout.study.evaluated_on(each)]
    if cell not in scored:  # instruction tuning, from which others go on
        seconds = read_json(layout.cell(cell) / "training.json")["seconds"]
        return f"{cell.path}: {seconds:.0f} s, trained"
    manifest = read_json(layout.cell(cell) / "manifest.json")
    training, evaluation = manifest["training"] or {}, manifest["evaluation"]
    seconds = training.get("seconds", 0.0) + evaluation.get("seconds", 0.0)
    accuracy = f", accuracy {100 * evaluation['accuracy']:.2f} %" if "accuracy" in evaluation else ""
    done = sum(_evaluated(layout, each) for each in scored)
    left = (
        f", the others at this pace {(len(scored) - done) * seconds / 60:.0f} min"
        if done < len(scored)
        else ""
    )
    return f"{cell.path}: {seconds:.0f} s{accuracy}; {done} of {len(scored)} cells are complete{left}"


def _evaluated(layout: Layout, cell: Cell) -> bool:
    """Whether the last evaluation of the cell was of today's key; its files are not read, of which a study has thousands."""
    from mola_core.runs.key import keys

    file = layout.cell(cell) / EVALUATED
    return file.is_file() and file.read_text().strip() == keys(layout, cell).evaluation
