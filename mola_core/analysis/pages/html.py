"""HTML pages that need nothing beside them: figures inside, no network, text of others as text.

A figure is embedded as an image, so that nothing in it can run, and only from `figures/` or the folder of the page
itself: no other file of the machine reaches a page, whatever a name in the results says.
"""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from markdown_it import MarkdownIt

from mola_core.files import write_text

KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
PIXELS_PER_INCH = 128
"""Pixels of the page that an inch of a figure takes: 8 points become 14 pixels, about the text's size."""
SENTENCE = 30
"""Letters from which a cell of a table holds a sentence."""
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")


def document(title: str, body: str) -> str:
    """A whole page; `body` is HTML."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<style>\n{STYLE}</style>\n</head>\n<body>\n{body}\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )


def write_page(markdown: Path, target: Path | None = None) -> Path:
    """Render `markdown` to HTML beside it (or at `target`). An image that is not there is named, not shown."""
    text = markdown.read_text(encoding="utf-8")
    title = next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), "MoLA")
    target = target or markdown.with_suffix(".html")
    write_text(target, document(title, f"<main>\n{markdown_html(text, markdown.parent)}</main>"))
    return target


def markdown_html(text: str, folder: Path) -> str:
    """Markdown as HTML; its raw HTML is text, its images are figures of `folder` or their words."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(
        r'<img src="([^"]*)" alt="([^"]*)"[^>]*>', lambda found: _image(folder, *found.groups()), body
    )
    body = re.sub(
        r'<a href="([^"]*)"[^>]*>(.*?)</a>', lambda found: _link(folder, *found.groups()), body, flags=re.S
    )
    return body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def _image(folder: Path, source: str, words: str) -> str:
    words = html.unescape(words)
    name = html.unescape(source)
    if re.fullmatch(r"(figures/)?[A-Za-z0-9_.-]+\.(svg|png)", name):
        return embedded(folder, name, words)
    return _absent(words)


def _absent(words: str) -> str:
    return f"<em>(figure not here: {html.escape(words)})</em>"


def embedded(folder: Path, name: str, words: str) -> str:
    """The image `folder/name` inside the page, as wide as its text is legible; its words where it is not there."""
    path = folder / name
    inside = path.resolve().is_relative_to(folder.resolve())
    if not inside or not path.is_file() or path.suffix not in KINDS:
        return _absent(words)
    content = path.read_bytes()
    width = _inches(content) if path.suffix == ".svg" else None
    pixels = f"{round(width * PIXELS_PER_INCH)}px" if width else ""
    # On a narrow screen a wide figure scrolls rather than shrinks to what nobody can read.
    size = f' style="width: {pixels}; min-width: min({pixels}, 38rem)"' if pixels else ""
    data = base64.b64encode(content).decode()
    return f'<img src="data:{KINDS[path.suffix]};base64,{data}" alt="{html.escape(words)}"{size}>'


def _inches(svg: bytes) -> float | None:
    found = re.search(rb'<svg [^>]*\bwidth="([0-9.]+)pt"', svg[:4000])
    return float(found[1]) / 72 if found else None


def _link(folder: Path, target: str, words: str) -> str:
    """Links to Markdown go to its HTML where that is there, else they are words."""
    local = html.unescape(target)
    if re.fullmatch(r"[\w./-]+\.md", local):
        page = Path(local).with_suffix(".html")
        if not (folder / page).is_file():
            return words
        target = html.escape(page.as_posix())
    return f'<a href="{target}">{words}</a>'


def figure(folder: Path, name: str, title: str, caption: str) -> str:
    """`figures/<name>.svg` with its title and caption; empty where it was not drawn."""
    if not (folder / "figures" / f"{name}.svg").is_file():
        return ""
    image = embedded(folder, f"figures/{name}.svg", f"{title}. {caption}")
    text = f"<strong>{html.escape(title)}.</strong> {html.escape(caption)}"
    return f'<figure id="{html.escape(name)}"><div class="wide">{image}</div><figcaption>{text}</figcaption></figure>'


def table(frame: pd.DataFrame, left: Sequence[str] = ()) -> str:
    """A table that can be sorted by its columns; all but the first and those in `left` stand to the right."""
    names = list(map(str, frame.columns))
    sides = ["l" if place == 0 or name in left else "r" for place, name in enumerate(names)]
    head = "".join(
        f'<th class="{side}" aria-sort="none"><button type="button">{html.escape(name)}</button></th>'
        for name, side in zip(names, sides, strict=True)
    )
    rows = "".join(
        "<tr>" + "".join(_cell(str(value), side) for value, side in zip(row, sides, strict=True)) + "</tr>\n"
        for row in frame.to_numpy().tolist()
    )
    return f'<div class="wide table"><table class="sort"><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>'


def _cell(text: str, side: str) -> str:
    """A cell; one that holds a sentence gets room for it."""
    long = " long" if side == "l" and len(text) > SENTENCE else ""
    return f'<td class="{side}{long}">{html.escape(text)}</td>'


def folded(title: str, body: str, opened: bool = False) -> str:
    """A section that can be folded; empty where there is nothing in it."""
    if not body.strip():
        return ""
    state = " open" if opened else ""
    return f"<details{state}><summary><h2>{html.escape(title)}</h2></summary>\n{body}\n</details>"
