"""Rows from each source: what is kept, how it is fingerprinted, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_rows import FOLDERS, ROWS, write_root, write_split

from mola_core.errors import MolaError
from mola_core.study.sections import CLOZE, SCIENCEQA_TOPICS, BuiltinData, DirectoryData, HubData
from mola_core.tasks import (
    SPLITS,
    evaluation_split,
    load_task,
    render,
    task_names,
)
from mola_core.tasks.builtin_rows import TOPIC_ROWS, builtin_rows
from mola_core.tasks.rows import content_sha256, data_identity, prepare_task, rows_sha256, verify_data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path / "root")


def directory(root: Path) -> DirectoryData:
    return DirectoryData(source="directory", root=str(root))


SIZES = {
    "mrpc": (3668, 408, 1725),
    "cola": (8551, 1043, 1063),
    "rte": (2490, 277, 3000),
    "scienceqa": (6508, 2144, 2224),
    "commonsenseqa": (9741, 1221, 1140),
    "openbookqa": (4957, 500, 500),
}


@pytest.mark.parametrize("task", SIZES)
def test_real_rows_are_known_and_complete(real_data: Path, tmp_path: Path, task: str):
    prepare_task(task, directory(real_data), tmp_path / "data")
    splits = verify_data(tmp_path / "data")["splits"]
    assert tuple(splits[split]["rows"] for split in SPLITS) == SIZES[task]
    assert all(splits[split]["known"] for split in SPLITS)
    loaded = load_task(task, "choice", tmp_path / "data")
    ids = [example.document for example in render(loaded, evaluation_split(task), 400)]
    assert len(set(ids)) == len(ids)


def test_real_topics_have_the_papers_sizes(real_data: Path, tmp_path: Path):
    sizes = {}
    for task in SCIENCEQA_TOPICS:
        prepare_task(task, directory(real_data), tmp_path / task)
        test = verify_data(tmp_path / task)["splits"]["test"]
        sizes[task] = test["rows"]
        assert test["known"]
    assert list(sizes.values()) == [397, 192, 119, 84, 65]
    assert list(sizes) == [f"scienceqa-{topic}" for topic in TOPIC_ROWS]


def test_only_the_columns_that_the_task_uses_are_kept(root: Path, tmp_path: Path):
    prepare_task("scienceqa", directory(root), tmp_path / "data")
    table = pq.read_table(tmp_path / "data" / "train.parquet")
    assert table.column_names == ["question", "choices", "answer", "hint"]
    fingerprint = json.loads((tmp_path / "data" / "fingerprint.json").read_text())
    assert fingerprint["source"] == "directory"
    assert fingerprint["dataset"] == "scienceqa"
    assert fingerprint["stand_in"] is False
    assert fingerprint["splits"]["train"] == {"rows": 1, "sha256": rows_sha256(table), "known": False}


def test_rows_with_an_image_are_left_out(root: Path, tmp_path: Path):
    row = ROWS["scienceqa"]
    pictured = row | {"has_image": True, "question": "What is in the picture?"}
    write_split(root, "scienceqa", "test", [pictured, row, pictured])
    prepare_task("scienceqa", directory(root), tmp_path / "data")
    assert pq.read_table(tmp_path / "data" / "test.parquet")["question"].to_pylist() == [row["question"]]


def test_the_fingerprint_does_not_depend_on_the_encoding_but_on_the_order():
    table = pa.table({"sentence": ["a", "b"], "label": pa.array([0, 1], pa.int64())})
    narrow = pa.table(
        {"label": pa.array([0, 1], pa.int8()), "sentence": pa.array(["a", "b"], pa.large_string())}
    )
    assert rows_sha256(table) == rows_sha256(narrow)
    turned = table.take([1, 0])
    assert rows_sha256(turned) != rows_sha256(table)
    assert content_sha256(turned) == content_sha256(table)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.text(), st.integers(0, 1)), min_size=1, max_size=4), st.data())
def test_any_changed_cell_changes_the_fingerprint(rows: list[tuple[str, int]], data: st.DataObject):
    def table(values: list[tuple[str, int]]) -> pa.Table:
        return pa.table({"sentence": [text for text, _ in values], "label": [label for _, label in values]})

    index = data.draw(st.integers(0, len(rows) - 1))
    changed = [(text + "x", label) if at == index else (text, label) for at, (text, label) in enumerate(rows)]
    assert rows_sha256(table(rows)) != rows_sha256(table(changed))
    assert content_sha256(table(rows)) != content_sha256(table(changed))


def test_an_altered_or_truncated_file_is_refused(root: Path, tmp_path: Path):
    folder = tmp_path / "data"
    prepare_task("cola", directory(root), folder)
    verify_data(folder)
    file = folder / "validation.parquet"
    whole = file.read_bytes()
    pq.write_table(pa.Table.from_pylist([ROWS["cola"] | {"label": 1}]), file)
    with pytest.raises(MolaError, match="not those that were prepared"):
        verify_data(folder)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MolaError, match="no whole parquet file"):
        verify_data(folder)
    file.unlink()
    with pytest.raises(MolaError, match="validation.parquet"):
        verify_data(folder)


def test_a_file_that_changes_is_read_anew(root: Path, tmp_path: Path):
    for label in (0, 1):
        write_split(root, "glue/cola", "validation", [ROWS["cola"] | {"label": label}])
        prepare_task("cola", directory(root), tmp_path / "data")
        (example,) = render(load_task("cola", "choice", tmp_path / "data"), "validation")
        assert example.answer == label


@pytest.mark.parametrize(
    ("task", "split", "rows", "words"),
    [
        ("cola", "validation", None, r"glue/cola/validation.parquet is missing \(split validation\)"),
        ("mrpc", "train", None, r"glue/mrpc/train.parquet is missing \(split train\)"),
        (
            "cola",
            "train",
            [{"text": "Hi.", "label": 1}],
            "train.parquet .split train. has no column 'sentence'",
        ),
        ("cola", "train", [ROWS["cola"] | {"sentence": None}], "empty cells in column 'sentence'"),
        ("cola", "validation", [ROWS["cola"] | {"label": -1}], "row 0 of validation has no answer"),
        (
            "commonsenseqa",
            "train",
            [ROWS["commonsenseqa"] | {"answerKey": ""}],
            "row 0 of train has no answer",
        ),
        ("openbookqa", "test", [ROWS["openbookqa"] | {"choices": ["a", "b"]}], "rows give no prompt"),
        (
            "scienceqa",
            "test",
            [{key: value for key, value in ROWS["scienceqa"].items() if key != "has_image"}],
            "neither 'image' nor 'has_image'",
        ),
        ("scienceqa", "train", [ROWS["scienceqa"] | {"has_image": True}], "no row for this task"),
        ("scienceqa", "train", [ROWS["scienceqa"] | {"has_image": "no"}], "wrong type"),
        (
            "scienceqa",
            "train",
            [ROWS["scienceqa"] | {"choices": ["a", None]}],
            "empty cells in column 'choices'",
        ),
        ("scienceqa-biology", "train", [ROWS["scienceqa"] | {"topic": 1}], "wrong type"),
        ("cola", "train", [ROWS["cola"] | {"sentence": b"Hi."}], "binary in column 'sentence'"),
        ("cola", "train", [ROWS["cola"] | {"label": [1]}], r"list<.*> in column 'label'"),
        ("scienceqa-biology", "train", [ROWS["scienceqa"]], "no row for this task"),
    ],
)
def test_bad_directories_are_refused_in_one_line_and_leave_nothing(
    root: Path, tmp_path: Path, task: str, split: str, rows: list[dict[str, Any]] | None, words: str
):
    folder = FOLDERS[task.split("-")[0]]
    if rows is None:
        (root / folder / f"{split}.parquet").unlink()
    else:
        write_split(root, folder, split, rows)
    with pytest.raises(MolaError, match=words) as error:
        prepare_task(task, directory(root), tmp_path / "out" / task)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("*"))
    assert not list((tmp_path / "out").glob(".*"))


def test_text_that_is_no_utf8_is_one_line(root: Path, tmp_path: Path):
    file = root / FOLDERS["cola"] / "train.parquet"
    table = pq.read_table(file)
    damaged = pa.array([b"\xff\xfe"] * len(table), pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.column_names.index("sentence"), "sentence", damaged), file)
    with pytest.raises(MolaError, match="not UTF-8") as error:
        prepare_task("cola", directory(root), tmp_path / "out" / "cola")
    assert "\n" not in str(error.value)


def test_a_missing_root_is_named(tmp_path: Path):
    with pytest.raises(MolaError, match="nowhere.*correct data_root"):
        data_identity("rte", directory(tmp_path / "nowhere"))


def test_a_split_that_is_not_needed_may_be_missing(root: Path, tmp_path: Path):
    (root / "glue/cola/test.parquet").unlink()
    prepare_task("cola", directory(root), tmp_path / "data")
    assert sorted(verify_data(tmp_path / "data")["splits"]) == ["train", "validation"]


class Hub:
    """The hub's two calls, answered from local tables; records what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tables: dict[str, list[dict[str, Any]]]) -> None:
        import datasets
        import huggingface_hub

        self.calls: list[tuple[Any, ...]] = []
        loaded = {split: datasets.Dataset.from_list(rows) for split, rows in tables.items()}

        def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
            self.calls.append((path, name, options))
            return datasets.DatasetDict(loaded)

        class Newest:
            sha = "a" * 40

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: Newest())


