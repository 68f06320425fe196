"""`mola VERB`: every step of a study by itself. Snakemake's rules are calls of these verbs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

import mola_core
from mola_core.cli import about, benchmark, cells, prepare, results, studies, tuning, verdict
from mola_core.cli.options import Verbs
from mola_core.errors import MolaError, OutOfTime
from mola_core.files import storage_problem

GROUPS = {
    "a study": (studies,),
    "its inputs": (prepare,),
    "its cells": (cells, tuning),
    "its results": (results,),
    "the verdict": (verdict,),
    "this program": (about, benchmark),
}
"""Headings of the verbs in `mola --help`."""


def _parser() -> Verbs:
    verbs = Verbs(
        "mola", description=__doc__, epilog="`mola VERB --help` explains a verb and gives an example."
    )
    verbs.add_argument(
        "--version", action="version", version=f"mola {mola_core.__version__}", help="its version"
    )
    for title, modules in GROUPS.items():
        verbs.group(title)
        for module in modules:
            module.declare(verbs)
    return verbs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Bad input is one line on standard error and exit code 2; so is a disk that takes no more, with
    exit code 1, and a training stopped by SIGTERM or Ctrl-C, with 143, and what a second Ctrl-C stopped, with 130."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser().understood(given)
    parsed.command = given
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
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "mola_core":
            raise
        print(
            f'mola {parsed.verb}: the package {error.name} is not installed; pip install "mola-core[harness]"',
            file=sys.stderr,
        )
        return 2
    except OutOfTime as stop:
        print(f"mola {parsed.verb}: {stop}; the same command goes on from its checkpoint", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(
            f"mola {parsed.verb}: stopped at once; the same command goes on from what is there",
            file=sys.stderr,
        )
        return 130
    except Exception as error:
        problem = storage_problem(error)
        if problem is None:
            raise
        print(
            f"mola {parsed.verb}: {problem}; no file is half-written: mend it and run again", file=sys.stderr
        )
        return 1
    return 0
