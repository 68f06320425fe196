"""Accuracy against trainable parameters, a panel a task."""

from matplotlib.figure import Figure

from mola_core.analysis.figures import plots
from mola_core.analysis.figures.collected import Collected


def draw(collected: Collected) -> Figure:
    return plots.accuracy_parameters(collected.study, collected.cells, collected.matrix)