def test_hub_rows_are_pinned_and_equal_the_directorys(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path
):
    row = {key: value for key, value in ROWS["scienceqa"].items() if key != "has_image"}
    rows = [row | {"image": None}, row | {"image": {"path": "x.png"}, "question": "What is this?"}]
    hub = Hub(monkeypatch, dict.fromkeys(SPLITS, rows))
    prepare_task("scienceqa", HubData(source="hub"), tmp_path / "hub")
    assert hub.calls == [("derek-thomas/ScienceQA", None, {"revision": "a" * 40})]
    prepare_task("scienceqa", directory(root), tmp_path / "directory")
    ours, theirs = verify_data(tmp_path / "hub"), verify_data(tmp_path / "directory")
    assert ours["splits"] == theirs["splits"]
    assert (ours["dataset"], ours["revision"]) == ("derek-thomas/ScienceQA", "a" * 40)
    documents = [
        render(load_task("scienceqa", "choice", tmp_path / name), "test") for name in ("hub", "directory")
    ]
    assert documents[0] == documents[1]


def test_a_pinned_revision_is_what_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    hub = Hub(monkeypatch, dict.fromkeys(SPLITS, [ROWS["cola"]]))
    source = HubData(source="hub", revisions={"cola": "b" * 40})
    prepare_task("cola", source, tmp_path / "data")
    assert hub.calls == [("nyu-mll/glue", "cola", {"revision": "b" * 40})]
    assert data_identity("cola", source)["revision"] == "b" * 40


