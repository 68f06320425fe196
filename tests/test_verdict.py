"""From simulated score matrices to answers, the page and the figures."""

import json
import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from drawn_scores import FAST, draw, named, questions, with_likelihood
from scipy import stats
from simulated_study import make_study

from mola_core.analysis.calibration.simulation import SHAPES
from mola_core.analysis.figures.verdict import FIGURES
from mola_core.analysis.looks import FILE
from mola_core.analysis.pages.verdict import write_verdict
from mola_core.analysis.scores import score_matrix
from mola_core.analysis.statistics.decide import decide
from mola_core.analysis.statistics.questions import find_shapes, possible_questions
from mola_core.cli import main
from mola_core.errors import MolaError
from mola_core.shapes import budget, experts_per_layer
from mola_core.study.verdict import VerdictSettings


@pytest.mark.parametrize(("depth", "answer"), [(12, "supported"), (-12, "contradicted")])
def test_a_strong_depth_effect_is_seen_in_its_direction(depth, answer):
    verdict = decide(draw(depth=depth), FAST)
    found = questions(verdict)
    assert verdict["headline"] == "2468-vs-8642"
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
    answers = []
    for seed in range(12):
        answers += decide(draw(seed, depth=4 + seed), FAST, seeds_shared=False)["questions"]
    decided = [a for a in answers if a["answer"] in ("supported", "contradicted")]
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
    assert set(questions(only)) == {"2468-vs-8642", "2882-vs-5555", "mola-8228-vs-mola-2882"}
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
    assert found["placement-2468-vs-8642"]["family_size"] == 5


def test_other_budgets_and_listed_experts_get_slopes():
    rows = draw(seed=8, depth=12)
    names = ["mola-2356", "mola-2662", "mola-4444", "custom", "mola-6532"]
    rows["method"] = rows["method"].map(dict(zip(SHAPES, names, strict=True)))
    found = questions(decide(rows, FAST, shapes={"custom": [6] * 8 + [2] * 16 + [6] * 8}))
    assert found["depth-slope-16"]["answer"] == "supported"
    assert "custom" in found["depth-slope-16"]["weights"]
    assert decide(rows, FAST)["unanswered"][0]["id"] == "2468-vs-8642"


def test_a_slope_that_comes_down_to_a_pair_is_answered_as_that_pair():
    for seed in range(20):
        found = questions(decide(draw(seed=seed, depth=2.5), FAST, resamples=100))
        slope, pair = found["depth-slope"], found["2468-vs-8642"]
        assert slope["same_test_as"] == "2468-vs-8642"
        assert (slope["p"], slope["p_adjusted"], slope["answer"]) == (
            pair["p"],
            pair["p_adjusted"],
            pair["answer"],
        )
        assert slope["family_size"] == pair["family_size"] == 1
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
            decided = question["answer"] in ("supported", "contradicted")
            assert decided == (question["p_adjusted"] <= 0.05)
            if question["p"] <= 0.05 < question["p_adjusted"]:
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
    base = rows[(rows.method == "mola-5555") & (rows.seed == 0)].assign(method="base", correct=0)
    verdict = decide(pd.concat([rows, base]), FAST)
    assert verdict["methods"]["base"]["ranks"] is None
    assert verdict["methods"]["mola-5555"]["ranks"] is not None
    assert verdict["notes"] == []


def test_seeds_that_are_numbered_apart_are_named():
    rows = draw(seed=11)
    apart = rows.assign(seed=rows["seed"] + 10 * (rows["method"] == "mola-2468"))
    [said] = [note for note in decide(apart, FAST)["notes"] if "no seed in common" in note][:1]
    assert "mola-2468" in said and "number seeds alike" in said
    assert not [note for note in decide(rows, FAST)["notes"] if "no seed in common" in note]


def test_a_method_against_a_lora_is_a_hypothesis():
    study = make_study(verdict={"hypotheses": ["2468-vs-lora-r40"], "questions": ["mola-8642-vs-lora-r40"]})
    assert study.verdict.hypotheses == ("2468-vs-lora-r40",)


def test_methods_without_a_question():
    rows = draw(seed=11)
    verdict = decide(rows[rows.method == "mola-5555"], FAST)
    assert verdict["questions"] == [] and verdict["headline"] is None
    assert [row["id"] for row in verdict["unanswered"]] == ["2468-vs-8642"]


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
    assert len(files) == 6 + 2 * len(FIGURES)  # record, json, page and the questions as csv, md and tex
    for file in (file for file in files if file.name != FILE):  # the record has the time in it
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    page = (tmp_path / "a/verdict.md").read_text()
    assert "Stand-in" in page
    headline = f"**{questions(written)['2468-vs-8642']['answer'].capitalize()}"
    assert page.index(headline) < page.index("What would change it") < page.index("Every question")
    for name in re.findall(r"\]\((figures/[^)]+)\)", page):
        assert (tmp_path / "a" / name).is_file()
    assert f"{abs(questions(written)['2468-vs-8642']['estimate']):.2f} points" in page
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


