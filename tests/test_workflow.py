"""The whole DAG as a user runs it: everything, then nothing, then only what changed; and every shipped study."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mola_core.study.loading import STUDIES

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(file.stem for file in STUDIES.glob("*.yaml"))


def snakemake(*arguments, **config):
    """Run Snakemake with this interpreter from the project's folder."""
    command = [sys.executable, "-m", "snakemake", *arguments]
    if config:
        command += ["--config", *(f"{key}={value}" for key, value in config.items())]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=1500)


def jobs(output: str) -> dict[str, int]:
    """Jobs by rule, from the table that Snakemake prints."""
    table = output.split("Job stats:")[1].split("\n\n")[0].splitlines()
    rows = [line.split() for line in table]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit() and row[0] != "total"}


def small(tmp_path, **changes) -> Path:
    """A study file of one task and three methods, the smallest that goes through every rule."""
    content = yaml.safe_load((STUDIES / "smoke.yaml").read_text())
    content |= {"name": "small", "tasks": ["cola"], "methods": ["base", "lora-r4", "mola-2468"], "seeds": [0]}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(content | changes))
    return file


@pytest.mark.parametrize("name", SHIPPED)
def test_dry_run_of_every_shipped_study(name, tmp_path):
    done = snakemake("-n", "--quiet", "rules", study=name, results=tmp_path / "results")
    assert done.returncode == 0, done.stderr + done.stdout


def test_a_bad_study_stops_before_anything_runs(tmp_path):
    study = small(tmp_path, tasks=["cola", "nonesuch"], colour="red")
    done = snakemake("--cores", "1", study=study, results=tmp_path / "results")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "colour" in line]
    assert said == [f"snakemake: study {study}: colour: unknown key; remove it or correct it"]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_everything_then_nothing_then_what_changed(tmp_path):
    results = tmp_path / "results"
    study = small(tmp_path)
    first = snakemake("--cores", "2", study=study, results=results)
    assert first.returncode == 0, first.stderr
    folder = results / "small"
    manifest = json.loads((folder / "cells/cola/mola-2468/seed0/manifest.json").read_text())
    assert manifest["training"]["experts"] == [2, 4, 6, 8]
    for name in ("summary.md", "scores.parquet", "verdict.json", "verdict.md", "tables/accuracy.tex"):
        assert (folder / name).stat().st_size > 0
    assert "stand-in" in (folder / "summary.md").read_text().lower()
    assert "step 6/6" in (folder / "logs/cell/cola/mola-2468/seed0.log").read_text()

    second = snakemake("--cores", "2", study=study, results=results)
    assert second.returncode == 0, second.stderr
    assert "Nothing to be done" in second.stdout + second.stderr

    small(tmp_path, methods=["base", {"method": "lora-r4", "dropout": 0.1}, "mola-2468"])
    third = snakemake("-n", study=study, results=results)
    planned = jobs(third.stdout)
    assert planned["cell"] == 1
    assert "model" not in planned
    assert "data" not in planned
    assert {"collect", "tables", "figures", "verdict", "summary"} <= set(planned)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"dataroot": "/x"},
            "--config dataroot: unknown, did you mean 'data_root'?; give study, data_root, results, include or include_functions",
        ),
        (
            {"results": "/tmp/s{y}"},
            "--config results: /tmp/s{y}: braces have a meaning for Snakemake; rename it",
        ),
    ],
)
def test_bad_configuration_is_one_line(config, message):
    done = snakemake("-n", study="smoke", **config)
    assert done.returncode != 0
    assert f"snakemake: {message}" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def test_another_workflow_takes_it_as_a_module(tmp_path):
    """Jobs get their command and options, which stand outside the rules, in the module's own names."""
    study = small(tmp_path)
    (tmp_path / "Snakefile").write_text(
        f"""
module mola:
    snakefile: "{ROOT}/Snakefile"
    config: {{"study": "{study}", "results": "results/mola"}}

use rule * from mola as mola_*

rule paper:
    default_target: True
    input: rules.mola_all.input
"""
    )
    command = [sys.executable, "-m", "snakemake", "-n", "--printshellcmds"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    planned = jobs(done.stdout)
    assert planned["mola_collect"] == planned["paper"] == 1
    assert f"-m mola_core.cli collect --study {study} --results results/mola" in done.stdout


def test_a_configuration_file_takes_the_same_keys(tmp_path):
    study = small(tmp_path)
    (tmp_path / "config.yaml").write_text(f"study: {study}\nresults: {tmp_path / 'results'}\n")
    done = snakemake("-n", "--quiet", "host", "--configfile", str(tmp_path / "config.yaml"))
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'results'}/small/scores.parquet" in done.stdout
    (tmp_path / "config.yaml").write_text("studie: smoke\n")
    done = snakemake("-n", "--quiet", "host", "--configfile", str(tmp_path / "config.yaml"))
    assert done.returncode != 0
    assert "--config studie: unknown" in done.stderr


def test_each_finding_of_the_linter_is_answered():
    """docs/howto/workflow.md says why these are left."""
    done = snakemake("--lint", study="smoke")
    found = set(re.findall(r"^    \* (.*):$", done.stdout + done.stderr, re.M))
    answers = (ROOT / "docs/howto/workflow.md").read_text()
    assert found == {
        "Specify a conda environment or container for each rule.",
        "Mixed rules and functions in same snakefile.",
    }
    assert all(finding in answers for finding in found)
