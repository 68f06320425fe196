"""Examples as files: what they hold, and what is refused where they are made or read."""

import dataclasses
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mola_core.errors import MolaError
from mola_core.runs.key import examples_identity
from mola_core.runs.layout import Layout
from mola_core.runs.prepare import check_steps
from mola_core.tasks import loading, render, rendering
from mola_core.tasks.examples import read_examples, write_examples
from mola_core.tasks.rows import verify_data


@pytest.fixture
def prepared_bench(bench):
    return bench(tasks=["cola", "scienceqa"], methods=["base"], seeds=[0])


def write(runner, folder, task="cola", max_length=256):
    rows = runner.layout.data(task)
    return write_examples(task, "choice", rows, folder, runner.base.tokenizer, max_length, "made by a test")


@pytest.mark.parametrize("task", ["cola", "scienceqa"])
def test_examples_are_lm_evals_own(prepared_bench, tmp_path, task):
    from mola_core.tasks import evaluation_split, load_task

    record = write(prepared_bench, tmp_path / "examples", task)
    loaded = load_task(task, "choice", prepared_bench.layout.data(task))
    for part, split in (("train", "train"), ("evaluation", evaluation_split(task))):
        assert read_examples(tmp_path / "examples", part) == render(loaded, split)
        assert record["parts"][part]["documents"] == len(render(loaded, split))
    validated = load_task(task, "choice", prepared_bench.layout.data(task), validated=True)
    assert read_examples(tmp_path / "examples", "validation") == render(validated, "validation")
    kept = read_examples(tmp_path / "examples", "train", without_held_out=True)
    assert kept == render(validated, "train")
    assert read_examples(tmp_path / "examples", "train", 3) == render(loaded, "train", 3)


def test_held_out_documents_are_told_by_what_they_ask_where_a_task_drops_and_reorders_rows(
    prepared_bench, tmp_path, monkeypatch
):
    plain = loading.make_examples
    monkeypatch.setattr(
        loading,
        "make_examples",
        lambda task, split, documents: [e for e in plain(task, split, documents)[::-1] if len(e.prompt) % 7],
    )
    write(prepared_bench, tmp_path / "examples")
    train, kept, validation = (
        {example.document for example in read_examples(tmp_path / "examples", part, without_held_out=without)}
        for part, without in (("train", False), ("train", True), ("validation", False))
    )
    assert validation and validation < train and kept == train - validation


def test_held_out_documents_that_training_does_not_know_are_refused(prepared_bench, tmp_path, monkeypatch):
    """A task that goes by a row's place among the others makes other documents of a part of them."""
    plain = loading.make_examples

    def numbered(task, split, documents):
        found = plain(task, split, documents)
        return [dataclasses.replace(e, document=f"{row} {e.document}") for row, e in enumerate(found)]

    monkeypatch.setattr(loading, "make_examples", numbered)
    with pytest.raises(
        MolaError, match="task cola: [0-9]+ of [0-9]+ documents held out of training .* process_docs"
    ):
        write(prepared_bench, tmp_path / "examples")
    assert not (tmp_path / "examples").exists()


def test_rows_that_are_drawn_at_random_are_refused(prepared_bench, tmp_path, monkeypatch):
    """A task that shuffles its options without a seed gives other questions each time that it is loaded."""
    plain = loading.make_examples
    random.seed(4)

    def shuffled(task, split, documents):
        found = plain(task, split, documents)
        return random.sample(found, len(found)) if split == "train" else found

    monkeypatch.setattr(loading, "make_examples", shuffled)
    with pytest.raises(MolaError, match="task cola: row [0-9]+ of train differs between two renderings"):
        write(prepared_bench, tmp_path / "examples")
    assert not (tmp_path / "examples").exists()


def test_documents_in_two_splits_are_counted(prepared_bench, tmp_path, monkeypatch, capsys):
    plain = loading.make_examples
    monkeypatch.setattr(
        loading,
        "make_examples",
        lambda task, split, documents: plain(task, "train", documents)[:5] + plain(task, split, documents),
    )
    monkeypatch.setattr(rendering, "_clusters", lambda *arguments: [None] * len(arguments[-1]))
    record = write(prepared_bench, tmp_path / "examples", "scienceqa")
    assert record["shared"]["train and evaluation"] == 5
    assert "5 documents stand in train and evaluation" in capsys.readouterr().err