def test_a_hub_dataset_without_the_split_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    Hub(monkeypatch, {"train": [ROWS["mrpc"]]})
    with pytest.raises(MolaError, match="nyu-mll/glue has no split 'test'"):
        prepare_task("mrpc", HubData(source="hub"), tmp_path / "data")


def test_without_a_network_one_line_names_the_alternative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(
        MolaError, match=r"Hugging Face hub \(ConnectionError: no route\); .*data_root=DIR"
    ) as error:
        prepare_task("rte", HubData(source="hub"), tmp_path / "data")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


BUILTIN_SHA256 = {
    "cola": "4a46fea286f214073c81721ea56ce099ff2a7ca9cb839e424601515017daf31c",
    "scienceqa": "79ee3ed823da39e3dd86ea0e7b4298f64a913afccfff47b7fa26c215ed0cfc1c",
}


@pytest.mark.parametrize("task", BUILTIN_SHA256)
def test_builtin_rows_never_change(task: str):
    table = pa.Table.from_pylist([row for split in SPLITS for row in builtin_rows(task, split, 64)])
    assert rows_sha256(table) == BUILTIN_SHA256[task]


@pytest.mark.parametrize("task", ["cola", "scienceqa", *SCIENCEQA_TOPICS])
def test_builtin_splits_share_no_row_and_do_not_depend_on_sizes(task: str):
    content = {
        split: {
            (row.get("sentence"), row.get("question"), row.get("hint"), tuple(sorted(row.get("choices", []))))
            for row in builtin_rows(task, split, 256)
        }
        for split in SPLITS
    }
    assert [len(rows) for rows in content.values()] == [256] * 3
    assert len(set().union(*content.values())) == 3 * 256
    assert builtin_rows(task, "train", 256)[:100] == builtin_rows(task, "train", 100)


