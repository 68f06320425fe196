"""Keys: each edit of code, study, rows or task changes the keys of what it can change, and no others."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mola_core.code_hash import code_hash, reached

PACKAGE = Path(__file__).parent.parent / "mola_core"
STUDY = """
name: keys
description: Keys of a tiny study
model: {name: tiny, source: random}
data: {source: builtin, train_documents: 24, test_documents: 8}
tasks: [cola, scienceqa]
methods:
  - base
  - lora-r4
  - mola-2468
  - {method: mola-2468, name: slow, learning_rate: 1.0e-4}
  - random-20-1
seeds: [0]
training: {epochs: 1, batch_size: 8, micro_batch_size: 4, learning_rate: 1.0e-2, warmup_steps: 1}
compute: {threads: 1, memory_gb: 2}
"""
TRAINING, EVALUATION = "training_key", "evaluation_key"


def mola(package: Path, *arguments: object) -> str:
    """What `mola` of a copy of the package prints."""
    command = [sys.executable, "-m", "mola_core.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=package.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def listed(package: Path, root: Path, study: Path) -> dict[tuple[str, str], dict]:
    lines = mola(
        package, "cells", "--study", study, "--results", root / "results", "--format", "json"
    ).splitlines()
    return {(cell["task"], cell["method"]): cell for cell in map(json.loads, lines)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A study file, prepared model, rows and examples, and the cells' keys under the code as it is."""
    root = tmp_path_factory.mktemp("keys")
    (root / "study.yaml").write_text(STUDY)
    (root / "code").mkdir()
    shutil.copytree(PACKAGE, root / "code" / "mola_core", ignore=shutil.ignore_patterns("__pycache__"))
    package = root / "code" / "mola_core"
    for verb in ("model", "data", "examples"):
        mola(package, verb, "--study", root / "study.yaml", "--results", root / "results")
    return root, package, listed(package, root, root / "study.yaml")


def edited(world, tmp_path, edits: dict[str, tuple[str, str]]) -> dict[tuple[str, str], dict]:
    """The cells under a copy of the code in which in each file one text stands for another."""
    root, package, _ = world
    copy = tmp_path / "mola_core"
    shutil.copytree(package, copy)
    for name, (old, new) in edits.items():
        file = copy / name
        text = file.read_text() if file.exists() else ""
        assert text.count(old) >= 1, f"{name} has no {old!r}: change this test with the code"
        file.write_text(text.replace(old, new, 1) if old else text + new)
    return listed(copy, root, root / "study.yaml")


def changed(before: dict, after: dict, key: str) -> set[tuple[str, str]]:
    return {cell for cell in before if before[cell][key] != after[cell][key]}


def trained(cells: dict) -> set[tuple[str, str]]:
    return {cell for cell in cells if cell[1] != "base"}


TRAINING_EDITS = {
    "validation rows": ("runs/training.py", 'trained_on(cell), "train", settings', 'trained_on(cell), "validation", settings'),
    "end of text on every answer": ("runs/training.py", 'end = self.study.protocol == "generate"', "end = True"),
    "another seed": ("runs/training.py", "set_seed(seed)", "set_seed(seed + 1)"),
    "loss on nothing": ("training/batches.py", "row[: len(row) - answer] = IGNORED", "row[: len(row) - answer + 1] = IGNORED"),
    "order": ("training/batches.py", "descending=True, stable=True", "descending=False, stable=True"),
    "decay": ("training/trainer.py", "weight_decay=settings.weight_decay", "weight_decay=0.1"),
    "adapter in half precision": ("models/weights.py", "parameter.data.float()", "parameter.data.half()"),
    "cut": ("models/tokens.py", "[-room:]", "[:room]"),
    "base model in training mode": ("models/loading.py", "return model.eval()", "return model.train()"),
    "dropped checkpoints": ("runs/recovery.py", 'scratch.glob("checkpoint-*")', 'scratch.glob("checkpoint-0*")'),
}  # fmt: skip


@pytest.mark.parametrize("edit", TRAINING_EDITS)
def test_an_edit_of_training_code_changes_every_trained_cell(world, tmp_path, edit):
    name, old, new = TRAINING_EDITS[edit]
    before, after = world[2], edited(world, tmp_path, {name: (old, new)})
    assert changed(before, after, TRAINING) == trained(before)
    assert trained(before) <= changed(before, after, EVALUATION)


