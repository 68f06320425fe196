"""Tuning: tries as cells of their own, the choice by a hand computation, what is run again, and what is refused."""

import csv
import json
import re
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from smoke_study import smoke

from mola_core.analysis.figures.style import method_style
from mola_core.analysis.verify import damaged
from mola_core.errors import MolaError
from mola_core.files import read_json, write_json
from mola_core.methods.settings import MethodSettings
from mola_core.records import read_record, write_record
from mola_core.runs.choice import read_choices
from mola_core.runs.key import choices, keys, method_of
from mola_core.runs.local import run
from mola_core.runs.state import cell_state
from mola_core.runs.tuning import _best, choose
from mola_core.study.tries import candidates, tries, tries_study

RATES = [1e-4, 1e-2]
SHAPES = ["base", "lora-r4", "mola-2468", "mola-8642", "lora-matched-2468"]


def tuned(**tuning):
    return {"learning_rates": RATES, "steps": 3} | tuning


def of(bench, **changes):
    options = {
        "tasks": ["cola"],
        "methods": ["base", "lora-r4", "mola-2468"],
        "seeds": [0],
        "tuning": tuned(),
    }
    return bench(**options | {"evaluation": {"documents": 8}} | changes)


def test_rates_are_chosen_by_likelihood_on_validation_and_trained_with(bench):
    runner = of(bench)
    layout = runner.layout
    outcomes = run(layout)
    assert {outcome.state for outcome in outcomes} == {"complete"}, outcomes
    assert len(outcomes) == 2 * 2 + 3
    rows = list(csv.DictReader((layout.folder / "tuning.csv").open()))
    assert [(row["method"], float(row["learning_rate"])) for row in rows] == [
        (method, rate) for method in ("lora-r4", "mola-2468") for rate in RATES
    ]
    validation = pd.read_parquet(layout.examples("cola") / "validation.parquet")
    for method in ("lora-r4", "mola-2468"):
        by_hand = {}
        for rate in RATES:
            cell = layout.tries.study.cell("cola", f"{method}.lr{rate!r}", 100)
            folder = layout.tries.cell(cell)
            assert folder == layout.folder / "tuning" / cell.path
            samples = pd.read_parquet(folder / "samples.parquet").sort_values("position")
            assert samples["document"].tolist() == validation["document"].tolist()
            by_hand[rate] = likelihood(samples)
            record = read_record(folder / "training.json")
            assert (record["settings"]["learning_rate"], record["steps"]) == (rate, 3)
            [row] = [r for r in rows if (r["method"], float(r["learning_rate"])) == (method, rate)]
            assert float(row["score"]) == pytest.approx(by_hand[rate], abs=1e-9)
        best = max(by_hand, key=by_hand.get)
        record = read_record(layout.cell(layout.study.cell("cola", method, 0)) / "manifest.json")["training"]
        assert record["settings"]["learning_rate"] == best
        assert record["tuning"]["learning_rate"] == best and record["tuning"]["tried"] == method
        assert record["tuning"]["edge"] == ("lowest" if best == RATES[0] else "highest")
        assert [
            float(r["learning_rate"]) for r in rows if r["method"] == method and r["chosen"] == "True"
        ] == [best]
    assert run(layout) == [], "nothing is done twice"


def likelihood(samples):
    """Mean probability of the right option, by hand."""
    import math

    total = 0.0
    for row in samples.itertuples():
        weights = [math.exp(value) for value in row.loglikelihoods]
        total += weights[int(row.target)] / sum(weights)
    return total / len(samples)


def fake_scores(monkeypatch, scores):
    """Rows of tries with given scores in place of trained ones."""

    def rows(layout):
        found = []
        for cell in layout.tries.study.cells():
            attempt = tries(layout.study)[cell.method]
            value = scores(attempt, cell)
            found.append(
                {
                    "method": attempt.candidate,
                    "task": cell.task,
                    "learning_rate": attempt.learning_rate,
                    "alpha": attempt.alpha,
                    "seed": cell.seed,
                    "score": value,
                    "diverged": value is None,
                }
            )
        return found

    monkeypatch.setattr("mola_core.runs.tuning.score_tries", rows)


