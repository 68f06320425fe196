"""From finished cells to the score matrix: what goes in comes out, and nothing wrong gets through."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from simulated_study import make_study, other_code, rewrite_records, simulate

from mola_core.analysis import collect, score_writer
from mola_core.analysis.score_files import OPTIONAL, load_scores
from mola_core.analysis.scores import COLUMNS, score_matrix
from mola_core.errors import MolaError
from mola_core.files import read_json, sha256_file
from mola_core.records import read_record, write_record
from mola_core.runs.layout import Layout

DOCUMENTS = 40


@pytest.fixture
def layout(tmp_path):
    study = make_study(methods=["base", "lora-r8", "mola-2468"], seeds=[0, 1])
    return simulate(tmp_path, study, documents=DOCUMENTS)


def rewrite_samples(folder, change):
    """Change a cell's samples and its manifest together, as a cell of another evaluation would have them."""
    samples = change(pd.read_parquet(folder / "samples.parquet"))
    samples.to_parquet(folder / "samples.parquet", index=False)
    manifest = read_record(folder / "manifest.json")
    manifest["samples_sha256"] = sha256_file(folder / "samples.parquet")
    manifest["evaluation"] |= {"documents": len(samples), "accuracy": float(samples["correct"].mean())}
    write_record(folder / "manifest.json", manifest)


def test_every_answer_of_every_cell_is_there_once(layout):
    collect.write(layout)
    scores = pd.read_parquet(layout.folder / "scores.parquet")
    assert list(scores.columns) == score_writer.CLUSTERED.names
    assert set(scores.columns) == {*COLUMNS, *OPTIONAL, "log_likelihood"}
    for cell in layout.study.cells():
        samples = pd.read_parquet(layout.cell(cell) / "samples.parquet").set_index("document")["correct"]
        own = scores[(scores.task == cell.task) & (scores.method == cell.method) & (scores.seed == cell.seed)]
        assert own["document"].is_monotonic_increasing
        assert own.set_index("document")["correct"].to_dict() == samples.to_dict()
    assert len(scores) == len(layout.study.cells()) * DOCUMENTS


@pytest.fixture
def taken_as_complete(monkeypatch):
    """Cells are not out of date where their examples are others."""
    monkeypatch.setattr(collect, "evaluation_state", lambda layout, cell: "complete")
    monkeypatch.setattr(collect, "scores_key", lambda layout: "key")


def test_documents_that_belong_together_are_told_to_the_verdict(layout, taken_as_complete):
    """Premise, skill or concept of a document, by its place in the examples; the others stand for themselves."""
    file = layout.examples("scienceqa") / "evaluation.parquet"
    rows = pd.read_parquet(file)
    rows["cluster"] = ["", *(f"skill {place // 4}" for place in range(1, DOCUMENTS))]
    rows.to_parquet(file)
    # The second copy of a document has a number behind its name.
    for cell in layout.study.cells():
        if cell.task == "scienceqa":
            rewrite_samples(
                layout.cell(cell),
                lambda samples: samples.assign(
                    document=samples.document.where(samples.position != 7, samples.document + "-1")
                ),
            )
    collect.write(layout)
    cola, scienceqa = score_matrix(load_scores(layout.folder / "scores.parquet")).blocks
    assert cola.clusters is None and cola.units == DOCUMENTS
    assert scienceqa.units == 11
    scores = pd.read_parquet(layout.folder / "scores.parquet")
    own = scores[(scores.task == "scienceqa") & (scores.method == "base")].set_index("document").cluster
    expected = {
        name + ("-1" if place == 7 else ""): f"scienceqa/{rows.cluster[place] or name}"
        for place, name in enumerate(rows.document)
    }
    assert own.to_dict() == expected


@pytest.mark.parametrize("damage", ["other", "short", "missing"])
def test_examples_that_are_not_those_of_the_cells_are_refused(layout, taken_as_complete, damage):
    file = layout.examples("cola") / "evaluation.parquet"
    rows = pd.read_parquet(file)
    file.unlink()
    if damage != "missing":
        rows = rows.iloc[:-1] if damage == "short" else rows.assign(document=rows.document[::-1].to_numpy())
        rows.to_parquet(file)
    with pytest.raises(MolaError, match="evaluation.parquet: .*run `mola examples` again"):
        collect.write(layout)
    assert not (layout.folder / "scores.parquet").exists()