def test_builtin_answers_are_right_and_balanced():
    rows = builtin_rows("scienceqa", "train", 512)
    for row in rows:
        chosen, last = row["choices"][row["answer"]], row["choices"][-1]
        if row["hint"]:
            most = any(word in row["question"] for word in ("most", "heaviest", "latest"))
            assert chosen == (last if most else row["choices"][0])
    sizes = {len(row["choices"]) for row in rows}
    assert sizes == {2, 3, 4}
    letters = [row["answer"] for row in rows]
    assert max(letters.count(letter) for letter in set(letters)) < 0.5 * len(letters)
    sentences = builtin_rows("cola", "train", 512)
    assert 0.44 < sum(row["label"] for row in sentences) / 512 < 0.56


@pytest.mark.parametrize("task", ["cola", "scienceqa"])
def test_builtin_tasks_are_stand_ins(tmp_path: Path, task: str):
    source = BuiltinData(source="builtin", train_documents=12, test_documents=6)
    prepare_task(task, source, tmp_path / "data")
    fingerprint = verify_data(tmp_path / "data")
    assert fingerprint["stand_in"] is True
    assert {split: entry["rows"] for split, entry in fingerprint["splits"].items()} == {
        "train": 12,
        "validation": 6,
        "test": 6,
    }
    assert len(render(load_task(task, "generate", tmp_path / "data"), evaluation_split(task))) == 6
    other = source.model_copy(update={"train_documents": 13})
    assert data_identity(task, source) != data_identity(task, other)


def test_builtin_rows_of_other_tasks_and_too_many_are_refused(tmp_path: Path):
    with pytest.raises(MolaError, match="task rte: no built-in rows; use cola or scienceqa"):
        prepare_task("rte", BuiltinData(source="builtin"), tmp_path / "data")
    with pytest.raises(MolaError, match="task rte: no built-in rows"):
        data_identity("rte", BuiltinData(source="builtin"))
    with pytest.raises(MolaError, match="data.test_documents: 100000, but scienceqa-earth-science has only"):
        builtin_rows("scienceqa-earth-science", "test", 100_000)


def test_identity_follows_the_files(root: Path):
    before = data_identity("cola", directory(root))
    assert before == data_identity("cola", directory(root))
    write_split(root, "glue/cola", "train", [ROWS["cola"] | {"sentence": "They run."}])
    after = data_identity("cola", directory(root))
    assert {split for split in SPLITS if before["files"][split] != after["files"][split]} == {"train"}
    known = [task for task in task_names() if task.removesuffix(CLOZE) in ROWS or task in SCIENCEQA_TOPICS]
    assert all(data_identity(task, directory(root))["task"] == task for task in known)