def test_the_rule_is_the_highest_mean_over_tasks_and_seeds_and_of_equals_the_lowest(
    bench, monkeypatch, capsys
):
    rates = [1e-3, 1e-4, 1e-2, 1e-1]
    runner = bench(
        tuning={"learning_rates": rates, "seeds": [7, 8]}, methods=["base", "lora-r4", "mola-2468"]
    )

    def scores(attempt, cell):
        if attempt.candidate == "lora-r4":
            return 0.5
        if attempt.learning_rate == 1e-1 and cell.seed == 8:
            return None  # diverged
        table = {("cola", 1e-2): 0.9, ("scienceqa", 1e-2): 0.1, ("cola", 1e-3): 0.6, ("scienceqa", 1e-3): 0.6}
        return table.get((cell.task, attempt.learning_rate), 0.95 if attempt.learning_rate == 1e-1 else 0.2)

    fake_scores(monkeypatch, scores)
    found = choose(runner.layout)
    assert found["lora-r4"]["every task"].learning_rate == 1e-4
    assert found["mola-2468"]["every task"].learning_rate == 1e-3
    assert found["mola-2468"]["every task"].score == pytest.approx(0.6)
    assert found["mola-2468"]["every task"].edge is None
    told = capsys.readouterr().err
    assert (
        "lora-r4 (every task): the lowest rate tried, 0.0001, scores best" in told and "mola-2468" not in told
    )


def test_each_task_by_itself(bench, monkeypatch):
    runner = bench(tuning=tuned(per_task=True), methods=["base", "lora-r4"])
    fake_scores(monkeypatch, lambda attempt, cell: attempt.learning_rate * (1 if cell.task == "cola" else -1))
    choose(runner.layout)
    rates = {
        task: method_of(runner.layout, runner.study.cell(task, "lora-r4", 0)).learning_rate
        for task in ("cola", "scienceqa")
    }
    assert rates == {"cola": 1e-2, "scienceqa": 1e-4}


def test_alphas_are_tried_with_each_rate(bench, monkeypatch):
    runner = bench(tuning=tuned(alphas=[4.0, 16.0]), methods=["base", "lora-r4", "mola-2468"])
    assert len(runner.layout.tries.study.methods) == 2 * 4
    fake_scores(monkeypatch, lambda attempt, cell: attempt.alpha - attempt.learning_rate)
    choose(runner.layout)
    for method in ("lora-r4", "mola-2468"):
        chosen = method_of(runner.layout, runner.study.cell("cola", method, 0))
        assert (chosen.learning_rate, chosen.alpha) == (1e-4, 16.0)


def test_all_tries_diverged_is_one_line(bench, monkeypatch):
    runner = bench(tuning=tuned(), methods=["base", "lora-r4"])
    fake_scores(monkeypatch, lambda attempt, cell: None)
    with pytest.raises(MolaError, match=r"no try of lora-r4 .* has a score.*lower tuning\.learning_rates"):
        choose(runner.layout)
    assert not (runner.layout.folder / "tuning.json").exists()


def test_a_task_whose_likelihood_cannot_be_read_is_no_divergence():
    row = {"method": "lora-r4", "task": "t", "alpha": None, "score": None, "accuracy": 0.7, "diverged": False}
    with pytest.raises(
        MolaError, match=r"the likelihood of the right answer cannot be read.*tuning\.score: accuracy"
    ):
        _best([row | {"learning_rate": rate} for rate in (1e-4, 3e-4)], "lora-r4", "t")


def test_a_method_without_a_chosen_rate_is_not_trained(bench):
    runner = of(bench)
    cell = runner.study.cell("cola", "mola-2468", 0)
    assert keys(runner.layout, cell).training is None
    with pytest.raises(MolaError, match="its learning rate is not chosen yet"):
        runner.train(cell)
    with pytest.raises(MolaError, match="try .* is not complete"):
        choose(runner.layout)