QUIET = {"documents": (1500,) * 3, "accuracy": (0.8,) * 3, "run_noise": (0.0,) * 3, "seeds": 4}


def test_identical_answers_are_equivalent_and_nothing_is_said_of_power():
    rows = draw(seed=1)
    same = rows[rows.method == "mola-2468"]
    found = questions(decide(pd.concat([same, same.assign(method="mola-8642")]), FAST))["2468-vs-8642"]
    assert found["answer"] == "equivalent" and found["within_margin"]
    assert (found["estimate"], found["low"], found["high"]) == (0, 0, 0)
    assert found["minimum_detectable_effect"] is None
    assert {*found["seeds_needed"].values(), found["seeds_equivalent"]} == {None}


def test_equivalence_is_shown_within_the_margin_that_was_stated():
    rows = draw(seed=3, **QUIET)
    wide, narrow = (questions(decide(rows, FAST, margin=m))["2468-vs-8642"] for m in (3.0, 0.05))
    assert wide["answer"] == "equivalent" and narrow["answer"] == "undecided"
    assert wide["p"] == narrow["p"] and wide["margin"] == 3
    assert wide["seeds_equivalent"] < 20 and narrow["seeds_equivalent"] is None
    slope = questions(decide(rows, FAST, margin=3.0))["depth-slope"]
    assert slope["p_equivalence"] == pytest.approx(wide["p_equivalence"], rel=1e-6)


def test_equivalence_is_tested_at_the_level():
    rows = draw(seed=3)
    p = questions(decide(rows, FAST, margin=5.0))["2468-vs-8642"]["p_equivalence_adjusted"]
    assert 1e-5 < p < 0.3
    for level, answer in ((1.05 * p, "equivalent"), (0.95 * p, "undecided")):
        found = questions(decide(rows, FAST, margin=5.0, level=level))["2468-vs-8642"]
        assert (found["answer"], found["within_margin"]) == (answer, answer == "equivalent")


def test_an_effect_beyond_the_margin_is_not_equivalent_in_either_direction():
    for depth in (3, -3):
        found = questions(decide(draw(seed=5, depth=depth, **QUIET), FAST))["2468-vs-8642"]
        assert found["p_equivalence"] > 0.5 and not found["within_margin"]


def test_a_margin_of_nothing_is_refused():
    with pytest.raises(ValueError, match="greater than 0"):
        VerdictSettings(margin=0.0)


def test_what_is_explored_never_moves_what_is_stated():
    rows = draw(seed=2, depth=3)
    alone = questions(decide(rows[rows.method.isin(["mola-2468", "mola-8642"])], FAST))["2468-vs-8642"]
    every = questions(decide(with_likelihood(rows), FAST))
    found = every["2468-vs-8642"]
    assert (found["p_adjusted"], found["low"], found["high"]) == (alone["p"], alone["low"], alone["high"])
    assert found["status"] == "stated" and found["family_size"] == 1
    explored = [q for q in every.values() if q["status"] == "exploratory"]
    assert "2468-vs-8642:likelihood" in {q["id"] for q in explored}
    tests = {q["same_test_as"] or q["id"] for q in explored}
    assert {q["family_size"] for q in explored} == {len(tests)}
    ordered = sorted(explored, key=lambda q: q["p"])
    assert ordered[0]["p_adjusted"] == pytest.approx(min(1, ordered[0]["p"] * len(tests)), rel=1e-4)
    assert all(a["p_adjusted"] <= b["p_adjusted"] for a, b in pairwise(ordered))


def test_a_plan_is_not_moved_by_methods_that_the_question_does_not_use():
    rows = draw(seed=8, seeds=4)
    plain = questions(decide(rows, FAST))["2468-vs-8642"]
    rng = np.random.default_rng(0)
    noisy = rows[rows.method == "mola-5555"].assign(method="prompt-tuning")
    level = rng.uniform(0, 1, size=4)[noisy.seed.to_numpy()]
    noisy["correct"] = (rng.random(len(noisy)) < level).astype(int)
    bystander = questions(decide(pd.concat([rows, noisy]), FAST))["2468-vs-8642"]
    for key in ("minimum_detectable_effect", "seeds_needed", "seeds_equivalent", "noise_from", "p"):
        assert bystander[key] == plain[key]


