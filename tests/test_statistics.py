"""The estimators against SciPy, closed forms and plain computations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mola_core.analysis.calibration.report import check_plan, measure
from mola_core.analysis.calibration.simulation import OUTSIDE, SCENARIOS, SHAPES, Scenario
from mola_core.analysis.statistics.bootstrap import bootstrap, ranks
from mola_core.analysis.statistics.estimates import (
    Components,
    between_tasks,
    combine,
    components,
    error_at_margin,
    holm,
    mcnemar,
    run_noise,
    slope_weights,
)
from mola_core.analysis.statistics.noise import equally_noisy, pool_runs
from mola_core.analysis.statistics.planner import Planner


def test_one_seed_is_the_paired_t_interval_over_documents():
    z = np.random.default_rng(0).integers(-1, 2, size=(1, 50)).astype(float)
    low, high = combine([components(z)]).interval(0.05)
    expected = stats.ttest_1samp(z[0], 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert combine([components(z)]).p_value() == pytest.approx(stats.ttest_1samp(z[0], 0).pvalue)


def test_without_document_noise_it_is_the_t_interval_over_seeds():
    seeds = np.array([0.1, 0.3, 0.2, 0.6])
    z = np.repeat(seeds[:, None], 30, axis=1)
    low, high = combine([components(z)]).interval(0.05)
    expected = stats.ttest_1samp(seeds, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_tasks_without_document_noise_are_welch_satterthwaite():
    first, second = np.array([0.1, 0.3, 0.2]), np.array([0.9, 0.1, 0.4, 0.5])
    parts = [components(np.repeat(a[:, None], 9, axis=1)) for a in (first, -second)]
    ours = combine(parts)
    welch = stats.ttest_ind(first, second, equal_var=False)
    assert ours.df == pytest.approx(welch.df)
    assert ours.p_value() == pytest.approx(welch.pvalue)


def test_variance_is_unbiased_where_seeds_documents_and_rest_all_vary():
    rng = np.random.default_rng(1)
    shape = (4000, 3, 20)
    z = rng.normal(size=shape) + 0.4 * rng.normal(size=(4000, 3, 1)) + 0.7 * rng.normal(size=(4000, 1, 20))
    true = 0.4**2 / 3 + 0.7**2 / 20 + 1 / 60
    estimate = combine([components(z)])
    assert (estimate.error**2).mean() == pytest.approx(true, rel=0.05)
    assert estimate.value.var() == pytest.approx(true, rel=0.08)


def test_identical_methods_and_certain_differences():
    assert combine([components(np.zeros((3, 10)))]).p_value() == 1
    assert combine([components(np.ones((3, 10)))]).p_value() == 0


def test_bootstrap_over_documents_agrees_with_scipy():
    rng = np.random.default_rng(2)
    answers = rng.integers(0, 2, size=(2, 1, 120), dtype=np.uint8)
    drawn = bootstrap([answers], 4000, np.random.default_rng(3)).means() @ np.array([1.0, -1.0])
    theirs = stats.bootstrap(
        (answers[0, 0].astype(float), answers[1, 0].astype(float)),
        lambda a, b, axis=-1: a.mean(axis) - b.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        vectorized=True,
        rng=4,
    )
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx(theirs.confidence_interval, abs=0.01)
    assert drawn.std() == pytest.approx(theirs.standard_error, rel=0.05)


def test_bootstrap_over_seeds_has_the_unbiased_variance():
    accuracy = np.array([30, 34, 41, 45]) / 100
    task = np.zeros((1, 4, 100), dtype=np.uint8)
    for seed, share in enumerate(accuracy):
        task[0, seed, : round(100 * share)] = 1
    means = bootstrap([task], 20_000, np.random.default_rng(5)).means()[:, 0]
    only_documents = bootstrap([task[:, :1]], 20_000, np.random.default_rng(5)).means()[:, 0]
    assert means.var() - only_documents.var() == pytest.approx(accuracy.var(ddof=1) / 4, rel=0.35)
    no_documents = np.repeat(accuracy[:, None] > 0.38, 100, axis=1).astype(np.uint8)[None]
    means = bootstrap([no_documents], 20_000, np.random.default_rng(6)).means()[:, 0]
    assert means.var() == pytest.approx(np.var([0, 0, 1, 1], ddof=1) / 4, rel=0.05)


def test_bootstrap_of_clusters_draws_them_whole():
    answers = np.random.default_rng(2).integers(0, 2, size=(2, 1, 60), dtype=np.uint8)
    five, clusters = np.repeat(answers, 5, axis=2), np.repeat(np.arange(60), 5)
    shuffled = np.random.default_rng(3).permutation(300)
    together = bootstrap([five[..., shuffled]], 4000, np.random.default_rng(4), [clusters[shuffled]]).means()
    once, apart = (bootstrap([each], 4000, np.random.default_rng(5)).means() for each in (answers, five))
    assert (
        together.std(0) == pytest.approx(once.std(0), rel=0.05) and (apart.std(0) < 0.6 * once.std(0)).all()
    )
    # Clusters of unequal size: the mean over the documents that were drawn, not over the clusters.
    sizes = np.repeat(np.arange(20), np.arange(1, 21))
    task = (sizes % 2)[None, None].astype(np.uint8)
    means = bootstrap([task], 4000, np.random.default_rng(6), [sizes]).means()
    assert means.mean() == pytest.approx(task.mean(), abs=0.01)


def test_bootstrap_is_stratified_by_task_and_repeats():
    rng = np.random.default_rng(7)
    tasks = [rng.integers(0, 2, size=(3, seeds, 40), dtype=np.uint8) for seeds in (2, 3)]
    one = bootstrap(tasks, 200, np.random.default_rng(8))
    two = bootstrap(tasks, 200, np.random.default_rng(8))
    assert np.array_equal(one.runs, two.runs) and np.array_equal(one.weights, two.weights)
    assert one.weights.sum(-1) == pytest.approx(1)
    centre = np.mean([task.mean((1, 2)) for task in tasks], axis=0)
    assert one.means().mean(0) == pytest.approx(centre, abs=0.03)


def test_probability_of_improvement_and_ranks_where_they_are_certain():
    best, worst = np.ones((1, 3, 20)), np.zeros((1, 3, 20))
    drawn = bootstrap([np.concatenate([worst, best, best]).astype(np.uint8)], 100, np.random.default_rng(0))
    assert (drawn.improvement(1, 0) == 1).all()
    assert (drawn.improvement(1, 2) == 0.5).all()
    assert ranks(drawn.means()).tolist() == [[0, 0, 1], [0.5, 0.5, 0], [0.5, 0.5, 0]]


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_binomial_test(first, second):
    a = np.array([1] * first + [0] * second + [1, 0], dtype=np.uint8)
    b = np.array([0] * first + [1] * second + [1, 0], dtype=np.uint8)
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(a, b)[:2] == (first, second)
    assert mcnemar(a, b)[2] == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_procedure(p):
    adjusted = holm(p)
    for level in (0.01, 0.05, 0.5):
        rejected = set()
        for step, index in enumerate(np.argsort(p, kind="stable")):
            if p[index] * (len(p) - step) > level:
                break
            rejected.add(int(index))
        assert {index for index, value in enumerate(adjusted) if value <= level} == rejected


def test_between_tasks_is_the_t_test():
    values = [0.35, -0.2, 1.4, 0.3, 0.6]
    low, high = between_tasks(values).interval(0.05)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_slopes_are_least_squares_with_blocks():
    rng = np.random.default_rng(9)
    centre, spread, blocks = rng.random(5), rng.random(5), 4
    accuracy = rng.random((blocks, 5))
    dummies = np.kron(np.eye(blocks), np.ones((5, 1)))
    design = np.column_stack([np.tile(centre, blocks), np.tile(spread, blocks), dummies])
    expected = np.linalg.lstsq(design, accuracy.ravel(), rcond=None)[0][:2]
    assert slope_weights(centre, spread) @ accuracy.mean(0) == pytest.approx(expected)


def test_slopes_that_the_shapes_do_not_allow():
    assert slope_weights([0.2, 0.8], [0.1, 0.2]) is None
    assert slope_weights([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]) is None
    rows = slope_weights([0.2, 0.5, 0.8], [0.3, 0.3, 0.3])
    assert not rows[1].any() and rows[0] @ [0.2, 0.5, 0.8] == pytest.approx(1)


def plain(seed: float, document: float, rest: float, seeds: int = 30, documents: int = 5000) -> Components:
    return Components(
        np.float64(0), np.float64(seed), np.float64(document), np.float64(rest), seeds, documents, seeds - 1
    )


def test_power_with_well_known_noise_is_the_noncentral_t():
    planner = Planner([plain(5000 * 0.02**2, 0, 0, seeds=2000)], 0.05, 0.8)
    for seeds, difference in ((5, 0.03), (10, 0.02), (40, 0.008)):
        threshold = stats.t.ppf(0.975, seeds - 1)
        exact = stats.nct.sf(threshold, seeds - 1, difference / (0.02 / np.sqrt(seeds)))
        assert planner.power(difference, seeds) == pytest.approx(exact, abs=0.01)


def test_planner_is_consistent_with_its_power():
    parts = [plain(0.5, 0.3, 0.2, seeds=4, documents=800), plain(0.9, 0.4, 0.2, seeds=4, documents=300)]
    planner = Planner(parts, 0.05, 0.8)
    effect = planner.minimum_detectable_effect()
    assert planner.power(effect) == pytest.approx(0.8, abs=0.001)
    assert planner.seeds_needed(effect * 1.05) <= 4
    few = planner.seeds_needed(effect * 0.8)
    assert planner.power(effect * 0.8, few) >= 0.8 > planner.power(effect * 0.8, few - 1)


def test_more_seeds_cannot_beat_the_documents():
    assert Planner([plain(0.3, 3.0, 0.2, seeds=3, documents=100)], 0.05, 0.8).seeds_needed(0.005) is None


def test_pooled_noise_is_that_of_equally_noisy_methods():
    rng = np.random.default_rng(10)
    answers = rng.random((3000, 4, 3, 25)) + 0.2 * rng.normal(size=(3000, 4, 3, 1))
    weights = np.array([1.0, -1.0, 0.0, 0.0])
    part = components(np.tensordot(answers, weights, (1, 0)))
    pooled = pool_runs(part, answers.mean(-1), weights)
    assert pooled.seed.mean() == pytest.approx(part.seed.mean(), rel=0.05)
    assert pooled.seed.var() < part.seed.var() / 2
    assert pooled.seed_df == 6


def test_simulated_accuracy_is_the_one_asked_for():
    scenario = Scenario("two", (1000, 1000), (0.8, 0.6), (0.05, 0.2), seeds=2, depth=4, spread=-2)
    rng = np.random.default_rng(11)
    measured = np.array([task.mean((0, 2, 3)) for task in scenario.draw(150, rng)])
    assert measured == pytest.approx(scenario.true_accuracy(), abs=0.012)
    truth = dict(zip(SHAPES, 100 * scenario.true_accuracy().mean(0), strict=True))
    assert truth["mola-2468"] - truth["mola-8642"] == pytest.approx(4)
    assert truth["mola-8228"] - truth["mola-2882"] == pytest.approx(-2)


def test_seeds_that_agree_by_chance_decide_nothing_that_the_documents_leave_open():
    """Three seeds with the same difference, each on documents of its own: their mean square is zero."""
    z = np.zeros((3, 1000))
    for seed in range(3):
        z[seed, 30 * seed : 30 * seed + 17] = -1
        z[seed, 30 * seed + 17 : 30 * seed + 29] = 1
    estimate = combine([components(z)])
    assert estimate._replace(documents=None).interval(0.05)[1] < 0 < estimate.interval(0.05)[1]
    means = z.mean(0)
    assert estimate.p_value() == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert estimate.p_value() > 0.05


@pytest.mark.parametrize(
    "scenario", [SCENARIOS[0], SCENARIOS[2], SCENARIOS[5], SCENARIOS[6]], ids=lambda s: s.name
)
def test_calibration_short_version(scenario):
    """`mola calibrate` in small: 400 matrices know a rate of 95 % within 2.2 points (two standard errors)."""
    for row in measure(scenario, 400, np.random.default_rng(12)):
        assert 95 - 2 - 2.2 <= row["coverage"] <= 97 + 2.2
        if row["false_positives"] is not None:
            assert row["false_positives"] <= 5 + 2 + 2.2
        if row["family_false_positives"] is not None:
            assert row["family_false_positives"] <= 5 + 2 + 2.2


def test_seeds_common_to_tasks_are_outside_what_the_verdict_assumes():
    """The warning of the calibration page: 25 % false positives instead of 5 %."""
    rows = {row["question"]: row for row in measure(OUTSIDE[2], 200, np.random.default_rng(14))}
    assert rows["2468-vs-8642"]["false_positives"] > 15


def test_planner_keeps_its_promise():
    small = Scenario("plan", (200,) * 3, (0.8,) * 3, (0.1,) * 3, seeds=4, depth=5)
    plan = check_plan(small, 300, np.random.default_rng(13), studies=60)
    assert plan["measured"] == pytest.approx(plan["promised"], abs=7)
    assert plan["measured_at_own_effect"] == pytest.approx(80, abs=7)


def test_equivalence_is_two_one_sided_t_tests():
    z = np.random.default_rng(0).normal(0.1, 1, size=(1, 60))
    estimate = combine([components(z)])
    for margin in (0.2, 0.5):
        sides = [
            stats.ttest_1samp(z[0], end, alternative=side).pvalue
            for end, side in ((-margin, "greater"), (margin, "less"))
        ]
        assert estimate.p_equivalence(margin) == pytest.approx(max(sides))
    low, high = estimate.interval(0.1)
    inside = (
        estimate.p_equivalence(max(-low, high) * 1.0001),
        estimate.p_equivalence(max(-low, high) * 0.9999),
    )
    assert inside[0] < 0.05 < inside[1]
    assert combine([components(-z)]).p_equivalence(0.3) == pytest.approx(estimate.p_equivalence(0.3))


def test_clusters_of_one_are_documents_and_whole_clusters_are_one_document_each():
    z = np.random.default_rng(1).normal(size=(3, 40)) + np.random.default_rng(2).normal(size=(3, 1))
    plain, single = components(z), components(z, np.arange(40))
    assert single[:7] == pytest.approx(plain[:7]) and single.document_df == plain.document_df == 39
    # Every document four times: the same estimate, error and degrees of freedom as once.
    four = combine([components(np.repeat(z, 4, axis=1), np.repeat(np.arange(40), 4))])
    once = combine([plain])
    assert (four.error, four.df) == pytest.approx((once.error, once.df))
    assert four.documents == pytest.approx(once.documents)
    shuffled = np.random.default_rng(3).permutation(160)
    again = combine([components(np.repeat(z, 4, axis=1)[:, shuffled], np.repeat(np.arange(40), 4)[shuffled])])
    assert again.error == pytest.approx(four.error)


def test_unequal_clusters_leave_fewer_degrees_of_freedom():
    clusters = np.repeat([0, 1, 2, 3], [17, 1, 1, 1])
    part = components(np.random.default_rng(4).normal(size=(1, 20)), clusters)
    assert part.clusters == pytest.approx(400 / (17**2 + 3))
    assert part.document_df == 1  # never below one


def test_noise_is_equal_or_not():
    rng = np.random.default_rng(5)
    weights = np.array([1.0, -1.0, 0.0, 0.0, 0.0])
    calm, wild = np.ones(5), np.array([6.0, 1, 1, 1, 1])
    rates = []
    for scale in (calm, wild):
        runs = scale[:, None] * rng.normal(size=(2000, 5, 4))
        parts, tables = [], []
        for task in (runs, scale[:, None] * rng.normal(size=(2000, 5, 4))):
            z = np.repeat(np.tensordot(task, weights, (1, 0))[..., None], 10, axis=-1)
            parts.append(components(z))
            tables.append(task)
        rates.append((equally_noisy(parts, tables, weights) < 0.2).mean())
    assert rates[0] == pytest.approx(0.2, abs=0.03) and rates[1] > 0.8


def test_power_of_equivalence_with_well_known_noise():
    planner = Planner([plain(5000 * 0.02**2, 0, 0, seeds=2000)], 0.05, 0.8)
    rng = np.random.default_rng(6)
    for seeds, margin in ((6, 0.02), (12, 0.015)):
        drawn = 0.02 * rng.standard_normal((40_000, seeds))
        half = stats.t.ppf(0.95, seeds - 1) * drawn.std(axis=1, ddof=1) / np.sqrt(seeds)
        shown = (np.abs(drawn.mean(axis=1)) + half < margin).mean()
        assert planner.power_equivalence(margin, seeds) == pytest.approx(shown, abs=0.02)
    needed = planner.seeds_for_equivalence(0.015)
    assert planner.power_equivalence(0.015, needed) >= 0.8 > planner.power_equivalence(0.015, needed - 1)
    assert (
        Planner([plain(0.3, 3.0, 0.2, seeds=3, documents=100)], 0.05, 0.8).seeds_for_equivalence(0.005)
        is None
    )


NEW = {scenario.name.removeprefix("no effect, "): scenario for scenario in (*SCENARIOS, *OUTSIDE)}


@pytest.mark.parametrize(
    "name",
    [
        "seeds shared by shapes",
        "2468 four times as noisy",
        "documents in clusters of 20",
        "another generator",
    ],
)
def test_calibration_of_worlds_that_differ_from_the_first(name):
    for row in measure(NEW[name], 300, np.random.default_rng(15)):
        assert row["coverage"] >= 93 - 2.6 and row["false_positives"] <= 7 + 2.6


def test_clusters_that_nobody_names_are_outside_what_the_verdict_assumes():
    name = "documents in clusters of 20 that the scores do not name"
    rows = {row["question"]: row for row in measure(NEW[name], 150, np.random.default_rng(16))}
    assert rows["2468-vs-8642"]["false_positives"] > 15


def test_equivalence_is_shown_at_zero_and_not_at_the_margin():
    shown = {
        name: measure(NEW[name], 300, np.random.default_rng(17))[2]["equivalent"]
        for name in ("1,500 documents, 8 seeds", "depth effect of the margin, 1,500 documents")
    }
    assert shown["1,500 documents, 8 seeds"] > 90
    assert shown["depth effect of the margin, 1,500 documents"] <= 5 + 2 + 2.6


def test_seeds_that_agree_by_chance_do_not_claim_more_degrees_of_freedom():
    """The seed mean square has the rest as its floor in the degrees of freedom, and there only."""
    agreed, expected = plain(0.01, 0.3, 0.2, seeds=3), plain(0.2, 0.3, 0.2, seeds=3)
    assert combine([agreed]).df == pytest.approx(combine([expected]).df)
    assert combine([agreed]).error < combine([expected]).error


@pytest.mark.parametrize("common", [0.0, 0.03])
def test_one_training_that_answers_all_tasks_is_no_ten_trainings(common):
    """Without an effect: noise between runs that all tasks share is decided in many a study if taken as independent."""
    rng, shape = np.random.default_rng(9), (10, 4, 200)
    rates = {"apart": 0, "shared": 0}
    for _ in range(400):
        z = rng.normal(scale=0.4, size=shape) + rng.normal(scale=0.01, size=(10, 4, 1))
        z += rng.normal(scale=common, size=(1, 4, 1))
        parts = [components(task) for task in z]
        rates["apart"] += combine(parts).p_value() <= 0.05
        rates["shared"] += combine(parts, z.mean(axis=2)).p_value() <= 0.05
    assert rates["shared"] <= 400 * 0.075
    assert not common or rates["apart"] > 400 * 0.1


def test_noise_between_runs_is_that_of_the_seeds_that_are_there():
    rng = np.random.default_rng(2)
    runs = rng.normal(size=(5, 4))
    shared, own, seeds = run_noise(runs)
    assert shared == pytest.approx(runs.mean(axis=0).var(ddof=1) / 4) and seeds == 4
    assert own == pytest.approx(runs.var(axis=1, ddof=1).sum() / 4 / 25)
    apart = np.full((5, 20), np.nan)  # seeds of its own in every task: nothing can be shared
    for task in range(5):
        apart[task, 4 * task : 4 * task + 4] = runs[task]
    assert run_noise(apart)[0] == pytest.approx(own)


def test_a_large_cluster_is_as_uncertain_as_it_is():
    """Half of the documents in two clusters of 32, without an effect: with sums over clusters as they are 13 % are decided."""
    sizes = np.array([60, 40, *[2] * 30])
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    rng, found = np.random.default_rng(11), 0
    for _ in range(600):
        z = rng.normal(scale=0.3, size=len(sizes))[clusters] + rng.normal(scale=0.3, size=(5, len(clusters)))
        found += combine([components(z, clusters)]).p_value() <= 0.05
    assert found <= 600 * 0.075


def test_few_differing_documents_do_not_show_equivalence_at_the_margin():
    """One method fails a hundredth of the documents in every seed: a difference of the margin is called smaller at most in 5 %."""
    rng, margin, documents = np.random.default_rng(10), 0.01, 400
    floored, plain = 0, 0
    for _ in range(500):
        z = np.repeat((rng.random(documents) < margin).astype(float)[None], 4, axis=0)
        estimate = combine([components(z)])
        plain += estimate.p_equivalence(margin) <= 0.05
        floored += estimate.p_equivalence(margin, error_at_margin([documents], margin)) <= 0.05
    assert floored <= 500 * 0.05 < plain
    assert error_at_margin([100, 400], 0.01) == pytest.approx(np.sqrt(0.0099 / 100 + 0.0099 / 400) / 2)
