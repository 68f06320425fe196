"""Study files: the shipped ones are valid, and bad ones are told in one line what is wrong."""

import json
import os
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import ValidationError
from smoke_study import smoke

from mola_core.cli import main
from mola_core.errors import MolaError
from mola_core.methods.settings import MethodSettings
from mola_core.study import loading
from mola_core.study.loading import STUDIES, load_study
from mola_core.study.sections import TrainingSettings
from mola_core.study.study import Cell, Study

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(file.stem for file in STUDIES.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_studies_are_valid(name):
    study = load_study(name)
    assert study.name == name
    assert len(set(study.cells())) == len(study.cells())
    assert study.methods[0].method == "base", "the untrained model is a row of every table"


def test_the_schema_is_in_step():
    schema = json.loads((ROOT / "workflow" / "schemas" / "study.json").read_text())
    assert schema == Study.model_json_schema()
    assert all(
        section.get("additionalProperties") is False
        for section in [schema, *schema["$defs"].values()]
        if section.get("type") == "object"
    )


def editor(file: Path) -> jsonschema.Draft202012Validator:
    """What an editor checks a study file with: the schema that its first line names."""
    line = file.read_text(encoding="utf-8").splitlines()[0]
    name = line.removeprefix("# yaml-language-server: $schema=")
    assert name != line, f"{file}: names no schema"
    schema = json.loads((file.parent / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("folder", [STUDIES, ROOT / "workflow" / "studies"], ids=["package", "link"])
@pytest.mark.parametrize("name", SHIPPED)
def test_an_editor_accepts_the_shipped_studies(name, folder):
    file = folder / f"{name}.yaml"
    assert list(editor(file).iter_errors(yaml.safe_load(file.read_text()))) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"colour": "red"}, []),
        ({"training__learningrate": 0.1}, ["training"]),
        ({"training__learning_rate": "fast"}, ["training", "learning_rate"]),
        ({"training__scheduler": "step"}, ["training", "scheduler"]),
        ({"methods": ["base", "mola-24x8"]}, ["methods", 1]),
        ({"methods": ["base", "lora"]}, ["methods", 1]),
        ({"methods": [{"name": "mine"}]}, ["methods", 0]),
        ({"seeds": [-1]}, ["seeds", 0]),
        ({"model": {"name": "x", "source": "hub", "id": "a/b"}}, ["model"]),
        ({"tasks": []}, ["tasks"]),
    ],
)
def test_an_editor_marks_what_is_wrong(changes, field):
    content = change(**changes)
    with pytest.raises((ValidationError, MolaError)):
        Study.model_validate(content)
    errors = list(editor(STUDIES / "smoke.yaml").iter_errors(content))
    assert [list(error.absolute_path) for error in errors] == [field]


@pytest.mark.parametrize(
    "method",
    ["base", "full", "prompt-tuning", "llama-adapter", "lora-r8", "lora-matched-2468", "mola-10-2-2-2"]
    + ["alphalora-20", "sensitivity-20", "random-20-1", "pissa-mola-2468", {"method": "lora-r4", "alpha": 2}],
)
def test_an_editor_accepts_every_form_of_a_method(method):
    content = change(methods=["base", method] if method != "base" else ["base"])
    Study.model_validate(content)
    assert list(editor(STUDIES / "smoke.yaml").iter_errors(content)) == []


def test_every_setting_is_described():
    schema = Study.model_json_schema()
    bare = [
        f"{section.get('title')}.{name}"
        for section in [schema, *schema["$defs"].values()]
        for name, setting in section.get("properties", {}).items()
        if len(setting.get("description", "")) < 5
    ]
    assert bare == []


def test_the_base_model_is_one_cell_a_task():
    study = load_study("smoke")
    base = [cell for cell in study.cells() if cell.method == "base"]
    assert base == [Cell("cola", "base", 0), Cell("scienceqa", "base", 0)]
    assert study.cell("cola", "mola-2468", 1).path == "cola/mola-2468/seed1"
    with pytest.raises(MolaError, match="no cell cola/mola2468/seed0, did you mean 'cola/mola-2468/seed0'"):
        study.cell("cola", "mola2468", 0)
    with pytest.raises(MolaError, match="no cell cola/base/seed1"):
        study.cell("cola", "base", 1)


