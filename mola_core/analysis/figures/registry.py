"""Registry of figures: every module of `figures/catalogue` states one, its name, place, title, drawing and caption.

To add a figure is to add a module there with a constant `FIGURE`; the workflow asks for the names, `study.write` and
`verdict.draw_verdict` draw, and pages show what was drawn. Light: modules of the catalogue import matplotlib where they
draw, since the workflow reads names while it plans.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mola_core.analysis.figures import catalogue

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from mola_core.analysis.scores import ScoreMatrix
    from mola_core.study.study import Study


@dataclasses.dataclass(frozen=True)
class StudyData:
    """What the figures of a study are drawn from, as `collect` wrote it."""

    study: Study
    cells: pd.DataFrame
    matrix: ScoreMatrix
    curves: pd.DataFrame
    depth: int | None
    """Layers of the base model, where known."""
    chosen: Mapping[str, Sequence[float]]
    """Experts by layer that methods were trained with (`collect.recorded_experts`)."""
    tries: pd.DataFrame | None = None
    """tuning.csv: a row for each try; None where nothing is tuned."""


@dataclasses.dataclass(frozen=True)
class FigureEntry:
    """One figure: `figures/<name>.svg` and `.png` in a study's folder."""

    name: str
    kind: str
    """`study`: drawn from `StudyData`; `verdict`: from a verdict as `decide` returns it."""
    place: int
    """Order among the figures of its kind."""
    title: str
    draw: Callable[[Any], Figure | None]
    """Returns None where an optional figure has nothing to show."""
    caption: Callable[[Any], str]
    """What is drawn, n, seeds and which interval, as one paragraph of plain text from the same data."""
    always: bool = True
    """False for a figure that is only there where the data allow it; the workflow does not expect it."""


@functools.cache
def entries(kind: str) -> tuple[FigureEntry, ...]:
    """The figures of a kind in their order. Raises ValueError for two of one name."""
    found = [
        importlib.import_module(f"{catalogue.__name__}.{module.name}").FIGURE
        for module in pkgutil.iter_modules(catalogue.__path__)
    ]
    names = [entry.name for entry in found]
    if len(set(names)) < len(names):
        raise ValueError(f"two figures have one name: {', '.join(sorted(names))}")
    return tuple(sorted((e for e in found if e.kind == kind), key=lambda entry: (entry.place, entry.name)))


def names(kind: str) -> tuple[str, ...]:
    """Names of the figures of a kind that are written for every study."""
    return tuple(entry.name for entry in entries(kind) if entry.always)
