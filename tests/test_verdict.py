"""From simulated score matrices to answers, the page and the figures."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from mola_core.analysis.calibration.simulation import SHAPES, Scenario
from mola_core.analysis.figures.verdict import FIGURES
from mola_core.analysis.pages.verdict import decide, write_verdict
from mola_core.analysis.scores import score_matrix
from mola_core.analysis.statistics.questions import find_shapes, possible_questions
from mola_core.errors import MolaError
from mola_core.shapes import budget, experts_per_layer
from mola_core.study.verdict import VerdictSettings

FAST = VerdictSettings(resamples=200)
THREE = {"documents": (400, 300, 200), "accuracy": (0.8, 0.7, 0.6), "run_noise": (0.03, 0.03, 0.06)}


def draw(seed: int = 0, **stated) -> pd.DataFrame:
    return Scenario("test", **{**THREE, **stated}).frame(np.random.default_rng(seed))


def questions(verdict) -> dict:
    return {question["id"]: question for question in verdict["questions"]}


@pytest.mark.parametrize(("depth", "answer"), [(12, "supported"), (-12, "contradicted")])
def test_a_strong_depth_effect_is_seen_in_its_direction(depth, answer):
    verdict = decide(draw(depth=depth), FAST)
    found = questions(verdict)
    assert verdict["headline"] == "depth-slope"
    for name in ("depth-slope", "2468-vs-8642"):
        assert found[name]["answer"] == answer
        assert found[name]["low"] * found[name]["high"] > 0
        assert found[name]["minimum_detectable_effect"] > 0
        assert set(found[name]["seeds_needed"]) == {"0.5", "1", "2"}
    assert found["spread"]["answer"] == "undecided"
    wins = found["2468-vs-8642"]["probability_of_improvement"]["estimate"]
    assert wins > 0.9 if depth > 0 else wins < 0.1
    best = next(iter(verdict["methods"]))
    assert best == ("mola-2468" if depth > 0 else "mola-8642")


def test_a_decided_effect_that_such_a_study_would_usually_miss_is_called_overstated():
    answers = [a for seed in range(12) for a in decide(draw(seed, depth=4 + seed), FAST)["questions"]]
    decided = [a for a in answers if a["answer"] != "undecided"]
    told = [a for a in answers if any("overstated" in reason for reason in a["reasons"])]
    assert told == [a for a in decided if abs(a["estimate"]) < abs(a["minimum_detectable_effect"])]
    assert 0 < len(told) < len(decided)


def test_a_spread_effect_is_not_taken_for_depth():
    found = questions(decide(draw(spread=-12), FAST))
    assert found["spread"]["answer"] == "contradicted"
    assert found["depth-slope"]["answer"] == "undecided"
    assert found["2882-vs-5555"]["estimate"] > 0


def test_estimates_are_plain_means_of_paired_differences():
    rows = draw(seed=3)
    accuracy = rows.groupby(["task", "method"]).correct.mean().unstack()
    found = questions(decide(rows, FAST))
    difference = 100 * (accuracy["mola-2468"] - accuracy["mola-8642"])
    assert found["2468-vs-8642"]["estimate"] == pytest.approx(difference.mean(), abs=1e-6)
    assert found["2468-vs-8642"]["tasks"] == pytest.approx(difference.to_dict(), abs=1e-6)
    slope = found["depth-slope"]
    assert slope["estimate"] * slope["reach"] == pytest.approx(difference.mean(), abs=1e-4)


def test_row_order_changes_nothing_and_the_seed_decides():
    rows = draw(seed=4)
    one = decide(rows, FAST)
    assert decide(rows.sample(frac=1, random_state=5), FAST) == one
    other = decide(rows, FAST, seed=1)
    assert questions(other)["2468-vs-8642"]["bootstrap"] != questions(one)["2468-vs-8642"]["bootstrap"]
    assert questions(other)["2468-vs-8642"]["low"] == questions(one)["2468-vs-8642"]["low"]
    assert other["settings_sha256"] != one["settings_sha256"]


def test_level_and_questions_are_as_stated():
    rows = draw(seed=6)
    strict = questions(decide(rows, FAST, level=0.01))["2468-vs-8642"]
    usual = questions(decide(rows, FAST))["2468-vs-8642"]
    assert strict["low"] < usual["low"] and strict["high"] > usual["high"]
    only = decide(rows, FAST, questions=("2882-vs-5555", "mola-8228-vs-mola-2882"))
    assert set(questions(only)) == {"depth-slope", "2468-vs-8642", "2882-vs-5555", "mola-8228-vs-mola-2882"}
    impossible = decide(rows, FAST, questions=("routing-2468",))
    assert impossible["unanswered"] == [
        {"id": "routing-2468", "reason": "needs the shape with and without routing"}
    ]


def test_baselines_have_their_own_questions():
    rows = draw(seed=7)
    names = ["mola-2468", "lora-matched-2468", "lora-matched-8642", "lora-r40", "mola-8642"]
    rows["method"] = rows["method"].map(dict(zip(SHAPES, names, strict=True)))
    found = questions(decide(rows, FAST))
    assert set(found) == {
        "2468-vs-8642",
        "mola-2468-vs-lora-r40",
        "mola-8642-vs-lora-r40",
        "routing-2468",
        "routing-8642",
        "placement-2468-vs-8642",
    }
    assert found["routing-2468"]["weights"] == {"mola-2468": 1.0, "lora-matched-2468": -1.0}
    assert found["placement-2468-vs-8642"]["family_size"] == 3


def test_other_budgets_and_listed_experts_get_slopes():
    rows = draw(seed=8, depth=12)
    names = ["mola-2356", "mola-2662", "mola-4444", "custom", "mola-6532"]
    rows["method"] = rows["method"].map(dict(zip(SHAPES, names, strict=True)))
    found = questions(decide(rows, FAST, shapes={"custom": [6] * 8 + [2] * 16 + [6] * 8}))
    assert found["depth-slope-16"]["answer"] == "supported"
    assert "custom" in found["depth-slope-16"]["weights"]
    assert decide(rows, FAST)["unanswered"][0]["id"] == "depth-slope"


def test_a_slope_that_comes_down_to_a_pair_is_answered_as_that_pair():
    for seed in range(20):
        found = questions(decide(draw(seed=seed, depth=2.5), FAST, resamples=100))
        slope, pair = found["depth-slope"], found["2468-vs-8642"]
        assert slope["same_test_as"] == "2468-vs-8642"
        assert (slope["p"], slope["p_holm"], slope["answer"]) == (pair["p"], pair["p_holm"], pair["answer"])
        assert slope["family_size"] == pair["family_size"] == 3
        assert found["spread"]["same_test_as"] is None


def test_a_variant_of_a_shape_does_not_enter_the_slope():
    """Rank 16 helps, depth does not: the slope must not take one for the other."""
    rows = draw(seed=5)
    names = ["mola-2468", "mola-2882", "mola-5555", "mola-8228", "better"]
    rows["method"] = rows["method"].map(dict(zip(SHAPES, names, strict=True)))
    rows.loc[rows["method"] == "better", "correct"] = 1
    layers = [2] * 8 + [4] * 8 + [6] * 8 + [8] * 8
    assert questions(decide(rows, FAST, shapes={"better": layers}))["depth-slope"]["weights"]["better"] > 0
    assert "better" not in questions(decide(rows, FAST, shapes={"better": None}))["depth-slope"]["weights"]


def test_both_ends_or_the_middle_is_asked_where_a_shape_tests_it():
    shapes = find_shapes(["mola-2468", "mola-5555", "mola-8642"])
    assert "spread" not in {question.id for question in possible_questions([], shapes)}
    shapes = find_shapes(["mola-2468", "mola-5555", "mola-8642", "mola-8228"])
    assert "spread" in {question.id for question in possible_questions([], shapes)}


@pytest.mark.parametrize("depth", [4, 18, 26, 30, 32, 42])
def test_a_named_shape_has_its_budget_at_every_depth(depth):
    names = ["2468", "8228", "2882", "10-2-2-2", "5555"]
    shapes = find_shapes(names, {name: experts_per_layer(name, depth) for name in names})
    assert {shape.method: shape.budget for shape in shapes} == {name: budget(name) for name in names}


def test_holm_can_undo_what_an_interval_alone_would_say():
    for seed in range(200):
        found = questions(decide(score_matrix(draw(seed=seed, depth=2.5)), FAST, resamples=100))
        for question in found.values():
            decided = question["answer"] != "undecided"
            assert decided == (question["p_holm"] <= 0.05)
            if question["p"] <= 0.05 < question["p_holm"]:
                assert "Holm" in " ".join(question["reasons"])
                return
    pytest.fail("no matrix of 200 had a question that only Holm's correction undoes")


def test_one_seed_is_undecided_and_says_why():
    rows = draw(seeds=1, depth=20)
    verdict = decide(rows, FAST)
    for question in verdict["questions"]:
        assert question["answer"] == "undecided"
        assert question["covers"] == "documents"
        assert question["minimum_detectable_effect"] is None
        assert set(question["seeds_needed"].values()) == {None}
        assert any("one seed" in reason for reason in question["reasons"])
    first = next(row for row in verdict["mcnemar"] if row["id"] == "2468-vs-8642" and row["task"] == "task0")
    wide = rows[rows.task == "task0"].pivot(index="document", columns="method", values="correct")
    assert first["only_first"] == ((wide["mola-2468"] == 1) & (wide["mola-8642"] == 0)).sum()
    assert first["p"] < 0.05
    assert "One seed in task0, task1, task2" in verdict["notes"][0]


def test_one_task_speaks_of_that_task_alone():
    verdict = decide(draw(documents=(900,), accuracy=(0.7,), run_noise=(0.02,), seeds=4, depth=20), FAST)
    question = questions(verdict)["depth-slope"]
    assert question["answer"] == "supported"
    assert any("one task" in reason for reason in question["reasons"])
    assert "nothing can be concluded about other tasks" in verdict["notes"][0]


def test_missing_cells_cost_their_tasks_and_are_named():
    rows = draw(seed=9)
    rows = rows[~((rows.task == "task1") & (rows.method == "mola-8642"))]
    verdict = decide(rows, FAST)
    question = questions(verdict)["2468-vs-8642"]
    assert list(question["tasks"]) == ["task0", "task2"]
    assert question["dropped_tasks"] == ["task1"]
    assert questions(verdict)["2468-vs-5555"]["dropped_tasks"] == []
    assert "mola-8642" not in verdict["methods"]
    assert any("mola-8642" in note for note in verdict["notes"])


def test_the_base_model_is_shown_but_not_ranked():
    rows = draw(seed=10)
    base = rows[(rows.method == "mola-5555") & (rows.seed == 0)].assign(method="base")
    verdict = decide(pd.concat([rows, base]), FAST)
    assert verdict["methods"]["base"]["ranks"] is None
    assert verdict["methods"]["mola-5555"]["ranks"] is not None
    assert verdict["notes"] == []


def test_methods_without_a_question():
    rows = draw(seed=11)
    verdict = decide(rows[rows.method == "mola-5555"], FAST)
    assert verdict["questions"] == [] and verdict["headline"] is None
    assert [row["id"] for row in verdict["unanswered"]] == ["depth-slope", "2468-vs-8642"]


def test_single_document_cannot_be_judged():
    verdict = decide(draw(documents=(1,), accuracy=(0.7,), run_noise=(0.1,)), FAST)
    question = questions(verdict)["2468-vs-8642"]
    assert question["answer"] == "undecided" and question["estimate"] is None


@pytest.mark.parametrize(
    "bad", [{"level": 0}, {"questions": ("higher",)}, {"resamples": 3}, {"colour": "red"}]
)
def test_settings_are_closed(bad):
    with pytest.raises(ValueError):
        VerdictSettings(**bad)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_files_of_a_verdict(tmp_path, suffix, seeds):
    rows = draw(seed=12, seeds=seeds)
    path = tmp_path / f"scores.{suffix}"
    rows.to_csv(path, index=False) if suffix == "csv" else rows.to_parquet(path)
    parameters = {method: 1000 for method in SHAPES[:4]}
    written = write_verdict(path, tmp_path / "a", FAST, parameters=parameters, stand_in=True)
    write_verdict(path, tmp_path / "b", FAST, parameters=parameters, stand_in=True)
    assert json.loads((tmp_path / "a/verdict.json").read_text()) == json.loads(json.dumps(written))
    files = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 2 + 2 * len(FIGURES)
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    page = (tmp_path / "a/verdict.md").read_text()
    assert "Stand-in" in page
    headline = f"**{questions(written)['depth-slope']['answer'].capitalize()}**"
    assert page.index(headline) < page.index("What would change it") < page.index("Every question")
    for name in re.findall(r"\]\((figures/[^)]+)\)", page):
        assert (tmp_path / "a" / name).is_file()
    slope = questions(written)["depth-slope"]
    assert f"**{slope['estimate']:+.2f}**" in page
    assert ("McNemar" in page) == (seeds == 1)


def test_page_without_an_answer_and_figures_without_data(tmp_path):
    rows = draw(seed=13)
    rows[rows.method == "mola-5555"].to_parquet(tmp_path / "scores.parquet")
    write_verdict(tmp_path / "scores.parquet", tmp_path, FAST)
    assert "No answer" in (tmp_path / "verdict.md").read_text()
    assert all((tmp_path / "figures" / f"{name}.svg").is_file() for name in FIGURES)
    assert "Stand-in" not in (tmp_path / "verdict.md").read_text()


def test_bad_scores_write_nothing(tmp_path):
    draw(seed=14).iloc[1:].to_csv(tmp_path / "scores.csv", index=False)
    with pytest.raises(MolaError, match="not paired"):
        write_verdict(tmp_path / "scores.csv", tmp_path / "out", FAST)
    assert not (tmp_path / "out").exists()
