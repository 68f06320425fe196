"""The record of looks: what was stated when, and how often a hypothesis was looked at."""

import json
import resource

import pandas as pd
import pytest
from drawn_scores import FAST, draw, named, questions, with_likelihood

from mola_core.analysis.looks import FILE, Record, _asked
from mola_core.analysis.pages.verdict import write_verdict
from mola_core.cli import main
from mola_core.errors import MolaError
from mola_core.files import storage_problem

TASKS = ["task0", "task1", "task2"]
ASKED = (TASKS, [0, 1, 2])


def test_looks_share_the_level_and_are_recorded_once(tmp_path):
    three, four = draw(seed=1, seeds=3), draw(seed=2, seeds=4)
    three.to_parquet(tmp_path / "three.parquet")
    four.to_parquet(tmp_path / "four.parquet")
    planned = FAST.model_copy(update={"looks": 2})
    for _ in range(2):
        first = write_verdict(tmp_path / "three.parquet", tmp_path, planned)
    assert (first["looks"]["taken"], first["level"]) == (1, 0.025)
    second = write_verdict(tmp_path / "four.parquet", tmp_path, planned)
    assert second["looks"] == {"planned": 2, "taken": 2, "level": 0.025, "stated_beforehand": False}
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["look", "look"]
    assert lines[1]["scores_sha256"] == second["scores_sha256"] and lines[1]["seeds"]["task0"] == 4
    assert lines[0]["p"]["2468-vs-8642"] == questions(first)["2468-vs-8642"]["p"]
    unplanned = write_verdict(tmp_path / "four.parquet", tmp_path, FAST)
    assert unplanned["level"] == 0.025 and "more looks than planned" in (tmp_path / "verdict.md").read_text()
    # Another method beside them is no new look at what was stated.
    extra = pd.concat([four, four[four.method == "mola-5555"].assign(method="mola-4646")])
    extra.to_parquet(tmp_path / "extra.parquet")
    assert write_verdict(tmp_path / "extra.parquet", tmp_path, planned)["looks"]["taken"] == 2
    (tmp_path / FILE).write_text("not a record\n")
    with pytest.raises(MolaError, match="not a record of looks"):
        write_verdict(tmp_path / "four.parquet", tmp_path, FAST)


def test_stated_beforehand_is_said_only_where_the_record_says_so(tmp_path):
    draw(seed=1).to_parquet(tmp_path / "scores.parquet")

    def page(folder, settings=FAST, first_cell="2999-01-01T00:00:00+00:00", asked=ASKED):
        options = {"first_cell": first_cell, "stated_of": asked}
        write_verdict(tmp_path / "scores.parquet", tmp_path / folder, settings, **options)
        return "Stated beforehand" in (tmp_path / folder / "verdict.md").read_text()

    assert not page("nothing recorded")
    Record(tmp_path / "nothing recorded").state(FAST, *ASKED)
    assert not page("nothing recorded"), "stated after a look"
    for folder in ("stated", "stranger", "late", "changed", "more seeds", "fewer seeds", "fewer tasks"):
        Record(tmp_path / folder).state(FAST, *ASKED)
    assert page("stated") and page("stated")
    assert not page("stranger", first_cell=None)
    assert not page("late", first_cell="2001-01-01T00:00:00+00:00")
    assert not page("changed", FAST.model_copy(update={"margin": 2.0}))
    assert page("more seeds", asked=(TASKS, [0, 1, 2, 3]))
    assert not page("fewer seeds", asked=(TASKS, [0, 1])), "a seed was left out"
    assert not page("fewer tasks", asked=(TASKS[:2], [0, 1, 2]))


def test_only_the_last_statement_counts(tmp_path):
    """Three claims stated one after the other are not each stated beforehand."""
    draw(seed=1).to_parquet(tmp_path / "scores.parquet")
    claims = [
        FAST.model_copy(update={"hypotheses": (name,)})
        for name in ("2468-vs-8642", "8642-vs-2468", "2468-vs-5555")
    ]
    for claim in claims:
        Record(tmp_path).state(claim, *ASKED)
    record, later = Record(tmp_path), "2999-01-01T00:00:00+00:00"
    assert [record.stated_beforehand(claim, later, *ASKED) for claim in claims] == [False, False, True]


def test_a_statement_of_an_earlier_version_named_no_tasks(tmp_path):
    Record(tmp_path).state(FAST, *ASKED)
    file = tmp_path / FILE
    line = json.loads(file.read_text())
    file.write_text(json.dumps({key: line[key] for key in ("kind", "time", "settings")}) + "\n")
    record = Record(tmp_path)
    assert record.stated_beforehand(FAST, "2999-01-01T00:00:00+00:00", *ASKED)
    record.state(FAST, *ASKED)
    assert len(file.read_text().splitlines()) == 1, "what it says is what it said"


def test_a_full_disk_leaves_the_record_as_it_was(tmp_path):
    """A short write is no error: half a line would stand there, and every later command refuse the record."""
    Record(tmp_path).state(FAST, *ASKED)
    before = (tmp_path / FILE).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 60, limits[1]))
    try:
        with pytest.raises(OSError, match=FILE) as error:
            Record(tmp_path).state(FAST, TASKS, [7, 8])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert storage_problem(error.value) == f"File too large: {tmp_path / FILE}"
    assert (tmp_path / FILE).read_bytes() == before
    Record(tmp_path).state(FAST, TASKS, [7, 8])
    assert len(Record(tmp_path).lines) == 2