def test_altered_rates_are_not_trained_with(bench, monkeypatch):
    layout = bench(tuning=tuned(), methods=["base", "lora-r4"]).layout
    fake_scores(monkeypatch, lambda attempt, cell: attempt.learning_rate)
    choose(layout)
    file, table = layout.folder / "tuning.json", layout.folder / "tuning.csv"
    whole, rows = file.read_text(), table.read_text()
    record = read_json(file)
    assert choices(layout)["lora-r4"]["every task"].learning_rate == 1e-2

    def refused(words):
        layout.remembered.clear()
        assert choices(layout) is None
        assert [line for line in damaged(layout)[1] if re.search(f"{words}; run `mola tuning` again", line)]

    file.write_text(whole.replace("0.01", "0.007"))
    refused("tuning.json: altered since it was written")
    record["choices"]["lora-r4"][0]["learning_rate"] = 0.007
    write_record(file, record)
    refused("tuning.json: lora-r4: its rate or alpha is none that the study tries")
    file.write_text(whole)
    table.write_text(rows.replace("True", "False"))
    refused("tuning.csv: missing or altered since it was made")
    table.write_text(rows)
    layout.remembered.clear()
    assert choices(layout) and not damaged(layout)[1]
    record = read_json(file)
    del record["sha256"], record["table_sha256"]
    write_json(file, record)
    layout.remembered.clear()
    assert choices(layout) is None and read_choices(layout, earlier=True)
    assert not damaged(layout)[1], "an earlier version recorded nothing that could be compared"


def test_a_rate_more_runs_its_tries_and_what_they_change(bench, monkeypatch):
    first = of(bench)
    run(first.layout)
    before = {cell: keys(first.layout, cell) for cell in first.study.cells()}
    assert None not in {found.evaluation for found in before.values()}
    more = of(bench, tuning=tuned(learning_rates=[*RATES, 3e-2]))
    assert choices(more.layout) is None, "the choice was made from fewer tries"
    states = [cell_state(more.layout.tries, cell) for cell in more.layout.tries.study.cells()]
    assert sorted(states) == ["complete"] * 4 + ["open"] * 2
    from mola_core.runs import tuning

    real = tuning.score_tries

    def scores(layout):
        """The new rate is best for LoRA and worst for MoLA, whatever it is."""
        rows = real(layout)
        for row in rows:
            if row["learning_rate"] == 3e-2:
                row["score"] = 2.0 if row["method"] == "lora-r4" else -1.0
        return rows

    monkeypatch.setattr(tuning, "score_tries", scores)
    outcomes = run(more.layout)
    done = [outcome.cell.path for outcome in outcomes]
    assert done == [
        "cola/lora-r4.lr0.03/seed100",
        "cola/mola-2468.lr0.03/seed100",
        "cola/lora-r4/seed0",
    ]
    mola = more.study.cell("cola", "mola-2468", 0)
    assert keys(more.layout, mola) == before[mola]


def test_changes_that_touch_no_try_leave_the_choice(bench, monkeypatch):
    runner = of(bench)
    fake_scores(monkeypatch, lambda attempt, cell: attempt.learning_rate)
    choose(runner.layout)
    for same in ({"seeds": [0, 1]}, {"evaluation": {"documents": 4}}, {"compute": {"threads": 2}}):
        assert choices(of(bench, **same).layout) is not None, same
    for other in ({"tuning": tuned(documents=3)}, {"tuning": tuned(steps=4)}, {"adapter": {"rank": 4}}):
        assert choices(of(bench, **other).layout) is None, other


def test_validation_documents_are_not_trained_on(bench):
    """CoLA is evaluated on validation, so that a tenth of train is held out, and no try is trained on it."""
    runner = of(bench, tuning=tuned(documents=3))
    layout = runner.layout
    train = pd.read_parquet(layout.examples("cola") / "train.parquet")
    assert 0 < train["held_out"].sum() < len(train)
    cell = layout.tries.study.cells()[0]
    assert layout.tries.study.holds_out(cell) and not runner.study.holds_out(runner.study.cells()[1])
    from mola_core.runs.cell import CellRunner

    tryer = CellRunner(layout.tries)
    tryer.run(cell)
    record = read_record(layout.tries.cell(cell) / "manifest.json")
    assert record["training"]["documents"] == (~train["held_out"]).sum()
    assert record["evaluation"]["documents"] == 3