def test_a_noisy_method_of_the_same_kind_is_not_pooled_with():
    rows = draw(seed=8, seeds=5)
    assert "mola-5555" in questions(decide(rows, FAST))["2468-vs-8642"]["noise_from"]
    rng, wild = np.random.default_rng(0), rows.method == "mola-5555"
    level = rng.uniform(0, 1, size=5)[rows.seed[wild].to_numpy()]
    rows.loc[wild, "correct"] = (rng.random(wild.sum()) < level).astype(int)
    found = questions(decide(rows, FAST))["2468-vs-8642"]
    assert set(found["noise_from"]) == {"mola-2468", "mola-8642"}


def test_interval_and_p_say_the_same():
    for seed in range(30):
        for question in decide(draw(seed, seeds=2, depth=2), FAST, resamples=100)["questions"]:
            assert (question["low"] * question["high"] > 0) == (question["p"] <= 0.05)


def test_both_endpoints_are_answered_and_the_stated_one_leads():
    rows = with_likelihood(draw(seed=6, depth=4))
    by_accuracy, by_likelihood = decide(rows, FAST), decide(rows, FAST, endpoint="likelihood")
    assert by_accuracy["headline"] == "2468-vs-8642"
    assert by_likelihood["headline"] == "2468-vs-8642:likelihood"
    found = questions(by_likelihood)
    assert found["2468-vs-8642:likelihood"]["status"] == "stated"
    assert found["2468-vs-8642"]["status"] == "exploratory"
    means = rows.groupby(["task", "method"]).likelihood.mean().unstack()
    expected = 100 * (means["mola-2468"] - means["mola-8642"]).mean()
    answer = found["2468-vs-8642:likelihood"]
    assert answer["estimate"] == pytest.approx(expected, abs=1e-4)
    lines = by_likelihood["lines"]
    assert list(lines) == ["depth-slope:likelihood", "depth-slope"] and set(by_accuracy["lines"]) == set(
        lines
    )
    shape = lines["depth-slope:likelihood"]["shapes"]["mola-2468"]
    assert shape["value"] == pytest.approx(100 * means["mola-2468"].mean(), abs=1e-4)
    ends = lines["depth-slope:likelihood"]["line"]
    slope = (ends[-1]["value"] - ends[0]["value"]) / (ends[-1]["centre"] - ends[0]["centre"])
    assert slope == pytest.approx(found["depth-slope:likelihood"]["estimate"], rel=1e-2)
    exchange = by_likelihood["exchange"]
    runs = rows.groupby(["task", "method", "seed"])[["correct", "likelihood"]].mean()
    inside = runs - runs.groupby("task").transform("mean")
    rate = (inside.correct * inside.likelihood).sum() / (inside.likelihood**2).sum()
    assert exchange["rate"] == pytest.approx(rate, rel=1e-3) and exchange["runs"] == len(runs)
    assert answer["worth"] == pytest.approx(rate * answer["estimate"], rel=1e-3)
    with pytest.raises(MolaError, match="no task has a likelihood"):
        decide(draw(), FAST, endpoint="likelihood")


def test_any_two_names_can_be_compared():
    rows = draw(seed=7, depth=8)
    rows["method"] = rows["method"].map(dict(zip(SHAPES, ["mine", "b", "c", "d", "a-vs-b"], strict=True)))
    verdict = decide(rows, FAST, pairs=(("mine", "a-vs-b"), ("mine", "gone")))
    assert verdict["headline"] == "mine-vs-a-vs-b"
    assert questions(verdict)["mine-vs-a-vs-b"]["weights"] in (
        {"mine": 1, "a-vs-b": -1},
        {"a-vs-b": -1, "mine": 1},
    )
    assert verdict["unanswered"] == [{"id": "mine-vs-gone", "reason": "gone is not in the scores"}]


def test_a_task_on_which_nothing_was_learnt_is_left_out_where_that_is_stated():
    rows = draw(seed=9, accuracy=(0.8, 0.7, 0.5))
    base = rows[(rows.method == "mola-5555") & (rows.seed == 0)].assign(method="base")
    base["correct"] = (np.random.default_rng(0).random(len(base)) < 0.5).astype(int)
    rows = pd.concat([rows, base])
    shown = decide(rows, FAST, floors={"task2": 0.55})
    assert (
        "task2" in questions(shown)["2468-vs-8642"]["tasks"]
        and "Nothing was learnt in task2" in shown["notes"][0]
    )
    left = decide(rows, FAST, floors={"task2": 0.55}, least_gain=1.0)
    assert list(left["left_out_tasks"]) == ["task2"]
    assert list(questions(left)["2468-vs-8642"]["tasks"]) == ["task0", "task1"]


