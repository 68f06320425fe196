"""Verbs on a study's results: collect, tables, figures, pages, checks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from mola_core.cli.options import (
    Verbs,
    collected_layout,
    named_cell,
    results_layout,
    study_layout,
    study_options,
)
from mola_core.errors import MolaError
from mola_core.files import write_json

if TYPE_CHECKING:
    from mola_core.analysis.experts.left_out import LeftOut
    from mola_core.runs.cell import CellRunner
    from mola_core.study.study import Cell


def collect(arguments: argparse.Namespace) -> None:
    """Gather the scores of a study's cells, all of which must be complete: scores.parquet and cells.csv.

    Example: mola collect --study smoke --partial
    """
    from mola_core.analysis import collect as collection

    layout = results_layout(arguments)
    collection.write(layout, partial=arguments.partial, as_recorded=arguments.as_recorded)


def tables(arguments: argparse.Namespace) -> None:
    """Write the accuracy and parameter tables, and the paper's tables beside ours.

    Example: mola tables --study smoke
    """
    from mola_core.analysis.paper import tables as paper_tables
    from mola_core.analysis.tables import accuracy as own_tables

    layout = collected_layout(arguments)
    own_tables.write(layout)
    paper_tables.write(layout)


def figures(arguments: argparse.Namespace) -> None:
    """Draw accuracy against parameters, the shapes and the training losses.

    Example: mola figures --study smoke
    """
    from mola_core.analysis.figures import study as own_figures

    layout = collected_layout(arguments)
    own_figures.write(layout)


def routing(arguments: argparse.Namespace) -> None:
    """Count which experts a cell's routers choose; without a cell, gather and draw what has been counted.

    Example: mola routing --study smoke --task cola --method mola-2468 --seed 0
    """
    if _of_one_cell(arguments, lambda runner, cell: runner.count_routing(cell)):
        return
    from mola_core.analysis.experts import routing as statistics

    _tell_left_out(statistics.write(results_layout(arguments)))


def knockout(arguments: argparse.Namespace) -> None:
    """Evaluate a cell with its adapter off in each quarter of the depth; without a cell, gather and draw what is there.

    Example: mola knockout --study smoke --task cola --method mola-2468 --seed 0
    """
    if _of_one_cell(arguments, lambda runner, cell: runner.knock_out(cell, arguments.by or "quarter")):
        return
    if arguments.by:
        raise MolaError(
            "--by: goes with --task, --method and --seed; without a cell what is there is gathered"
        )
    from mola_core.analysis.experts import knock_out as statistics

    _tell_left_out(statistics.write(results_layout(arguments)))


def _of_one_cell(arguments: argparse.Namespace, measure: Callable[[CellRunner, Cell], None]) -> bool:
    """Measure the cell that the options name; False where they name none."""
    named = [arguments.task, arguments.method, arguments.seed]
    if all(value is None for value in named):
        return False
    if any(value is None for value in named):
        raise MolaError("a cell needs --task, --method and --seed; without any the study is gathered")
    from mola_core.runs.cell import CellRunner
    from mola_core.runs.gpus import gpu_slot

    layout, cell = named_cell(arguments)
    with gpu_slot(layout.study.compute.cells_per_gpu):
        measure(CellRunner(layout), cell)
    return True


def redundancy(arguments: argparse.Namespace) -> None:
    """Measure how different the experts of the study's trained adapters are, and draw it by layer.

    Example: mola redundancy --study smoke
    """
    from mola_core.analysis.experts import redundancy as own_redundancy

    _tell_left_out(own_redundancy.write(results_layout(arguments)))


def layers(arguments: argparse.Namespace) -> None:
    """Score the base model's layers (PL_Alpha_Hill) and correlate the scores with the experts' redundancy.

    Example: mola layers --study smoke
    """
    from mola_core.analysis.experts import quality
    from mola_core.models.layer_quality import layer_quality
    from mola_core.runs.gpus import gpu_slot

    layout = results_layout(arguments)
    with gpu_slot(layout.study.compute.cells_per_gpu):
        layer_quality(layout.model, layout.quality)
    if not arguments.scores_only:
        quality.write(layout)


def _tell_left_out(left_out: LeftOut) -> None:
    from mola_core.analysis.experts.left_out import told

    for line in told(left_out):
        print(line, file=sys.stderr)


def summary(arguments: argparse.Namespace) -> None:
    """Write the study's page, index.html, which a person reads first, and summary.md; print the answer.

    Example: mola summary --study smoke
    """
    from mola_core.analysis.pages import study_page
    from mola_core.analysis.pages import summary as own_summary
    from mola_core.analysis.pages.answer import told
    from mola_core.runs.plan import ANALYSED, analysis_key

    layout = collected_layout(arguments)
    own_summary.write(layout)
    study_page.write(layout)
    if arguments.all_made:
        write_json(layout.folder / ANALYSED, {"key": analysis_key(layout)})
    print(told(layout))


def verify(arguments: argparse.Namespace) -> None:
    """Compare everything of a study with its recorded hash: model, rows, examples, adapters, records, scores.

    Example: mola verify --study smoke
    """
    from mola_core.analysis.verify import damaged

    layout = study_layout(arguments)
    compared, found = damaged(layout)
    for line in found:
        print(line)
    if found:
        raise MolaError(f"{len(found)} of {compared} things are damaged; the first is above")
    if not compared:
        raise MolaError(
            f"{layout.folder}: nothing of the study is there; run it first, or name its --results"
        )
    print(f"{compared} things were compared, all are as they were recorded")


def declare(verbs: Verbs) -> None:
    verbs.add(verify, study_options)
    collected = verbs.add(collect, study_options)
    collected.add_argument("--partial", action="store_true", help="leave out the open cells")
    collected.add_argument(
        "--as-recorded",
        action="store_true",
        help="take cells that one earlier version of the code made, where their records say what the study says",
    )
    for action in (routing, knockout):
        of_cell = verbs.add(action, study_options)
        of_cell.add_argument("--task", help="of one cell; a model is loaded")
        of_cell.add_argument("--method", help="the method's name in the study")
        of_cell.add_argument("--seed", type=int, help="one of the study's seeds")
    of_cell.add_argument(
        "--by",
        choices=["quarter", "layer"],
        help="what is switched off of a cell (default: quarter)",
    )
    verbs.add(redundancy, study_options)
    verbs.add(layers, study_options).add_argument(
        "--scores-only", action="store_true", help="only measure the base model, for all studies that use it"
    )
    for action in (tables, figures):
        verbs.add(action, study_options)
    verbs.add(summary, study_options).add_argument(
        "--all-made",
        action="store_true",
        help="note that tables, figures and verdict were just made too, as Snakemake does",
    )
