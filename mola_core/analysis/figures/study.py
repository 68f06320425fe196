"""The study's own figures, from its collected files.

What draws is imported where it is needed: the workflow reads `FIGURES` from here and needs nothing else.
"""

from pathlib import Path

from mola_core.runs.layout import Layout

FIGURES = ("accuracy_parameters", "experts_per_layer", "training_loss")
"""Figures of every study: `figures/<name>.{svg,png}`."""


def write(layout: Layout, out_dir: Path | None = None) -> None:
    """Draw `FIGURES` from the files that `collect` wrote into `out_dir` (default: the study's folder).

    Raises `MolaError` where those are missing.
    """
    from mola_core.analysis.collect import read_cells, read_curves, recorded_experts
    from mola_core.analysis.figures import plots
    from mola_core.analysis.figures.drawing import heading, save_figure
    from mola_core.analysis.figures.style import figure_style
    from mola_core.analysis.notices import missing_cells, notices
    from mola_core.analysis.score_files import load_scores
    from mola_core.analysis.scores import score_matrix
    from mola_core.analysis.tables.accuracy import model_depth
    from mola_core.analysis.tables.parameters import layer_matrices

    study, folder = layout.study, Path(out_dir or layout.folder)
    cells = read_cells(folder)
    matrix = score_matrix(load_scores(folder / "scores.parquet"))
    depth = model_depth(cells, layer_matrices(layout.model))
    with figure_style():
        drawn = [
            plots.accuracy_parameters(study, cells, matrix),
            plots.experts_per_layer(study, depth, recorded_experts(cells)),
            plots.training_loss(study, read_curves(folder)),
        ]
        for name, figure in zip(FIGURES, drawn, strict=True):
            heading(figure, notices(study, missing_cells(study, cells)))
            save_figure(figure, folder / "figures" / name)