EVALUATION_EDITS = {
    "likelihoods": ("evaluation/harness.py", "likelihoods.gather(1, option.unsqueeze(1)).squeeze(1)", "likelihoods.gather(1, option.unsqueeze(1)).squeeze(1).abs()"),
    "position of an option": ("evaluation/harness.py", "end = len(scores) - (len(row) - len(inputs[index]))", "end = len(scores)"),
    "copies of a document": ("evaluation/unanswered.py", "copies == 0", "copies >= 0"),
    "another split": ("runs/opened.py", "part = self.study.scored_part", 'part = "train"'),
    "answer": ("evaluation/harness.py", "likelihoods.index(max(likelihoods))", "likelihoods.index(min(likelihoods))"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EVALUATION_EDITS)
def test_an_edit_of_evaluation_code_changes_the_scores_and_no_training(world, tmp_path, edit):
    name, old, new = EVALUATION_EDITS[edit]
    before, after = world[2], edited(world, tmp_path, {name: (old, new)})
    assert changed(before, after, EVALUATION) == set(before)
    assert changed(before, after, TRAINING) == set()


def test_the_adapters_code_counts_for_its_own_cells_only(world, tmp_path):
    edit = {"adapter/config.py": ("", "\nEXTRA = 1\n")}
    before, after = world[2], edited(world, tmp_path, edit)
    mine = {cell for cell in before if cell[1] not in ("base", "lora-r4")}
    assert changed(before, after, TRAINING) == mine
    assert changed(before, after, EVALUATION) == mine


def test_how_data_choose_experts_counts_where_they_do(world, tmp_path):
    edit = {"methods/allocation.py": ("np.ones(4)", "np.ones(4) * 2")}
    before, after = world[2], edited(world, tmp_path, edit)
    assert changed(before, after, TRAINING) == {cell for cell in before if cell[1] == "random-20-1"}


UNUSED = {
    "shapes.py": ("", "\n\ndef unused(shape: str) -> int:\n    return 1\n"),
    "training/batches.py": ("", "\n\ndef unused(rows: list) -> int:\n    return 1\n"),
    "tasks/unused.yaml": ("", "task: unused\n"),
    "evaluation/router_counts.py": ("dtype=torch.float64", "dtype=torch.float32"),
    "analysis/collect.py": ("", "\nUNUSED = 1\n"),
    "training/trainer.py": ('"""The newest checkpoint', '"""The last checkpoint'),
    "models/tokens.py": ("    stripped = prompt.rstrip()", "    # Why not.\n    stripped = prompt.rstrip()"),
    "files.py": ("no such file", "no file of this name"),
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_no_cell_uses_changes_no_key(world, tmp_path, name):
    before, after = world[2], edited(world, tmp_path, {name: UNUSED[name]})
    assert changed(before, after, TRAINING) == changed(before, after, EVALUATION) == set()


def test_a_prompt_counts_for_its_own_task(world, tmp_path):
    """The examples of the other task stay; those of this one are to be rendered again, so it has no key yet."""
    edit = {"tasks/cola.yaml": ("Tell me if the statement", "Say whether the statement")}
    after = edited(world, tmp_path, edit)
    root, before = world[0], world[2]
    assert {cell for cell in before if after[cell][EVALUATION] is None} == {
        cell for cell in before if cell[0] == "cola"
    }
    shutil.copytree(root / "results", tmp_path / "results")
    shutil.copy(root / "study.yaml", tmp_path)
    mola(
        tmp_path / "mola_core",
        "examples",
        "--study",
        tmp_path / "study.yaml",
        "--results",
        tmp_path / "results",
    )
    again = listed(tmp_path / "mola_core", tmp_path, tmp_path / "study.yaml")
    assert changed(before, again, EVALUATION) == {cell for cell in before if cell[0] == "cola"}
    assert all(again[cell][EVALUATION] for cell in again)


@pytest.mark.parametrize(
    ("old", "new", "training"),
    [
        ("learning_rate: 1.0e-2", "learning_rate: 2.0e-2", {"lora-r4", "mola-2468", "random-20-1"}),
        ("learning_rate: 1.0e-4", "learning_rate: 2.0e-4", {"slow"}),
        ("seeds: [0]", "seeds: [0]\nadapter: {top_k: 1}", {"mola-2468", "slow", "random-20-1"}),
        ("seeds: [0]", "seeds: [0]\nadapter: {alpha: 32}", {"lora-r4", "mola-2468", "slow", "random-20-1"}),
        ("epochs: 1", "documents: 16, epochs: 1", {"lora-r4", "mola-2468", "slow", "random-20-1"}),
        ("threads: 1", "threads: 2", set()),
        ("a tiny study", "the same study", set()),
        ("epochs: 1", "checkpoint_minutes: 3, epochs: 1", set()),
        ("  - base\n", "", set()),
    ],
)  # fmt: skip
def test_a_setting_counts_for_the_cells_that_it_touches(world, tmp_path, old, new, training):
    root, package, before = world
    assert old in STUDY
    (tmp_path / "study.yaml").write_text(STUDY.replace(old, new))
    after = listed(package, root, tmp_path / "study.yaml")
    kept = {cell: before[cell] for cell in after}
    assert {method for _, method in changed(kept, after, TRAINING)} == training
    assert {method for _, method in changed(kept, after, EVALUATION)} == training


def test_each_seed_and_stage_has_keys_of_its_own(world, tmp_path):
    root, package, _ = world
    text = STUDY.replace("seeds: [0]", "seeds: [0, 1]")
    (tmp_path / "study.yaml").write_text(text)
    printed = mola(
        package,
        "cells",
        "--study",
        tmp_path / "study.yaml",
        "--results",
        root / "results",
        "--format",
        "json",
    )
    cells = [json.loads(line) for line in printed.splitlines()]
    trained_cells = [cell for cell in cells if cell["method"] != "base"]
    assert len({cell[TRAINING] for cell in trained_cells}) == len(trained_cells)
    assert len({cell[EVALUATION] for cell in cells}) == len(cells)


SELECTED = STUDY.replace("epochs: 1", "epochs: [1, 2]").replace("  - base\n", "")


@pytest.mark.parametrize(
    ("name", "old", "new", "counts"),
    [
        ("runs/selection.py", "accuracies[epoch])", "-accuracies[epoch])", True),
        ("evaluation/harness.py", "likelihoods.index(max(", "likelihoods.index(min(", True),
        ("evaluation/router_counts.py", "torch.float64", "torch.float32", False),
    ],
)
def test_where_an_epoch_is_chosen_scoring_decides_the_adapter(world, tmp_path, name, old, new, counts):
    root, package, _ = world
    (tmp_path / "study.yaml").write_text(SELECTED)
    before = listed(package, root, tmp_path / "study.yaml")
    copy = tmp_path / "mola_core"
    shutil.copytree(package, copy)
    (copy / name).write_text((copy / name).read_text().replace(old, new, 1))
    after = listed(copy, root, tmp_path / "study.yaml")
    assert all(cell[TRAINING] for cell in before.values())
    assert changed(before, after, TRAINING) == (set(before) if counts else set())


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_the_code_has_one_hash_on_every_python(version):
    found = shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "--version"], capture_output=True).returncode:
        found = next(iter(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python")), None)
    if found is None:
        pytest.skip(f"no Python {version} here")
    entries = [
        "mola_core.runs.training:TrainingRunner.train",
        "mola_core.runs.evaluation:EvaluationRunner.evaluate",
        "mola_core.adapter",
    ]
    code = (
        "import importlib.util, sys; s = importlib.util.spec_from_file_location('code_hash', sys.argv[1]);"
        "m = importlib.util.module_from_spec(s); s.loader.exec_module(m); print(m.code_hash(*sys.argv[2:]))"
    )
    command = [str(found), "-c", code, str(PACKAGE / "code_hash.py"), *entries]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == code_hash(*entries)


def test_what_is_reached_is_what_trains():
    """Spot checks of the code that counts: called far away, by method, by property, through an __init__."""
    found = {
        f"{module}:{name}" for module, name in reached(("mola_core.runs.training:TrainingRunner.train",))
    }
    for place in (
        "training.trainer:Progress.on_step_end",
        "training.batches:Packer.__call__",
        "training.batches:POOL",
        "models.base:Base.lend",
        "models.weights:_fit_virtual_tokens",
        "study.effective:effective_training",
        "training.allocate:gradient_scores",
    ):
        assert f"mola_core.{place}" in found
    for place in (
        "analysis.collect:write",
        "runs.local:run",
        "evaluation.router_counts:Watch.see",
        "tasks.rows:prepare_task",
    ):
        assert f"mola_core.{place}" not in found
    with pytest.raises(ValueError, match="no such code"):
        code_hash("mola_core.runs.cell:nothing")


def test_a_base_model_in_several_wheels_has_an_identity():
    """Its settings hold a list, which is no key of a cache."""
    from mola_core.models.loading import model_identity
    from mola_core.runs.key import _identity
    from mola_core.study.loading import load_study

    source = load_study("quickstart").model
    assert _identity(source) == _identity(source) == model_identity(source)
