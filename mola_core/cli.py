"""`mola <verb>`: every step of a study by itself. Snakemake's rules are calls of these verbs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mola_core.errors import MolaError, OutOfTime
from mola_core.files import atomic_write, locked, storage_problem

if TYPE_CHECKING:
    from mola_core.study.study import Cell

BENCHMARKS = ("layers", "steps", "memory", "large", "evaluation", "prefix", "padding", "overhead", "planning")


def _layout(arguments: argparse.Namespace):  # noqa: ANN202
    from mola_core.runs.layout import Layout
    from mola_core.study.loading import load_study

    return Layout(load_study(arguments.study, arguments.data_root), Path(arguments.results))


def _cell(arguments: argparse.Namespace):  # noqa: ANN202
    layout = _layout(arguments)
    return layout, layout.study.cell(arguments.task, arguments.method, arguments.seed)


def model(arguments: argparse.Namespace) -> None:
    """Fetch and prepare a study's base model."""
    from mola_core.models.check import prepare_checked_model

    layout = _layout(arguments)
    with locked(layout.model.with_suffix(".lock")):
        prepare_checked_model(layout.study.model, layout.model)


def data(arguments: argparse.Namespace) -> None:
    """Fetch and prepare the rows of a study's tasks (one task, or all)."""
    from mola_core.tasks.rows import prepare_rows

    layout = _layout(arguments)
    rows = layout.study.rows()
    if arguments.task and arguments.task not in rows:
        raise MolaError(f"--task {arguments.task}: study {layout.study.name} has {', '.join(rows)}")
    for name in [arguments.task] if arguments.task else rows:
        prepare_rows(layout.study, name, layout.data(name))


def train(arguments: argparse.Namespace) -> None:
    """Train the adapter of one cell."""
    from mola_core.distributed import become_torchrun, world_size
    from mola_core.runs.cell import Workbench
    from mola_core.runs.gpus import gpu_slot

    layout, cell = _cell(arguments)
    compute = layout.study.compute
    if world_size() > 1:
        Workbench(layout).train(cell)  # one of torchrun's processes
        return
    with gpu_slot(compute.cells_per_gpu, max(1, compute.gpus)):
        if compute.gpus > 1:
            become_torchrun(compute.gpus, arguments.command)
        Workbench(layout).train(cell)


def evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate one cell through lm-evaluation-harness."""
    from mola_core.runs.cell import Workbench
    from mola_core.runs.gpus import gpu_slot

    layout, cell = _cell(arguments)
    with gpu_slot(layout.study.compute.cells_per_gpu):
        Workbench(layout).evaluate(cell)


def run(arguments: argparse.Namespace) -> None:
    """Run a study's cells on this machine without Snakemake: several at once, on one card, within a time budget.

    The exit code is 143 where the time was up before all cells were complete: the same command goes on.
    """
    import tarfile

    from mola_core.errors import OutOfTime
    from mola_core.runs.local import results_of
    from mola_core.runs.local import run as run_cells

    layout = _layout(arguments)
    if arguments.archive and Path(arguments.archive).is_dir():
        raise MolaError(f"--archive {arguments.archive}: is a folder; name a file in it")
    if arguments.model_dir:
        layout = dataclasses.replace(layout, model_folder=Path(arguments.model_dir))
    outcomes = run_cells(layout, arguments.parallel, arguments.time_budget, not arguments.drop_adapters)
    if arguments.archive:
        with atomic_write(arguments.archive) as temporary, tarfile.open(temporary, "w:gz") as archive:
            for file in results_of(layout):
                archive.add(file, file.relative_to(layout.root))
    failed = [outcome.cell.path for outcome in outcomes if outcome.state == "failed"]
    if failed:
        raise MolaError(f"{len(failed)} cells failed, the first is {failed[0]}; the finished ones are kept")
    late = [outcome.cell.path for outcome in outcomes if outcome.state == "out of time"]
    if late:
        raise OutOfTime(f"out of time with {len(late)} cells to go, the first is {late[0]}")


def collect(arguments: argparse.Namespace) -> None:
    """Gather the scores of a study's cells, all of which must be complete: scores.parquet and cells.csv."""
    from mola_core.analysis import collect as collection

    layout = _layout(arguments)
    collection.write(layout, layout.folder, partial=arguments.partial)


