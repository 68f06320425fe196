"""Why a cell is run again: the parts of its keys that differ from its records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from mola_core.errors import MolaError
from mola_core.records import digest, read_record
from mola_core.runs.key import evaluation_parts, training_parts
from mola_core.runs.layout import Layout
from mola_core.study.study import Cell


class Difference(NamedTuple):
    """A part of a key that is not as recorded."""

    stage: str
    """`training` or `evaluation`."""
    part: str
    name: str | None
    """Within a part that has names."""
    then: Any
    now: Any

    def __str__(self) -> str:
        named = f"{self.stage}.{self.part}: " + (f"{self.name}: " if self.name is not None else "")
        return f"{named}{_short(self.then)} -> {_short(self.now)}"


def differences(layout: Layout, cell: Cell) -> list[str]:
    """One line for each part of the cell's keys that differs from its records on disk, and for missing records."""
    lines = []
    for stage, file in [("training", "training.json"), ("evaluation", "manifest.json")]:
        try:
            lines += [str(found) for found in differing(layout, cell, stage)]
        except (MolaError, KeyError, TypeError):
            lines.append(f"{stage}: no record in {layout.cell(cell) / file}")
    return lines


def differing(layout: Layout, cell: Cell, stage: str) -> Iterator[Difference]:
    """Of one stage of a cell, what differs; nothing where the cell has no such stage, or it is not prepared.

    Raises `MolaError`, KeyError or TypeError where the record is missing, damaged or of a version that recorded no parts.
    """
    now = training_parts(layout, cell)
    if stage == "evaluation":
        now = evaluation_parts(layout, cell, digest(now) if now else None)
    if now is None:
        return
    file = "training.json" if stage == "training" else "manifest.json"
    then = read_record(layout.cell(cell) / file)["parts"]
    for part in sorted({*now, *then}):
        before, after = then.get(part), now.get(part)
        if before == after:
            continue
        if not isinstance(before, dict) or not isinstance(after, dict):
            yield Difference(stage, part, None, before, after)
            continue
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                yield Difference(stage, part, name, before.get(name), after.get(name))


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return f"{text[:12]}…" if re.fullmatch('"[0-9a-f]{64}"', text) else text[:120]