def test_the_file_is_compressed_and_read_by_the_analysis(layout):
    collect.write(layout)
    path = layout.folder / "scores.parquet"
    column = pq.ParquetFile(path).metadata.row_group(0).column(5)
    assert column.compression == "ZSTD"
    assert any("DICTIONARY" in encoding for encoding in column.encodings)
    matrix = score_matrix(load_scores(path))
    assert [block.name for block in matrix.blocks] == ["cola", "scienceqa"]
    assert matrix.blocks[0].present.tolist() == [[True, False], [True, True], [True, True]]


def test_row_groups_stay_bounded(layout, monkeypatch):
    monkeypatch.setattr(score_writer, "ROWS_PER_GROUP", 3 * DOCUMENTS)
    collect.write(layout)
    metadata = pq.ParquetFile(layout.folder / "scores.parquet").metadata
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [120, 120, 120, 40]
    assert len(load_scores(layout.folder / "scores.parquet")) == 400


def test_the_cells_table(layout):
    returned = collect.write(layout)
    cells = collect.read_cells(layout.folder)
    pd.testing.assert_frame_equal(returned, cells)
    assert len(cells) == len(layout.study.cells())
    base, trained = cells.iloc[0], cells.iloc[1]
    assert (base["method"], base["trainable_parameters"]) == ("base", 0)
    assert pd.isna(base["train_seconds"])
    manifest = read_json(layout.cell(layout.study.cells()[1]) / "manifest.json")
    assert trained["trainable_parameters"] == manifest["training"]["trainable_parameters"]
    assert trained["accuracy"] == trained["correct"] / DOCUMENTS == manifest["evaluation"]["accuracy"]
    assert trained["metric_mcc"] == pytest.approx(manifest["evaluation"]["metrics"]["mcc"])
    targets = pd.read_parquet(layout.cell(layout.study.cells()[1]) / "samples.parquet")["target"]
    assert trained["majority"] == max(targets.value_counts())
    assert len(pd.read_csv(layout.folder / "cells.csv")) == len(cells)


def test_training_curves(layout):
    collect.write(layout)
    curves = collect.read_curves(layout.folder)
    cell = layout.study.cell("cola", "mola-2468", 1)
    lines = [json.loads(line) for line in (layout.cell(cell) / "train.jsonl").read_text().splitlines()]
    own = curves[(curves.task == "cola") & (curves.method == "mola-2468") & (curves.seed == 1)]
    assert own["loss"].tolist() == [line["loss"] for line in lines]
    assert not (curves["method"] == "base").any()


def test_incomplete_cells_are_listed_or_left_out(layout):
    cell = layout.study.cell("cola", "mola-2468", 1)
    (layout.cell(cell) / "manifest.json").unlink()
    with pytest.raises(MolaError, match=r"1 of 10 cells are not complete.*cola/mola-2468/seed1 \(missing\)"):
        collect.write(layout)
    assert not (layout.folder / "scores.parquet").exists()
    assert len(collect.write(layout, partial=True)) == 9


def test_a_damaged_record_is_named_or_left_out(layout):
    record = layout.cell(layout.study.cell("cola", "mola-2468", 1)) / "manifest.json"
    record.write_text(record.read_text()[:-20])
    with pytest.raises(MolaError, match=f"{record}: not valid JSON .* damaged or cut short"):
        collect.write(layout)
    assert len(collect.write(layout, partial=True)) == 9


def test_cells_of_other_settings_are_out_of_date(layout):
    cell = layout.study.cell("cola", "mola-2468", 0)
    path = layout.cell(cell) / "manifest.json"
    write_record(path, read_record(path) | {"evaluation_key": "0" * 64})
    with pytest.raises(MolaError, match=r"cola/mola-2468/seed0 \(out of date\)"):
        collect.write(layout)
    assert "cola" not in set(
        collect.write(layout, partial=True).query("method == 'mola-2468' and seed == 0").task
    )


def test_cells_of_an_earlier_version_are_taken_as_recorded(layout):
    now = collect.write(layout)
    for cell in layout.study.cells():
        rewrite_records(layout, cell, other_code)
    with pytest.raises(
        MolaError, match=r"10 of 10 .*--partial or, of an earlier version of the code, --as-recorded: "
    ):
        collect.write(layout)
    taken = collect.write(layout, as_recorded=True)
    keys = ["training_key", "evaluation_key"]
    pd.testing.assert_frame_equal(taken.drop(columns=keys), now.drop(columns=keys))
    # What was gathered so is not what `mola run` would gather today.
    assert read_json(layout.folder / "collected.json") == {
        "key": None,
        "sha256": {name: sha256_file(layout.folder / name) for name in collect.FILES},
        "as_recorded": "0" * 40,
    }
    (layout.cell(layout.study.cell("cola", "mola-2468", 1)) / "manifest.json").unlink()
    with pytest.raises(MolaError, match=r"1 of 10 cells .*seed1 \(missing\)"):
        collect.write(layout, as_recorded=True)


