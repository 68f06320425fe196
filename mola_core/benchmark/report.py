"""The benchmark as a table, as JSON and as a figure."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mola_core.benchmark.timing import Row
from mola_core.files import atomic_write, write_json, write_text
from mola_core.models.kernels import cpu_name, kernels
from mola_core.records import git_state, versions


def write(rows: Sequence[Row], out: Path) -> str:
    """Write benchmark.json, benchmark.md and benchmark.svg/.png into `out`; returns the table as text."""
    machine = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "kernels": kernels(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": versions(),
        "git": git_state(),
    }
    write_json(out / "benchmark.json", {**machine, "rows": [dataclasses.asdict(row) for row in rows]})
    table = as_table(rows)
    kept = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    write_text(
        out / "benchmark.md",
        f"{table}\n\n{machine['device']}, {machine['threads']} threads, {_kernels(machine['kernels'])}; {kept}\n",
    )
    _draw(rows, out)
    return table


def _kernels(record: dict[str, Any]) -> str:
    """What computed float32 products and attention, with the times and errors that they were chosen by."""
    chosen = f"{record['capability']}, float32 products by {record.get('matmul', 'default')}"
    chosen += f", attention by {record.get('attention', 'fused')}"
    measured = [
        f"{name} {entry['milliseconds']:.1f} ms, error {entry['error']:.1e}"
        for name, entry in record.get("measured", {}).items()
    ]
    return chosen + (f" ({'; '.join(measured)})" if measured else "")


def as_table(rows: Sequence[Row]) -> str:
    lines = ["| what | measured | goal | reached |", "| --- | ---: | ---: | --- |"]
    for row in rows:
        unit = "" if row.unit == "ratio" else f" {row.unit}"
        sign = "≤" if row.at_most else "≥"
        goal = "" if row.goal is None else f"{sign} {row.goal:g}{unit}"
        reached = {True: "yes", False: "no", None: ""}[row.reached]
        note = f" ({row.note})" if row.note else ""
        lines.append(f"| {row.what}{note} | {row.value:.2f}{unit} | {goal} | {reached} |")
    return "\n".join(lines)


def _draw(rows: Sequence[Row], out: Path) -> None:
    """Each goal's use: measured over goal for upper bounds, goal over measured for lower ones; 1 is the goal."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    held = [row for row in rows if row.goal is not None]
    if not held:
        return
    used = [row.value / row.goal if row.at_most else row.goal / row.value for row in held]
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(held) + 1), layout="constrained")
    colours = ["#0072B2" if row.reached else "#D55E00" for row in held]
    axes.barh(range(len(held)), used, color=colours, height=0.6)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(held)), [row.what for row in held], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("share of the goal that is used\n(left of 1: reached)", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    for kind in ("svg", "png"):
        with atomic_write(out / f"benchmark.{kind}") as temporary:
            figure.savefig(temporary, format=kind, dpi=150)
    plt.close(figure)