def test_data_root_replaces_the_source(tmp_path):
    study = load_study("smollm2", data_root=str(tmp_path))
    assert study.data.source == "directory"
    assert study.data.root == str(tmp_path)


def change(**changes):
    content = yaml.safe_load((STUDIES / "smoke.yaml").read_text())
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = content
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    return content


def dumped(content):
    """As YAML, with numbers in hexadecimal, which Python writes and reads at any length."""

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(
        int, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:int", hex(value))
    )
    return yaml.dump(content, Dumper=Dumper)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "colour: unknown key"),
        ({"training__rate": 1}, "training.rate: unknown key"),
        ({"model__revison": "x"}, "model.revison: unknown key"),
        ({"methods": ["lora-r"]}, "unknown method 'lora-r'"),
        ({"methods": ["lora-r0"]}, "unknown method 'lora-r0'"),
        ({"methods": ["mola-246"]}, "methods.0: shape '246'"),
        ({"methods": ["mola-246"], "seeds": [-1]}, "2468 or 10-2-2-2 (2) seeds.0: "),
        (
            {"verdict": {"pairs": [["mola-2468", "theirs"]]}},
            "verdict.pairs: 'theirs' is no method of the study",
        ),
        (
            {"adapter": {"target_modules": ["q_proj", "q_proj"]}},
            "adapter.target_modules: a module is named twice",
        ),
        ({"adapter": {"target_modules": [""]}}, "adapter.target_modules.0"),
        ({"adapter": {"target_modules": [".*proj"]}}, "adapter.target_modules.0"),
        ({"training__epochs": 0}, "training.epochs: must be greater than 0"),
        ({"methods": ["mola-2460"]}, "shape '2460'"),
        (
            {"methods": [{"method": "mola", "experts": [0, 1, 2, 2]}]},
            "experts: layer 0: '0' is no whole number from 1",
        ),
        ({"methods": [{"method": "mola-2468", "top_k": 0}]}, "top_k"),
        ({"methods": ["base", "base"]}, "'base' is listed twice"),
        ({"methods": [{"method": "base", "name": "../../x"}]}, "name"),
        ({"tasks": []}, "tasks"),
        ({"tasks": ["../cola"]}, "tasks"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": [2**32]}, "seeds.0: must be less than or equal to 4294967295, not '4294967296'"),
        ({"seeds": [10**5000]}, "not 'a number of thousands of digits'"),
        ({"name": 10**5000}, "not 'a number of thousands of digits'"),
        ({"tasks": {"cola": 10**5000}}, "not 'a number of thousands of digits'"),
        ({"model__seed": 2**32}, "model.seed"),
        ({"model__seed": -1}, "model.seed"),
        ({"model__layers": 10**9}, "model.layers"),
        ({"model__hidden": 8 * 10**9}, "model.hidden"),
        ({"data__train_documents": 10**12}, "data.train_documents"),
        ({"instruction": {"seed": 2**32}}, "instruction.seed"),
        ({"methods": ["lora-r" + "9" * 30]}, "rank at most 65536"),
        ({"methods": ["lora-r" + "9" * 5000]}, "at most 80 characters"),
        ({"methods": ["mola-99999999-2-2-2"]}, "experts of a layer at most 1024"),
        ({"methods": ["lora-matched-2-2-2-1025"]}, "experts of a layer at most 1024"),
        (
            {"methods": [{"method": "mola", "experts": [2, 2, 2, 1025]}]},
            "experts: layer 3: '1025' is no whole number from 1 to 1,024",
        ),
        ({"methods": [{"method": "mola-2468", "rank": 65_537}]}, "rank"),
        ({"methods": ["sensitivity-99999999"]}, "budget at most 4096"),
        ({"methods": ["random-20-4294967296"]}, "number of the draw at most 4294967295"),
        ({"adapter": {"rank": 65_537}}, "adapter.rank"),
        ({"training__epochs": 1e308}, "training.epochs"),
        ({"compute__memory_gb": 1e308}, "compute.memory_gb"),
        ({"compute__hours": 1e308}, "compute.hours"),
        ({"compute__threads": 10**6}, "compute.threads"),
        ({"model": {"source": "directory", "name": "m", "path": "x/" * 2500}}, "model.path: too long"),
        ({"model": {"source": "directory", "name": "m", "path": "x" * 256}}, "model.path: too long"),
        ({"model": {"source": "directory", "name": "m", "path": ""}}, "model.path"),
        ({"data": {"source": "directory", "root": "x" * 5000}}, "data.root: too long"),
        ({"data": {"source": "directory", "root": "~nouserxx/a"}}, "data.root: '~nouserxx/a' names a user"),
        ({"seeds": [0, 0]}, "0 is listed twice"),
        ({"training__batch_size": 0}, "training.batch_size"),
        ({"training__max_length": 0}, "training.max_length"),
        ({"training__micro_batch_size": 3}, "not a multiple of micro_batch_size 3"),
        (
            {"training__shared_prefix": True, "training__loss_on": "all"},
            "shared_prefix is for loss_on answer",
        ),
        ({"training__shared_prefix": True, "methods": ["prompt-tuning"]}, "does not go with prompt-tuning"),
        ({"training__shared_prefix": True, "adapter": {"balance_loss": 0.1}}, "balance loss of"),
        ({"evaluation__batch_size": 0}, "evaluation.batch_size"),
        ({"adapter": {"dropout": 1.0}}, "adapter.dropout"),
        ({"data": {"source": "magic"}}, "data"),
        ({"model": {"source": "hub", "name": "m", "id": "a/b", "revision": "main"}}, "model.revision"),
        ({"name": "a/b"}, "name"),
        ({"verdict": {"level": 2}}, "verdict.level"),
        ({"verdict": {"level": 1e-300}}, "verdict.level"),
        ({"verdict": {"level": "0.05"}}, "verdict.level"),
        ({"verdict": {"power": 0.9999999}}, "verdict.power"),
        ({"verdict": {"differences": [float("inf")]}}, "verdict.differences.0"),
        ({"verdict": {"differences": [1e-300]}}, "verdict.differences.0"),
        ({"verdict": {"seed": 2**32}}, "verdict.seed"),
        ({"name": "models"}, "'models' is a folder of results itself"),
        ({"name": 2468}, "name: must be text, not '2468'; write it in quotes"),
        ({"name": "my study"}, "name: must be a name, not 'my study'; use letters, digits"),
        ({"description": ""}, "description: must be a text that is not empty"),
        (
            {"model__source": "hubb"},
            "model.source: must be hub, wheel, directory or random, not 'hubb', did you",
        ),
        ({"model": {"name": "m"}}, "model.source: missing; add it"),
        ({"model": "quickstart"}, "model: must be a mapping of settings, not 'quickstart'"),
        ({"model": {"source": "hub", "name": "m", "id": "a b", "revision": "0" * 40}}, "must be a hub id"),
        ({"data": {"source": "directory", "path": "x"}}, "data.path: unknown key, did you mean 'root'?"),
        ({"data": {"source": "hub", "revisions": {"cola": "main"}}}, "data.revisions.cola: must be a commit"),
        ({"data": {"source": "hub", "revisions": {"a b": "0" * 40}}}, "data.revisions.a b: must be a name"),
        ({"tasks": "cola"}, "tasks: must be a list, not 'cola'; write [cola]"),
        ({"seeds": 3}, "seeds: must be a list, not '3'; write [3] for seed 3 or [0, 1, 2] for 3 seeds"),
        ({"tasks": []}, "tasks: must be a list of at least 1 entry, not '[]'"),
        ({"methods": [2468]}, "methods.0: must be a method's name or a mapping of its settings, not '2468'"),
        ({"methods": ["base", "mola"]}, "methods.1: method 'mola': needs `experts`"),
        (
            {"methods": [{"method": "mola-2468", "experts": [2]}]},
            "`experts` goes with methods mola and lora-matched",
        ),
        (
            {"methods": ["base", "MoLA_2468"]},
            "methods.1: unknown method 'MoLA_2468', did you mean 'mola-2468'?",
        ),
        ({"adapter": {"top_k": 20}}, "methods.3: method 'mola-2468': top_k 20 is above the 2 experts"),
        ({"adapter": {"r": 8}}, "adapter.r: unknown key, did you mean 'rank'?"),
        ({"training__epochs": 0}, "bad.yaml: training.epochs: must be greater than 0, not '0'"),
        ({"training__epochs": "ten"}, "training.epochs: must be a number or a list, not 'ten'"),
        ({"training__precision": "BF16"}, "not 'BF16', did you mean 'bf16'?"),
        ({"compute__memory_gb": "4 GB"}, "compute.memory_gb: must be a number, not '4 GB'; write it without"),
        ({"random": 1}, "random: unknown key"),
        ({"learning_rate": 1e-3}, "learning_rate: unknown key, did you mean 'training.learning_rate'?"),
        ({"model__sed": 1}, "model.sed: unknown key, did you mean 'seed'?"),
        ({"methods": [{"method": "mola-2468", "topk": 2}]}, "did you mean 'top_k'?"),
        ({"methods": ["alphlora-20"]}, "did you mean 'alphalora-<budget>'?"),
        ({"methods": [{"method": "mola-2468", "name": "mola-8642"}]}, "would be taken for another"),
        ({"methods": [{"method": "lora-r4", "name": "base"}]}, "would be taken for another"),
        ({"methods": [{"method": "lora-r4", "name": "pissa-lora-r4"}]}, "would be taken for another"),
        ({"methods": [{"method": "base", "name": "untrained"}]}, "would be taken for another"),
        ({"seeds": list(range(12_000))}, "seeds: 120000 cells"),
        ({"training__warmup_steps": 6}, "training.warmup_steps: 6 is not below the 6 steps of a cell"),
        (
            {"training__max_steps": 4, "training__warmup_steps": 4},
            "training.warmup_steps: 4 is not below the 4",
        ),
        (
            {"training__documents": 8, "training__warmup_steps": 1},
            "training.warmup_steps: 1 is not below the 1",
        ),
        ({"training__epochs": 0.1}, "training.epochs: 0.1 gives no step with 48 documents"),
        (
            {"instruction": {"documents": 16, "epochs": 1, "warmup_steps": 2}},
            "instruction.warmup_steps: 2 is not below the 2",
        ),
        (
            {"continual": {"epochs": 1, "methods": ["mola-5555"]}},
            "continual.methods: 'mola-5555' is no trained method",
        ),
        ({"continual": {"epochs": 1, "warmup_steps": 99}}, "continual.warmup_steps: 99 is not below the 6"),
        ({"training__gradient_checkpointing": "yes"}, "must be true or false, not 'yes'"),
        (
            {"verdict": {"hypotheses": ["2468-vs-8462"]}},
            "verdict.hypotheses: '2468-vs-8462' needs mola-2468 and mola-8462; the methods are base",
        ),
        (
            {"verdict": {"hypotheses": ["2468-vs-2468"]}},
            "verdict.hypotheses: '2468-vs-2468' compares a method with itself",
        ),
        (
            {"verdict": {"hypotheses": ["2468-vs-8642", "mola-8642-vs-mola-2468"]}},
            "verdict.hypotheses: two of them compare the same methods",
        ),
        ({"methods": ["base", "random-8-00"]}, "random-8-00"),
        ({"tasks": ["cola", "scienceqa", "scienceqa-biology"]}, "'scienceqa-biology' ask the same questions"),
        (
            {"verdict": {"questions": ["spread-16"]}},
            "verdict.questions: 'spread-16' needs three shapes of that budget",
        ),
        (
            {"verdict": {"hypotheses": "2468-vs-8642"}},
            "verdict.hypotheses: must be a list; write [2468-vs-8642]",
        ),
        (
            {"verdict": {"pairs": ["mola-2468", "lora-r4"]}},
            "verdict.pairs: must be a list of pairs; write [[",
        ),
        ({"verdict": {"pairs": [["mola-2468"]]}}, "verdict.pairs: must be a list of pairs; write [["),
        ({"adapter": {1: 1}}, "adapter.1: keys are text; write it in quotes"),
        (
            {"data": {"source": "hub", "revisions": {"colaa": "0" * 40}}},
            "data.revisions: 'colaa' is no task of the study",
        ),
        (
            {"data": {"source": "hub", "root": "x"}},
            "data.root: unknown key, which source directory has; remove it",
        ),
        (
            {"continual": {"epochs": 1, "tasks": ["instruction", "cola"]}},
            "continual.tasks: 'instruction' is the name of a stage",
        ),
        (
            {"continual": {"epochs": 1, "methods": ["mola-2468", "mola-2468"]}},
            "continual.methods: 'mola-2468' is listed twice",
        ),
        ({"training__report_to": ["wandb", "wandb"]}, "training.report_to: 'wandb' is listed twice"),
        ({"evaluation__every_epoch": True}, "evaluation.every_epoch: goes with a list of training.epochs"),
        (
            {"methods": ["base", "random-4-0"]},
            "a budget of 4 is 1 experts a layer, fewer than top_k 2; raise it to 8",
        ),
        (
            {"methods": ["base", "dora-r4"], "adapter": {"initialisation": "pissa"}},
            "adapter.initialisation: dora-r4 cannot start at pissa",
        ),
        (
            {
                "methods": [
                    {
                        "method": "peft",
                        "name": "lora-r8",
                        "config": {"peft_type": "LORA", "r": 8, "layers_to_transform": [0]},
                    }
                ]
            },
            "would be taken for another",
        ),
        (
            {
                "methods": [
                    {"method": "peft", "name": "pissa-lora-r8", "config": {"peft_type": "LORA", "r": 8}}
                ]
            },
            "name 'pissa-lora-r8': method 'peft' would be taken for another",
        ),
        (
            {
                "methods": [
                    {
                        "method": "peft",
                        "name": "x",
                        "target_modules": ["q_proj"],
                        "config": {"peft_type": "LN_TUNING"},
                    }
                ]
            },
            "target_modules means nothing to LN_TUNING; remove it",
        ),
        (
            {"methods": [{"method": "peft", "name": "x", "config": {"peft_type": "LORA", "r": 0}}]},
            "config.r: must be at least 1, not 0",
        ),
    ],
)
def test_a_bad_study_is_one_line(tmp_path, changes, message):
    file = tmp_path / "bad.yaml"
    file.write_text(dumped(change(**changes)))
    with pytest.raises(MolaError) as error:
        load_study(file)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["- a list", "a: [", "just words", "", "seeds: !!bool maybe"])