def tables(arguments: argparse.Namespace) -> None:
    """Write the accuracy and parameter tables, and the paper's tables beside ours."""
    from mola_core.analysis.paper import tables as paper_tables
    from mola_core.analysis.tables import accuracy as own_tables

    layout = _layout(arguments)
    own_tables.write(layout, layout.folder)
    paper_tables.write(layout, layout.folder)


def figures(arguments: argparse.Namespace) -> None:
    """Draw accuracy against parameters, the shapes and the training losses."""
    from mola_core.analysis.figures import study as own_figures

    layout = _layout(arguments)
    own_figures.write(layout, layout.folder)


def routing(arguments: argparse.Namespace) -> None:
    """Count which experts a cell's routers choose; without a cell, gather and draw what has been counted."""
    named = [arguments.task, arguments.method, arguments.seed]
    if any(value is not None for value in named):
        if any(value is None for value in named):
            raise MolaError("a cell needs --task, --method and --seed; without any the study is gathered")
        from mola_core.evaluation.router_counts import write_routing
        from mola_core.runs.cell import Workbench
        from mola_core.runs.gpus import gpu_slot

        layout, cell = _cell(arguments)
        with gpu_slot(layout.study.compute.cells_per_gpu):
            write_routing(Workbench(layout), cell)
        return
    from mola_core.analysis.experts import routing as statistics

    _tell_missing("router statistics", statistics.write(_layout(arguments)))


def redundancy(arguments: argparse.Namespace) -> None:
    """Measure how different the experts of the study's trained adapters are, and draw it by layer."""
    from mola_core.analysis.experts import redundancy as own_redundancy

    _tell_missing("adapters", own_redundancy.write(_layout(arguments)))


def layers(arguments: argparse.Namespace) -> None:
    """Score the base model's layers (PL_Alpha_Hill) and correlate the scores with the experts' redundancy."""
    from mola_core.analysis.experts import quality
    from mola_core.models.layer_quality import layer_quality
    from mola_core.runs.gpus import gpu_slot

    layout = _layout(arguments)
    with gpu_slot(layout.study.compute.cells_per_gpu):
        layer_quality(layout.model, layout.quality)
    if not arguments.scores_only:
        quality.write(layout)


def _tell_missing(what: str, missing: Sequence[Cell]) -> None:
    if missing:
        print(f"no {what} here of {len(missing)} cells, the first is {missing[0].path}", file=sys.stderr)


def summary(arguments: argparse.Namespace) -> None:
    """Write the study's page, index.html, which a person reads first, and summary.md; print the answer."""
    from mola_core.analysis.pages import study_page
    from mola_core.analysis.pages import summary as own_summary
    from mola_core.analysis.pages.answer import told

    layout = _layout(arguments)
    own_summary.write(layout, layout.folder)
    study_page.write(layout, layout.folder)
    print(told(layout.folder))


def reanalyse(arguments: argparse.Namespace) -> None:
    """Put the verdict's questions to the paper's own published numbers and to the reruns."""
    from mola_core.analysis.paper.reanalysis import reanalyse as reanalyse_published

    reanalyse_published(arguments.out)