def test_a_pair_that_is_not_there_takes_no_look(tmp_path, capsys):
    named(draw(seed=3), a="mine", b="theirs").to_csv(tmp_path / "s.csv", index=False)
    command = ["verdict", "--scores", str(tmp_path / "s.csv"), "--out", str(tmp_path / "v"), "--pair", "mine"]
    assert main([*command, "thiers"]) == 2
    assert "pair: 'thiers' is no method of the scores, did you mean 'theirs'?" in capsys.readouterr().err
    assert not (tmp_path / "v").exists()
    assert main([*command, "theirs"]) == 0
    assert "mine" in capsys.readouterr().out
    verdict = json.loads((tmp_path / "v/verdict.json").read_text())
    assert verdict["looks"]["taken"] == 1 and verdict["seeds_shared"]
    (tmp_path / "v/cells.parquet").touch()
    assert main([*command, "theirs"]) == 2
    assert "holds the verdict that a study stated" in capsys.readouterr().err


def test_other_data_are_no_second_look(tmp_path, capsys):
    """In one folder: they would be counted as one, and what was written of the first would be lost."""
    rows = named(draw(seed=3), a="mine", b="theirs")
    rows.to_csv(tmp_path / "a.csv", index=False)
    command = ["verdict", "--pair", "mine", "theirs", "--scores"]
    assert main([*command, str(tmp_path / "a.csv")]) == 0
    before = (tmp_path / "verdict.json").read_bytes()
    for column, name in (("study", "another"), ("model", "another"), ("task", "only this one")):
        rows.assign(**{column: name}).drop_duplicates(["method", "seed", "document"]).to_csv(
            tmp_path / "b.csv", index=False
        )
        assert main([*command, str(tmp_path / "b.csv")]) == 2
        assert f"--out: {tmp_path} holds the verdict on other scores" in capsys.readouterr().err
    assert (tmp_path / "verdict.json").read_bytes() == before
    more = named(draw(seed=4, seeds=4), a="mine", b="theirs")
    more.to_csv(tmp_path / "a.csv", index=False)
    assert main([*command, str(tmp_path / "a.csv")]) == 0
    assert "look 2 of 1 planned" in capsys.readouterr().err


def test_another_question_is_no_second_look(tmp_path):
    rows = draw(seed=3, depth=8)
    rows.to_parquet(tmp_path / "s.parquet")
    for first, second in (("mola-2468", "mola-8642"), ("mola-2468", "mola-5555")):
        settings = FAST.model_copy(update={"pairs": ((first, second),)})
        assert write_verdict(tmp_path / "s.parquet", tmp_path, settings)["looks"]["taken"] == 1


def test_looks_are_counted_for_each_hypothesis(tmp_path):
    """Beside others, by the other endpoint or with the methods the other way round it is the same question."""
    for seeds in (3, 4, 5, 6):
        with_likelihood(draw(seed=seeds, seeds=seeds)).to_parquet(tmp_path / f"{seeds}.parquet")

    def look(seeds, *names, **changes):
        settings = FAST.model_copy(update={"hypotheses": names, **changes})
        return write_verdict(tmp_path / f"{seeds}.parquet", tmp_path, settings)["looks"]["taken"]

    assert look(3, "2468-vs-8642") == 1
    assert look(4, "2468-vs-8642", "2468-vs-5555") == 2
    assert look(4, "2468-vs-8642", "2468-vs-5555") == 2
    assert look(5, "2468-vs-5555") == 2
    assert look(5, "2468-vs-8642", endpoint="likelihood") == 3
    assert look(6, "mola-8642-vs-mola-2468") == 4
    assert look(3, "2468-vs-8642") == 1, "what was seen is no new look"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2468-vs-8642", "mola-8642-vs-mola-2468"),
        ("2468-vs-8642", "2468-vs-8642:likelihood"),
        ("routing-2468", "mola-2468-vs-lora-matched-2468"),
        ("placement-2468-vs-8642", "lora-matched-8642-vs-lora-matched-2468"),
        ("mine-vs-a-vs-b", "a-vs-b-vs-mine"),
        ("depth-slope", "depth-slope:likelihood"),
    ],
)
def test_one_comparison_under_two_names(one, other):
    assert _asked(one) == _asked(other) != _asked("2468-vs-5555")


def test_what_nothing_could_be_decided_from_is_no_look(tmp_path):
    one, three = draw(seed=1, seeds=1), draw(seed=2, seeds=3)
    one.to_parquet(tmp_path / "one.parquet")
    three.to_parquet(tmp_path / "three.parquet")
    write_verdict(tmp_path / "one.parquet", tmp_path, FAST)
    assert json.loads((tmp_path / FILE).read_text())["decidable"] is False
    assert write_verdict(tmp_path / "three.parquet", tmp_path, FAST)["looks"]["taken"] == 1
    gains = FAST.model_copy(update={"least_gain": 100.0})
    floors = dict.fromkeys(("task0", "task1", "task2"), 0.9)
    write_verdict(tmp_path / "three.parquet", tmp_path / "unlearnt", gains, floors=floors)
    assert not (tmp_path / "unlearnt" / FILE).exists()
