"""The shapes: experts of each layer of each method."""

from matplotlib.figure import Figure

from mola_core.analysis.collect import recorded_experts
from mola_core.analysis.figures import plots
from mola_core.analysis.figures.collected import Collected


def draw(collected: Collected) -> Figure:
    return plots.experts_per_layer(collected.study, collected.depth, recorded_experts(collected.cells))
