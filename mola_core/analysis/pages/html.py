"""A Markdown page as one HTML file that needs nothing beside it: figures are inside, no script, no network."""

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

from mola_core.files import write_text

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.25; } img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left; }
code { background: #f3f3f3; padding: 0 0.2em; } blockquote { border-left: 3px solid #ccc; margin-left: 0; padding-left: 1rem; }
"""
KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


def write_page(markdown: Path, target: Path | None = None) -> Path:
    """Render `markdown` to HTML beside it (or at `target`); images are read relative to the Markdown file.

    Raises FileNotFoundError where an image of the page is missing.
    """
    text = markdown.read_text(encoding="utf-8")
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(r'src="([^":]+)"', lambda found: f'src="{_inside(markdown.parent / found[1])}"', body)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    title = html.escape(
        next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), "MoLA")
    )
    target = target or markdown.with_suffix(".html")
    write_text(
        target,
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n{body}</body>\n</html>\n",
    )
    return target


def _inside(image: Path) -> str:
    content = base64.b64encode(image.read_bytes()).decode()
    return f"data:{KINDS[image.suffix]};base64,{content}"