def test_a_flat_shape_is_no_method_of_other_settings():
    other = {"method": "mola-5555", "rank": 4}
    study = smoke(methods=["mola-2468", "mola-8642", other], tuning=tuned(by="kind"))
    assert candidates(study) == {
        "mola-2468": "flat-mola-2468", "mola-8642": "flat-mola-2468", "mola-5555": "mola-5555"
    }  # fmt: skip
    own = tries_study(study)
    ranks = {attempt.candidate: own.method_by_label[label].rank for label, attempt in tries(study).items()}
    assert ranks == {"flat-mola-2468": None, "mola-5555": 4}
    assert len(own.method_by_label) == len(own.methods)
    taken = {"method": "mola-2222", "name": "flat-mola-2468", "rank": 2}
    with pytest.raises(MolaError, match="two tries are called flat-mola-2468.lr"):
        tries_study(smoke(methods=["mola-2468", other, taken], tuning=tuned(by="kind")))


def test_kinds_share_the_rate_of_their_flat_shape():
    study = smoke(methods=[*SHAPES, "sensitivity-20", "mola-2222"], tuning=tuned(by="kind"))
    assert candidates(study) == {
        "lora-r4": "lora-r4",
        "mola-2468": "mola-5555",
        "mola-8642": "mola-5555",
        "sensitivity-20": "mola-5555",
        "mola-2222": "mola-5555",
        "lora-matched-2468": "lora-matched-5555",
    }
    assert len(tries_study(study).methods) == 3 * 2
    own = smoke(
        methods=["base", "mola-2468", {"method": "mola-2468", "name": "wide", "rank": 16}],
        tuning=tuned(by="kind"),
    )
    assert candidates(own) == {"mola-2468": "mola-5555", "wide": "flat-wide"}
    [wide] = [m for m in tries_study(own).methods if m.name == "flat-wide.lr0.01"]
    assert (wide.method, wide.rank, wide.learning_rate) == ("mola-5555", 16, 0.01)
    by_method = smoke(methods=SHAPES, tuning=tuned())
    assert candidates(by_method) == {label: label for label in SHAPES[1:]}


def test_a_methods_own_rate_stands(bench):
    own = {"method": "mola-2468", "learning_rate": 0.5}
    runner = of(bench, methods=["base", "lora-r4", own])
    assert [m.label for m in runner.layout.tries.study.methods] == ["lora-r4.lr0.0001", "lora-r4.lr0.01"]
    assert keys(runner.layout, runner.study.cell("cola", "mola-2468", 0)).training is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tuning": {"learning_rates": [1e-3]}}, r"tuning\.learning_rates: .*at least 2"),
        ({"tuning": {"learning_rates": []}}, r"tuning\.learning_rates"),
        ({"tuning": {"learning_rates": [1e-3, 1e-3]}}, r"tuning\.learning_rates: 0\.001 is listed twice"),
        ({"tuning": {"learning_rates": [1e-3, -1e-3]}}, r"tuning\.learning_rates.1: .*greater than 0"),
        ({"tuning": {"learning_rates": [1e-3, 0.0]}}, r"tuning\.learning_rates.1: .*greater than 0"),
        ({"tuning": tuned(seeds=[1])}, r"tuning\.seeds: 1 is a seed of the study"),
        ({"tuning": tuned(seeds=[100, 100])}, r"tuning\.seeds: 100 is listed twice"),
        ({"tuning": tuned(steps=1)}, r"tuning\.steps: 1 is not above training\.warmup_steps 1"),
        ({"tuning": tuned(alphas=[4.0])}, r"tuning\.alphas: .*at least 2"),
        (
            {"tuning": tuned(alphas=[4.0, 8.0]), "methods": ["prompt-tuning"]},
            r"tuning\.alphas: prompt-tuning takes none",
        ),
        ({"tuning": tuned(by="family")}, r"tuning\.by"),
        ({"tuning": tuned(rates=[1])}, r"tuning\.rates: unknown key"),
        ({"tuning": tuned(), "methods": ["base"]}, "every method has a learning_rate of its own"),
        (
            {"tuning": tuned(), "instruction": {"epochs": 1, "documents": 8, "warmup_steps": 0}},
            "tuning: tries start from",
        ),
        (
            {"tuning": tuned(), "continual": {"tasks": ["cola", "scienceqa"], "epochs": 1}},
            "give continual.learning_rate",
        ),
    ],
)
def test_bad_tuning_is_one_line(tmp_path, changes, words):
    from mola_core.study.loading import load_study

    content = smoke().model_dump(mode="json", exclude_none=True) | changes
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(MolaError, match=words):
        load_study(file)


