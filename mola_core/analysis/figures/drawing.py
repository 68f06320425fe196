"""What all figures share: their notices, and how they are saved."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mola_core.analysis.figures.style import NOTICE_COLOUR
from mola_core.files import atomic_write

KINDS = ("svg", "png")


def heading(figure: Figure, notices: Sequence[str]) -> None:
    """Print the study's notices above a figure, so that they stay with it wherever it is copied to."""
    if notices:
        wide = int(figure.get_figwidth() * 19)
        text = "\n".join(textwrap.wrap(" ".join(notices), wide))
        figure.suptitle(text, fontsize=6.5, color=NOTICE_COLOUR, fontweight="bold", x=0.02, ha="left")


def save_figure(figure: Figure, stem: Path) -> None:
    """Write `stem.svg` and `stem.png`. Neither holds a time, so the same results give the same files."""
    for kind in KINDS:
        with atomic_write(stem.with_name(f"{stem.name}.{kind}")) as temporary:
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(temporary, format=kind, metadata=metadata)