def test_a_file_that_unfolds_to_more_than_memory_holds_is_refused(root: Path, tmp_path: Path, monkeypatch):
    """A text that stands a thousand times takes the room of one: its file says nothing of what it unfolds to."""
    from mola_core.tasks import rows

    monkeypatch.setattr(rows, "MAX_UNFOLDED", 1_000_000)
    file = root / FOLDERS["cola"] / "train.parquet"
    plain = ROWS["cola"] | {"sentence": "word " * 100}
    pq.write_table(pa.Table.from_pylist([plain] * 4000), file)
    assert file.stat().st_size < 50_000
    with pytest.raises(MolaError, match=r"train\.parquet .* unfolds to more than 1000000 bytes"):
        prepare_task("cola", directory(root), tmp_path / "out")
    monkeypatch.setattr(rows, "MAX_UNFOLDED", 10_000_000)
    prepare_task("cola", directory(root), tmp_path / "out")
    assert verify_data(tmp_path / "out")["splits"]["train"]["rows"] == 4000


@pytest.mark.parametrize("within", ["rows", "a row"])
@pytest.mark.parametrize("kept", ["as text", "as a dictionary"])
def test_a_text_that_unfolds_is_stopped_before_it_is_in_memory(
    root: Path, tmp_path, monkeypatch, within, kept
):
    from mola_core.tasks import rows

    text = pa.array(["word " * 20_000])
    many = text.dictionary_encode().take(pa.array([0] * 400, pa.int32()))
    many = many if kept == "as a dictionary" else many.cast(pa.string())
    if within == "rows":
        task, table = "cola", pa.table({"sentence": many, "label": [0, 1] * 200, "idx": list(range(400))})
    else:
        listed = pa.ListArray.from_arrays(pa.array([0, 400], pa.int32()), many)
        labels = pa.array([[str(number) for number in range(400)]])
        task = "commonsenseqa"
        choices = pa.StructArray.from_arrays([labels, listed], ["label", "text"])
        table = pa.table({"id": ["1"], "question": ["?"], "choices": choices, "answerKey": ["A"]})
    file = root / FOLDERS[task] / "train.parquet"
    pq.write_table(table, file)
    with pq.ParquetFile(file) as written:
        assert written.metadata.row_group(0).total_byte_size < 1_000_000
    monkeypatch.setattr(rows, "MAX_UNFOLDED", 5_000_000)
    with pytest.raises(MolaError, match="unfolds to more than 5000000 bytes"):
        prepare_task(task, directory(root), tmp_path / "out")


def test_numbers_that_unfold_are_refused_by_their_count(tmp_path):
    from mola_core.tasks.parquet import TooLarge, read_bounded

    pq.write_table(pa.table({"n": pa.array([[0] * 1_000_000])}), tmp_path / "n.parquet")
    assert (tmp_path / "n.parquet").stat().st_size < 10_000
    with pytest.raises(TooLarge):
        read_bounded(tmp_path / "n.parquet", 8_000_000)
    assert read_bounded(tmp_path / "n.parquet", 20_000_000).num_rows == 1


def test_a_bounded_reading_gives_what_a_plain_one_gives(tmp_path):
    from mola_core.tasks.parquet import read_bounded

    columns = {
        "text": ["a", None, "é" * 300],
        "bytes": [b"\0", b"", b"x"],
        "choices": [{"label": ["A"], "text": ["x"]}, {"label": [], "text": None}, None],
        "deep": [[["a", "b"], []], [], [["a"]]],
        "n": [1, None, 3],
        "yes": [True, False, None],
        "kind": pa.array(["p", "q", "p"]).dictionary_encode(),
    }
    table = pa.table(columns).replace_schema_metadata({"huggingface": "{}"})
    pq.write_table(table, tmp_path / "t.parquet")
    read = read_bounded(tmp_path / "t.parquet", 1_000_000)
    assert read.to_pylist() == table.to_pylist()
    assert read.schema.metadata[b"huggingface"] == b"{}"
    assert read.schema.field("choices").type == table.schema.field("choices").type
    pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    assert read_bounded(tmp_path / "none.parquet", 1_000_000).num_rows == 0
