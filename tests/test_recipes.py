"""CONTRIBUTING's recipes, each tried: what is added touches one file, and works from there to its numbers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PACKAGE = Path(__file__).parent.parent / "mola_core"
TASK = """
task: mola_colours
dataset_path: someone/colours
training_split: train
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: [red, green]
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0, columns: [question, label]}
"""
STUDY = """
name: recipes
description: something that was added
model: {{name: tiny, source: random}}
data: {{source: directory, root: {root}}}
tasks: [colours]
methods: [base, mola-2468]
seeds: [0]
training: {{epochs: 1, batch_size: 8, micro_batch_size: 4, learning_rate: 1.0e-2, warmup_steps: 0}}
compute: {{threads: 1, memory_gb: 2}}
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package to add to, and a way to run its `mola`."""
    copy = tmp_path / "mola_core"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def mola(*arguments: object) -> str:
        command = [sys.executable, "-m", "mola_core.cli", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return copy, mola


def test_a_task_is_one_file(package, tmp_path):
    copy, mola = package
    (copy / "tasks" / "colours.yaml").write_text(TASK)
    folder = tmp_path / "rows" / "colours"
    folder.mkdir(parents=True)
    for split, count in (("train", 24), ("validation", 8)):
        rows = [{"question": f"Is {split} {number} even?", "label": number % 2} for number in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    study = tmp_path / "recipes.yaml"
    study.write_text(STUDY.format(root=tmp_path / "rows"))
    options = ["--study", study, "--results", tmp_path / "results"]
    mola("run", *options)
    mola("collect", *options)
    states = [json.loads(line)["state"] for line in mola("cells", *options, "--format", "json").splitlines()]
    assert states == ["complete", "complete"]
    examples = pq.read_table(tmp_path / "results/recipes/examples/colours/evaluation.parquet").to_pylist()
    assert examples[0]["prompt"].endswith("Is validation 0 even?\nAnswer:")
    assert [row["answer"] for row in examples] == [0, 1] * 4


METHOD = '''
"""Half of a LoRA: a family made up by a test."""
from mola_core.methods.family import Family
from mola_core.shapes import lora_parameters


def config(request):
    rank = request.method.rank
    return {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "use_rslora": True, **request.lora_common}


def parameters(request, sizes):
    return sum(lora_parameters([request.method.rank], layer.values()) for layer in sizes)


FAMILIES = (
    Family("half", (r"half-r(?P<rank>[1-9]\\d*)",), "half-r<k>", "baseline", "#123456", "H", config, parameters),
)
'''
BUILT_IN = STUDY.replace("{{source: directory, root: {root}}}", "{{source: builtin, train_documents: 16, test_documents: 8}}").replace("[colours]", "[cola]")  # fmt: skip


def test_a_method_is_one_file(package, tmp_path):
    copy, mola = package
    study = tmp_path / "recipes.yaml"
    study.write_text(BUILT_IN.format().replace("mola-2468]", "mola-2468, half-r4]"))
    (copy / "methods" / "families" / "half.py").write_text(METHOD)
    options = ["--study", study, "--results", tmp_path / "results"]
    mola("run", *options)
    for verb in ("collect", "tables", "figures", "verdict", "summary"):
        mola(verb, *options)
    config = json.loads(
        (tmp_path / "results/recipes/cells/cola/half-r4/seed0/adapter/adapter_config.json").read_text()
    )
    assert (config["r"], config["use_rslora"]) == (4, True)
    parameters = (tmp_path / "results/recipes/tables/parameters.csv").read_text()
    [line] = [line for line in parameters.splitlines() if line.startswith("half-r4")]
    built = json.loads((tmp_path / "results/recipes/cells/cola/half-r4/seed0/training.json").read_text())
    assert str(built["trainable_parameters"]) in line


FIGURE = '''
"""Figure: cells of the study, made up by a test."""
from mola_core.analysis.figures.registry import FigureEntry


def draw(data):
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots()
    axis.bar([0], [len(data.cells)])
    return figure


def caption(data):
    return f"{len(data.cells)} cells of {data.study.name}."


FIGURE = FigureEntry("documents", "study", 9, "Cells of the study", draw, caption)
'''


def test_a_figure_is_one_file(package, tmp_path):
    copy, mola = package
    study = tmp_path / "recipes.yaml"
    study.write_text(BUILT_IN.format())
    (copy / "analysis" / "figures" / "catalogue" / "documents.py").write_text(FIGURE)
    options = ["--study", study, "--results", tmp_path / "results"]
    mola("run", *options)
    for verb in ("collect", "figures", "tables", "verdict", "summary"):
        mola(verb, *options)
    figure = tmp_path / "results/recipes/figures/documents.svg"
    assert "stand-in" in figure.read_text().lower(), "notices stand on it as on the others"
    assert "2 cells of recipes." in (tmp_path / "results/recipes/index.html").read_text()


def test_a_half_added_method_is_an_error_and_no_other_method(package, tmp_path):
    copy, _ = package
    (copy / "methods" / "families" / "half.py").write_text(METHOD.replace(", parameters),", "),"))
    study = tmp_path / "recipes.yaml"
    study.write_text(BUILT_IN.format().replace("mola-2468]", "half-r4]"))
    command = [sys.executable, "-m", "mola_core.cli", "cells", "--study", str(study)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0
    assert "parameters" in done.stderr


def test_a_form_of_shapes_is_one_entry(package, tmp_path):
    copy, mola = package
    shapes = copy / "shapes.py"
    entry = (
        "SHAPE_FAMILIES = (\n    ShapeFamily(r'pyramid-\\d+', lambda shape, depth: [2 + min(i, depth - 1 - i) for i in "
        "range(depth)], lambda shape: int(shape.split('-')[1])),\n    ShapeFamily(QUARTERS"
    )
    text = shapes.read_text()
    assert text.count("SHAPE_FAMILIES = (ShapeFamily(QUARTERS") == 1
    shapes.write_text(text.replace("SHAPE_FAMILIES = (ShapeFamily(QUARTERS", entry))
    study = tmp_path / "recipes.yaml"
    study.write_text(
        BUILT_IN.format().replace("mola-2468]", "mola-2468, mola-pyramid-10, lora-matched-pyramid-10]")
    )
    options = ["--study", study, "--results", tmp_path / "results"]
    mola("run", *options)
    for verb in ("collect", "tables", "figures", "verdict", "summary"):
        mola(verb, *options)
    cells = tmp_path / "results/recipes/cells/cola"
    config = json.loads((cells / "mola-pyramid-10/seed0/adapter/adapter_config.json").read_text())
    assert config["num_experts"] == [2, 3, 3, 2]
