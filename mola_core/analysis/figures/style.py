"""How methods look in every figure: one colour, marker and line each, the same everywhere.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; the green is darker and the base's grey lighter
than theirs, since readers without green cones see those two alike. A shape's profile along the depth decides its
colour and marker (the markers are the symbols that the paper uses), its budget the shade; a filled marker has a
router, a hollow one is the plain LoRA of the same ranks.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from matplotlib.path import Path as MarkerPath

from mola_core.analysis.figures.drawing import COLUMN, TEXT  # noqa: F401 - what draws asks for its looks here
from mola_core.methods.registry import family_of, parse_method
from mola_core.methods.settings import MethodSettings
from mola_core.shapes import QUARTERS, budget, parse_shape
from mola_core.study.study import Study

BOW_TIE = MarkerPath([(-1, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)], closed=True)
PROFILES: dict[str, tuple[str, str | MarkerPath]] = {
    "uniform": ("#0072B2", "s"),
    "increasing": ("#D55E00", "v"),
    "decreasing": ("#00785A", "^"),
    "hourglass": ("#CC79A7", BOW_TIE),
    "diamond": ("#E69F00", "D"),
    "peak-1": ("#56B4E9", "<"),
    "peak-2": ("#56B4E9", "X"),
    "peak-3": ("#56B4E9", "P"),
    "peak-4": ("#56B4E9", ">"),
    "other": ("#8C564B", "p"),
}
SPARE_MARKERS = ("X", "P", "d", "8", "<", ">", "p", "h")
SPARE_LINES = ("-.", ":", "--")

SETTINGS = {
    "font.family": "sans-serif",
    # A reader without the first finds one of about its width in an SVG.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    # Text that can be read, searched and spoken.
    "svg.fonttype": "none",
    # Names are others': a dollar sign in one is a dollar sign.
    "text.parse_math": False,
    # The same data give the same bytes.
    "svg.hashsalt": "mola",
}


@dataclasses.dataclass(frozen=True)
class Style:
    """Colour, marker and line of one method."""

    colour: str
    marker: str | MarkerPath
    filled: bool = True
    line: str = "-"

    def marker_options(self) -> dict[str, object]:
        """Keyword arguments of matplotlib's `plot` and `errorbar` for this method's marker."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "markerfacecolor": self.colour if self.filled else "white",
            "markeredgecolor": self.colour,
            "markeredgewidth": 1.0,
        }


def profile(shape: str) -> str:
    """Which of `PROFILES` a shape has along the depth; of a shape that is not one of quarters `other`."""
    if not re.fullmatch(QUARTERS, shape):
        return "other"
    first, second, third, fourth = quarters = parse_shape(shape)
    low, high = min(quarters), max(quarters)
    if low == high:
        return "uniform"
    if quarters.count(low) == 3 and high >= 3 * low:
        return f"peak-{quarters.index(high) + 1}"
    if (first, second) == (fourth, third):
        return "hourglass" if first > second else "diamond"
    if list(quarters) == sorted(quarters):
        return "increasing"
    if list(quarters) == sorted(quarters, reverse=True):
        return "decreasing"
    return "other"


def _shade(colour: str, budget: int) -> str:
    """Lighter below budget 20, darker above it, so that shapes of one profile can be told apart."""
    weight = max(-0.5, min(0.55, 1.6 * math.log(20 / budget)))
    target = 1.0 if weight > 0 else 0.0
    return to_hex([channel + abs(weight) * (target - channel) for channel in to_rgb(colour)])


def method_style(settings: MethodSettings) -> Style:
    """The look of one method by itself."""
    method = parse_method(settings)
    if method.shape is None:
        family = family_of(settings)
        colour, marker = family.colour, family.marker
        return Style(colour, marker, line=":" if method.kind == "base" else "-")
    colour, marker = PROFILES[profile(method.shape)]
    if not profile(method.shape).startswith("peak"):
        colour = _shade(colour, budget(method.shape))
    routed = family_of(settings).role == "routed"
    return Style(colour, marker, routed, "-" if routed else "--")


def study_styles(study: Study) -> dict[str, Style]:
    """The look of each method of a study. Methods that would look the same get a marker and line of their own."""
    styles: dict[str, Style] = {}
    for label, settings in study.method_by_label.items():
        style = method_style(settings)
        others = (
            dataclasses.replace(style, marker=marker, line=line)
            for line in SPARE_LINES
            for marker in SPARE_MARKERS
        )
        # Where there are more than all these, the last look is shared.
        while style in styles.values() and (other := next(others, None)):
            style = other
        styles[label] = style
    return styles


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw with this project's settings, without a display, and leave the caller's settings as they were."""
    with mpl.rc_context(SETTINGS):
        yield
        plt.close("all")