def test_what_is_no_study_file_is_one_line(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(MolaError) as error:
        load_study(file)
    assert "\n" not in str(error.value)


def test_a_study_that_does_not_exist_names_those_that_do():
    with pytest.raises(MolaError, match="quickstart"):
        load_study("nosuch")


def test_all_errors_are_told_at_once(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(
        dumped(
            change(
                colour="red",
                model__sed=1,
                training__warmup_steps=6,
                tasks=["cola", "cola"],
                compute__gpus=3,
                name="data",
            )
        )
    )
    with pytest.raises(MolaError) as error:
        load_study(file)
    said = str(error.value)
    assert "6 errors: (1) " in said and "\n" not in said
    for words in (
        "colour: unknown",
        "model.sed: unknown",
        "warmup_steps: 6",
        "tasks: 'cola' is listed twice",
        "compute.gpus: 3 cards",
        "name: 'data' is a folder",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1e-3", 1e-3),
        ("2E-4", 2e-4),
        ("1.0e-3", 1e-3),
        (".5", 0.5),
        ("1", 1),
        ("010", 10),
        ("0x10", 16),
        ("+3", 3),
    ],
)
def test_numbers_are_those_of_yaml_1_2(tmp_path, written, read):
    file = tmp_path / "study.yaml"
    text = (STUDIES / "smoke.yaml").read_text()
    file.write_text(text.replace("learning_rate: 1.0e-2", f"learning_rate: {written}"))
    assert load_study(file).training.learning_rate == read


@pytest.mark.parametrize("name", ["no", "1:30", "2026-11-24", "on"])
def test_names_are_text_as_written(tmp_path, name):
    file = tmp_path / "study.yaml"
    text = (STUDIES / "smoke.yaml").read_text()
    file.write_text(text.replace("name: tiny-random-llama", f"name: {name}"))
    if ":" in name:
        with pytest.raises(MolaError, match=r"model.name: .* not '1:30'; use letters, digits"):
            load_study(file)
    else:
        assert load_study(file).model.name == name


def test_a_study_is_found_by_name_and_by_path(tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    for name in ("smoke", "qwen2.5-0.5b"):
        (shipped / f"{name}.yaml").write_text("")
    monkeypatch.setattr(loading, "STUDIES", shipped)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("smoke", "smoke.yaml"):
        assert loading.study_file(name) == shipped / "smoke.yaml"
    for name in ("qwen2.5-0.5b", "qwen2.5-0.5b.yaml"):
        assert loading.study_file(name) == shipped / "qwen2.5-0.5b.yaml"
    assert loading.study_file("~/mine.yaml") == tmp_path / "mine.yaml"
    (tmp_path / "smoke.yaml").write_text("")
    assert loading.study_file("smoke.yaml") == Path("smoke.yaml"), "a file that is there is that file"
    assert loading.study_file("smoke") == shipped / "smoke.yaml"
    assert loading.study_file("./smoke.yaml") == Path("smoke.yaml")
    (tmp_path / "own-1.5b.yaml").write_text("")
    assert loading.study_file("own-1.5b") == Path("own-1.5b.yaml"), "`mola init own-1.5b` made it"
    with pytest.raises(MolaError, match="did you mean 'own-1.5b.yaml'"):
        load_study("own-1.5.yaml")
    for name in ("smoek", "SMOKE"):
        with pytest.raises(MolaError, match="did you mean 'smoke'"):
            load_study(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "study: is empty"),
        ("-x", "looks like an option; write ./-x"),
        ("~nobody-of-this-name/x.yaml", "home folder is unknown"),
        ("/dev/zero", "a pipe or a device"),
        ("pipe.yaml", "a pipe or a device"),
        (".", "is a folder"),
        ("large.yaml", "has 300001 bytes, more than 262144"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yaml")
    Path("large.yaml").write_text("#" * 300_001)
    with pytest.raises(MolaError, match=message):
        load_study(name)


def test_data_root_does_not_hide_a_wrong_data_block(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(dumped(change(data__train_documents=-1)))
    with pytest.raises(MolaError, match="data.train_documents"):
        load_study(file, data_root=str(tmp_path))
    file.write_text(dumped({key: value for key, value in change().items() if key != "data"}))
    assert load_study(file, data_root=str(tmp_path)).data.root == str(tmp_path)
    for root in ("", "-x"):
        with pytest.raises(MolaError, match="data_root: "):
            load_study("smoke", data_root=root)


def test_environment_yml_has_the_bounds_of_pyproject():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    listed += next(entry for entry in environment["dependencies"] if isinstance(entry, dict))["pip"]
    python = f"python{project['requires-python']}"
    extras = project["optional-dependencies"]
    expected = [python, *project["dependencies"], *extras["harness"], *extras["test"], *extras["docs"]]
    expected.remove("mola-core[harness]")
    canonical = {
        entry.replace("_", "-").lower().replace("pytorch", "torch") for entry in listed if entry != "-e ."
    }
    assert canonical == {entry.replace("_", "-").lower() for entry in expected}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [0]\nseeds: [5]\n", "a key is there twice"),
        ("a: &a {k: 1}\nb: {<<: *a}\n", "<< is not read"),
        (
            "a0: &a0 {k: 1}\n"
            + "".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
            "<< is not read",
        ),
    ],
    ids=["twice", "merged", "a bomb"],
)
def test_keys_stand_once_and_are_not_merged(tmp_path, text, message):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(MolaError, match=message) as error:
        load_study(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--study", "smoke", "--parallel", "-1"], "--parallel: must be at least 1"),
        (["run", "--study", "smoke", "--time-budget", "nan"], "--time-budget: must be at least 0"),
        (["calibrate", "--out", "x", "--simulations", "0"], "--simulations: must be at least 2"),
        (["benchmark", "--threads", "two"], "--threads: invalid int value: 'two'"),
    ],
)
def test_numbers_of_the_command_line_have_limits(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_rows_that_a_study_has_not_are_named(capsys, tmp_path):
    assert main(["data", "--study", "smoke", "--task", "instruction", "--results", str(tmp_path)]) == 2
    assert "mola data: --task instruction: study smoke has cola, scienceqa" in capsys.readouterr().err


def test_a_rank_of_none_is_for_methods_that_have_blocks_instead():
    """OFT takes a size of its blocks, with r 0, or a number of them."""
    config = {"peft_type": "OFT", "r": 0, "oft_block_size": 4}
    assert MethodSettings(method="peft", name="oft", config=config).config == config


def test_one_adapter_under_two_names_is_refused():
    with pytest.raises(
        ValueError, match="methods: flat is the same adapter as mola-5555; leave one of them out"
    ):
        smoke(methods=["mola-5555", {"method": "mola-5-5-5-5", "name": "flat"}])
    smoke(
        methods=["mola-5555", {"method": "mola-5555", "name": "r4", "rank": 4}, "random-20-1", "random-20-2"]
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("mola-5555", {"method": "mola", "experts": 5}),
        ("mola-2468", {"method": "mola-2468", "rank": 8}),
        ("mola-2468", {"method": "mola-2468", "learning_rate": 1e-2}),
        ("lora-r8", {"method": "lora-r8", "alpha": 16}),
    ],
)
def test_settings_that_say_what_the_study_says_make_no_other_adapter(first, second):
    adapter, training = {"rank": 8, "alpha": 16}, {"learning_rate": 1e-2}
    methods = [first, second | {"name": "same"}]
    with pytest.raises(ValueError, match="methods: same is the same adapter as"):
        smoke(methods=methods, adapter=adapter, training=training)
    other = [first, {"method": first, "name": "other", "alpha": 7}]
    smoke(methods=other, adapter=adapter, training=training)


def test_a_tuned_rate_and_one_that_is_set_are_two():
    methods = ["mola-2468", {"method": "mola-2468", "name": "set", "learning_rate": 1e-2}]
    smoke(
        methods=methods,
        training={"learning_rate": 1e-2},
        tuning={"learning_rates": [1e-2, 1e-3], "seeds": [9]},
    )


def test_epochs_are_the_number_that_is_written():
    """0.57 · 100 is 56.99… in binary."""
    for epochs, batches in ((0.57, 57), (0.29, 29), (1.13, 113), (1.15, 115), (0.5, 50), (3, 300)):
        assert TrainingSettings(epochs=epochs, batch_size=1, micro_batch_size=1).steps(100) == batches


def test_a_rate_of_a_stage_that_no_method_takes_is_refused():
    own = {"method": "mola-2468", "learning_rate": 1e-3}
    stage = {"epochs": 1, "documents": 40, "learning_rate": 1e-4}
    with pytest.raises(
        ValueError, match="instruction.learning_rate: every method of it has a learning_rate of"
    ):
        smoke(tasks=["cola"], methods=["base", own], instruction=stage)
    smoke(tasks=["cola"], methods=["base", own, "mola-8642"], instruction=stage)
