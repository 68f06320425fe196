"""The wheel: the adapter works with its few dependencies, and a study is planned from any folder."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that holds what a wheel of this checkout installs."""
    hatchling = pytest.importorskip("hatchling.build")
    folder = tmp_path_factory.mktemp("wheel")
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        wheel = hatchling.build_wheel(str(folder))
    finally:
        os.chdir(here)
    with zipfile.ZipFile(folder / wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def python(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in `folder` with the wheel's package in place of the checkout's."""
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment, check=False, timeout=600
    )


def test_a_study_is_planned_from_any_folder_with_the_wheel_alone(installed, tmp_path):
    told = python(installed, tmp_path, "-m", "mola_core.cli", "where", "--workflow")
    snakefile = told.stdout.strip()
    assert snakefile == str(installed / "mola_core" / "Snakefile"), told.stderr
    command = ["snakemake", "-n", "--quiet", "progress", "-s", snakefile, "--config", "study=smoke"]
    planned = python(installed, tmp_path, "-m", *command)
    assert planned.returncode == 0, planned.stderr
    assert "profiles/default" in planned.stderr, "the default profile is found beside the Snakefile"
    assert str(installed) in planned.stdout, "the workflow is the wheel's"
    assert not (tmp_path / "results").exists()


def test_the_wheel_has_every_study_task_and_reference_table(installed):
    for pattern in ("studies/*.yaml", "tasks/*.yaml", "tasks/*.json", "analysis/reference/*.csv"):
        here = {file.name for file in (ROOT / "mola_core").glob(pattern)}
        assert here
        assert {file.name for file in (installed / "mola_core").glob(pattern)} == here
    for folder in ("rules", "profiles", "report", "schemas"):
        here = {
            file.relative_to(ROOT): file.read_bytes()
            for file in (ROOT / "workflow" / folder).rglob("*")
            if file.is_file()
        }
        assert here
        for name, content in here.items():
            assert (installed / "mola_core" / name).read_bytes() == content


ADAPTER = """
import sys
import torch
import mola_core
from mola_core.adapter import MolaConfig
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

assert mola_core.__file__.startswith({site!r}), mola_core.__file__

def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                                        num_attention_heads=2, vocab_size=32))

model = get_peft_model(base(), MolaConfig(num_experts=[2, 4], top_k=2, r=2, target_modules=["q_proj"]))
for name, parameter in model.named_parameters():
    if "mola_B" in name:
        torch.nn.init.ones_(parameter)
tokens = torch.arange(8)[None]
logits = model.eval()(tokens).logits
assert (logits != base().eval()(tokens).logits).any()
model.save_pretrained("adapter")
assert (PeftModel.from_pretrained(base(), "adapter").eval()(tokens).logits == logits).all()
ours = {{name for name in sys.modules if name.startswith("mola_core.")}}
assert all(name.startswith("mola_core.adapter") for name in ours), ours
assert not {{"lm_eval", "snakemake", "tabulate"}} & set(sys.modules)
"""


def test_the_adapter_imports_what_the_plain_install_brings():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plain = {entry.split(">=")[0] for entry in project["dependencies"]}
    files = [ROOT / "mola_core" / "__init__.py", *(ROOT / "mola_core" / "adapter").glob("*.py")]
    found = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    assert found - set(sys.stdlib_module_names) - {"mola_core"} == plain


def test_the_adapter_works_without_the_harness(installed, tmp_path):
    code = ADAPTER.format(site=str(installed))
    done = python(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr


def test_a_wheel_in_another_project_s_checkout_records_no_commit(installed, tmp_path):
    """Its environment may lie in a repository that is not ours."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    copy = tmp_path / "own" / "mola_core"
    copy.mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "files.py", "records.py"):
        (copy / name).write_bytes((installed / "mola_core" / name).read_bytes())
    code = "import mola_core.records as records; print(records.__file__); print(records.git_state())"
    done = python(tmp_path / "own", tmp_path, "-c", code)
    assert done.stdout.splitlines() == [str(copy / "records.py"), "{}"], done.stderr


def test_a_new_module_makes_the_code_one_that_no_commit_has(installed, tmp_path):
    copy = tmp_path / "mola_core"
    copy.mkdir()
    for name in ("__init__.py", "errors.py", "files.py", "records.py"):
        (copy / name).write_bytes((installed / "mola_core" / name).read_bytes())
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)

    def dirty() -> str:
        code = "import mola_core.records as records; print(records.git_state()['dirty'])"
        return python(tmp_path, tmp_path, "-c", code).stdout.strip()

    (tmp_path / "notes.txt").write_text("")
    assert dirty() == "False"
    (copy / "families.py").write_text("")
    assert dirty() == "True"


def test_one_list_of_pythons():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    minors = [
        int(name.rpartition(".")[2])
        for name in project["classifiers"]
        if name.startswith("Programming Language :: Python :: 3.")
    ]
    assert project["requires-python"] == f">=3.{min(minors)},<3.{max(minors) + 1}"
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["check"]
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in minors]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert (ROOT / ".ci/run").is_file()
    assert f"3.{min(minors)} to 3.{max(minors)}" in (ROOT / "README.md").read_text()


def test_the_files_at_the_front_door_name_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = (ROOT / "mola_core/__init__.py").read_text().split('__version__ = "')[1].split('"')[0]
    assert citation["version"] == version
    assert f"## {version} - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text()
