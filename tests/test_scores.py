"""Reading score files: what is accepted, what is refused and how it is said."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mola_core.analysis.calibration.simulation import SHAPES, Scenario
from mola_core.analysis.score_files import CONTENT_KEY, expected_content, load_scores
from mola_core.analysis.score_writer import SCHEMA, write_scores
from mola_core.analysis.scores import COLUMNS, score_matrix
from mola_core.errors import MolaError

SMALL = Scenario("small", documents=(12, 7), accuracy=(0.8, 0.6), run_noise=(0.1, 0.1), seeds=2)


@pytest.fixture
def rows() -> pd.DataFrame:
    return SMALL.frame(np.random.default_rng(0))


def write(rows: pd.DataFrame, path):
    rows.to_csv(path, index=False) if path.suffix == ".csv" else rows.to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_file_becomes_arrays_whatever_the_order_of_rows(tmp_path, rows, name):
    shuffled = rows.sample(frac=1, random_state=1).assign(extra="ignored")
    matrix = score_matrix(load_scores(write(shuffled, tmp_path / name)))
    assert [block.name for block in matrix.blocks] == ["task0", "task1"]
    assert matrix.methods == tuple(sorted(SHAPES))
    for block in matrix.blocks:
        assert block.present.all()
        wide = rows[rows.task == block.name].pivot(
            index=["method", "seed"], columns="document", values="correct"
        )
        # The order of documents is free; what each cell answered on one of them is not.
        mine = block.correct.reshape(len(wide), -1)
        assert sorted(map(tuple, mine.T)) == sorted(map(tuple, wide.to_numpy().T))


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.assign(correct=rows.correct.astype(bool)),
        lambda rows: rows.assign(correct=rows.correct.astype(float)),
        lambda rows: rows.assign(
            document=rows.document.astype("category"), task=rows.task.astype("category")
        ),
        lambda rows: rows.assign(seed=rows.seed.astype(float)),
    ],
)
def test_other_types_of_the_same_values_are_the_same_matrix(tmp_path, rows, change):
    plain = score_matrix(load_scores(write(rows, tmp_path / "plain.parquet")))
    other = score_matrix(load_scores(write(change(rows), tmp_path / "other.parquet")))
    for a, b in zip(plain.blocks, other.blocks, strict=True):
        assert (a.methods, a.seeds) == (b.methods, b.seeds)
        assert np.array_equal(np.sort(a.correct, axis=2), np.sort(b.correct, axis=2))


def test_whole_number_documents_are_names(tmp_path, rows):
    rows = rows.assign(document=rows.groupby(["task", "method", "seed"]).cumcount())
    for name in ("scores.csv", "scores.parquet"):
        matrix = score_matrix(load_scores(write(rows, tmp_path / name)))
        assert [block.documents for block in matrix.blocks] == [12, 7]


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
@pytest.mark.parametrize("column", COLUMNS)
def test_missing_column_is_named(tmp_path, rows, name, column):
    path = write(rows.drop(columns=column), tmp_path / name)
    with pytest.raises(MolaError, match=f"column '{column}' missing"):
        load_scores(path)


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.assign(correct=rows.correct * 2), "0 or 1"),
        (lambda rows: rows.assign(correct=rows.correct + 0.5), "0 or 1"),
        (lambda rows: rows.assign(correct="yes"), "0 or 1"),
        (lambda rows: rows.assign(correct=rows.correct.where(rows.index > 0)), "empty field"),
        (lambda rows: rows.assign(method=rows.method.where(rows.index > 0)), "empty field"),
        (lambda rows: rows.assign(seed=rows.seed + 0.5), "whole numbers"),
        (lambda rows: rows.head(0), "no rows"),
    ],
)
def test_bad_values_are_refused(tmp_path, rows, name, change, message):
    path = write(change(rows), tmp_path / name)
    with pytest.raises(MolaError, match=message) as caught:
        load_scores(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda f: f.assign(Cluster="c"),
            "column 'Cluster' would not be read; write it 'cluster', or rename it",
        ),
        (lambda f: f.assign(**{" likelihood": 0.5}), "column ' likelihood' would not be read"),
        (
            lambda f: f.rename(columns={"correct": "Correct"}),
            "column 'Correct' would not be read; write it 'correct'",
        ),
        (lambda f: f.assign(method=f.method.astype(str) + " "), "column 'method': .* has blanks around it"),
    ],
)
def test_names_that_are_nearly_others_are_refused(tmp_path, rows, name, change, said):
    file = tmp_path / name
    frame = change(rows)
    frame.to_csv(file, index=False) if file.suffix == ".csv" else frame.to_parquet(file, index=False)
    with pytest.raises(MolaError, match=said):
        load_scores(file)


def test_a_column_that_is_there_twice_is_refused(tmp_path, rows):
    file = tmp_path / "scores.csv"
    pd.concat([rows, rows["correct"]], axis=1).to_csv(file, index=False)
    with pytest.raises(MolaError, match="column 'correct' is there twice; remove one"):
        load_scores(file)


def test_large_seeds_stay_apart_in_csv(tmp_path, rows):
    file = tmp_path / "scores.csv"
    large = rows.assign(seed=rows["seed"] + 2**53)
    large.to_csv(file, index=False)
    assert set(load_scores(file)["seed"]) == set(large["seed"])
    rows.assign(seed=rows["seed"].astype(float)).to_csv(file, index=False)
    assert set(load_scores(file)["seed"]) == set(rows["seed"]), "3.0 is 3"


def test_not_a_score_file(tmp_path):
    with pytest.raises(MolaError, match="no such score file"):
        load_scores(tmp_path / "missing.parquet")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 not really")
    with pytest.raises(MolaError, match="not a readable score file"):
        load_scores(broken)


def test_a_damaged_page_and_text_that_is_no_utf8_are_one_line(tmp_path, rows):
    path = write(rows, tmp_path / "scores.parquet")
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(content)
    with pytest.raises(MolaError, match="not a readable score file"):
        load_scores(path)
    path = write(rows, tmp_path / "scores.csv")
    path.write_bytes(path.read_bytes().replace(b"mola-2468", b"mola-\xff\xfe"))
    with pytest.raises(MolaError, match="not a readable score file") as error:
        load_scores(path)
    assert "\n" not in str(error.value)


def test_rows_that_share_nothing_are_refused_before_memory_is_taken_for_them(rows):
    one = rows.head(1)
    many = pd.concat([one] * 60_000, ignore_index=True).assign(seed=range(60_000))
    many["document"] = [f"d{number}" for number in range(60_000)]
    with pytest.raises(
        MolaError, match="not paired: 60000 rows for 1 methods, 60000 seeds and 60000 documents"
    ):
        score_matrix(many)


def test_duplicate_rows_are_refused(rows):
    with pytest.raises(MolaError, match=r"task task0: 1 .*more than one row, first in mola-2468, seed 0"):
        score_matrix(pd.concat([rows, rows.head(1)]))


def test_unpaired_documents_are_refused(rows):
    with pytest.raises(MolaError, match=r"not paired: mola-2468, seed 0 has 11 of the 12 documents"):
        score_matrix(rows.iloc[1:])


def test_a_missing_cell_is_not_an_unpaired_document(rows):
    matrix = score_matrix(rows[~((rows.method == "mola-2882") & (rows.seed == 1) & (rows.task == "task0"))])
    block = matrix.blocks[0]
    assert block.present.sum() == len(SHAPES) * 2 - 1
    assert block.common_seeds(["mola-2882", "mola-5555"]).tolist() == [0]
    assert block.common_seeds(["mola-2468", "mola-5555"]).tolist() == [0, 1]
    assert block.common_seeds(["mola-2468", "nothing"]).tolist() == []


def test_several_models_have_blocks_of_their_own(rows):
    matrix = score_matrix(pd.concat([rows, rows.assign(model="other")]))
    assert [block.name for block in matrix.blocks] == [
        "other/task0",
        "other/task1",
        "simulated/task0",
        "simulated/task1",
    ]


def test_a_byte_order_mark_changes_nothing(tmp_path, rows):
    plain = write(rows, tmp_path / "plain.csv")
    marked = tmp_path / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    pd.testing.assert_frame_equal(load_scores(plain), load_scores(marked))


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
@pytest.mark.parametrize("bad", [1.01, -0.2, np.inf])
def test_a_likelihood_is_a_probability(tmp_path, rows, name, bad):
    rows["likelihood"] = 0.5
    rows.loc[3, "likelihood"] = bad
    with pytest.raises(MolaError, match="between 0 and 1"):
        load_scores(write(rows, tmp_path / name))


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_a_task_has_a_likelihood_where_every_row_has_one(tmp_path, rows, name):
    rows["likelihood"] = np.linspace(0, 1, len(rows))
    rows.loc[rows.index[rows.task == "task1"][0], "likelihood"] = np.nan
    first, second = score_matrix(load_scores(write(rows, tmp_path / name))).blocks
    assert second.likelihood is None
    expected = rows[rows.task == "task0"].groupby(["method", "seed"]).likelihood.mean()
    assert first.likelihood.mean(axis=2).ravel() == pytest.approx(expected.to_numpy(), abs=1e-6)


def test_clusters_are_read_and_may_not_cross_tasks(tmp_path, rows):
    rows["cluster"] = rows.task + rows.document.str[-1]
    block = score_matrix(load_scores(write(rows, tmp_path / "a.csv"))).blocks[0]
    assert block.units == rows[rows.task == "task0"].cluster.nunique() < block.documents
    alone = score_matrix(
        load_scores(write(rows.assign(cluster=rows.task + rows.document), tmp_path / "d.csv"))
    )
    assert all(block.clusters is None for block in alone.blocks)
    with pytest.raises(MolaError, match="is in the tasks task0, task1"):
        score_matrix(load_scores(write(rows.assign(cluster="one"), tmp_path / "b.csv")))
    rows.loc[0, "cluster"] = "task0another"
    with pytest.raises(MolaError, match="a document is in two clusters"):
        score_matrix(load_scores(write(rows, tmp_path / "c.csv")))


@pytest.fixture
def sealed(tmp_path, rows):
    """A score file as `collect` writes it."""
    rows = rows.assign(likelihood=np.linspace(0, 1, len(rows)), log_likelihood=-1.0)
    table = pa.Table.from_pandas(rows[SCHEMA.names], preserve_index=False).cast(SCHEMA)
    path = tmp_path / "sealed.parquet"
    write_scores(path, iter([table.slice(0, 50), table.slice(50)]))
    return path


def test_a_flipped_bit_is_one_line_or_changes_nothing(sealed):
    content, whole = sealed.read_bytes(), load_scores(sealed)
    rng = np.random.default_rng(0)
    refused = 0
    for bit in rng.choice(8 * len(content), size=400, replace=False):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        sealed.write_bytes(damaged)
        try:
            pd.testing.assert_frame_equal(load_scores(sealed), whole)
        except MolaError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 200


def test_pages_and_content_have_checksums(sealed, rows):
    assert expected_content(sealed)["correct"]
    table = pq.read_table(sealed)
    other = 1 - table["correct"].to_numpy()
    changed = table.set_column(table.schema.get_field_index("correct"), "correct", pa.array(other))
    pq.write_table(
        changed.replace_schema_metadata({CONTENT_KEY: json.dumps(expected_content(sealed))}), sealed
    )
    with pytest.raises(MolaError, match="not the one that was written"):
        load_scores(sealed)
