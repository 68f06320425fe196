"""What figures share: notices, panels, legends, figures that say why they are empty, and saving as SVG and PNG."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mola_core.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("svg", "png")
COLUMN = 3.4
"""Width in inches of one column of a two-column paper."""
TEXT = 7.0
"""Width in inches of its text block."""
NOTICE_COLOUR = "#A03000"


def heading(figure: Figure, notices: Sequence[str]) -> None:
    """Print the study's notices above a figure, so that they stay with it wherever it is copied to."""
    if notices:
        wide = int(figure.get_figwidth() * 17)
        text = "\n".join(textwrap.wrap(" ".join(notices), wide))
        figure.suptitle(text, fontsize=7, color=NOTICE_COLOUR, fontweight="bold", x=0.02, ha="left")


def save_figure(figure: Figure, stem: Path, title: str | None = None, description: str = "") -> None:
    """Write `stem.svg` and `stem.png`. Neither holds a time, so the same results give the same files.

    `title` (default: the file's name) and `description` become the SVG's `<title>` and `<desc>`, which readers of
    screens speak, and the PNG's text fields.
    """
    title = title or stem.name.replace("_", " ").replace("-", " ")
    for kind in KINDS:
        with atomic_write(stem.with_name(f"{stem.name}.{kind}")) as temporary:
            if kind == "svg":
                figure.savefig(temporary, format=kind, metadata={"Date": None})
                text = temporary.read_text(encoding="utf-8")
                temporary.write_text(_described(text, title, description), encoding="utf-8")
            else:
                told = {"Software": None, "Title": title, "Description": description}
                figure.savefig(temporary, format=kind, metadata=told)


def _described(svg: str, title: str, description: str) -> str:
    """The SVG with `<title>` and `<desc>` as its first children and the role of an image."""
    head = f"<title>{html.escape(title)}</title>\n <desc>{html.escape(description or title)}</desc>"
    return re.sub(r"<svg ([^>]*)>", lambda found: f'<svg role="img" {found[1]}>\n {head}', svg, count=1)


def words(reason: str) -> Figure:
    """A figure that says why there is none."""
    import matplotlib.pyplot as plt

    lines = textwrap.wrap(reason, 52)
    figure, axis = plt.subplots(figsize=(COLUMN, 0.5 + 0.16 * len(lines)))
    axis.set_axis_off()
    axis.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", transform=axis.transAxes)
    return figure


def plain(name: object, width: int = 40) -> str:
    """A name of others as one line of a figure, cut where it is longer than `width` characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(name)).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def grid(
    panels: int, height: float, legend: float = 0.0, first_wide: bool = False
) -> tuple[Figure, list[Axes]]:
    """Panels in rows of up to three; `first_wide` gives the first one a row of its own. Sizes in inches."""
    import matplotlib.pyplot as plt

    small = panels - first_wide
    columns = min(3, small) if small != 4 else 2
    rows = -(-small // columns) + first_wide
    figure = plt.figure(figsize=(TEXT, height * rows * (1.25 if columns == 1 else 1) + legend))
    spec = figure.add_gridspec(rows, columns)
    axes = [figure.add_subplot(spec[0, :])] if first_wide else []
    axes += [
        figure.add_subplot(spec[index // columns + first_wide, index % columns]) for index in range(small)
    ]
    return figure, axes


def outer_labels(axes: Sequence[Axes], below: str, left: str) -> None:
    """Label the axes of the outer panels alone."""
    for axis in axes:
        place = axis.get_subplotspec()
        if place is None or place.is_first_col():
            axis.set_ylabel(left)
        if place is None or place.is_last_row():
            axis.set_xlabel(below)


def shared_legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend for all panels, below them."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    columns = min(legend_columns(figure.get_figwidth()), len(found))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=max(columns, 1))


def legend_columns(width: float) -> int:
    return max(2, int(width / 1.6))


def legend_height(entries: int, width: float = TEXT) -> float:
    """Inches that a legend with so many methods takes."""
    return 0.35 + 0.16 * -(-(entries + 2) // legend_columns(width))
