"""Write the figures of trained adapters, with the titles and captions that the study's page has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mola_core.runs.adapter_figures import ADAPTER_FIGURES
from mola_core.runs.layout import Layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_adapter_figures(layout: Layout, figures: Mapping[str, Figure], notices: Sequence[str]) -> None:
    """Write `figures/<name>.{svg,png}` of the study for each name of `ADAPTER_FIGURES`, with `notices` on it."""
    from mola_core.analysis.figures.drawing import heading, save_figure

    for name, figure in figures.items():
        heading(figure, notices)
        save_figure(figure, layout.folder / "figures" / name, *ADAPTER_FIGURES[name])
