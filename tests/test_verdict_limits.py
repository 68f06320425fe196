"""What a verdict must not conclude: from few documents, missing runs, clusters, saturated likelihoods, rules that do not apply."""

import numpy as np
import pandas as pd
import pytest
from drawn_scores import FAST, draw, named, questions

from mola_core.analysis.pages.answer import answer_sentence
from mola_core.analysis.statistics.decide import decide


def test_a_plan_is_for_the_level_of_the_next_look():
    rows = draw(seed=4)
    now, once_more, two = (
        questions(decide(rows, FAST, differences=(3.0,), **options))["2468-vs-8642"]
        for options in ({}, {"look": 2}, {"looks": 2})
    )
    assert now["power"]["3"] > two["power"]["3"] == once_more["power"]["3"]
    assert now["seeds_needed"] == two["seeds_needed"]
    assert once_more["seeds_needed"]["3"] > two["seeds_needed"]["3"]


def test_documents_too_few_to_decide_get_no_plan():
    rows = named(draw(seed=3), a="mine", b="theirs").query("task == 'task0'")
    rows = rows[rows.document.isin(rows.document.unique()[:5])]
    rows["correct"] = (rows.method == "mine").astype(int)
    verdict = decide(rows, FAST, pairs=[("mine", "theirs")])
    answer = questions(verdict)["mine-vs-theirs"]
    assert answer["answer"] == "undecided" and answer["p"] == 0.0625 and answer["noise_from"] == []
    assert any("so few documents" in reason for reason in answer["reasons"])
    assert "after correction" not in answer_sentence(verdict)


@pytest.mark.parametrize("lacking", [None, ("task1", 0)])
def test_a_missing_run_leaves_the_noise_that_tasks_share(lacking):
    """Six tasks, answered alike by the trainings of a seed, without an effect: far from 5 % if their noise were their own."""
    found = 0
    for number in range(80):
        rng = np.random.default_rng(number)
        by_seed = {("a", seed): 0.06 * rng.normal() for seed in range(4)} | {
            ("b", seed): 0.06 * rng.normal() for seed in range(4)
        }
        rows = [
            (f"task{task}", method, seed, f"{task}-{document}", int(right))
            for task in range(6)
            for (method, seed), noise in by_seed.items()
            if lacking != (f"task{task}", seed) or method == "a"
            for document, right in enumerate(rng.random(120) < 0.6 + noise)
        ]
        frame = pd.DataFrame(rows, columns=["task", "method", "seed", "document", "correct"])
        frame = frame.assign(study="s", model="m")
        verdict = decide(frame, FAST, pairs=[("a", "b")], questions=())
        found += questions(verdict)["a-vs-b"]["answer"] in ("supported", "contradicted")
    assert found <= 80 * 0.1


def test_likelihoods_of_0_and_1_show_no_more_than_answers_do():
    """Nearly all of one method's probabilities are another's, and those that differ are right against wrong."""
    shown = {"plain": 0, "graded": 0}
    for kind in shown:
        for number in range(150):
            rng = np.random.default_rng(number)
            sure = rng.random(100) < 0.5
            lost = rng.random(100) < 0.01
            rows = []
            for method in ("a", "b"):
                for seed in range(3):
                    right = np.where(sure, 0.99, 0.01) if kind == "plain" else np.where(sure, 0.7, 0.3)
                    right = right + 0.001 * rng.normal(size=100)
                    if method == "b":
                        right = np.where(lost, 1 - right, right)
                    rows += [
                        ("t", method, seed, str(d), int(p > 0.5), min(max(p, 0), 1))
                        for d, p in enumerate(right)
                    ]
            frame = pd.DataFrame(
                rows, columns=["task", "method", "seed", "document", "correct", "likelihood"]
            )
            verdict = decide(
                frame.assign(study="s", model="m"),
                FAST,
                pairs=[("a", "b")],
                questions=(),
                endpoint="likelihood",
            )
            shown[kind] += questions(verdict)["a-vs-b:likelihood"]["answer"] == "equivalent"
    assert shown["plain"] == 0 < shown["graded"]


def test_mcnemar_is_not_asked_of_clusters():
    rows = draw(seed=3, seeds=1)
    clustered = rows.assign(
        cluster=rows.task + (rows.document.str.extract(r"(\d+)$")[0].astype(int) // 20).astype(str)
    )
    assert decide(rows, FAST)["mcnemar"] and not decide(clustered, FAST)["mcnemar"]


def test_a_rule_that_cannot_be_applied_is_told():
    rows = draw(seed=9)
    told = [note for note in decide(rows, FAST, least_gain=1.0)["notes"] if "could not be applied" in note]
    assert told == [
        "`verdict.least_gain` could not be applied to task0, task1, task2: neither the base model's scores nor the most "
        "frequent answer's are known."
    ]
    floors = dict.fromkeys(("task0", "task1", "task2"), 0.2)
    assert not any("could not" in note for note in decide(rows, FAST, least_gain=1.0, floors=floors)["notes"])
    two = pd.concat([rows, rows.assign(study="other")])
    assert not any("could not" in note for note in decide(two, FAST, least_gain=1.0, floors=floors)["notes"])


def test_the_band_of_a_slope_is_as_wide_as_its_interval():
    verdict = decide(draw(seed=5), FAST)
    slope, line = questions(verdict)["depth-slope"], verdict["lines"]["depth-slope"]["line"]
    centre = np.mean([line[0]["centre"], line[-1]["centre"]])
    half = (line[-1]["high"] - line[-1]["value"]) / abs(line[-1]["centre"] - centre)
    assert half == pytest.approx((slope["high"] - slope["estimate"]), rel=0.01)


def test_a_task_of_one_document_leaves_methods_and_lines():
    rows = draw(seed=3)
    single = rows[rows.task == "task0"].assign(task="tiny")
    single = single[single.document == single.document.iloc[0]]
    verdict = decide(pd.concat([rows, single]), FAST)
    assert set(verdict["methods"]) == set(rows.method) and verdict["lines"]


def test_one_benchmark_in_two_forms_is_told():
    rows = draw(seed=3).replace({"task": {"task0": "openbookqa", "task1": "openbookqa-cloze"}})
    assert any("openbookqa-cloze ask the same documents" in note for note in decide(rows, FAST)["notes"])
    assert not any("same documents in two" in note for note in decide(draw(seed=3), FAST)["notes"])
