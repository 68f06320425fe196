"""Verbs on the program itself: where its files are, the schema of study files, shell completion."""

from __future__ import annotations

import argparse
import json

from mola_core import locations
from mola_core.cli.options import Verbs, study_layout, study_options

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

    folder = study_layout(arguments).folder
    answer = told(folder)
    if answer:
        print(answer)
    print(f"Everything: {folder}")


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
    verbs.add(schema)
    shells = verbs.add(completion)
    shells.add_argument("shell", choices=SHELLS, help="the shell")
    shells.set_defaults(root=verbs.root)
