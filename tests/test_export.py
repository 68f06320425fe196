"""`mola export`: what a receiver gets of a finished cell; modes of files; and `mola init`: a study file from names."""

import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from model_folders import directory
from smoke_study import smoke

from mola_core import cli
from mola_core.errors import MolaError
from mola_core.files import MODE, atomic_write, read_json, write_json
from mola_core.locations import STUDIES
from mola_core.runs.cell import CellRunner
from mola_core.runs.export import export_adapter
from mola_core.runs.layout import Layout
from mola_core.runs.prepare import prepare_all
from mola_core.study.draft import METHODS, SETTINGS, write_draft
from mola_core.study.loading import load_study

SMALL = {"tasks": ["cola"], "methods": ["base", "lora-r4", "mola-2468"], "seeds": [0]}

RECEIVER = """
import sys
import torch
import mola_core
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
tokens = torch.arange(10)[None]
plain = base.eval()(tokens).logits
logits = PeftModel.from_pretrained(base, sys.argv[2]).eval()(tokens).logits
assert (logits != plain).any()
print(float(logits.double().sum()))
"""


def test_a_receiver_loads_what_was_trained(bench, tmp_path):
    import torch

    runner = bench(**SMALL)
    cell = runner.study.cell("cola", "mola-2468", 0)
    with pytest.raises(MolaError, match="not complete"):
        export_adapter(runner.layout, cell.path, tmp_path / "early")
    runner.run(cell)
    folder = export_adapter(
        runner.layout, cell.path, tmp_path / "out" / "mine", base="org/tiny", licence="mit"
    )
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {MODE}
    weights = runner.layout.weights(cell) / "adapter_model.safetensors"
    assert stat.S_IMODE(weights.stat().st_mode) == MODE
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"

    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert (head["base_model"], head["license"], head["library_name"]) == ("org/tiny", "mit", "peft")
    accuracy = json.loads((runner.layout.cell(cell) / "manifest.json").read_text())["evaluation"]["accuracy"]
    told = re.search(r"\| cola \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \| 24 \|", card)
    assert float(told[1]) == pytest.approx(100 * accuracy, abs=0.05)
    assert float(told[2]) < float(told[1]) < float(told[3])
    for part in ("import mola_core", "2 x 1, 4 x 1, 6 x 1, 8 x 1", "stand-in", "87,040", "base model: mit"):
        assert part in card
    assert str(tmp_path) not in card + (folder / "adapter_config.json").read_text()

    with runner.base.opened(runner.layout.weights(cell), False) as model, torch.no_grad():
        expected = float(model.eval()(torch.arange(10)[None]).logits.double().sum())
    done = subprocess.run(
        [sys.executable, "-c", RECEIVER, str(runner.layout.model), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(expected, rel=1e-6)

    for name, message in [
        (cell.path, "is there already"),
        ("cola/base/seed0", "has no adapter"),
        ("cola/nosuch/seed0", "no cell"),
        ("cola", "write a cell as TASK/METHOD/seedN"),
    ]:
        with pytest.raises(MolaError, match=message):
            export_adapter(runner.layout, name, folder if name == cell.path else tmp_path / "other")
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(MolaError, match="altered since it was trained"):
        export_adapter(runner.layout, cell.path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_lora_of_a_hub_model_names_id_and_commit(tiny, tmp_path, monkeypatch):
    own = tmp_path / "model"
    shutil.copytree(tiny, own, ignore=shutil.ignore_patterns("model.json"))
    (own / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    model = directory(own)
    layout = Layout(smoke(**SMALL).model_copy(update={"model": model}), tmp_path)
    cell = layout.study.cell("cola", "lora-r4", 0)
    monkeypatch.setattr(type(model), "on_hub", ("org/tiny", "0" * 40))
    prepare_all(layout)
    CellRunner(layout).run(cell)
    folder = export_adapter(layout, cell.path, tmp_path / "mine")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", "0" * 40)
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card and "at commit `" + "0" * 40 in card
    assert "import mola_core" not in card, "PEFT loads a LoRA by itself"
    for wrong in ({"base": "not an id"}, {"base": "../x/y"}, {"licence": "a\nb: c"}):
        with pytest.raises(MolaError, match="--base-model|--license"):
            export_adapter(layout, cell.path, tmp_path / "wrong", **wrong)
    other = export_adapter(layout, cell.path, tmp_path / "other", base="org/copy")
    config = json.loads((other / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/copy", None)
    assert "in float32, of which `org/copy` is to be a copy" in (other / "README.md").read_text()
    record = read_json(layout.model / "model.json")
    del record["licence"]  # of an earlier version
    write_json(layout.model / "model.json", record)
    export_adapter(layout, cell.path, tmp_path / "unknown")
    assert "base model: not known here" in (tmp_path / "unknown" / "README.md").read_text()


def test_modes_are_the_user_s_whatever_a_library_sets(tmp_path):
    with atomic_write(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "secret").write_text("x")
        (temporary / "secret").chmod(0o600)
    assert stat.S_IMODE((tmp_path / "folder" / "secret").stat().st_mode) == MODE


def draft(tmp_path, **changes):
    given = {
        "model": "quickstart",
        "revision": None,
        "tasks": ["cola"],
        "methods": None,
        "seeds": 2,
        "data": "hub",
    }
    return write_draft(tmp_path / "mine", **given | changes)


def test_a_draft_is_a_study_with_a_comment_at_each_setting(tmp_path):
    file = draft(tmp_path, tasks=["cola", "arc_easy"], seeds=3)
    assert file == tmp_path / "mine.yaml"
    study = load_study(file)
    assert study.name == "mine"
    assert study.tasks == ["cola", "arc_easy"]
    assert [method.label for method in study.methods] == ["base", *METHODS]
    assert study.seeds == [0, 1, 2]
    assert study.model == load_study("quickstart").model
    for section, (_, values) in SETTINGS.items():
        for key, value in values.items():
            assert getattr(getattr(study, section), key) == value
    lines = file.read_text().splitlines()
    schema = json.loads(Path(lines[0].removeprefix("# yaml-language-server: $schema=")).read_text())
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(file.read_text()))
    for above, line in zip(lines, lines[1:], strict=False):
        if re.match(r"(  )?[a-z_]+:", line) and not above.startswith("model:"):
            within_model = line.strip().split(":")[0] in yaml.safe_load(file.read_text())["model"]
            assert above.strip().startswith("# ") or within_model or "source:" in line, line


def test_sources_of_models_and_rows(tmp_path):
    commit = "0123456789" * 4
    file = draft(tmp_path, model="org/a_model", revision=commit, data=str(tmp_path))
    study = load_study(file)
    assert (study.model.source, study.model.id, study.model.revision) == ("hub", "org/a_model", commit)
    assert (study.data.source, study.data.root) == ("directory", str(tmp_path))
    file.unlink()
    (tmp_path / "my model").mkdir()
    study = load_study(draft(tmp_path, model=str(tmp_path / "my model"), data="builtin"))
    assert (study.model.source, study.model.path) == ("directory", str(tmp_path / "my model"))
    assert study.model.name == "my-model"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nosuch"}, "no such folder, and no hub id"),
        ({"model": "org/name", "revision": "main"}, "revision"),
        ({"methods": ["mola-24"]}, "24"),
        ({"tasks": ["cola", "cola"]}, "mine.yaml: .*'cola' is listed twice"),
        ({"model": str(STUDIES), "revision": "0" * 40}, "is a folder; leave it out"),
        ({"model": "llama2-7b", "revision": "1" * 40}, "the study llama2-7b pins its model"),
        ({"model": "~nosuch/x"}, "--model: '~nosuch/x' names a user whose home folder is unknown"),
    ],
)
def test_a_draft_that_is_no_study_is_not_written(tmp_path, changes, message):
    with pytest.raises(MolaError, match=message):
        draft(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("mine", {"task": "colla", "data": "hub"}, "task 'colla': unknown, did you mean 'cola'?"),
        ("mine", {"task": "rte"}, "task rte: no built-in rows"),
        ("mine", {"data": "nosuch"}, "nosuch/glue/cola/train.parquet is missing"),
        ("mine", {"model": "."}, "has no config.json"),
        ("smoke", {}, "smoke: is the name of a shipped study"),
        ("my study", {}, "name: must be a name, not 'my study'"),
    ],
)
def test_what_a_dry_run_would_refuse_is_refused_at_once(tmp_path, monkeypatch, capsys, name, given, message):
    monkeypatch.chdir(tmp_path)
    given = {"model": "smoke", "task": "cola", "data": "builtin"} | given
    options = [word for option, value in given.items() for word in (f"--{option}", value)]
    assert cli.main(["init", name, *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_home_folder_is_written_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "~/mine", "--model", "smoke", "--task", "cola", "--data", "builtin"]) == 0
    assert load_study(tmp_path / "mine.yaml").name == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert '--snakefile "$(mola where --workflow)" --config' in capsys.readouterr().out, "no Snakefile here"


def test_a_file_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "mine.yaml").write_text("mine\n")
    with pytest.raises(MolaError, match="is there already"):
        draft(tmp_path)
    assert (tmp_path / "mine.yaml").read_text() == "mine\n"


def test_the_verbs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = [
        "init",
        "mine",
        "--model",
        "smoke",
        "--task",
        "cola",
        "--data",
        "builtin",
        "--method",
        "mola-2468",
    ]
    assert cli.main(asked) == 0
    assert "--config study=mine.yaml\n  mola status --study mine.yaml\n" in capsys.readouterr().out
    assert cli.main(["status", "--study", "mine.yaml"]) == 0
    assert capsys.readouterr().out == "0 of 4 cells complete, 4 open\n"
    assert cli.main(["status", "--study", "mine.yaml", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seconds_left"] is None
    assert [cell["state"] for cell in told["cells"]] == ["open"] * 4
    assert cli.main(["export", "cola/mola-2468/seed0", "adapter", "--study", "mine.yaml"]) == 2
    assert "mola export: cell cola/mola-2468/seed0: not complete" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