def test_a_cell_that_costs_its_task_the_likelihood_is_named():
    rows = with_likelihood(draw(seed=6))
    assert not [note for note in decide(rows, FAST)["notes"] if "likelihood" in note]
    lacks = (rows.method == "mola-8642") & (rows.seed == 1) & (rows.task == "task1")
    rows.loc[rows.index[lacks][3], "likelihood"] = np.nan
    verdict = decide(rows, FAST)
    assert list(questions(verdict)["2468-vs-5555:likelihood"]["tasks"]) == ["task0", "task2"]
    assert (
        "task1 has no question by likelihood, since there are documents without one in mola-8642 seed 1:"
        in " ".join(verdict["notes"])
    )
    rows.loc[lacks | (rows.seed == 0), "likelihood"] = np.nan
    with pytest.raises(MolaError, match="as of task0, mola-2468 seed 0, "):
        decide(rows, FAST, endpoint="likelihood")
    without = decide(rows.drop(columns="likelihood"), FAST)
    assert not [note for note in without["notes"] if "likelihood" in note]


def test_a_collapsed_run_is_told_and_leaves_the_median_alone():
    rows = draw(seed=4, seeds=5)
    before = decide(rows, FAST)
    assert before["collapsed"] == []
    hit = (rows.method == "mola-2468") & (rows.seed == 3) & (rows.task == "task1")
    rows.loc[hit, "correct"] = 0
    after = decide(rows, FAST)
    assert [(r["method"], r["seed"], r["task"]) for r in after["collapsed"]] == [("mola-2468", 3, "task1")]
    assert any("Collapsed run: mola-2468, seed 3" in note for note in after["notes"])
    old, new = (questions(v)["2468-vs-8642"] for v in (before, after))
    assert new["estimate"] < old["estimate"] - 3
    assert new["median"] > old["median"] - 1.5


def test_a_run_without_scores_is_named():
    rows = draw(seed=4)
    verdict = decide(rows[~((rows.method == "mola-2468") & (rows.seed == 1) & (rows.task == "task1"))], FAST)
    assert any("mola-2468 seed 1" in note and "task1" in note for note in verdict["notes"])


def test_tasks_drawn_are_the_t_test_over_tasks():
    verdict = decide(draw(seed=4), FAST)
    found = questions(verdict)["2468-vs-8642"]
    low, high = stats.ttest_1samp(list(found["tasks"].values()), 0).confidence_interval(0.95)
    assert (found["drawn"]["low"], found["drawn"]["high"]) == pytest.approx((low, high), abs=1e-5)
    assert verdict["estimand"] == "these tasks"


def test_three_lines_from_a_frame_to_answers():
    import mola_core

    frame = draw(seed=0, depth=12)[["task", "method", "seed", "document", "correct"]]
    answers = mola_core.verdict(frame, resamples=200)
    assert answers.answer == "supported"
    assert list(answers.table.id) == [question["id"] for question in answers.verdict["questions"]]
    assert "<table" in answers._repr_html_()
    with pytest.raises(MolaError, match="verdict margin"):
        mola_core.verdict(frame, margin=0.0)
    with pytest.raises(MolaError, match="none can be asked of these scores .nobody-vs-mola-2468 needs both"):
        mola_core.verdict(frame, hypotheses=["nobody-vs-mola-2468"])
    with pytest.raises(MolaError, match="0 or 1"):
        mola_core.verdict(frame.assign(correct=3))


