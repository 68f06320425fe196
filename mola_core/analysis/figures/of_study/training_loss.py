"""Training loss of each method by step."""

from matplotlib.figure import Figure

from mola_core.analysis.figures import plots
from mola_core.analysis.figures.collected import Collected


def draw(collected: Collected) -> Figure:
    return plots.training_loss(collected.study, collected.curves)