def verdict(arguments: argparse.Namespace) -> None:
    """Answer the study's questions, or the standard ones of any score file (--scores)."""
    from mola_core.analysis.pages.answer import answer_sentence
    from mola_core.analysis.pages.study_page import write_verdict_page
    from mola_core.analysis.pages.verdict import write_verdict
    from mola_core.analysis.tables.questions import write_questions

    if arguments.scores:
        out = Path(arguments.out or Path(arguments.scores).parent)
        found = write_verdict(arguments.scores, out)
        write_questions(found, out / "tables")
        write_verdict_page(out)
        print(answer_sentence(found))
        return
    from mola_core.analysis.collect import read_cells, recorded_experts
    from mola_core.analysis.figures.verdict import draw_verdict
    from mola_core.analysis.notices import missing_cells, notices

    layout = _layout(arguments)
    out = Path(arguments.out or layout.folder)
    every = read_cells(layout.folder)
    cells = every.drop_duplicates("method").set_index("method")
    variants = [method.label for method in layout.study.methods if method.own_settings]
    said = notices(layout.study, missing_cells(layout.study, every))
    found = write_verdict(
        layout.folder / "scores.parquet",
        out,
        layout.study.verdict,
        shapes=recorded_experts(every) | dict.fromkeys(variants),
        parameters=cells["trainable_parameters"].dropna().astype(int).to_dict(),
        stand_in=layout.study.stand_in,
    )
    write_questions(found, out / "tables", said)
    if said:
        draw_verdict(found, out / "figures", said)  # again, with what the study must say on each


def calibrate(arguments: argparse.Namespace) -> None:
    """Show on simulated scores that the verdict's error rates and intervals are what they claim."""
    from mola_core.analysis.calibration.report import calibrate as calibrate_verdict

    calibrate_verdict(arguments.out, arguments.simulations, arguments.seed)


def reproduce(arguments: argparse.Namespace) -> None:
    """List every table and figure of the paper with its state: done, partly or not started."""
    from mola_core.analysis.paper.coverage import reproduce as reproduce_paper

    print(reproduce_paper(_layout(arguments)).to_string(index=False))


def benchmark(arguments: argparse.Namespace) -> None:
    """Measure what MoLA and the harness cost, as ratios in one run; see the goals in the table."""
    import torch

    from mola_core.benchmark import harness, large, report, steps
    from mola_core.models.check import prepare_checked_model
    from mola_core.tasks.rows import prepare_rows

    layout = _layout(arguments)
    torch.set_num_threads(arguments.threads)
    prepare_checked_model(layout.study.model, layout.model)
    for name in layout.study.rows():
        prepare_rows(layout.study, name, layout.data(name))
    parts = {
        "layers": lambda: steps.layers(arguments.repeats, arguments.dtype),
        "steps": lambda: steps.steps(layout.model, arguments.repeats, arguments.dtype),
        "memory": lambda: steps.memory(layout.model, arguments.dtype),
        "large": large.large,
        "evaluation": lambda: harness.evaluation(layout, arguments.repeats),
        "prefix": lambda: harness.prefix(layout, arguments.repeats),
        "padding": lambda: harness.padding(layout),
        "overhead": lambda: harness.overhead(layout),
        "planning": harness.planning,
    }
    rows = []
    for name in arguments.part or parts:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        rows += parts[name]()
    print(report.write(rows, Path(arguments.out)))


def where(arguments: argparse.Namespace) -> None:
    """Print a study's answer and where its results are."""
    from mola_core.analysis.pages.answer import told

    folder = _layout(arguments).folder
    answer = told(folder)
    if answer:
        print(answer)
    print(f"Everything: {folder}")


def cells(arguments: argparse.Namespace) -> None:
    """List a study's cells and which of them are complete."""
    from mola_core.runs.cell import Workbench

    bench = Workbench(_layout(arguments))
    for cell in bench.study.all_cells():
        state = "complete" if bench.is_complete(cell) else "trained" if bench.is_trained(cell) else "open"
        print(f"{state:9} {cell.path}")


def schema(arguments: argparse.Namespace) -> None:
    """Print the JSON schema of study files."""
    from mola_core.study.study import Study

    print(json.dumps(Study.model_json_schema(), indent=2))