def test_the_workflow_tunes_first_and_plans_what_a_rate_more_changes(tmp_path, prepared):
    """Through Snakemake: cost before anything starts, tries, choice; then a dry run with one rate more."""
    results = tmp_path / "results"
    results.mkdir()
    for name in ("models", "data"):
        (results / name).symlink_to(prepared / name)
    content = smoke(
        name="tuned", tasks=["cola"], methods=["base", "lora-r4"], seeds=[0], tuning=tuned(),
        compute={"cells_per_job": 2},
    ).model_dump(mode="json", exclude_none=True)  # fmt: skip
    file = tmp_path / "tuned.yaml"

    def snakemake(*targets, rates=RATES):
        content["tuning"]["learning_rates"] = rates
        file.write_text(yaml.safe_dump(content))
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *targets]
        done = subprocess.run(
            [*command, "--config", f"study={file}", f"results={results}"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    told = snakemake(str(results / "tuned" / "tuning.json"))
    assert (
        "tuning: 1 methods, 2 tries each a task and seed: 2 tries of 6 steps in all, before 1 cells" in told
    )
    choice = json.loads((results / "tuned" / "tuning.json").read_text())
    assert [c["task"] for c in choice["choices"]["lora-r4"]] == ["every task"]
    scores = str(results / "tuned" / "scores.parquet")
    plan = snakemake("-n", scores, "--quiet", "host")
    assert "rule cells_0" in plan and "tries_" not in plan and "rule tuning" not in plan
    more = snakemake("-n", scores, "--quiet", "host", rates=[*RATES, 2e-2])
    assert (
        "rule tries_1" in more
        and "rule tries_0" not in more
        and "rule tuning" in more
        and "rule cells_0" in more
    )


def drawn(study, tried):
    from mola_core.analysis.figures.catalogue import tuning as figure
    from mola_core.analysis.figures.registry import StudyData
    from mola_core.analysis.figures.style import figure_style

    data = StudyData(study, None, None, None, 4, {}, tried)
    with figure_style():
        return figure.draw(data), figure.caption(data)


def test_the_figure_has_a_line_a_method_and_marks_what_was_chosen():
    study = smoke(methods=SHAPES, tuning=tuned(by="kind", learning_rates=[1e-4, 1e-3, 1e-2]))
    best = {"lora-r4": 1e-3, "mola-5555": 1e-2, "lora-matched-5555": 1e-3}
    tried = pd.DataFrame(
        [
            {
                "method": attempt.candidate,
                "task": task,
                "learning_rate": attempt.learning_rate,
                "alpha": None,
                "seed": 100,
                "score": None if attempt.learning_rate == 1e-2 and attempt.candidate == "lora-r4" else 0.5,
                "diverged": attempt.learning_rate == 1e-2 and attempt.candidate == "lora-r4",
                "chosen": attempt.learning_rate == best[attempt.candidate],
            }
            for attempt in tries(study).values()
            for task in study.tasks
        ]
    )
    figure, caption = drawn(study, tried.astype({"score": float}))
    assert len(figure.axes) == 2
    for axis in figure.axes:
        assert axis.get_xscale() == "log"
        assert [label.get_text() for label in axis.get_xticklabels()] == ["0.0001", "0.001", "0.01"]
        assert not axis.get_xticks(minor=True).size and axis.get_xlim()[0] < 1e-4 < 1e-2 < axis.get_xlim()[1]
        lines = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
        assert set(lines) == set(best)
        marks = [line.get_xdata()[0] for line in axis.lines if line.get_markersize() == 11]
        assert sorted(marks) == sorted(best.values())
        # What is tried for all shapes is no method of the study: it looks like itself, not like the first shape.
        assert lines["mola-5555"].get_color() == method_style(MethodSettings(method="mola-5555")).colour
    assert "At the edge of the rates tried: mola-5555;" in caption and "2 of 18 tries diverged" in caption
    assert "2 of 18 tries diverged; rates with one have no point" in caption
    half = tried.astype({"score": float})
    half["seed"] = 100
    twice = pd.concat([half, half.assign(seed=101, score=half["score"].where(half["learning_rate"] > 1e-4))])
    axis = drawn(study, twice)[0].axes[0]
    points = [line.get_ydata()[0] for line in axis.lines if not line.get_label().startswith("_")]
    assert pd.isna(points).all(), "a rate at which one of two tries diverged has no point"
    assert drawn(smoke(), None) == (None, "")
