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
from mola_core.files import atomic_write, locked, storage_problem, write_json

if TYPE_CHECKING:
    from mola_core.runs.layout import Layout
    from mola_core.study.study import Cell
    from mola_core.study.verdict import VerdictSettings

BENCHMARKS = ("layers", "steps", "memory", "large", "evaluation", "prefix", "padding", "overhead", "planning")


def _layout(arguments: argparse.Namespace) -> Layout:
    from mola_core.models.loading import leave_out_bitsandbytes
    from mola_core.runs.layout import Layout
    from mola_core.study.loading import load_study, study_file

    study = load_study(arguments.study, arguments.data_root)
    if arguments.own_process and study.model.quantization is None:
        leave_out_bitsandbytes()
    return Layout(study, Path(arguments.results), file=study_file(arguments.study))


def _own(layout: Layout) -> Layout:
    """The layout, after its folder was noted to belong to this study's file, and what the study states was recorded."""
    from mola_core.analysis.looks import Record
    from mola_core.runs.state import claim

    claim(layout)
    Record(layout.folder).state(layout.study.verdict)
    return layout


def _cell(arguments: argparse.Namespace) -> tuple[Layout, Cell]:
    layout = _own(_layout(arguments))
    return layout, layout.study.cell(arguments.task, arguments.method, arguments.seed)


def model(arguments: argparse.Namespace) -> None:
    """Fetch and prepare a study's base model."""
    from mola_core.models.check import prepare_checked_model

    layout = _layout(arguments)
    with locked(layout.model.with_suffix(".lock")):
        prepare_checked_model(layout.study.model, layout.model)


def data(arguments: argparse.Namespace) -> None:
    """Fetch and prepare the rows of a study's tasks (one task, or all)."""
    from mola_core.tasks.prepare import prepare_rows

    layout = _layout(arguments)
    for name in _named_rows(layout, arguments.task):
        prepare_rows(layout.study, name, layout.data(name))


def examples(arguments: argparse.Namespace) -> None:
    """Render the examples of a study's tasks (one task, or all): what training and evaluation read, as files."""
    from mola_core.models.loading import load_tokenizer
    from mola_core.runs.prepare import prepare_examples

    layout = _own(_layout(arguments))
    for name in _named_rows(layout, arguments.task):
        prepare_examples(layout, name, lambda: load_tokenizer(layout.model))


def _named_rows(layout: Layout, task: str | None) -> list[str]:
    rows = layout.study.rows()
    if task and task not in rows:
        raise MolaError(f"--task {task}: study {layout.study.name} has {', '.join(rows)}")
    return [task] if task else rows


def train(arguments: argparse.Namespace) -> None:
    """Train the adapter of one cell."""
    from mola_core.distributed import become_torchrun, world_size
    from mola_core.runs.cell import CellRunner
    from mola_core.runs.gpus import gpu_slot

    layout, cell = _cell(arguments)
    compute = layout.study.compute
    if world_size() > 1:
        CellRunner(layout).train(cell)  # one of torchrun's processes
        return
    with gpu_slot(compute.cells_per_gpu, max(1, compute.gpus)):
        if compute.gpus > 1:
            become_torchrun(compute.gpus, arguments.command)
        CellRunner(layout).train(cell)


def evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate one cell through lm-evaluation-harness."""
    from mola_core.runs.cell import CellRunner
    from mola_core.runs.gpus import gpu_slot

    layout, cell = _cell(arguments)
    with gpu_slot(layout.study.compute.cells_per_gpu):
        CellRunner(layout).evaluate(cell)


def cell(arguments: argparse.Namespace) -> None:
    """Train and evaluate cells in this process, one after another, on one copy of the base model."""
    from mola_core.runs.cell import CellRunner
    from mola_core.runs.gpus import gpu_slot
    from mola_core.runs.several import run_in_turn

    layout = _own(_layout(arguments))
    cells = [layout.study.cell(*named) for named in arguments.cell]
    if layout.study.compute.gpus > 1:
        raise MolaError("compute.gpus: several cards train a cell; use `mola train`, then `mola evaluate`")
    with gpu_slot(layout.study.compute.cells_per_gpu):
        run_in_turn(CellRunner(layout), cells)


def run(arguments: argparse.Namespace) -> None:
    """Run a study's cells on this machine without Snakemake: several at once, on one card, within a time budget.

    The exit code is 143 where the time was up before all cells were complete: the same command goes on.
    """
    import tarfile

    from mola_core.errors import OutOfTime
    from mola_core.runs.local import results_of
    from mola_core.runs.local import run as run_cells

    layout = _own(_layout(arguments))
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
        from mola_core.runs.cell import CellRunner
        from mola_core.runs.gpus import gpu_slot

        layout, cell = _cell(arguments)
        with gpu_slot(layout.study.compute.cells_per_gpu):
            CellRunner(layout).count_routing(cell)
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
    """Write summary.md and summary.html, which a person reads first."""
    from mola_core.analysis.pages import summary as own_summary
    from mola_core.analysis.pages.html import write_page
    from mola_core.runs.plan import ANALYSED, analysis_key

    layout = _layout(arguments)
    own_summary.write(layout, layout.folder)
    write_page(layout.folder / "summary.md")
    write_json(layout.folder / ANALYSED, {"key": analysis_key(layout)})


def reanalyse(arguments: argparse.Namespace) -> None:
    """Put the verdict's questions to the paper's own published numbers and to the reruns."""
    from mola_core.analysis.paper.reanalysis import reanalyse as reanalyse_published

    reanalyse_published(arguments.out)


def verdict(arguments: argparse.Namespace) -> None:
    """Answer the study's questions, or the standard ones of any score file (--scores)."""
    from mola_core.analysis.pages.html import write_page
    from mola_core.analysis.pages.verdict import write_verdict

    if arguments.scores:
        if arguments.state:
            raise MolaError(
                "--state is for a study's own results; scores that exist cannot be stated beforehand"
            )
        out = Path(arguments.out or Path(arguments.scores).parent)
        write_verdict(arguments.scores, out, _verdict_settings(arguments))
        write_page(out / "verdict.md")
        return
    from mola_core.analysis.collect import read_cells, recorded_experts

    layout = _layout(arguments)
    out = Path(arguments.out or layout.folder)
    if arguments.state:
        from mola_core.analysis.looks import Record

        Record(out).state(layout.study.verdict)
        return
    if any(getattr(arguments, name) is not None for name in ("pair", "margin", "endpoint", "looks")):
        raise MolaError(
            "--pair, --margin, --endpoint and --looks go with --scores; a study states them in its file"
        )
    every = read_cells(layout.folder)
    cells = every.drop_duplicates("method").set_index("method")
    variants = [method.label for method in layout.study.methods if method.own_settings]
    majority = (every["majority"] / every["documents"]).groupby(every["task"]).first()
    write_verdict(
        layout.folder / "scores.parquet",
        out,
        layout.study.verdict,
        shapes={**recorded_experts(every), **dict.fromkeys(variants)},
        parameters={str(name): int(count) for name, count in cells["trainable_parameters"].dropna().items()},
        floors={str(task): float(share) for task, share in majority.items()},
        first_cell=str(every["finished"].min()),
        stand_in=layout.study.stand_in,
    )
    write_page(out / "verdict.md")