def test_clusters_widen_the_interval_of_the_verdict():
    rows = draw(seed=4, documents=(400, 300, 200))
    order = rows.groupby(["task", "document"]).correct.mean().rename("ease").reset_index()
    order["place"] = order.sort_values("ease").groupby("task").cumcount()
    rows = rows.merge(order, on=["task", "document"])
    told = rows.assign(cluster=rows.task + "-" + (rows.place // 20).astype(str))
    alone = questions(decide(rows, FAST))["2468-vs-8642"]
    verdict = decide(told, FAST)
    found = questions(verdict)["2468-vs-8642"]
    assert found["estimate"] == alone["estimate"]
    assert found["standard_error"] != alone["standard_error"]
    assert verdict["data"]["tasks"]["task0"]["clusters"] == 20


def test_options_for_score_files_of_others(tmp_path, capsys):
    path = tmp_path / "scores.csv"
    draw(seed=1).to_csv(path, index=False)
    command = ["verdict", "--scores", str(path), "--out", str(tmp_path)]
    assert main([*command, "--pair", "mola-8228", "mola-5555", "--margin", "2", "--looks", "2"]) == 0
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert questions(verdict)["mola-8228-vs-mola-5555"]["margin"] == 2 and verdict["level"] == 0.025
    assert "Stated beforehand" not in (tmp_path / "verdict.md").read_text()
    assert main([*command, "--margin", "0"]) != 0
    assert "--margin" in capsys.readouterr().err


def test_a_shape_in_the_middle_has_no_part_in_the_slope():
    """A half-finished flat shape takes no seeds and tasks from a slope that is answered as its pair."""
    rows = draw(seed=3, depth=8, seeds=6)
    rows = rows[rows.method.isin(["mola-2468", "mola-5555", "mola-8642"])]
    found = questions(decide(rows, FAST))
    half = rows[(rows.method != "mola-5555") | ((rows.seed < 2) & (rows.task != "task2"))]
    less = questions(decide(half, FAST))
    for name in ("depth-slope", "2468-vs-8642"):
        assert {key: less[name][key] for key in ("estimate", "low", "high", "p", "answer")} == {
            key: found[name][key] for key in ("estimate", "low", "high", "p", "answer")
        }
    assert less["depth-slope"]["p"] == less["2468-vs-8642"]["p"]


def test_methods_that_answer_alike_are_never_ahead():
    """The weights of a slope sum to zero but for rounding."""
    rows = draw(seed=3).query("method == 'mola-2468'")
    alike = pd.concat(
        [rows.assign(method=name) for name in ("mola-2468", "mola-4466", "mola-8642", "mola-2288")]
    )
    for question in decide(alike, FAST)["questions"]:
        assert question["answer"] in ("equivalent", "undecided") and question["estimate"] == 0, question["id"]
        assert question["p"] == 1 and question["standard_error"] == 0, question["id"]


@pytest.mark.parametrize("endpoint", ["accuracy", "likelihood"])
def test_pairs_that_are_asked_are_what_is_stated(endpoint):
    rows = with_likelihood(draw(seed=3, depth=8))
    verdict = decide(
        named(rows, a="org:mine", b="theirs"), FAST, pairs=[("org:mine", "theirs")], endpoint=endpoint
    )
    asked = questions(verdict)[verdict["headline"]]
    assert asked["status"] == "stated" and asked["family_size"] == 1 and asked["endpoint"] == endpoint
    # With the standing questions beside it, what is asked still comes first, in the words in which it was asked.
    verdict = decide(rows, FAST, pairs=[("mola-8642", "mola-2468")], endpoint=endpoint)
    suffix = "" if endpoint == "accuracy" else ":likelihood"
    assert verdict["headline"] == f"mola-8642-vs-mola-2468{suffix}"
    assert "2468-vs-8642" not in questions(verdict)
    with pytest.raises(ValueError, match="whichever is first"):
        decide(rows, FAST, pairs=[("a", "b"), ("b", "a")])


def test_names_that_make_one_question_of_two_are_refused():
    rows = draw(seed=3)
    both = pd.concat([rows, named(rows, a="2468", b="8642")])
    with pytest.raises(MolaError, match="question 2468-vs-8642 could be about .*: rename one"):
        decide(both, FAST, pairs=[("2468", "8642")])


def test_a_task_of_one_document_leaves_the_others_their_answer():
    rows = named(draw(seed=3, depth=8), a="mine", b="theirs")
    single = rows[rows.task == "task0"].assign(task="tiny")
    single = single[single.document == single.document.iloc[0]]
    pair = {"pairs": [("mine", "theirs")]}
    alone, beside = (decide(each, FAST, **pair) for each in (rows, pd.concat([rows, single])))
    one, other = (questions(verdict)["mine-vs-theirs"] for verdict in (alone, beside))
    assert (one["estimate"], one["answer"]) == (other["estimate"], other["answer"])
    assert other["dropped_tasks"] == ["tiny"] and "tiny: a single document" in " ".join(other["reasons"])


def test_one_training_under_several_seeds_is_told():
    rows = named(draw(seed=3), a="mine", b="theirs")
    first = rows[rows.seed == rows.seed.min()]
    copies = pd.concat([first.assign(seed=seed) for seed in range(3)])
    told = " ".join(decide(copies, FAST, pairs=[("mine", "theirs")])["notes"])
    assert "mine in task0: seeds 0, 1, 2 gave the same answers to every document" in told
    assert "the same answers" not in " ".join(decide(rows, FAST)["notes"])
