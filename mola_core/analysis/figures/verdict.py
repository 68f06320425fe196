"""Draw the figures of a verdict; which there are says the registry."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mola_core.analysis.figures import registry

FIGURES = registry.names("verdict")
"""Figures of every verdict: `figures/<name>.{svg,png}`."""
STAND_IN = "Stand-in data or model: says nothing about a benchmark."


def draw_verdict(verdict: Mapping[str, Any], folder: str | Path, notices: Sequence[str] = ()) -> None:
    """Draw the figures of a verdict into `folder`. One that the data do not allow says so in words; an optional one
    is not there then. `notices` stand on each."""
    from mola_core.analysis.figures.drawing import KINDS, heading, save_figure
    from mola_core.analysis.figures.style import figure_style

    said = list(notices)
    if verdict.get("stand_in") and not any("tand-in" in notice for notice in said):
        said.insert(0, STAND_IN)
    with figure_style():
        for entry in registry.entries("verdict"):
            figure = entry.draw(verdict)
            if figure is None:
                for kind in KINDS:
                    (Path(folder) / f"{entry.name}.{kind}").unlink(missing_ok=True)
                continue
            heading(figure, said)
            save_figure(figure, Path(folder) / entry.name, entry.title, entry.caption(verdict))
