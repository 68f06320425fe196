"""Task files of the user's folder: right or refused before anything is written, in keys, packs and jobs, and no code unasked."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from task_rows import write_split

from mola_core import tasks
from mola_core.cli import main
from mola_core.errors import MolaError
from mola_core.runs import start
from mola_core.runs.key import keys
from mola_core.runs.layout import Layout
from mola_core.runs.plan import plan
from mola_core.study.loading import load_study

BASE = """
dataset_path: someone/colours
training_split: train
validation_split: validation
output_type: multiple_choice
doc_to_choice: [red, green]
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TASK = """
include: _base.yaml
task: colours
doc_to_text: "{{question}}\\nAnswer:"
"""
CODE = "def text(doc):\n    return doc['question'] + ' Shade:'\n"
STUDY = """
name: own
description: a task of one's own
model: {{name: tiny, source: random}}
data: {{source: directory, root: {root}}}
tasks: [{task}]
methods: [base, mola-2468]
seeds: [0]
training: {{epochs: 1, batch_size: 8, micro_batch_size: 4, learning_rate: 1.0e-2, warmup_steps: 0}}
compute: {{threads: 1, memory_gb: 2}}
"""


@pytest.fixture(autouse=True)
def no_folder_stays():
    yield
    tasks.include(None)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("rows")
    for split, count in (("train", 16), ("validation", 8)):
        asked = [{"question": f"Is {split} {number} even?", "label": number % 2} for number in range(count)]
        write_split(root, "colours", split, asked)
    return root


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two tasks, one of which has a function."""
    own = tmp_path / "task files"
    own.mkdir()
    (own / "_base.yaml").write_text(BASE)
    (own / "colours.yaml").write_text(TASK)
    (own / "deeper").mkdir()
    shades = "include: ../_base.yaml\ntask: shades\ndoc_to_text: !function prompts.text\n"
    (own / "deeper" / "shades.yaml").write_text(shades)
    (own / "deeper" / "prompts.py").write_text(CODE)
    return own


def study(tmp_path: Path, rows: Path, task: str = "colours") -> list[str]:
    file = tmp_path / "own.yaml"
    file.write_text(STUDY.format(root=rows, task=task))
    return ["--study", str(file), "--results", str(tmp_path / "results")]


def prompts(tmp_path: Path, task: str) -> list[str]:
    file = tmp_path / f"results/own/examples/{task}/evaluation.parquet"
    return [row["prompt"] for row in pq.read_table(file).to_pylist()]


def test_a_task_of_the_folder_is_trained_scored_and_in_its_cells_keys(tmp_path, rows, folder):
    options = [*study(tmp_path, rows), "--include", str(folder)]
    assert main(["run", *options]) == 0
    assert prompts(tmp_path, "colours")[0] == "Is validation 0 even?\nAnswer:"
    assert main(["collect", *options]) == 0
    scores = pq.read_table(tmp_path / "results/own/scores.parquet").to_pandas()
    assert scores.groupby("method").size().to_dict() == {"base": 8, "mola-2468": 8}

    def states() -> list[str]:
        layout = Layout(load_study(tmp_path / "own.yaml"), tmp_path / "results")
        tasks.include(folder)
        return [keys(layout, cell).evaluation for cell in layout.study.cells()]

    before = states()
    assert None not in before
    shutil.move(folder, tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", folder)
    assert states() == before, "a key does not hold the folder's place"
    (folder / "colours.yaml").write_text(TASK + "description: 'Look. '\n")
    assert states() != before


def test_code_runs_when_who_types_says_so_and_is_in_the_keys(tmp_path, rows, folder, capsys):
    options = [*study(tmp_path, rows, "shades"), "--include", str(folder)]
    assert main(["run", *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "task shades: it runs code, !function prompts.text; add --include-functions" in line
    assert not (tmp_path / "results").exists()
    assert main(["run", *options, "--include-functions"]) == 0
    assert prompts(tmp_path, "shades")[0] == "Is validation 0 even? Shade:"

    def key() -> str | None:
        layout = Layout(load_study(tmp_path / "own.yaml"), tmp_path / "results")
        tasks.include(folder, functions=True)
        return keys(layout, layout.study.cells()[1]).training

    before = key()
    assert before
    (folder / "colours.yaml").write_text(TASK + "description: 'Look. '\n")
    assert key() == before, "another task's file"
    (folder / "words.json").write_text("[]")
    assert key() != before, "a file that the code may read"
    (folder / "words.json").unlink()
    assert key() == before
    (folder / "deeper" / "prompts.py").write_text(CODE.replace("Shade", "Hue"))
    assert key() != before
    assert main(["run", *options, "--include-functions"]) == 0
    assert prompts(tmp_path, "shades")[0] == "Is validation 0 even? Hue:"


def change(file: str, text: str | None):
    def apply(folder: Path) -> None:
        if text is None:
            (folder / file).unlink()
        else:
            (folder / file).write_text(text)

    return apply


def elsewhere(folder: Path) -> None:
    (folder.parent / "elsewhere.yaml").write_text(TASK)
    (folder / "other.yaml").symlink_to(folder.parent / "elsewhere.yaml")


def bomb(folder: Path) -> None:
    lines = ["a: &a [1]", *(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]" for a, b in zip("abcdefghi", "bcdefghij"))]  # noqa: B905
    (folder / "colours.yaml").write_text("\n".join([*lines, TASK]))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda folder: [shutil.rmtree(folder), folder.mkdir()], "no task file"),
        (lambda folder: [shutil.rmtree(folder), folder.write_text("")], "no such folder"),
        (change("colours.yaml", "task: [colours"), "colours.yaml: cannot be read as YAML"),
        (change("colours.yaml", "- colours"), "must be a mapping"),
        (change("colours.yaml", TASK + "task: colours\n"), "there twice"),
        (change("colours.yaml", "\0"), "cannot be read as YAML"),
        (change("colours.yaml", TASK.replace("task: colours", "task: colors")), "its `task:` is 'colors'"),
        (change("colours.yaml", BASE), "it has no `task:`"),
        (change("colours.yaml", TASK.replace("task: colours", "task: [a, b]")), r"its `task:` is \"\['a', 'b'\]\""),
        (change("colours.yaml", TASK + "doc_to_txt: x\n"), "doc_to_txt: lm-eval has no such setting, did you mean"),
        (change("colours.yaml", TASK + "training_split: 1\n"), "training_split: must be text, not '1'"),
        (change("colours.yaml", TASK + "dataset_path: json\n"), "'json' is a kind of file"),
        (change("colours.yaml", TASK + "metric_list: acc\n"), "metric_list: 'a' is no metric"),
        (change("colours.yaml", TASK + "metric_list: [{metric: acc, hf_evaluate: true}]\n"), "is no metric of lm-eval"),
        (change("colours.yaml", TASK + "dataset_path: null\n"), "no dataset_path"),
        (change("colours.yaml", TASK + "output_type: generate_until\n"), "not a plain multiple_choice"),
        (change("colours.yaml", TASK + "validation_split: train\n"), "which it is trained on"),
        (change("_base.yaml", None), "include: _base.yaml: no such file; correct it"),
        (change("_base.yaml", "include: colours.yaml\n"), "is read already"),
        (change("colours.yaml", TASK.replace("_base.yaml", "[_base.yaml, _base.yaml]")), "is read already"),
        (change("colours.yaml", TASK + "num_fewshot: 5\n"), "num_fewshot: 5: a study is zero-shot"),
        (lambda folder: os.mkfifo(folder / "prompts.py"), "prompts.py: is no file"),
        (lambda folder: os.mkfifo(folder / "new.yaml"), "new.yaml: is no file"),
        (lambda folder: (folder / "lost").symlink_to("nothing"), "lost: is no file"),
        (change("colours.yaml", TASK.replace("_base", "../_base")), "is outside of the folder"),
        (change("colours.yaml", TASK.replace("_base.yaml", "/etc/hosts")), "is outside of the folder"),
        (change("deeper/prompts.py", None), "prompts.py is not beside it"),
        (change("deeper/shades.yaml", "task: shades\ndoc_to_text: !function os.system\n"), "os.py is not beside it"),
        (change("deeper/colours.yaml", TASK.replace("_base", "../_base")), "is a task of that name too"),
        (change("new.yml", TASK), "end in .yaml; rename it"),
        (change("cola.yaml", "include: _base.yaml\ntask: cola\n"), "this project has a task 'cola'"),
        (change("cola_generate.yaml", "include: _base.yaml\ntask: cola_generate\n"), "this project has a task"),
        (change("scienceqa-biology.yaml", "include: _base.yaml\ntask: scienceqa-biology\n"), "this project has"),
        (change("arc_easy.yaml", "include: _base.yaml\ntask: arc_easy\n"), "lm-eval has a task 'arc_easy'"),
        (elsewhere, "is a link out of the folder"),
        (bomb, "more than 100000 values"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_before_anything_is_written(tmp_path, rows, folder, capsys, spoil, words):
    options = study(tmp_path, rows)
    spoil(folder)
    assert main(["run", *options, "--include", str(folder)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(words, line), line
    assert str(folder) in line or "task colours" in line
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--include-functions"], "goes with --include"),
        ([], "'colours': unknown; .* --include DIR"),
    ],
)
def test_options_that_say_nothing_are_refused(tmp_path, rows, capsys, options, words):
    assert main(["data", *study(tmp_path, rows), *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(words, line)


def test_a_template_reads_its_document_and_runs_nothing(tmp_path, rows, folder, capsys):
    """Jinja reaches any code from a text's class, without `!function`."""
    mark = tmp_path / "mark"
    reach = f"{{{{ cycler.__init__.__globals__.os.system('touch {mark}') }}}}"
    (folder / "colours.yaml").write_text(TASK.replace("{{question}}", reach))
    assert main(["data", *study(tmp_path, rows), "--include", str(folder)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "task colours: its rows give no prompt (SecurityError" in line
    assert not mark.exists()


@pytest.mark.parametrize(
    ("changes", "metric"),
    [
        ({"doc_to_choice": ["red", "green", "blue"], "metric_list": [{"metric": "f1"}]}, "f1"),
        (
            {
                "doc_to_choice": "{{['red', 'green'] + ['blue'] * (question.split()[2] | int % 2)}}",
                "metric_list": [{"metric": "brier_score"}],
            },
            "brier_score",
        ),
        ({"metric_list": [{"metric": "acc_norm", "aggregation": "bogus"}]}, "acc_norm"),
        (
            {"metric_list": [{"metric": name} for name in ("acc", "acc_norm", "f1", "mcc", "brier_score")]},
            None,
        ),
    ],
)
def test_a_metric_that_cannot_be_computed_is_found_before_the_first_training(
    tmp_path, rows, folder, capsys, changes, metric
):
    (folder / "colours.yaml").write_text(TASK + yaml.safe_dump(changes))
    asked = main(["data", *study(tmp_path, rows), "--include", str(folder)])
    assert asked == (0 if metric is None else 2)
    if metric:
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"task colours: metric_list: lm-eval cannot compute {metric} of these documents (" in line
        assert not (tmp_path / "results/data").exists() or not list(
            (tmp_path / "results/data").glob("colours*")
        )


@pytest.mark.parametrize("wanted", ["label", "nosuch", 5, None])
def test_documents_that_belong_together_are_told_by_a_column(tmp_path, rows, folder, capsys, wanted):
    metadata = {"cluster": wanted} if wanted else "x"
    (folder / "colours.yaml").write_text(TASK + yaml.safe_dump({"metadata": metadata}))
    options = [*study(tmp_path, rows), "--include", str(folder)]
    asked = main(["model", *options]) or main(["data", *options]) or main(["examples", *options])
    if wanted == "label":
        assert asked == 0
        table = pq.read_table(tmp_path / "results/own/examples/colours/evaluation.parquet")
        assert table["cluster"].to_pylist() == [str(number % 2) for number in range(8)]
    else:
        assert asked == 2
        assert "task colours: metadata" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [True, False])
def test_documents_keep_their_group_where_code_orders_and_leaves_out(tmp_path, rows, folder, capsys, kept):
    """The groups were those of the rows in their places before."""
    label = "" if kept else ".rename_column('label', 'right')"
    code = f"""
def some(docs):
    docs = docs.filter(lambda doc: '4' not in doc['question'])
    return docs.select(range(len(docs))[::-1]){label}
"""
    (folder / "deeper" / "prompts.py").write_text(CODE + code)
    own = "include: ../_base.yaml\ntask: shades\ndoc_to_text: '{{question}}'\nprocess_docs: !function prompts.some\n"
    own += "metadata: {cluster: label}\n" + ("" if kept else "doc_to_target: right\n")
    (folder / "deeper" / "shades.yaml").write_text(own)
    options = [*study(tmp_path, rows, "shades"), "--include", str(folder), "--include-functions"]
    asked = main(["model", *options]) or main(["data", *options]) or main(["examples", *options])
    if kept:
        assert asked == 0
        for part in ("train", "validation", "evaluation"):
            table = pq.read_table(tmp_path / f"results/own/examples/shades/{part}.parquet").to_pylist()
            assert table and all(row["cluster"] == str(row["answer"]) for row in table)
        assert [row["prompt"][-7:] for row in table][:4] == ["7 even?", "6 even?", "5 even?", "3 even?"]
    else:
        assert asked == 2
        assert (
            "task shades: metadata.cluster: process_docs leaves column 'label' out" in capsys.readouterr().err
        )


def test_code_that_goes_by_pythons_hash_of_texts_is_found(tmp_path, rows, folder, capsys):
    """It is the same in one process, and another in the next."""
    code = CODE.replace("Shade:'", "Shade ' + str(hash(doc['question']))")
    (folder / "deeper" / "prompts.py").write_text(code)
    options = [*study(tmp_path, rows, "shades"), "--include", str(folder), "--include-functions"]
    assert main(["run", *options]) == 2
    assert "task shades: row 0 of train differs between two renderings" in capsys.readouterr().err


def test_a_metric_that_lm_eval_would_fetch_is_left_out(tmp_path, rows, folder, monkeypatch):
    import evaluate

    monkeypatch.setattr(evaluate, "load", lambda *_, **__: pytest.fail("fetches code"))
    (folder / "colours.yaml").write_text(TASK + "metric_list: [{metric: acc}, {metric: someone/metric}]\n")
    assert main(["data", *study(tmp_path, rows), "--include", str(folder)]) == 0


def test_the_census_lists_the_folder_with_reasons(folder, capsys):
    listed = ["tasks", "^(colours|shades)$", "--include", str(folder)]
    assert main([*listed, "--all"]) == 0
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "colours  " in said["colours"] and "runs code" in said["shades"]
    assert main([*listed, "--include-functions"]) == 0
    assert "runs code" not in capsys.readouterr().out


def test_functions_of_lm_evals_own_tasks_are_named_without_their_place():
    """Keys must be the same wherever lm-eval is installed."""
    config = tasks.task_config("hellaswag")
    assert config["process_docs"] == "hellaswag/utils.process_docs"
    for task in ("cola", "scienceqa-biology"):
        assert tasks.task_config(task, "generate")["metric_list"][0]["metric"] == "answers.acc"


def test_jobs_of_a_run_are_given_the_folder(tmp_path, rows, folder):
    options = study(tmp_path, rows, "shades")
    config = [f"study={options[1]}", f"results={options[3]}", f"include={folder}"]
    command = [sys.executable, "-m", "snakemake", "-n", "-p", "--quiet", "host", "--config", *config]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert refused.returncode != 0 and "add --include-functions" in refused.stderr
    done = subprocess.run(
        [*command, "include_functions=true"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    assert f"--include '{folder}' --include-functions" in done.stdout


@pytest.mark.parametrize(
    ("config", "typed", "words"),
    [
        ({"include_functions": True}, "include_functions=true", None),
        ({"include_functions": True}, "study=x", "comes from a file; type include_functions=true"),
        ({"include_functions": True}, "include_functions=false", "comes from a file"),
        ({"include_functions": "ja"}, "include_functions=ja", "'ja'; write include_functions=true"),
        ({"include_functions": False}, "study=x", "runs code"),
    ],
)
def test_only_who_types_lets_code_run(tmp_path, rows, folder, monkeypatch, config, typed, words):
    options = study(tmp_path, rows, "shades")
    monkeypatch.setattr(sys, "argv", ["snakemake", "--config", typed])
    given = config | {"study": options[1], "results": options[3], "include": str(folder)}
    monkeypatch.setattr("mola_core.runs.plan._as_typed", lambda option, value, typed: value)
    if words is None:
        assert plan(given, fresh=True).options[-1] == "--include-functions"
        return
    with pytest.raises(MolaError, match=words):
        plan(given, fresh=True)
    assert not (tmp_path / "results").exists()


def test_a_study_file_cannot_ask_for_it(tmp_path, rows, folder, capsys):
    options = study(tmp_path, rows, "shades")
    file = Path(options[1])
    for extra in ({"include": str(folder)}, {"include_functions": True}):
        file.write_text(yaml.safe_dump(yaml.safe_load(STUDY.format(root=rows, task="shades")) | extra))
        assert main(["run", *options]) == 2
        assert "unknown key" in capsys.readouterr().err


def test_the_files_that_a_study_needs_travel_with_its_pack(tmp_path, rows, folder):
    options = [*study(tmp_path, rows, "shades"), "--include", str(folder), "--include-functions"]
    (folder / "secret.yaml").write_text("include: _base.yaml\ntask: secret\n")
    assert main(["pack", *options, "--out", str(tmp_path / "pack"), "--no-wheels"]) == 0
    content = json.loads((tmp_path / "pack" / "pack.json").read_text())
    start.unpack(tmp_path / "pack", content, tmp_path / "there")
    there = tmp_path / "there" / content["include"]
    found = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    assert found == {"_base.yaml", "deeper/shades.yaml", "deeper/prompts.py"}
    # On that machine who types must say it again.
    command = [sys.executable, str(tmp_path / "pack" / "start.py"), "--time-budget", "300"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and "add --include-functions" in refused.stderr
    done = subprocess.run([*command, "--include-functions"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "pack" / "results.tar.gz") as archive:
        archive.extractall(tmp_path / "results", filter="data")
    tasks.include(folder, functions=True)
    layout = Layout(load_study(tmp_path / "own.yaml"), tmp_path / "results")
    from mola_core.runs.state import cell_state

    assert {cell_state(layout, cell) for cell in layout.study.cells()} == {"complete"}
