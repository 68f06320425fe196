"""Draw a study's own figures from its collected files; which there are says the registry."""

from pathlib import Path

from mola_core.analysis.figures import registry
from mola_core.files import read_table
from mola_core.runs.choice import FIX, TABLE
from mola_core.runs.layout import Layout

FIGURES = registry.names("study")
"""Figures of every study: `figures/<name>.{svg,png}`."""


def study_data(layout: Layout, folder: Path) -> registry.StudyData:
    """What `collect` wrote into `folder`. Raises `MolaError` where it is missing."""
    from mola_core.analysis.collect import read_cells, read_curves, recorded_experts
    from mola_core.analysis.score_files import load_scores
    from mola_core.analysis.scores import score_matrix
    from mola_core.analysis.tables.accuracy import model_depth
    from mola_core.analysis.tables.parameters import layer_matrices

    cells = read_cells(folder)
    tries = layout.folder / TABLE
    return registry.StudyData(
        layout.study,
        cells,
        score_matrix(load_scores(folder / "scores.parquet")),
        read_curves(folder),
        model_depth(cells, layer_matrices(layout.model)),
        recorded_experts(cells),
        read_table(tries, FIX) if layout.study.tuning and tries.is_file() else None,
    )


def write(layout: Layout) -> None:
    """Draw the figures of a study from the files that `collect` wrote.

    Raises `MolaError` where those are missing.
    """
    from mola_core.analysis.figures.drawing import heading, save_figure
    from mola_core.analysis.figures.style import figure_style
    from mola_core.analysis.notices import missing_cells, notices

    study, folder = layout.study, layout.folder
    data = study_data(layout, folder)
    said = notices(study, missing_cells(study, data.cells))
    with figure_style():
        for entry in registry.entries("study"):
            figure = entry.draw(data)
            if figure is not None:
                heading(figure, said)
                save_figure(figure, folder / "figures" / entry.name, entry.title, entry.caption(data))
