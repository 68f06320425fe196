"""Planning by content: what Snakemake runs again is what is not current, whoever made it and wherever it was copied."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from simulated_study import make_study

from mola_core.cli import main
from mola_core.errors import MolaError
from mola_core.runs import gpus
from mola_core.runs.key import Keys
from mola_core.runs.layout import Layout
from mola_core.runs.plan import Plan, plan
from mola_core.runs.state import Standing

ROOT = Path(__file__).parent.parent
STUDY = """
name: planned
description: Planning of a tiny study
model: {name: tiny, source: random}
data: {source: builtin, train_documents: 16, test_documents: 8}
tasks: [cola]
methods: [base, lora-r4, mola-2468]
seeds: [0]
training: {epochs: 1, batch_size: 8, micro_batch_size: 4, learning_rate: 1.0e-2, warmup_steps: 0}
compute: {threads: 1, memory_gb: 2}
"""


def snakemake(*arguments: object, results: Path, study: Path, cwd: Path = ROOT) -> str:
    """Output of a dry run, unless `arguments` say otherwise."""
    command = [sys.executable, "-m", "snakemake", *map(str, arguments or ["-n"])]
    command += ["--config", f"study={study}", f"results={results}"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ)
    return done.stdout + done.stderr


def planned(results: Path, study: Path, cwd: Path = ROOT) -> dict[str, int]:
    """Jobs of a dry run by rule; empty where nothing is to be done."""
    said = snakemake(results=results, study=study, cwd=cwd)
    if "Nothing to be done" in said:
        return {}
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", said.partition("Job stats:")[2], re.MULTILINE))
    assert jobs, said
    return {rule: int(count) for rule, count in jobs.items() if rule not in ("total", "all", "out_of_date")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that `mola run` ran and Snakemake ended: results, study file."""
    folder = tmp_path_factory.mktemp("planned")
    study = folder / "planned.yaml"
    study.write_text(STUDY)
    assert main(["run", "--study", str(study), "--results", str(folder / "results")]) == 0
    jobs = planned(folder / "results", study)
    assert jobs and not {"cell", "evaluate"} & set(jobs), "what `mola run` made is taken as it is"
    said = snakemake("--cores", "2", results=folder / "results", study=study)
    assert planned(folder / "results", study) == {}, said
    return folder / "results", study


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the results, all times lost, and of the study file, which has moved too."""
    shutil.copytree(finished[0], tmp_path / "results", copy_function=shutil.copyfile)
    shutil.copy(finished[1], tmp_path)
    (tmp_path / "results" / "planned" / "study.json").unlink()
    return tmp_path / "results", tmp_path / "planned.yaml"


CELLS = {"cell": 2, "evaluate": 1}


def test_a_copy_is_taken_as_it_is(copied):
    assert planned(*copied) == {}


def test_another_spelling_of_the_path_is_the_same_place(finished):
    results, study = finished
    assert planned(Path(f"{results}/../results/./"), study) == {}
    assert planned(Path(os.path.relpath(results, ROOT)), study) == {}


def test_a_lost_memory_of_snakemake_is_no_matter(finished, tmp_path):
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    (tmp_path / "workflow").symlink_to(ROOT / "workflow")
    shutil.copy(ROOT / "Snakefile", tmp_path)
    assert planned(*finished, cwd=tmp_path) == {}


@pytest.mark.parametrize(
    ("old", "new", "jobs"),
    [
        ("1.0e-2", "2.0e-2", {"cell": 2}),
        ("warmup_steps: 0", "warmup_steps: 1", {"cell": 2}),
        ("seeds: [0]", "seeds: [0]\nadapter: {top_k: 1}", {"cell": 1}),
        ("seeds: [0]", "seeds: [0]\nevaluation: {documents: 4}", {"cell": 2, "evaluate": 1}),
        ("seeds: [0]", "seeds: [0]\nverdict: {power: 0.9}", {}),
        ("seeds: [0]", "seeds: [0, 1]", {"cell": 2}),
    ],
)  # fmt: skip
def test_a_changed_study_is_compared_with_what_is_there(copied, old, new, jobs):
    results, study = copied
    study.write_text(STUDY.replace(old, new))
    found = planned(results, study)
    assert {rule: count for rule, count in found.items() if rule in CELLS} == jobs
    assert {"tables", "figures", "verdict", "summary"} <= set(found)


@pytest.mark.parametrize(
    ("lost", "jobs"),
    [
        ("scores.parquet", {"collect"}),
        ("tables", {"tables"}),
        ("figures", {"figures", "verdict"}),
        ("verdict.json", {"verdict"}),
        ("cells", {"cell", "evaluate", "collect"}),
        ("cells/cola/lora-r4/seed0/manifest.json", {"cell", "collect"}),
        ("cells/cola/lora-r4/seed0/samples.parquet", {"cell", "collect"}),
        ("cells/cola/lora-r4/seed0/training.json", {"cell"}),
        ("summary.md", {"summary"}),
        ("figures/verdict-forest.png", {"verdict"}),
        ("../reanalysis/reanalysis.svg", {"reanalysis"}),
        ("examples", {"collect"}),
        ("../data", {"data"}),
        ("../models", {"model"}),
    ],
)
def test_what_was_removed_is_made_again(copied, lost, jobs):
    results, study = copied
    path = results / "planned" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = planned(results, study)
    if lost == "examples":
        assert found == {}, "they are rendered at planning, from the rows that are there"
        assert (results / "planned" / "examples" / "cola" / "examples.json").is_file()
    else:
        assert jobs <= set(found)


def test_jobs_whose_work_is_there_end_at_once(copied):
    """Rows lost: nothing can be compared when the run is planned, and no adapter is trained again all the same."""
    results, study = copied
    shutil.rmtree(results / "data")
    adapter = results / "planned/cells/cola/mola-2468/seed0/adapter/adapter_model.safetensors"
    before = adapter.stat().st_mtime_ns
    said = snakemake("--cores", "2", results=results, study=study)
    assert "already trained" in said and "already evaluated" in said
    assert adapter.stat().st_mtime_ns == before
    assert planned(results, study) == {}


def test_weights_that_are_gone_are_made_again_where_they_are_needed(copied):
    """Small files of another machine: complete cells stay as they are; one that is to be evaluated anew is trained anew."""
    results, study = copied
    for cell in ("lora-r4", "mola-2468"):
        shutil.rmtree(results / f"planned/cells/cola/{cell}/seed0/adapter")
    assert planned(results, study) == {}
    (results / "planned/cells/cola/lora-r4/seed0/samples.parquet").unlink()
    found = planned(results, study)
    assert found["cell"] == 1


def test_parents_whose_weights_are_gone_are_made_again_for_their_children(tmp_path):
    study = make_study(tasks=["cola"], methods=["mola-2468"], seeds=[0], instruction={})
    parent, child = study.all_cells()

    def trained(evaluated):
        planned = Plan(Layout(study, tmp_path), [], True)
        planned.__dict__["standings"] = {
            parent: Standing(Keys("parent", None), True, False),
            child: Standing(Keys("child", "scores"), True, evaluated),
        }
        return planned.trained(parent), planned.trained(child)

    assert trained(evaluated=True) == (True, True)
    assert trained(evaluated=False) == (False, False)
    Layout(study, tmp_path).weights(child).mkdir(parents=True)
    assert trained(evaluated=False) == (True, True), "nothing goes on from the parent any more"


def test_another_study_of_the_same_name_is_refused(finished, tmp_path):
    results, _ = finished
    other = tmp_path / "copy.yaml"
    other.write_text(STUDY.replace("1.0e-2", "2.0e-2"))
    said = snakemake(results=results, study=other)
    assert "holds the study of" in said and "another `name`" in said
    assert main(["run", "--study", str(other), "--results", str(results)]) == 2
    same = tmp_path / "planned.yaml"
    same.write_text(STUDY.replace("1.0e-2", "2.0e-2"))
    assert main(["run", "--study", str(same), "--results", str(results)]) == 2, (
        "the first file is still there"
    )


def test_results_of_another_study_are_left_alone_by_every_verb(finished, tmp_path, capsys):
    results, _ = finished
    other = tmp_path / "copy.yaml"
    other.write_text(STUDY + "verdict: {margin: 9}\n")
    before = {file: file.read_bytes() for file in (results / "planned").glob("*.*") if file.is_file()}
    for verb in ("collect", "tables", "figures", "verdict", "summary", "redundancy", "routing", "knockout"):
        assert main([verb, "--study", str(other), "--results", str(results)]) == 2
        assert "holds the study of" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before


def test_a_page_by_itself_says_nothing_of_tables_and_verdict(copied):
    """A changed margin, and `mola summary` by hand: tables, figures and verdict are still those of the old one."""
    results, study = copied
    study.write_text(STUDY + "verdict: {margin: 7}\n")
    assert main(["summary", "--study", str(study), "--results", str(results)]) == 0
    assert {"verdict", "tables", "figures", "summary"} <= set(planned(results, study))


def test_what_was_collected_of_other_settings_is_nothing_to_draw(copied, capsys):
    results, study = copied
    verbs = ("tables", "figures", "verdict", "summary")
    options = ["--study", str(study), "--results", str(results)]
    before = {file: file.read_bytes() for file in (results / "planned").rglob("*") if file.is_file()}
    for old, new, said in [
        ("1.0e-2", "2.0e-2", r"cola/lora-r4/seed0: training.training: learning_rate: 0.01 -> 0.02"),
        ("name: tiny", "name: other", r"cola/base/seed0: model: tiny -> other"),
        (
            "seeds: [0]",
            "seeds: [0]\nevaluation: {documents: 4}",
            r"cola/base/seed0: evaluation\.examples: cola",
        ),
        ("methods: [base, ", "methods: [", r"cola/base/seed0: is no cell of the study"),
    ]:
        study.write_text(STUDY.replace(old, new))
        for verb in verbs:
            assert main([verb, *options]) == 2
            line = capsys.readouterr().err
            assert re.search(
                f"what was collected is not what the study says now.*{said}.*mola collect", line
            ), line
    assert {file: file.read_bytes() for file in before} == before
    # Of what may be changed, a verb by hand makes files that are not those of the study before.
    study.write_text(STUDY + "verdict: {margin: 7}\n")
    assert main(["verdict", *options]) == 0
    study.write_text(STUDY)
    assert {"verdict", "summary"} <= set(planned(results, study))


def test_figures_of_adapters_come_into_the_page(copied):
    results, study = copied
    drawn = results / "planned/figures/knock_out.svg"
    drawn.write_text("<svg/>")
    assert "summary" in planned(results, study)


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1
    state = file.stat()
    file.write_bytes(bytes(content))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize(
    "name",
    [
        "planned/cells/cola/mola-2468/seed0/adapter/adapter_model.safetensors",
        "planned/cells/cola/mola-2468/seed0/adapter/adapter_config.json",
        "planned/cells/cola/mola-2468/seed0/training.json",
        "planned/cells/cola/mola-2468/seed0/train.jsonl",
        "planned/cells/cola/mola-2468/seed0/samples.parquet",
        "planned/cells/cola/mola-2468/seed0/manifest.json",
        "planned/examples/cola/train.parquet",
        "models/*/model.safetensors",
        "models/*/tokenizer.json",
        "data/*/cola/train.parquet",
        "planned/scores.parquet",
        "planned/cells.parquet",
        "planned/curves.parquet",
    ],
)
def test_verify_names_what_is_damaged(copied, capsys, name):
    results, study = copied
    arguments = ["verify", "--study", str(study), "--results", str(results)]
    assert main(arguments) == 0
    assert re.match(r"[1-9]\d* things were compared, all are", capsys.readouterr().out)
    [file] = results.glob(name)
    flip(file, file.stat().st_size // 2)
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert file.name in said.out or file.parent.name in said.out
    assert "Traceback" not in said.out + said.err


def test_why_says_which_part_differs(copied, capsys):
    results, study = copied
    arguments = ["cells", "--study", str(study), "--results", str(results), "--why", "cola", "lora-r4", "0"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == "nothing differs"
    study.write_text(STUDY.replace("1.0e-2", "2.0e-2"))
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "training.training: learning_rate: 0.01 -> 0.02" in said
    assert "code" not in said


def test_cells_say_their_state_and_keys(copied, capsys):
    results, study = copied
    arguments = ["cells", "--study", str(study), "--results", str(results), "--format", "json"]
    shutil.rmtree(results / "planned/cells/cola/base")
    (results / "planned/cells/cola/lora-r4/seed0/manifest.json").unlink()
    assert main(arguments) == 0
    found = {cell["method"]: cell for cell in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {method: cell["state"] for method, cell in found.items()} == {
        "base": "open",
        "lora-r4": "trained",
        "mola-2468": "complete",
    }
    assert set(found["base"]) == {"task", "method", "seed", "state", "training_key", "evaluation_key"}
    assert found["base"]["training_key"] is None
    assert re.fullmatch("[0-9a-f]{64}", found["base"]["evaluation_key"])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("results=2026_11_24", "reads '2026_11_24' as 20261124"),
        ("results=007", "reads '007' as 7"),
        ("results=1e3", "reads '1e3' as 1000.0"),
        ("results=True", "reads 'True' as True"),
        ("results=", "results: is empty"),
        ("results=-x", "looks like an option"),
        ("results=a: b", "as {'a': 'b'}"),
        ("results= x", "reads ' x' as 'x'"),
        ("results=x # y", "reads 'x # y' as 'x'"),
        ("results=a{b}", "braces have a meaning"),
        ("study=2468", "study: Snakemake reads '2468' as 2468"),
        ("data_root=", "data_root: is empty"),
        ("result=x", "result: unknown, did you mean 'results'"),
    ],
)
def test_config_values_are_as_typed_or_refused(monkeypatch, typed, message):
    from snakemake.cli import parse_config

    monkeypatch.setattr(sys, "argv", ["snakemake", "--config", "study=smoke", typed])
    with pytest.raises(MolaError) as error:
        plan({"study": "smoke"} | parse_config([typed]), fresh=True)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("typed", "folder"),
    [
        ('results="a b"', "a b"),
        ("results=./007", "007"),
        ("results=a b", "a b"),
        ("results=~/r", "home/r"),
    ],
)
def test_config_paths_are_taken_as_typed(monkeypatch, tmp_path, typed, folder):
    from snakemake.cli import parse_config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "home")
    monkeypatch.setattr(sys, "argv", ["snakemake", "--config", typed])
    assert plan({"study": "smoke"} | parse_config([typed]), fresh=True).layout.root == Path(folder)


def test_cards_that_a_machine_lacks_are_found_before_a_cell_is_begun(monkeypatch):
    for name in gpus.DECIDED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpus, "cards", lambda: ["GPU-1"])
    gpus.check_cards(1)
    with pytest.raises(MolaError, match="compute.gpus: 8 cards for a cell, but this machine has 1"):
        gpus.check_cards(8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    gpus.check_cards(8)


def test_the_local_runner_has_one_card_for_a_cell(tmp_path, capsys):
    study = tmp_path / "planned.yaml"
    study.write_text(
        STUDY.replace("threads: 1", "gpus: 8").replace(
            "batch_size: 8, micro_batch_size: 4", "batch_size: 8, micro_batch_size: 1"
        )
    )
    assert main(["run", "--study", str(study), "--results", str(tmp_path / "results")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "compute.gpus: 8 cards for a cell, but here each cell has one" in line
    assert not (tmp_path / "results" / "models").exists()
