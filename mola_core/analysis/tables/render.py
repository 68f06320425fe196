"""Write one table as CSV (numbers), Markdown and LaTeX (what is read), with its notices in each of them."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from mola_core.files import atomic_write, write_text

KINDS = ("csv", "md", "tex")
EMPTY = "–"
_LATEX = {"±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$", "†": r"$^\dagger$"} | {
    "□": r"$\square$",
    "△": r"$\triangle$",
    "▽": r"$\triangledown$",
    "▷◁": r"$\bowtie$",
    "✸": r"$\ast$",
}


def write_table(
    folder: Path,
    stem: str,
    title: str,
    numbers: pd.DataFrame,
    shown: pd.DataFrame,
    notices: Sequence[str],
    notes: Sequence[str] = (),
) -> None:
    """Write `folder/stem.{csv,md,tex}`.

    `numbers` is the CSV, unrounded; `shown` has strings only, its first column to the left and the others to the
    right. `notices` come before the table and `notes` after it; the CSV has the notices in its last column.
    """
    numbers = numbers.copy()
    numbers["notices"] = " ".join(notices)
    with atomic_write(folder / f"{stem}.csv") as temporary:
        inert(numbers).to_csv(temporary, index=False)
    write_text(folder / f"{stem}.md", markdown(title, shown, notices, notes))
    write_text(folder / f"{stem}.tex", latex(stem, title, shown, notices, notes))


def markdown(
    title: str, shown: pd.DataFrame, notices: Sequence[str], notes: Sequence[str], level: int = 1
) -> str:
    quoted = ["> **" + notice.replace("*", r"\*") + "**" for notice in notices]
    parts = [f"{'#' * level} {title}", "  \n".join(quoted), pipe_table(shown), *notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def pipe_table(shown: pd.DataFrame) -> str:
    return _tabulate(shown, "pipe")


def latex(stem: str, title: str, shown: pd.DataFrame, notices: Sequence[str], notes: Sequence[str]) -> str:
    """A table environment for booktabs, graphicx and amssymb; wide tables shrink to the text's width."""
    caption = " ".join([f"{title}.", *notices, *notes])
    body = _mathematical(_tabulate(shown, "latex_booktabs"))
    return (
        "% needs \\usepackage{booktabs,graphicx,amssymb}\n"
        f"\\begin{{table*}}[t]\n\\centering\n\\caption{{{_mathematical(_escaped(caption))}}}\n\\label{{tab:{stem}}}\n"
        f"\\resizebox{{\\ifdim\\width>\\textwidth\\textwidth\\else\\width\\fi}}{{!}}{{%\n{body}}}\n\\end{{table*}}\n"
    )


def _tabulate(shown: pd.DataFrame, kind: str) -> str:
    aligned = ["left", *["right"] * (shown.shape[1] - 1)]
    return tabulate(
        shown.to_numpy().tolist(),
        list(shown.columns),
        kind,
        disable_numparse=True,
        colalign=aligned[: shown.shape[1]],
    )


def _escaped(text: str) -> str:
    return latex_text(re.sub(r"[*`]", "", text))


def latex_text(text: object) -> str:
    """Text of others for LaTeX: no character of it is a command."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in " ".join(str(text).split()))


def markdown_text(text: object) -> str:
    """Text of others for Markdown: one line, in which nothing is a heading, link, image, table or HTML."""
    return re.sub(r"([\\`*_\[\]<>|!#~$])", r"\\\1", " ".join(str(text).split()))


def inert(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with texts that a spreadsheet would take for a formula behind an apostrophe."""

    def cell(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value

    texts = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    return frame.assign(**{str(name): frame[name].map(cell) for name in texts})


def _mathematical(text: str) -> str:
    for character, command in _LATEX.items():
        text = text.replace(character, command)
    return text


def percent(value: float | None, digits: int = 2) -> str:
    """A share between 0 and 1 as percent, `EMPTY` where there is none."""
    return EMPTY if value is None or pd.isna(value) else f"{round(100 * value, 6):.{digits}f}"


def points(value: float | None) -> str:
    """A difference of shares as percentage points with its sign."""
    return EMPTY if value is None or pd.isna(value) else f"{100 * value:+.2f}".replace("-", "−")


def count(value: int | None) -> str:
    return EMPTY if value is None or pd.isna(value) else f"{int(value):,}"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
