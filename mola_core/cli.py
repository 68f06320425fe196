"""`mola <verb>`: every step of a study by itself. Snakemake's rules are calls of these verbs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mola_core.errors import MolaError


def _layout(arguments: argparse.Namespace):  # noqa: ANN202
    from mola_core.layout import Layout
    from mola_core.study import load_study

    return Layout(load_study(arguments.study, arguments.data_root), Path(arguments.results))


def _cell(arguments: argparse.Namespace):  # noqa: ANN202
    layout = _layout(arguments)
    return layout, layout.study.cell(arguments.task, arguments.method, arguments.seed)


def model(arguments: argparse.Namespace) -> None:
    """Fetch and prepare a study's base model."""
    from mola_core.models import prepare_model

    layout = _layout(arguments)
    prepare_model(layout.study.model, layout.model)


def data(arguments: argparse.Namespace) -> None:
    """Fetch and prepare the rows of a study's tasks (one task, or all)."""
    from mola_core.data import prepare_task

    layout = _layout(arguments)
    for task in [arguments.task] if arguments.task else layout.study.tasks:
        prepare_task(task, layout.study.data, layout.data(task))


def train(arguments: argparse.Namespace) -> None:
    """Train the adapter of one cell."""
    from mola_core.cells import Workbench

    layout, cell = _cell(arguments)
    Workbench(layout).train(cell)


def evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate one cell through lm-evaluation-harness."""
    from mola_core.cells import Workbench

    layout, cell = _cell(arguments)
    Workbench(layout).evaluate(cell)


def cells(arguments: argparse.Namespace) -> None:
    """List a study's cells and which of them are complete."""
    from mola_core.cells import Workbench

    bench = Workbench(_layout(arguments))
    for cell in bench.study.cells():
        state = "complete" if bench.is_complete(cell) else "trained" if bench.is_trained(cell) else "open"
        print(f"{state:9} {cell.path}")


def schema(arguments: argparse.Namespace) -> None:
    """Print the JSON schema of study files."""
    from mola_core.study import Study

    print(json.dumps(Study.model_json_schema(), indent=2))


def _study_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--study", default="quickstart", help="name in workflow/studies/, or a file")
    parser.add_argument("--data-root", help="read the tasks' rows from this folder of parquet files")
    parser.add_argument("--results", default="results", help="folder of all results (default: %(default)s)")


def _cell_options(parser: argparse.ArgumentParser) -> None:
    _study_options(parser)
    parser.add_argument("--task", required=True)
    parser.add_argument("--method", required=True, help="the method's name in the study")
    parser.add_argument("--seed", required=True, type=int)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mola", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")

    def verb(action: Callable[[argparse.Namespace], None], *options: Callable[[argparse.ArgumentParser], None]):  # noqa: ANN202
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
    verb(schema)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Bad input is one line on standard error and exit code 2."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.action(parsed)
    except MolaError as error:
        print(f"mola {parsed.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
