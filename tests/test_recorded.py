"""Results of an earlier version: taken where they differ from what the study says today by code alone, and only there."""

import dataclasses
import shutil

import pandas as pd
import pytest
from simulated_study import (
    make_study,
    other_code,
    pretend_prepared,
    rewrite_records,
    simulate,
    write_base_model,
    write_cell,
)

from mola_core.errors import MolaError
from mola_core.files import read_json, write_json
from mola_core.records import read_record, write_record
from mola_core.runs.layout import Layout
from mola_core.runs.recorded import check_recorded
from mola_core.runs.tuning import choose
from mola_core.study.study import Cell, Study

COMMIT = "0" * 40
DOCUMENTS = 40
MOLA, LORA, BASE = (Cell("cola", method, 0) for method in ("mola-2468", "lora-r8", "base"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study whose cells other code made."""
    study = make_study(methods=["base", "lora-r8", "mola-2468"], seeds=[0, 1])
    layout = simulate(tmp_path_factory.mktemp("recorded"), study, documents=DOCUMENTS)
    for cell in study.cells():
        rewrite_records(layout, cell, other_code)
    return layout


@pytest.fixture
def layout(finished, tmp_path):
    shutil.copytree(finished.root, tmp_path / "results")
    return dataclasses.replace(finished, root=tmp_path / "results")


def refused(layout: Layout) -> str:
    with pytest.raises(MolaError) as error:
        check_recorded(layout, layout.study.cells())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_cells_of_other_code_are_taken(layout):
    assert check_recorded(layout, layout.study.cells()) == COMMIT


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"max_steps": 50}}, 'lora-r8/seed0: training.training: max_steps: null -> 50'),
        ({"training": {"learning_rate": 7e-4}}, "training.training: learning_rate: 0.0003 -> 0.0007"),
        ({"training": {"documents": 30}}, "cola/lora-r8/seed0: training.examples: "),
        ({"training": {"max_length": 99}}, "not there to compare with"),
        ({"adapter": {"rank": 4}}, "mola-2468/seed0: training.adapter: r: 8 -> 4"),
        ({"adapter": {"dropout": 0.1}}, "lora-r8/seed0: training.adapter: lora_dropout: 0.05 -> 0.1"),
        ({"evaluation": {"precision": "bf16"}}, 'base/seed0: evaluation.evaluation: precision: "fp32" -> "bf16"'),
        ({"evaluation": {"documents": 9}}, "base/seed0: evaluation.examples: cola: "),
        ({"model": {"dtype": "bfloat16"}}, 'base/seed0: evaluation.loading: dtype: "float32" -> "bfloat16"'),
        ({"model": {"layers": 4}}, "not there to compare with"),
        ({"instruction": {"epochs": 1}}, "not there to compare with"),
    ],
)  # fmt: skip
def test_another_study_than_was_run_is_refused(layout, changes, said):
    content = layout.study.model_dump(exclude_unset=True)
    for section, values in changes.items():
        content[section] = content.get(section, {}) | values
    assert said in refused(dataclasses.replace(layout, study=Study.model_validate(content)))


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ("lora-matched-2468", "lora-r8", "mine/seed0: training.adapter: layer_ranks: [16, "),
        ("dora-r8", "lora-r8", "mine/seed0: training.adapter: use_dora: true -> null"),
        ("lora-r8", "dora-r8", "mine/seed0: training.adapter: use_dora: null -> true"),
        ("mola-2468", "mola-8642", "mine/seed0: training.adapter: num_experts: [2, 2, 4"),
    ],
)
def test_another_method_of_the_same_name_is_refused(tmp_path, then, now, said):
    studies = [
        make_study(tasks=["cola"], methods=["base", {"method": method, "name": "mine"}], seeds=[0])
        for method in (then, now)
    ]
    layout = simulate(tmp_path, studies[0], documents=DOCUMENTS)
    assert check_recorded(layout, studies[0].cells()) == COMMIT
    assert said in refused(dataclasses.replace(layout, study=studies[1]))


def test_other_examples_are_refused(layout):
    file = layout.examples("cola") / "evaluation.parquet"
    rows = pd.read_parquet(file)
    rows["prompt"] = "another prompt"
    rows.to_parquet(file)
    assert "cola/base/seed0: evaluation.examples: cola: " in refused(layout)


def test_examples_that_are_not_there_are_asked_for(layout):
    shutil.rmtree(layout.examples("scienceqa"))
    assert "scienceqa/base/seed0: model, rows or examples are not there to compare with" in refused(layout)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, m: t["parts"].update(seed=1), "mola-2468/seed0: training.seed: 1 -> "),
        (lambda t, m: t["parts"].update(code="d" * 64), "seed1: training: by other code than that of cola/mola-2468/seed0"),
        (lambda t, m: m["parts"].update(code="d" * 64), "mola-2468/seed0: evaluation: by other code than that of cola/base/seed0"),
        (lambda t, m: t["git"].update(commit="f" * 40), f"of several versions: {COMMIT} .*, {'f' * 40} "),
        (lambda t, m: t.update(git={}), f"of several versions: {COMMIT} .*, mola-core 0.2.0 "),
        (lambda t, m: m["evaluation"]["git"].update(dirty=True), "mola-2468/seed0: evaluation: by files that no commit has"),
        (lambda t, m: m.update(seed=1), "mola-2468/seed0: manifest: of cola/mola-2468/seed1"),
        (lambda t, m: m.update(stand_in=not m["stand_in"]), "mola-2468/seed0: stand_in: "),
        (lambda t, m: m.update(samples_sha256="0"), "mola-2468/seed0: samples.parquet: missing or altered since"),
        (lambda t, m: t["parts"].update(parent="0" * 64), "mola-2468/seed0: training.parent: |lack 'parent'"),
        (lambda t, m: m["parts"].pop("code"), "mola-2468/seed0: its records lack 'code'"),
        (lambda t, m: t.pop("git"), "mola-2468/seed0: its records lack 'git'"),
        (lambda t, m: m.update(evaluation=[]), "mola-2468/seed0: its records lack "),
    ],
)  # fmt: skip
def test_records_that_do_not_belong_together_are_refused(layout, change, said):
    rewrite_records(layout, MOLA, change)
    with pytest.raises(MolaError, match=said):
        check_recorded(layout, layout.study.cells())


def test_a_manifest_beside_another_training_is_refused(layout):
    """A cell that was trained again and not evaluated."""
    shutil.copy(layout.cell(Cell("cola", "mola-2468", 1)) / "training.json", layout.cell(MOLA))
    said = refused(layout)
    assert (
        "mola-2468/seed0: training.seed: " in said
        and "mola-2468/seed0: evaluation: of another training" in said
    )


def test_a_version_that_recorded_no_parts_is_named(layout):
    record = read_record(layout.cell(LORA) / "training.json")
    del record["parts"]
    write_record(layout.cell(LORA) / "training.json", record)
    assert "cola/lora-r8/seed0: its records lack 'parts'" in refused(layout)


def test_an_installed_package_is_named_by_its_version(layout):
    def installed(training, manifest):
        for record in (training, manifest["evaluation"]):
            if record:
                record["git"] = {}

    for cell in layout.study.cells():
        rewrite_records(layout, cell, installed)
    assert check_recorded(layout, layout.study.cells()) == "mola-core 0.2.0"


@pytest.fixture
def tuned(tmp_path):
    """A study with rates chosen from tries, all by other code."""
    study = make_study(
        tasks=["cola"],
        methods=["base", "mola-2468"],
        seeds=[0],
        tuning={"learning_rates": [1e-4, 1e-3], "seeds": [9], "documents": DOCUMENTS},
    )
    layout = Layout(study, tmp_path)
    write_base_model(layout.model, 32, 64, 8)
    pretend_prepared(layout, 8, DOCUMENTS)
    for part in (layout.tries, layout):
        for cell in part.study.cells():
            write_cell(part, cell, DOCUMENTS, 32, 64, 8)
        if part is layout.tries:
            choose(layout)
    for part in (layout.tries, layout):
        for cell in part.study.cells():
            rewrite_records(part, cell, other_code)
    return Layout(study, tmp_path)


def test_rates_are_those_that_the_recorded_tries_give(tuned):
    assert check_recorded(tuned, tuned.study.cells()) == COMMIT
    tuning = read_json(tuned.folder / "tuning.json")
    [choice] = tuning["choices"]["mola-2468"]
    other = {1e-4: 1e-3, 1e-3: 1e-4}[choice["learning_rate"]]
    choice["learning_rate"] = other
    write_record(tuned.folder / "tuning.json", tuning)
    assert "tuning.json does not say what its tries give" in refused(tuned)


@pytest.mark.parametrize("content", [{}, [], {"choices": []}, {"key": "", "choices": {"mola-2468": None}}])
def test_damaged_rates_are_one_line(tuned, content):
    write_json(tuned.folder / "tuning.json", content)
    assert "tuning.json: damaged; run `mola tuning` again" in refused(tuned)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rates": [1e-4, 1e-5]}, "mola-2468.lr1e-05/seed9: has no training.json; run it"),
        ({"learning_rates": [1e-4, 1e-3, 1e-2]}, "lr0.01/seed9: has no training.json; run it"),
        ({"seeds": [8]}, "seed8: has no training.json; run it"),
        ({"documents": 9}, "evaluation.examples: cola: "),
    ],
)
def test_other_tries_than_were_made_are_refused(tuned, changes, said):
    content = tuned.study.model_dump(exclude_unset=True)
    content["tuning"] |= changes
    assert said in refused(dataclasses.replace(tuned, study=Study.model_validate(content)))
