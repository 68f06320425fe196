"""Verbs of the verdict: answer, calibrate, re-analyse and reproduce the paper."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from mola_core.cli.options import (
    RESULTS,
    STUDY,
    Verbs,
    at_least,
    collected_layout,
    folder,
    path,
    results_layout,
    study_layout,
    study_options,
    written,
)
from mola_core.errors import MolaError

if TYPE_CHECKING:
    from mola_core.study.verdict import VerdictSettings


def verdict(arguments: argparse.Namespace) -> None:
    """Answer the study's questions, or the standard ones of any score file (--scores).

    Example: mola verdict --scores scores.csv --pair mine theirs --out verdict
    """
    from mola_core.analysis.looks import FILE as LOOKS
    from mola_core.analysis.pages.answer import answer_sentences
    from mola_core.analysis.pages.study_page import write_verdict_page
    from mola_core.analysis.pages.verdict import write_verdict

    if arguments.scores:
        if arguments.state:
            raise MolaError(
                "--state is for a study's own results; scores that exist cannot be stated beforehand"
            )
        if (arguments.study, str(arguments.results), arguments.data_root) != (STUDY, RESULTS, None):
            raise MolaError(
                "--scores: answers a file by itself, without a study; leave out --study, --results and --data-root, and give "
                "--pair, --margin, --endpoint and --looks instead"
            )
        out = arguments.out or arguments.scores.parent
        if (out / "cells.parquet").is_file():
            raise MolaError(f"--out: {out} holds the verdict that a study stated; name another folder")
        found = write_verdict(arguments.scores, out, _verdict_settings(arguments), by_itself=True)
        write_verdict_page(out)
        for note in found["notes"]:
            print(note, file=sys.stderr)
        looks = found["looks"]
        if looks["taken"] > looks["planned"]:
            print(
                f"look {looks['taken']} of {looks['planned']} planned ({out / LOOKS}): the level is shared among them, so what it decides is a "
                "hint; for scores that have nothing to do with those before, name another --out",
                file=sys.stderr,
            )
        for sentence in answer_sentences(found):
            print(sentence)
        return
    from mola_core.analysis.collect import chance_levels, read_cells, recorded_experts
    from mola_core.analysis.notices import missing_cells, notices

    layout = results_layout(arguments)
    out = arguments.out or layout.folder
    if any(getattr(arguments, name) is not None for name in ("pair", "margin", "endpoint", "looks")):
        raise MolaError(
            "--pair, --margin, --endpoint and --looks go with --scores; a study states them in its file"
        )
    if arguments.state:
        from mola_core.analysis.looks import Record
        from mola_core.runs.state import claim

        claim(layout)
        Record(layout.folder).state(layout.study.verdict, layout.study.tasks, layout.study.seeds)
        return
    collected_layout(arguments)
    every = read_cells(layout.folder)
    sizes = every.groupby("method", sort=False)["trainable_parameters"].mean().dropna()
    variants = [method.label for method in layout.study.methods if method.own_settings]
    write_verdict(
        layout.folder / "scores.parquet",
        out,
        layout.study.verdict,
        shapes={**recorded_experts(every), **dict.fromkeys(variants)},
        parameters={str(name): round(mean) for name, mean in sizes.items()},
        floors={str(task): float(share) for task, share in chance_levels(every).items()},
        first_cell=str(every["finished"].min()),
        stated_of=(layout.study.tasks, layout.study.seeds),
        record=layout.folder,
        stand_in=layout.study.stand_in,
        seeds_shared=layout.study.seeds_shared,
        notices=notices(layout.study, missing_cells(layout.study, every)),
    )


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


def import_(arguments: argparse.Namespace) -> None:
    """Make a score file of lm-eval's own samples (lm_eval --log_samples), of one run or many, likelihoods included.

    Method and seed are read from the files' paths (--pattern) or from a CSV file with the columns file, method, seed
    (--runs). Then `mola verdict --scores FILE --pair A B` compares any two methods.

    Example: mola import runs --pattern {method}/seed{seed}/*/{file} --out scores.parquet
    """
    from mola_core.analysis import lm_eval_samples as samples

    if bool(arguments.places) == bool(arguments.runs):
        raise MolaError("name samples files or their folders with --pattern, or a table of them with --runs")
    if arguments.runs:
        runs = samples.runs_by_table(arguments.runs)
    else:
        files = samples.sample_files(arguments.places)
        if not arguments.pattern:
            raise MolaError(
                f"--pattern: missing; say how method and seed stand in the paths, as {{method}}/seed{{seed}}/{{file}} for "
                f"{files[0]}"
            )
        runs = samples.runs_by_pattern(files, arguments.pattern)
    out = arguments.out
    for remark in samples.import_samples(runs, out, arguments.metric, arguments.filter):
        print(remark, file=sys.stderr)
    methods = sorted({run.method for run in runs})
    print(f"{len(runs)} runs of {', '.join(methods)} in {out}")
    pair = " ".join(methods[:2]) if len(methods) > 1 else "A B"
    print(f"Compare two: mola verdict --scores {out} --pair {pair} --out verdict")


def calibrate(arguments: argparse.Namespace) -> None:
    """Show on simulated scores that the verdict's error rates and intervals are what they claim.

    Example: mola calibrate --out calibration --simulations 200
    """
    from mola_core.analysis.calibration.report import calibrate as calibrate_verdict

    calibrate_verdict(arguments.out, arguments.simulations, arguments.seed)


def reanalyse(arguments: argparse.Namespace) -> None:
    """Put the verdict's questions to the paper's own published numbers and to the reruns.

    Example: mola reanalyse --out reanalysis
    """
    from mola_core.analysis.pages.html import write_page
    from mola_core.analysis.paper.reanalysis import reanalyse as reanalyse_published

    reanalyse_published(arguments.out)
    write_page(arguments.out / "reanalysis.md")


def reproduce(arguments: argparse.Namespace) -> None:
    """List every table and figure of the paper with its state: done, partly or not started.

    Example: mola reproduce --study smollm2-paper
    """
    from mola_core.analysis.paper.coverage import reproduce as reproduce_paper

    print(reproduce_paper(study_layout(arguments)).to_string(index=False))


def declare(verbs: Verbs) -> None:
    importing = verbs.add(import_)
    importing.add_argument(
        "places", type=path, nargs="*", help="samples_*.jsonl files, or folders that hold some"
    )
    importing.add_argument(
        "--pattern",
        help="end of their paths with {method}, {seed}, {task}, {model}, {study}, {file}; * is any name",
    )
    importing.add_argument(
        "--runs", type=path, help="instead: a CSV file with the columns file, method, seed"
    )
    importing.add_argument(
        "--metric", default="acc", help="what says that an answer is right (default: %(default)s)"
    )
    importing.add_argument("--filter", help="whose answers count, where lm-eval read them by several filters")
    importing.add_argument("--out", type=written, required=True, help="the score file, .parquet")
    judging = verbs.add(verdict, study_options)
    judging.add_argument("--scores", type=path, help="any score matrix, Parquet or CSV, instead of a study's")
    judging.add_argument(
        "--out",
        type=folder,
        help="folder for verdict.json, verdict.md and figures (default: beside the scores)",
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
        "--looks", type=at_least(1), help="with --scores: looks planned, which share the level (default: 1)"
    )
    judging.add_argument(
        "--state", action="store_true", help="only record the study's hypotheses, before there are results"
    )
    simulating = verbs.add(calibrate)
    simulating.add_argument("--out", type=folder, required=True, help="folder for the table and figure")
    simulating.add_argument(
        "--simulations", type=at_least(2), default=1000, help="studies a scenario (default: %(default)s)"
    )
    simulating.add_argument(
        "--seed", type=at_least(0), default=0, help="of the simulation (default: %(default)s)"
    )
    verbs.add(reanalyse).add_argument(
        "--out", type=folder, required=True, help="folder for the page, table and figure"
    )
    verbs.add(reproduce, study_options)