def test_cut_prompts_are_counted_and_long_answers_refused(prepared_bench, tmp_path):
    longest = max(
        row["tokens"]
        for row in pq.read_table(prepared_bench.layout.examples("cola") / "train.parquet").to_pylist()
    )
    record = write(prepared_bench, tmp_path / "whole", max_length=longest)
    assert record["parts"]["train"]["cut"] == 0
    record = write(prepared_bench, tmp_path / "cut", max_length=longest - 3)
    rows = pq.read_table(tmp_path / "cut" / "train.parquet").to_pylist()
    assert [row["cut"] for row in rows] == [max(0, row["tokens"] - longest + 3) for row in rows]
    assert record["parts"]["train"]["cut"] == sum(row["cut"] > 0 for row in rows) > 0
    assert record["parts"]["evaluation"]["cut"] == 0, "evaluation cuts nothing before the model's own limit"
    with pytest.raises(MolaError, match="task cola: row 0 of train: .*raise training.max_length"):
        write(prepared_bench, tmp_path / "short", max_length=8)


def test_the_room_that_generation_keeps_for_the_answer_is_cut_from_prompts(prepared_bench, tmp_path):
    tokenizer, rows = prepared_bench.base.tokenizer, prepared_bench.layout.data("cola")
    write_examples("cola", "generate", rows, tmp_path / "whole", tokenizer, 2048, "made by a test")
    asked = read_examples(tmp_path / "whole", "evaluation")
    longest = max(len(tokenizer(example.prompt).input_ids) for example in asked)
    for short, name in ((0, "fits"), (3, "short")):
        positions = longest + 128 - short
        record = write_examples(
            "cola", "generate", rows, tmp_path / name, tokenizer, 2048, "made by a test", positions
        )
        assert bool(record["parts"]["evaluation"]["cut"]) == bool(short)


def test_clusters_are_in_what_examples_are_made_of(bench, monkeypatch):
    layout = bench(tasks=["cola"], methods=["base"], seeds=[0]).layout
    before = examples_identity(layout, "cola")
    own = layout.root / "own"
    shutil.copytree(layout.data("cola"), own)
    monkeypatch.setattr(Layout, "data", lambda self, task: own)
    assert examples_identity(layout, "cola") == before
    pq.write_table(pa.table({"cluster": ["a"] * 8}), own / "validation.cluster.parquet")
    assert examples_identity(layout, "cola") != before
    (own / "fingerprint.json").write_text("[]")
    assert examples_identity(layout, "cola") != before
    with pytest.raises(MolaError, match="fingerprint.json: no record of rows; delete"):
        verify_data(own)


def test_a_damaged_file_is_named(prepared_bench, tmp_path):
    write(prepared_bench, tmp_path / "examples")
    file = tmp_path / "examples" / "train.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(MolaError, match=r"train\.parquet: missing or altered"):
        read_examples(tmp_path / "examples", "train")


def test_a_warm_up_without_an_end_is_found_where_examples_are_made(bench, tmp_path):
    """Of a hub's or folder's rows only the examples say how many steps there are."""
    runner = bench(tasks=["cola"], methods=["lora-r4"], seeds=[0])
    study = runner.study
    record = {"parts": {"train": {"documents": 40, "held_out": 8}}}
    check_steps(study, "cola", record)
    late = study.model_copy(update={"training": study.training.model_copy(update={"warmup_steps": 5})})
    with pytest.raises(MolaError, match="task cola: training.warmup_steps: 5 is not below the 5 steps"):
        check_steps(late, "cola", record)
    choosing = late.training.model_copy(update={"warmup_steps": 4, "epochs": [1]})
    with pytest.raises(MolaError, match="training.warmup_steps: 4 is not below the 4 steps"):
        check_steps(study.model_copy(update={"training": choosing}), "cola", record)