def test_cells_of_another_rate_are_not_taken_as_recorded(layout):
    collect.write(layout)
    (layout.folder / "scores.parquet").unlink()
    training = layout.study.training.model_copy(update={"learning_rate": 7e-4})
    changed = Layout(layout.study.model_copy(update={"training": training}), layout.root)
    with pytest.raises(
        MolaError, match=r"cola/lora-r8/seed0: training.training: learning_rate: 0.0003 -> 0.0007"
    ):
        collect.write(changed, as_recorded=True)
    assert not (layout.folder / "scores.parquet").exists()


def test_a_study_without_cells_says_what_to_run(tmp_path):
    with pytest.raises(
        MolaError, match="no cell is complete; run them with `snakemake --cores all --config study=simulated`"
    ):
        collect.write(Layout(make_study(), tmp_path), partial=True)


def test_altered_samples_are_refused(layout):
    folder = layout.cell(layout.study.cell("cola", "lora-r8", 0))
    samples = pd.read_parquet(folder / "samples.parquet")
    samples.assign(correct=1).to_parquet(folder / "samples.parquet", index=False)
    with pytest.raises(MolaError, match="lora-r8/seed0/samples.parquet: missing or altered"):
        collect.write(layout)


def test_an_accuracy_must_be_k_of_n_on_the_samples(layout):
    folder = layout.cell(layout.study.cell("cola", "lora-r8", 0))
    manifest = read_record(folder / "manifest.json")
    manifest["evaluation"]["accuracy"] += 0.001
    write_record(folder / "manifest.json", manifest)
    with pytest.raises(MolaError, match="cola/lora-r8/seed0: the manifest says accuracy"):
        collect.write(layout)


def test_other_documents_are_refused(layout):
    folder = layout.cell(layout.study.cell("scienceqa", "mola-2468", 0))
    rewrite_samples(folder, lambda samples: samples.assign(document=samples["document"] + "x"))
    with pytest.raises(
        MolaError, match="mola-2468/seed0: evaluated on other documents than scienceqa/base/seed0"
    ):
        collect.write(layout)


def test_fewer_documents_are_refused(layout):
    folder = layout.cell(layout.study.cell("scienceqa", "mola-2468", 0))
    rewrite_samples(folder, lambda samples: samples.iloc[1:])
    with pytest.raises(MolaError, match="evaluated on other documents"):
        collect.write(layout)
    assert not list(layout.folder.glob("*.parquet")), "nothing half-written"


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-20], lambda text: text.replace("1", "2"), lambda _: "5"]
)
def test_an_altered_training_log_is_refused(layout, damage):
    path = layout.cell(layout.study.cell("cola", "lora-r8", 0)) / "train.jsonl"
    path.write_text(damage(path.read_text()))
    with pytest.raises(MolaError, match="train.jsonl: missing or altered"):
        collect.write(layout)


def test_the_analysis_imports_no_torch():
    code = (
        "import importlib, pkgutil, sys, mola_core.analysis as a\n"
        "for m in pkgutil.walk_packages(a.__path__, 'mola_core.analysis.'): importlib.import_module(m.name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_likelihoods_are_those_of_the_samples(layout):
    collect.write(layout)
    scores = pd.read_parquet(layout.folder / "scores.parquet")
    cell = layout.study.cells()[3]
    samples = pd.read_parquet(layout.cell(cell) / "samples.parquet").set_index("document")
    rows = scores[(scores.task == cell.task) & (scores.method == cell.method) & (scores.seed == cell.seed)]
    for row in rows.itertuples():
        sample = samples.loc[row.document]
        options = np.array(sample["loglikelihoods"])
        right = int(sample["target"])
        assert row.log_likelihood == pytest.approx(options[right], rel=1e-5)
        assert row.likelihood == pytest.approx(np.exp(options[right]) / np.exp(options).sum(), rel=1e-5)
    assert len(rows) == DOCUMENTS
    assert score_matrix(load_scores(layout.folder / "scores.parquet")).blocks[0].likelihood is not None