def _verdict_settings(arguments: argparse.Namespace) -> VerdictSettings:
    from pydantic import ValidationError

    from mola_core.study.verdict import VerdictSettings

    given = {"pairs": arguments.pair, "margin": arguments.margin, "endpoint": arguments.endpoint}
    given |= {"looks": arguments.looks}
    try:
        return VerdictSettings.model_validate(
            {name: value for name, value in given.items() if value is not None}
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = {"pairs": "pair"}.get(str(first["loc"][0]), str(first["loc"][0]))
        raise MolaError(f"--{option}: {first['msg']}") from None


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
    from mola_core.tasks.prepare import prepare_rows

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
    """Print where a study's results are."""
    folder = _layout(arguments).folder
    print(f"Read first: {folder / 'summary.md'}")
    print(f"Tables, figures, verdict: {folder / 'tables'}, {folder / 'figures'}, {folder / 'verdict.md'}")


def cells(arguments: argparse.Namespace) -> None:
    """List a study's cells and which of them are complete; with --why what differs from the record of one."""
    from mola_core.runs.key import differences
    from mola_core.runs.state import as_json, cell_state, standing

    layout = _layout(arguments)
    if arguments.why:
        cell = layout.study.cell(*arguments.why)
        print("\n".join(differences(layout, cell)) or "nothing differs")
        return
    for cell in layout.study.all_cells():
        found = standing(layout, cell)
        state = cell_state(layout, cell, found)
        print(as_json(cell, state, found.keys) if arguments.format == "json" else f"{state:9} {cell.path}")


def verify(arguments: argparse.Namespace) -> None:
    """Compare everything of a study with its recorded hash: model, rows, examples, adapters, records, scores."""
    from mola_core.analysis.verify import damaged

    found = list(damaged(_layout(arguments)))
    for line in found:
        print(line)
    if found:
        raise MolaError(f"{len(found)} things are damaged; the first is above")
    print("everything there is as it was recorded")


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
    for action in (data, examples):
        verb(action, _study_options).add_argument("--task", help="only this task")
    verb(train, _cell_options)
    verb(evaluate, _cell_options)
    verb(cell, _study_options).add_argument(
        "--cell",
        nargs=3,
        action="append",
        required=True,
        metavar=("TASK", "METHOD", "SEED"),
        help="a cell of the study (repeatable)",
    )
    listing = verb(cells, _study_options)
    listing.add_argument("--format", choices=["text", "json"], default="text", help="json: one object a cell")
    listing.add_argument(
        "--why", nargs=3, metavar=("TASK", "METHOD", "SEED"), help="what of its keys differs"
    )
    verb(verify, _study_options)
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
    judging.add_argument(
        "--pair",
        nargs=2,
        action="append",
        metavar=("A", "B"),
        help="with --scores: ask whether A beats B, any two methods",
    )
    judging.add_argument(
        "--margin",
        type=float,
        help="with --scores: largest difference, in points, that makes none (default: 1)",
    )
    judging.add_argument(
        "--endpoint",
        choices=("accuracy", "likelihood"),
        help="with --scores: what the claim is about (default: accuracy)",
    )
    judging.add_argument(
        "--looks", type=_at_least(1), help="with --scores: looks planned, which share the level (default: 1)"
    )
    judging.add_argument(
        "--state", action="store_true", help="only record the study's hypotheses, before there are results"
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
    parsed.own_process = arguments is None  # else a program's that goes on after this verb
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
