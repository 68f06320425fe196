"""Verbs on the program itself: where its files are, the schema of study files, shell completion."""

from __future__ import annotations

import argparse
import json
import re
import sys

from mola_core import locations
from mola_core.cli.options import (
    Verbs,
    include_options,
    include_tasks,
    path,
    study_layout,
    study_options,
)
from mola_core.errors import MolaError

SHELLS = ("bash", "zsh", "tcsh")


def where(arguments: argparse.Namespace) -> None:
    """Print a study's answer and where its results are, or where the workflow or the shipped studies are installed.

    From any folder: snakemake --snakefile "$(mola where --workflow)" --cores 2

    Example: mola where --workflow
    """
    if arguments.what:
        print(arguments.what())
        return
    from mola_core.analysis.pages.answer import told
    from mola_core.runs.state import refuse_other

    layout = study_layout(arguments)
    folder = layout.folder
    if not folder.is_dir():
        raise MolaError(f"{folder}: is not there yet; run the study, or name its --results")
    refuse_other(layout)
    answer = told(layout)
    if answer:
        print(answer)
    print(f"Everything: {folder}")


def tasks(arguments: argparse.Namespace) -> None:
    """List the tasks that a study can name, lm-eval's among them, or all of lm-eval's with the reason where one cannot.

    With --include those of a folder of your own come first. Rows of each split are shown where --data-root has them. A first look at lm-eval's 13,000 files takes a minute.

    Example: mola tasks arc --all
    """
    from mola_core.tasks.census import census

    try:
        re.compile(arguments.pattern)
    except re.error as error:
        raise MolaError(
            f"pattern {arguments.pattern!r}: no regular expression ({error}); correct it"
        ) from None
    include_tasks(arguments)
    usable = seen = 0
    for entry in census(arguments.pattern, arguments.data_root):
        seen += 1
        usable += entry.reason is None
        if entry.reason is None or arguments.all:
            rows = " ".join(f"{role} {count:,}" for role, count in entry.rows.items())
            print(f"{entry.name:40} {entry.reason or f'{entry.dataset} {rows}'.strip()}", flush=True)
    print(f"{usable} of {seen} tasks can be trained and compared by their options", file=sys.stderr)


def schema(arguments: argparse.Namespace) -> None:
    """Print the JSON schema of study files.

    Example: mola schema
    """
    from mola_core.study.study import Study

    print(json.dumps(Study.model_json_schema(), indent=2))


def completion(arguments: argparse.Namespace) -> None:
    """Print the completion script of a shell: verbs, options and their values.

    In bash: mola completion bash > ~/.local/share/bash-completion/completions/mola
    In zsh: mola completion zsh > a folder of $fpath, as _mola

    Example: mola completion bash
    """
    import shtab

    print(shtab.complete(arguments.root, arguments.shell))


def declare(verbs: Verbs) -> None:
    place = verbs.add(where, study_options)
    place.set_defaults(what=None)
    kinds = place.add_mutually_exclusive_group()
    for option, function, text in [
        ("--workflow", locations.snakefile, "the Snakefile"),
        ("--profiles", locations.profiles, "the folder of Snakemake profiles"),
        ("--studies", lambda: locations.STUDIES, "the folder of the shipped studies"),
        ("--schema", locations.schema, "the JSON schema of study files"),
    ]:
        kinds.add_argument(option, dest="what", action="store_const", const=function, help=text)
    listing = verbs.add(tasks, include_options)
    listing.add_argument("pattern", nargs="?", default="", help="regular expression of the names")
    listing.add_argument("--all", action="store_true", help="also those that cannot be used, with the reason")
    listing.add_argument("--data-root", type=path, help="folder of parquet files, for the rows of each split")
    verbs.add(schema)
    shells = verbs.add(completion)
    shells.add_argument("shell", choices=SHELLS, help="the shell")
    shells.set_defaults(root=verbs)
