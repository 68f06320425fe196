"""Cells that a measurement of trained adapters leaves out, by reason, and what is said of them."""

from collections.abc import Mapping, Sequence

from mola_core.study.study import Cell

OTHERWISE = "made otherwise than the study says now"
DIVERGED = "whose training diverged"

LeftOut = Mapping[str, Sequence[Cell]]
"""Cells by the reason why they are left out."""


def told(left_out: LeftOut) -> list[str]:
    """One sentence, or none where nothing is left out."""
    parts = [
        f"{len(cells)} cell{'s' * (len(cells) > 1)} {reason}, the first is {cells[0].path}"
        for reason, cells in left_out.items()
        if cells
    ]
    return [f"Incomplete: without {'; '.join(parts)}."] if parts else []
