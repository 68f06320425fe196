"""Why a cell is run again: the parts of its keys that differ from its records."""

from __future__ import annotations

import json
import re
from typing import Any

from mola_core.errors import MolaError
from mola_core.records import digest, read_record
from mola_core.runs.key import evaluation_parts, training_parts
from mola_core.runs.layout import Layout
from mola_core.study.study import Cell


def differences(layout: Layout, cell: Cell) -> list[str]:
    """One line for each part of the cell's keys that differs from its records on disk, and for missing records."""
    lines = []
    training = training_parts(layout, cell)
    wanted = [("training.json", "training", training)]
    evaluation = evaluation_parts(layout, cell, digest(training) if training else None)
    wanted.append(("manifest.json", "evaluation", evaluation))
    for name, stage, now in wanted:
        if now is None:
            continue
        try:
            then = read_record(layout.cell(cell) / name)["parts"]
        except (MolaError, KeyError, TypeError):
            lines.append(f"{stage}: no record in {layout.cell(cell) / name}")
            continue
        for part in sorted({*now, *then}):
            if now.get(part) != then.get(part):
                lines += [f"{stage}.{part}: {line}" for line in _changes(then.get(part), now.get(part))]
    return lines


def _changes(then: Any, now: Any) -> list[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        return [
            f"{name}: {_short(then.get(name))} -> {_short(now.get(name))}"
            for name in sorted({*then, *now})
            if then.get(name) != now.get(name)
        ]
    return [f"{_short(then)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return f"{text[:12]}…" if re.fullmatch('"[0-9a-f]{64}"', text) else text[:120]
