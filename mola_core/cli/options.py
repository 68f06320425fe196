"""What the verbs share: a study's layout from the command line, options, and how a verb is declared."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mola_core.errors import MolaError, did_you_mean
from mola_core.paths import typed_path

if TYPE_CHECKING:
    from mola_core.runs.layout import Layout
    from mola_core.study.study import Cell

STUDY, RESULTS = "quickstart", "results"
"""What a verb works on where nothing is named."""


def study_layout(arguments: argparse.Namespace) -> Layout:
    from mola_core.models.loading import leave_out_bitsandbytes
    from mola_core.runs.layout import Layout
    from mola_core.study.loading import load_study, study_file

    include_tasks(arguments)
    study = load_study(arguments.study, arguments.data_root)
    if arguments.own_process and study.model.quantization is None:
        leave_out_bitsandbytes()
    layout = Layout(study, arguments.results, file=study_file(arguments.study))
    prepared = getattr(arguments, "model_dir", None)
    return dataclasses.replace(layout, model_folder=prepared) if prepared else layout


def include_tasks(arguments: argparse.Namespace) -> None:
    """Read the task files of the folder that the command names, if it does."""
    from mola_core.tasks import include

    if arguments.include is None and arguments.include_functions:
        raise MolaError("--include-functions: goes with --include; name the folder of the task files")
    include(arguments.include, arguments.include_functions)


def results_layout(arguments: argparse.Namespace) -> Layout:
    """The layout of results that are there. Raises `MolaError` where they are another study's."""
    from mola_core.runs.state import refuse_other

    layout = study_layout(arguments)
    refuse_other(layout)
    return layout


def collected_layout(arguments: argparse.Namespace) -> Layout:
    """The layout of a study that was collected, before a verb makes something of it.

    What Snakemake made of it no longer counts as current then: a verb by hand may make it of a study that is edited again.
    Raises `MolaError` where the results are another study's or were collected of other settings.
    """
    from mola_core.analysis.collect import check_collected
    from mola_core.runs.plan import ANALYSED

    layout = results_layout(arguments)
    check_collected(layout)
    (layout.folder / ANALYSED).unlink(missing_ok=True)
    return layout


def owned(layout: Layout) -> Layout:
    """The layout, after its folder was noted to belong to this study's file, and what the study states was recorded.

    Raises `MolaError` before anything is written where a task of the study cannot be used.
    """
    from mola_core.analysis.looks import Record
    from mola_core.runs.state import claim
    from mola_core.tasks.prepare import check_tasks

    check_tasks(layout.study)
    claim(layout)
    Record(layout.folder).state(layout.study.verdict, layout.study.tasks, layout.study.seeds)
    return layout


def named_cell(arguments: argparse.Namespace) -> tuple[Layout, Cell]:
    layout = study_layout(arguments)
    cell = layout.study.cell(arguments.task, arguments.method, arguments.seed)
    return owned(layout), cell


def path(text: str) -> Path:
    """The type of an option that names a file or folder."""
    try:
        return typed_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def written(text: str) -> Path:
    """The type of an option that names a file or folder to be written."""
    named = path(text)
    above = next((parent for parent in named.parents if parent.exists()), named.parent)
    if above.exists() and not above.is_dir():
        raise argparse.ArgumentTypeError(f"{above} is no folder, so nothing can stand in it; name another")
    return named


def folder(text: str) -> Path:
    """The type of an option that names a folder, which may be there or not."""
    named = written(text)
    if named.exists() and not named.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder; name another")
    return named


def at_least(least: int, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """The type of an option that is a number of at least `least`."""

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return value

    number.__name__ = kind.__name__  # argparse names it where the text is no number
    return number


def study_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--study", default=STUDY, help="a study's name or file (default: %(default)s)")
    parser.add_argument(
        "--data-root", type=path, help="read the tasks' rows from this folder of parquet files"
    )
    parser.add_argument(
        "--results", type=folder, default=RESULTS, help="folder of all results (default: %(default)s)"
    )
    include_options(parser)


def include_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--include", type=path, metavar="DIR", help="folder with task files of your own (<task>.yaml)"
    )
    parser.add_argument(
        "--include-functions", action="store_true", help="let the code run that these files name (!function)"
    )


def model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-dir", type=path, help="an already prepared base model (the folder that holds model.json)"
    )


def cell_options(parser: argparse.ArgumentParser) -> None:
    study_options(parser)
    parser.add_argument("--task", required=True, help="task of the cell, a task or stage of the study")
    parser.add_argument("--method", required=True, help="the method's name in the study")
    parser.add_argument("--seed", required=True, type=int, help="one of the study's seeds")


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong with a command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


class Verbs(Parser):
    """The command line: its verbs, each a function whose docstring is its help, in groups."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog)
        self._verbs = self.add_subparsers(dest="verb", required=True, metavar="verb", parser_class=Parser)
        self._titles: dict[str, str] = {}
        self._title = ""

    def group(self, title: str) -> None:
        """The verbs that are added from now on stand below `title` in the help."""
        self._title = title

    def groups(self) -> dict[str, dict[str, argparse.ArgumentParser]]:
        """The verbs' parsers by title and name."""
        found: dict[str, dict[str, argparse.ArgumentParser]] = {}
        for name, parser in self._verbs.choices.items():
            found.setdefault(self._titles[name], {})[name] = parser
        return found

    def add(
        self,
        action: Callable[[argparse.Namespace], None],
        *options: Callable[[argparse.ArgumentParser], None],
    ) -> argparse.ArgumentParser:
        """The parser of the verb `action`, called as the function is, with these groups of options.

        The docstring's first line is the verb's line in `mola --help`; it ends with `Example: mola ...`, which a test
        parses."""
        text = inspect.cleandoc(action.__doc__ or "")
        name = action.__name__.rstrip("_")
        self._titles[name] = self._title
        parser = self._verbs.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for group in options:
            group(parser)
        parser.set_defaults(action=action)
        return parser

    def understood(self, arguments: Sequence[str]) -> argparse.Namespace:
        """As `parse_args`, but what is unknown is told with what may have been meant."""
        known = self._verbs.choices
        if arguments and arguments[0] not in known and not arguments[0].startswith("-"):
            self.error(f"no verb {arguments[0]!r}{did_you_mean(arguments[0], known)}")
        parsed, strange = self.parse_known_args(arguments)
        if strange:
            verb = known[parsed.verb]
            options = [option for action in verb._actions for option in action.option_strings]
            near = did_you_mean(strange[0].partition("=")[0], options)
            if not strange[0].startswith("-") and "--study" in options:
                near = f", did you mean '--study {strange[0]}'?"
            verb.error(f"does not take {strange[0]!r}{near}")
        return parsed

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, verbs in self.groups().items():
            formatter.start_section(title)
            formatter.add_arguments([line for line in self._verbs._get_subactions() if line.dest in verbs])
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()
