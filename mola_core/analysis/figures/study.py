"""The study's own figures, one module each in `of_study/`: found by their files, drawn from what `collect` wrote.

What draws is imported where it is needed: the workflow reads `FIGURES` from here and needs nothing else.
"""

import importlib
import pkgutil
from pathlib import Path

from mola_core.analysis.figures import of_study
from mola_core.runs.layout import Layout

FIGURES = tuple(sorted(module.name for module in pkgutil.iter_modules(of_study.__path__)))
"""Figures of every study: `figures/<name>.{svg,png}`."""


def write(layout: Layout, out_dir: Path | None = None) -> None:
    """Draw `FIGURES` from the files that `collect` wrote into `out_dir` (default: the study's folder).

    Raises `MolaError` where those are missing.
    """
    from mola_core.analysis.figures.collected import Collected
    from mola_core.analysis.figures.drawing import heading, save_figure
    from mola_core.analysis.figures.style import figure_style
    from mola_core.analysis.notices import missing_cells, notices

    collected = Collected(layout, Path(out_dir or layout.folder))
    said = notices(collected.study, missing_cells(collected.study, collected.cells))
    with figure_style():
        for name in FIGURES:
            figure = importlib.import_module(f"{of_study.__name__}.{name}").draw(collected)
            heading(figure, said)
            save_figure(figure, collected.folder / "figures" / name)
