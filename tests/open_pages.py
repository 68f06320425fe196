"""Open HTML pages in a real browser and fail on a script error or an image that does not show.

    python tests/open_pages.py results/quickstart/report.html results/quickstart/verdict.html

Needs Chromium (Debian: `apt-get install chromium`).
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync", "--disable-quic", "--enable-logging=stderr"]
PROBE = """<script>addEventListener("load", () => {
  const dark = [...document.images].filter(image => !image.naturalWidth).length;
  document.documentElement.dataset.images = document.images.length;
  document.documentElement.dataset.dark = dark;
});</script>"""


def problems(page: Path, browser: str) -> list[str]:
    """What is wrong with a page as the browser sees it; empty where nothing is."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        copy.write_text(page.read_text(encoding="utf-8") + PROBE, encoding="utf-8")
        command = [
            browser,
            *OPTIONS,
            f"--user-data-dir={folder}/profile",
            "--virtual-time-budget=10000",
            "--dump-dom",
        ]
        done = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=120)
    found = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "Uncaught" in line]
    counted = re.search(r'data-images="(\d+)" data-dark="(\d+)"', done.stdout)
    if not counted:
        found.append("the page did not load")
    elif counted[2] != "0":
        found.append(f"{counted[2]} of {counted[1]} images do not show")
    missing = [name for name in expected_figures(page) if name not in page.read_text(encoding="utf-8")]
    return found + [f"figure {name} is missing" for name in missing]


def expected_figures(page: Path) -> list[str]:
    """Snakemake's report holds its figures as data, shown on demand: each of the study's must be named in it."""
    return (
        [file.name for file in (page.parent / "figures").glob("*.svg")] if page.name == "report.html" else []
    )


def main() -> int:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        print("open_pages: no Chromium found; install it (Debian: apt-get install chromium)", file=sys.stderr)
        return 2
    failed = False
    for page in map(Path, sys.argv[1:]):
        found = problems(page, browser)
        failed |= bool(found)
        print(f"{page}: {'; '.join(found) or 'opens without an error'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
