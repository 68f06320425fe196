"""Several cells in one process, one after another: what a job of the workflow does with `mola cell`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mola_core.errors import MolaError, OutOfTime
from mola_core.files import storage_problem

if TYPE_CHECKING:
    from mola_core.runs.cell import CellRunner
    from mola_core.study.study import Cell


def run_in_turn(runner: CellRunner, cells: Sequence[Cell]) -> None:
    """Train and evaluate `cells`; one that fails does not hold up the others.

    Raises what failed where there is one cell, else `MolaError` at the end, which names the cells that failed; at once
    `OutOfTime`, and what the disk refused, which the next cell would meet too.
    """
    if len(cells) == 1:
        runner.run(cells[0])
        return
    failed = []
    for cell in cells:
        try:
            runner.run(cell)
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
