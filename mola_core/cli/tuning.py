"""Verb on a study's tuning: run tries, choose each method's learning rate."""

from __future__ import annotations

import argparse

from mola_core.cli.options import Verbs, owned, study_layout, study_options
from mola_core.errors import MolaError


def tuning(arguments: argparse.Namespace) -> None:
    """Choose each method's learning rate from its tries, all of which must be complete; with --try run some of them.

    Example: mola tuning --study tuned.yaml --try cola mola-2468.lr0.001 100
    """
    from mola_core.runs.tuning import choose

    layout = study_layout(arguments)
    if layout.tries is None:
        raise MolaError(f"study {layout.study.name}: has no section `tuning`; add one")
    cells = [layout.tries.study.cell(*named) for named in arguments.tries or ()]
    owned(layout)
    if cells:
        from mola_core.runs.cell import CellRunner
        from mola_core.runs.gpus import gpu_slot
        from mola_core.runs.several import run_in_turn

        with gpu_slot(layout.study.compute.cells_per_gpu):
            run_in_turn(CellRunner(layout.tries), cells)
        return
    for method, by_task in choose(layout).items():
        for choice in by_task.values():
            alpha = "" if choice.alpha is None else f", alpha {choice.alpha:g}"
            print(
                f"{method} ({choice.task}): learning rate {choice.learning_rate:g}{alpha}, tried as {choice.tried}"
            )


def declare(verbs: Verbs) -> None:
    verbs.add(tuning, study_options).add_argument(
        "--try",
        nargs=3,
        action="append",
        dest="tries",
        metavar=("TASK", "METHOD", "SEED"),
        help="a try: METHOD is the method's name, `.lr` and the rate (repeatable)",
    )