def _at_least(least: int, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """The type of an option that is a number of at least `least`."""

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return value

    number.__name__ = kind.__name__  # argparse names it where the text is no number
    return number


def _study_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--study", default="quickstart", help="name in workflow/studies/, or a file")
    parser.add_argument("--data-root", help="read the tasks' rows from this folder of parquet files")
    parser.add_argument("--results", default="results", help="folder of all results (default: %(default)s)")


def _cell_options(parser: argparse.ArgumentParser) -> None:
    _study_options(parser)
    parser.add_argument("--task", required=True, help="task of the cell, a task or stage of the study")
    parser.add_argument("--method", required=True, help="the method's name in the study")
    parser.add_argument("--seed", required=True, type=int, help="one of the study's seeds")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mola", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")

    def verb(
        action: Callable[[argparse.Namespace], None], *options: Callable[[argparse.ArgumentParser], None]
    ) -> argparse.ArgumentParser:
        summary = (action.__doc__ or "").strip().splitlines()[0]
        sub = verbs.add_parser(action.__name__, help=summary, description=action.__doc__)
        for add in options:
            add(sub)
        sub.set_defaults(action=action)
        return sub

    verb(model, _study_options)
    verb(data, _study_options).add_argument("--task", help="only this task")
    verb(train, _cell_options)
    verb(evaluate, _cell_options)
    verb(cells, _study_options)
    running = verb(run, _study_options)
    running.add_argument(
        "--model-dir", help="an already prepared base model (the folder that holds model.json)"
    )
    running.add_argument(
        "--parallel", type=_at_least(1), default=1, help="cells at once (default: %(default)s)"
    )
    running.add_argument(
        "--time-budget",
        type=_at_least(0, float),
        help="seconds after which nothing is begun and no training goes on",
    )
    running.add_argument("--drop-adapters", action="store_true", help="keep scores and records only")
    running.add_argument("--archive", help="pack the finished cells' small files into this .tar.gz")
    verb(collect, _study_options).add_argument(
        "--partial", action="store_true", help="leave out the open cells"
    )
    of_cell = verb(routing, _study_options)
    of_cell.add_argument("--task", help="of the cell to count; a model is loaded")
    of_cell.add_argument("--method", help="the method's name in the study")
    of_cell.add_argument("--seed", type=int)
    verb(redundancy, _study_options)
    verb(layers, _study_options).add_argument(
        "--scores-only", action="store_true", help="only measure the base model, for all studies that use it"
    )
    for action in (tables, figures, summary, reproduce, where):
        verb(action, _study_options)
    measuring = verb(benchmark, _study_options)
    measuring.add_argument("--part", action="append", choices=BENCHMARKS, help="only this part (repeatable)")
    measuring.add_argument(
        "--repeats", type=_at_least(1), default=5, help="timed rounds (default: %(default)s)"
    )
    measuring.add_argument(
        "--threads", type=_at_least(1), default=2, help="CPU threads (default: %(default)s)"
    )
    measuring.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    measuring.add_argument("--out", default="results/benchmark", help="folder (default: %(default)s)")
    judging = verb(verdict, _study_options)
    judging.add_argument("--scores", help="any score matrix, Parquet or CSV, instead of a study's")
    judging.add_argument(
        "--out", help="folder for verdict.json, verdict.md and figures (default: beside the scores)"
    )
    simulating = verb(calibrate)
    simulating.add_argument("--out", required=True, help="folder for the table and figure")
    simulating.add_argument(
        "--simulations", type=_at_least(2), default=1000, help="studies a scenario (default: %(default)s)"
    )
    simulating.add_argument("--seed", type=_at_least(0), default=0)
    verb(reanalyse).add_argument("--out", required=True, help="folder for the page, table and figure")
    verb(schema)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Bad input is one line on standard error and exit code 2; so is a disk that takes no more, with
    exit code 1, and a training stopped by SIGTERM, with 143."""
    parsed = _parser().parse_args(arguments)
    parsed.command = list(sys.argv[1:] if arguments is None else arguments)
    # Progress is told in lines that a log can hold; bars and chatter of the libraries would bury them.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore", FutureWarning)
    try:
        parsed.action(parsed)
        sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # who reads has seen enough (`mola cells | head`); the interpreter must not flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MolaError as error:
        print(f"mola {parsed.verb}: {error}", file=sys.stderr)
        return 2
    except OutOfTime as stop:
        print(f"mola {parsed.verb}: {stop}; the same command goes on from its checkpoint", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        problem = storage_problem(error)
        if problem is None:
            raise
        print(
            f"mola {parsed.verb}: {problem}; nothing is half-written, mend it and run again", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
