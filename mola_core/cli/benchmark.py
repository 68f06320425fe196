"""The verb that measures what MoLA and the harness cost."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from mola_core.cli.options import Verbs, at_least, folder, study_layout, study_options

BENCHMARKS = (
    *("layers", "steps", "ablation", "precision", "memory", "large"),
    *("evaluation", "prefix", "padding", "overhead", "planning"),
)


def benchmark(arguments: argparse.Namespace) -> None:
    """Measure what MoLA and the harness cost, as ratios in one run; see the goals in the table.

    Example: mola benchmark --part steps --part memory
    """
    import torch

    from mola_core.benchmark import ablation, harness, large, precision, report, steps
    from mola_core.models.check import prepare_checked_model
    from mola_core.tasks.prepare import prepare_rows

    layout = study_layout(arguments)
    compute = layout.study.compute.model_copy(update={"threads": arguments.threads})
    layout = dataclasses.replace(layout, study=layout.study.model_copy(update={"compute": compute}))
    torch.set_num_threads(arguments.threads)
    prepare_checked_model(layout.study.model, layout.model)
    for name in layout.study.rows():
        prepare_rows(layout.study, name, layout.data(name))
    parts = {
        "layers": lambda: steps.layers(arguments.repeats, arguments.dtype),
        "steps": lambda: steps.steps(layout.model, arguments.repeats, arguments.dtype),
        "ablation": lambda: ablation.ablation(layout.model, arguments.repeats, arguments.dtype),
        "memory": lambda: steps.memory(layout.model, arguments.dtype),
        "large": large.large,
        "precision": lambda: [
            *precision.precision(layout.model, arguments.repeats),
            *precision.evaluation(layout, arguments.repeats),
        ],
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
    print(report.write(rows, arguments.out))


def declare(verbs: Verbs) -> None:
    measuring = verbs.add(benchmark, study_options)
    measuring.add_argument("--part", action="append", choices=BENCHMARKS, help="only this part (repeatable)")
    measuring.add_argument(
        "--repeats", type=at_least(1), default=5, help="timed rounds (default: %(default)s)"
    )
    measuring.add_argument(
        "--threads", type=at_least(1), default=2, help="CPU threads (default: %(default)s)"
    )
    measuring.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16"],
        help="of the base model's weights (default: %(default)s)",
    )
    measuring.add_argument(
        "--out", type=folder, default="results/benchmark", help="folder (default: %(default)s)"
    )
