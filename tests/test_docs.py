"""The documentation builds without a broken link, its commands are verbs as they are, and the quick ones run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mola_core import cli
from mola_core.runs.plan import OPTIONS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- test -->\n)?```(\w+)\n(.*?)```", re.S)


def blocks(page: Path) -> list[tuple[bool, str, str]]:
    """(whether it is to be run, language, text) of a page's blocks of code."""
    return [(bool(mark), kind, text) for mark, kind, text in BLOCK.findall(page.read_text(encoding="utf-8"))]


def commands(program: str) -> list[tuple[str, list[str]]]:
    """Page and arguments of each command line that begins with `program`."""
    found = []
    for page in PAGES:
        for _, kind, text in blocks(page):
            for line in text.splitlines() if kind == "sh" else []:
                line = re.sub(r"^[A-Z_]+=\S+ ", "", line.strip())
                if line.startswith(f"{program} "):
                    found.append((page.name, shlex.split(line.split(" > ")[0], comments=True)[1:]))
    return found


def test_the_pages_name_verbs_and_options_that_exist():
    found = commands("mola")
    assert len(found) > 20
    for page, arguments in found:
        try:
            cli._parser().parse_args(arguments)
        except SystemExit as stop:
            assert not stop.code, f"{page}: mola {' '.join(arguments)}"


def test_the_pages_name_configuration_and_profiles_that_exist():
    found = commands("snakemake")
    assert len(found) > 8
    for page, arguments in found:
        if "--config" in arguments:
            given = arguments[arguments.index("--config") + 1 :]
            keys = [argument.split("=")[0] for argument in given if "=" in argument]
            assert keys and set(keys) <= set(OPTIONS), f"{page}: {arguments}"
        if "--profile" in arguments:
            assert (ROOT / arguments[arguments.index("--profile") + 1] / "config.yaml").is_file()
    makefile = (ROOT / "Makefile").read_text()
    for page, arguments in commands("make"):
        assert f"\n{arguments[0]}: " in makefile, f"{page}: make {arguments[0]}"


def test_the_yaml_of_the_pages_is_what_studies_hold():
    from mola_core.study.study import Study

    seen = 0
    for page in PAGES:
        for _, kind, text in blocks(page):
            if kind == "yaml":
                content = yaml.safe_load(text)
                assert content is None or set(content) <= set(Study.model_fields), f"{page}: {text}"
                seen += 1
    assert seen >= 4


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(run for run, _, _ in blocks(page))], ids=lambda page: page.stem
)
def test_quick_commands_run(page, tmp_path):
    """A page's marked blocks, one after another in one folder."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    for run, kind, text in blocks(page):
        if run:
            program = ["bash", "-euo", "pipefail", "-c"] if kind == "sh" else [sys.executable, "-c"]
            done = subprocess.run(
                [*program, text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_the_site_builds_strictly(tmp_path, caplog):
    pytest.importorskip("material")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"))
    build(config)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    site = tmp_path / "site"
    study = (site / "reference/study.html").read_text()
    for setting in ("learning_rate", "report_to", "cells_per_gpu", "hypotheses"):
        assert f"<code>{setting}</code>" in study
    verbs = (site / "reference/verbs.html").read_text()
    assert all(f'id="{verb}"' in verbs for verb in ("init", "status", "export", "run"))
    assert (site / "figures/verdict-forest.svg").stat().st_size > 1000
    fetched = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', study)
    assert fetched == [], "nothing is fetched from elsewhere"


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1200
    assert text.count("![") == 1
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not link.startswith(("http", "figures/", "../figures/")):
                assert (page.parent / link).exists(), f"{page}: {link}"


def test_the_container_has_what_the_wheel_is_made_of():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {Path(name).parts[0] for name in [*wheel["force-include"], *wheel["packages"]]}
    needed |= {project["project"]["readme"], *project["project"]["license-files"], "constraints.txt"}
    text = (ROOT / "Containerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.*)$", text, re.M) for name in line.split()[:-1]}
    assert needed <= copied
    assert copied == {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    assert all((ROOT / name).exists() for name in copied)
