"""Cells that a measurement of trained adapters leaves out, by reason, and what is said of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from mola_core.runs.layout import Layout
from mola_core.runs.recorded import made_otherwise
from mola_core.study.study import Cell

OTHERWISE = "made otherwise than the study says now"
DIVERGED = "whose training diverged"

LeftOut = Mapping[str, Sequence[Cell]]
"""Cells by the reason why they are left out."""


def with_file(
    layout: Layout, cells: Iterable[Cell], file: Callable[[Cell], Path], without: str, scores: bool = True
) -> tuple[list[Cell], dict[str, list[Cell]]]:
    """The cells whose `file` is there and of what the study says now, and the rest by reason: `without` it, `OTHERWISE`, and,
    for who reads the files to fill in, `DIVERGED`. Without `scores` only the trainings count (`made_otherwise`)."""
    found: list[Cell] = []
    left_out: dict[str, list[Cell]] = {without: [], OTHERWISE: [], DIVERGED: []}
    for cell in cells:
        if not file(cell).is_file():
            left_out[without].append(cell)
        elif made_otherwise(layout, cell, scores):
            left_out[OTHERWISE].append(cell)
        else:
            found.append(cell)
    return found, left_out


def told(left_out: LeftOut) -> list[str]:
    """One sentence, or none where nothing is left out."""
    parts = [
        f"{len(cells)} cell{'s' * (len(cells) > 1)} {reason}, the first is {cells[0].path}"
        for reason, cells in left_out.items()
        if cells
    ]
    return [f"Incomplete: without {'; '.join(parts)}."] if parts else []
