"""Every published study: its committed tables and figures are those that the code makes of its committed scores."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from mola_core.cli import main
from mola_core.records import digest, read_record

PUBLISHED = Path(__file__).parent.parent / "results" / "published"
STUDIES = sorted(file.parent.name for file in PUBLISHED.glob("*/scores.parquet"))
MADE = (
    "tables/*.md",
    "tables/*.csv",
    "tables/*.tex",
    "figures/*.svg",
    "verdict.*",
    "summary.md",
    "knockout.csv",
)
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def read(path: Path) -> tuple[str, list[float]]:
    """A file's text with its fractional numbers cut out, and the numbers: their last digit may differ by machine."""
    text = path.read_text(encoding="utf-8")
    return NUMBER.sub("#", text), [float(number) for number in NUMBER.findall(text)]


def test_a_study_is_published():
    assert STUDIES or not PUBLISHED.is_dir()


@pytest.mark.parametrize("name", STUDIES)
def test_the_committed_tables_and_figures_are_those_of_the_scores(tmp_path, name):
    committed, again = PUBLISHED / name, tmp_path / name
    again.mkdir()
    for file in (*committed.glob("*.parquet"), *committed.glob("*.jsonl"), *committed.glob("tuning.*")):
        shutil.copy(file, again)
    knocked_out = list(committed.glob("cells/*/*/*/knockout.csv"))
    for file in knocked_out:
        copy = again / file.relative_to(committed)
        copy.parent.mkdir(parents=True)
        shutil.copy(file, copy)
    for verb in ("tables", "figures", "verdict", "summary", *(["knockout"] if knocked_out else [])):
        assert main([verb, "--study", name, "--results", str(tmp_path)]) == 0
    made = {file.relative_to(again) for pattern in MADE for file in again.glob(pattern)}
    made -= {file for file in made if file.suffix == ".html"}
    kept = {file.relative_to(committed) for pattern in MADE for file in committed.glob(pattern)}
    assert made == {file for file in kept if file.suffix != ".html"}
    for file in sorted(made):
        text, numbers = read(again / file)
        expected, values = read(committed / file)
        assert text == expected, f"{file}: run `make published`"
        assert numbers == pytest.approx(values, rel=1e-6, abs=2e-3 if file.suffix == ".svg" else 1e-9), file


@pytest.mark.parametrize("name", STUDIES)
def test_the_manifests_are_whole_and_those_of_the_scores(name):
    cells = pd.read_parquet(PUBLISHED / name / "cells.parquet").set_index(["task", "method", "seed"])
    for (task, method, seed), cell in cells.iterrows():
        manifest = read_record(PUBLISHED / name / f"cells/{task}/{method}/seed{seed}/manifest.json")
        if "digest" in manifest:  # of version 0.1: one digest of training and evaluation together
            assert manifest["digest"] == cell["digest"] == digest(manifest["settings"])
        else:
            assert manifest["evaluation_key"] == cell["evaluation_key"]
        assert manifest["samples_sha256"] == cell["samples_sha256"]
        assert manifest["evaluation"]["accuracy"] == pytest.approx(cell["accuracy"])
        assert not manifest["stand_in"]
        first = PUBLISHED / name / "first-run.csv"
        if first.is_file() and manifest["training"]:
            rows = pd.read_csv(first).set_index(["task", "method", "seed"])
            if (task, method, seed) not in rows.index:
                continue  # run once, after the others had been run twice
            earlier = rows.loc[(task, method, seed)]
            assert earlier["adapter_sha256"] == manifest["training"]["adapter_sha256"]
            assert earlier["commit"] != cell["commit"]
    assert len(cells) == len(list((PUBLISHED / name).glob("cells/*/*/*/manifest.json")))
