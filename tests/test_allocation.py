"""Allocations meet their budget, follow their scores, and say what cannot be had; ghost norms against gradients."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mola_core.files import read_json, write_json
from mola_core.methods.allocation import (
    Allocation,
    alphalora,
    apportion,
    random_experts,
    total_experts,
)
from mola_core.methods.registry import parse_method
from mola_core.models.tokens import Encoded
from mola_core.runs.cell import CellRunner
from mola_core.runs.layout import Layout
from mola_core.shapes import centre_of_depth
from mola_core.study.loading import load_study
from mola_core.study.sections import TrainingSettings
from mola_core.study.study import Study
from mola_core.training.allocate import allocate, gradient_scores
from mola_core.training.batches import Collator, LengthGrouped

MISTRAL_SCORES = [
    *(2.14, 3.14, 3.73, 3.49, 3.70, 3.83, 3.53, 3.58, 3.08, 3.31, 2.96, 2.75, 2.85, 2.96, 3.17, 3.62),
    *(4.83, 3.52, 4.45, 4.34, 4.28, 4.26, 4.32, 4.23, 4.78, 4.45, 4.12, 4.72, 3.99, 4.26, 3.38, 2.99),
]
"""Of the layers of Mistral-7B, as the MoLA paper prints them in its appendix H."""
MISTRAL_EXPERTS = [
    *(1, 3, 5, 4, 4, 5, 4, 4, 3, 3, 2, 2, 2, 2, 3, 4, 9, 4, 8, 7, 8, 7, 8, 7, 9, 8, 6, 10, 6, 7, 3, 2),
]
"""AlphaLoRA's published experts per layer for the same model, 160 together."""


def test_alphalora_gives_nearly_its_published_allocation():
    """From the scores rounded to two digits in another paper: no layer is more than one expert off."""
    found = alphalora(MISTRAL_SCORES, budget=20, least=1)
    assert sum(found.experts) == sum(MISTRAL_EXPERTS) == 160
    assert np.abs(np.subtract(found.experts, MISTRAL_EXPERTS)).max() == 1
    assert found.scores == MISTRAL_SCORES


@given(
    scores=st.lists(st.floats(0.01, 100), min_size=1, max_size=48),
    extra=st.integers(0, 200),
    least=st.integers(1, 3),
)
def test_a_budget_is_met_exactly_and_fairly(scores, extra, least):
    total = least * len(scores) + extra
    experts = apportion(scores, total, least)
    assert sum(experts) == total
    assert min(experts) >= least
    for one, other in zip(experts, scores, strict=True):
        assert all(one >= n for n, score in zip(experts, scores, strict=True) if score < other * (1 - 1e-6))


def test_shares_without_a_remainder_are_the_quotas():
    assert apportion([1, 2, 3, 4], 20, 2) == [2, 4, 6, 8]
    # The first layer's share of 20 / 31 is below 2; the others share 18 equally.
    assert apportion([1, 10, 10, 10], 20, 2) == [2, 6, 6, 6]
    # Equal remainders: the lower layer first.
    assert apportion([1, 1, 1, 1], 10, 2) == [3, 3, 2, 2]


@pytest.mark.parametrize(
    ("scores", "total", "message"),
    [([1, 1], 3, "fewer than 2"), ([0, 0], 8, "not all zero"), ([1, float("nan")], 8, "numbers")],
)
def test_what_cannot_be_shared_is_refused(scores, total, message):
    with pytest.raises(ValueError, match=message):
        apportion(scores, total, 2)


@pytest.mark.parametrize("depth", [4, 28, 30, 31, 32])
@pytest.mark.parametrize("budget", [16, 20, 32])
def test_random_experts_meet_the_budget_in_equal_quarters(budget, depth):
    drawn = [random_experts(budget, draw, depth, 2) for draw in range(40)]
    assert all(sum(experts) == total_experts(budget, depth) for experts in drawn)
    assert drawn[3] == random_experts(budget, 3, depth, 2)
    assert len({tuple(experts) for experts in drawn}) > 20
    # A slope over depth needs allocations whose centres differ.
    centres = [centre_of_depth(experts) for experts in drawn]
    assert min(centres) < 0.4 and max(centres) > 0.6


def documents(count: int, vocabulary: int = 64) -> list[Encoded]:
    draw = np.random.default_rng(0)
    lengths = draw.integers(5, 12, size=count)
    return [Encoded(draw.integers(2, vocabulary, size=n).tolist(), int(n) - 2) for n in lengths]


def test_ghost_norms_are_the_norms_of_the_gradients(tiny_llama):
    settings = TrainingSettings(batch_size=4, micro_batch_size=2, loss_on="all")
    targets, rows = ["q_proj", "down_proj"], documents(12)
    found = gradient_scores("sensitivity", tiny_llama(), targets, rows, settings, pad=0, seed=5)
    model = tiny_llama().eval()
    order = list(LengthGrouped([len(d.tokens) for d in rows], 4, 5))
    expected = np.zeros(4)
    for start in range(0, 8, 2):
        model.zero_grad()
        batch = Collator(0, "all")([rows[index] for index in order[start : start + 2]])
        model(**batch).loss.backward()
        for layer, block in enumerate(model.model.layers):
            gradients = [block.self_attn.q_proj.weight.grad, block.mlp.down_proj.weight.grad]
            expected[layer] += torch.cat([g.flatten() for g in gradients]).norm().item() / 4
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_fisher_traces_are_the_mean_squares_of_each_documents_gradient(tiny_llama):
    """In order of the training, the documents of as many micro-batches as the sensitivity takes."""
    settings = TrainingSettings(batch_size=4, micro_batch_size=2, loss_on="all")
    targets, rows = ["q_proj", "down_proj"], documents(12)
    found = gradient_scores("fisher", tiny_llama(), targets, rows, settings, pad=0, seed=5)
    model = tiny_llama().eval()
    order = list(LengthGrouped([len(d.tokens) for d in rows], 4, 5))[:8]
    expected = np.zeros(4)
    for index in order:
        model.zero_grad()
        model(**Collator(0, "all")([rows[index]])).loss.backward()
        for layer, block in enumerate(model.model.layers):
            gradients = [block.self_attn.q_proj.weight.grad, block.mlp.down_proj.weight.grad]
            expected[layer] += sum(g.square().sum().item() for g in gradients) / len(order)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_probe_leaves_the_model_as_it_was(tiny_llama):
    model = tiny_llama().train()
    model.model.norm.weight.requires_grad_(False)
    settings = TrainingSettings(batch_size=4, micro_batch_size=2)
    gradient_scores("sensitivity", model, ["q_proj"], documents(4), settings, 0, 0)
    assert model.training
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters()} - {"model.norm.weight"}
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def study(*methods: str) -> Study:
    content = load_study("smoke").model_dump(mode="json", exclude_none=True)
    return Study.model_validate(content | {"methods": list(methods)})


@pytest.fixture
def bench(tmp_path):
    from mola_core.models.loading import prepare_model
    from mola_core.tasks.rows import prepare_task

    layout = Layout(study("alphalora-20", "sensitivity-20", "fisher-20", "random-20-3"), tmp_path)
    prepare_model(layout.study.model, layout.model)
    prepare_task("cola", layout.study.data, layout.data("cola"))
    return CellRunner(layout)


@pytest.mark.parametrize("method", ["alphalora-20", "fisher-20", "random-20-3"])
def test_a_cell_trains_with_its_allocation_and_records_it(bench, method):
    cell = bench.study.cell("cola", method, 1)
    bench.run(cell)
    folder = bench.layout.cell(cell)
    training = read_json(folder / "manifest.json")["training"]
    assert training["experts"] == training["allocation"]["experts"]
    assert sum(training["experts"]) == 20 and min(training["experts"]) >= 2
    assert len(training["allocation"]["scores"]) == 4
    assert read_json(folder / "adapter" / "adapter_config.json")["num_experts"] == training["experts"]


def allocated(bench, cell, scratch):
    settings = bench.study.method_by_label[cell.method]
    adapter, training = settings.adapter(bench.study.adapter), bench.study.training
    return allocate(
        parse_method(settings), adapter, bench.base, [], training, 0, bench.layout.quality, scratch
    )


@pytest.mark.parametrize(
    ("method", "file"), [("sensitivity-20", "gradient_norms"), ("fisher-20", "fisher_traces")]
)
def test_what_gradients_say_outlives_a_stopped_training(bench, tmp_path, method, file):
    cell = bench.study.cell("cola", method, 0)
    write_json(tmp_path / "scratch" / f"{file}.json", [1.0, 2.0, 3.0, 4.0])
    found = allocated(bench, cell, tmp_path / "scratch")
    assert isinstance(found, Allocation) and found.experts == [2, 4, 6, 8]


def test_a_budget_too_small_for_top_k_is_refused():
    with pytest.raises(ValueError, match="a budget of 4 is 1 experts a layer, fewer than top_k 2"):
        study("alphalora-4")
    with pytest.raises(ValueError, match="4 experts are fewer than 2 for each of 4 layers"):
        apportion([1.0] * 4, 4, 2)


def test_experts_are_chosen_by_the_same_batches_on_every_machine(bench, monkeypatch):
    """A small memory, or several cards, cut the micro-batches of the training; the key says nothing of it."""
    from mola_core.runs import recovery
    from mola_core.training import allocate as module

    seen, plain = [], module.allocate

    def told(*arguments):
        seen.append(arguments[4].micro_batch_size)
        return plain(*arguments)

    monkeypatch.setattr(module, "allocate", told)
    cells = [bench.study.cell("cola", "sensitivity-20", seed) for seed in (0, 1)]
    bench.train(cells[0])
    monkeypatch.setattr(recovery, "fitting_micro_batch", lambda scratch, whole: 1)
    bench.train(cells[1])
    records = [read_json(bench.layout.cell(cell) / "training.json") for cell in cells]
    assert [record["settings"]["micro_batch_size"] for record in records] == [4, 1]
    assert seen == [4, 4]


@pytest.mark.parametrize("name", ["random-20", "alphalora-20-1", "sensitivity-0", "alphalora"])
def test_names_that_are_no_allocation_are_refused(name):
    with pytest.raises(ValueError, match="unknown method"):
        study(name)


def test_what_data_chose_reaches_tables_figures_and_verdict(tmp_path):
    from mola_core.analysis.collect import recorded_experts
    from mola_core.analysis.figures.catalogue import experts_per_layer
    from mola_core.analysis.figures.registry import StudyData
    from mola_core.analysis.tables import accuracy as tables
    from mola_core.analysis.tables.parameters import closed_form

    chosen = study("mola-2468", "alphalora-20", "sensitivity-20")
    cells = pd.DataFrame(
        [
            {"method": "mola-2468", "experts": "[2, 4, 6, 8]", "trainable_parameters": 10},
            {"method": "alphalora-20", "experts": "[3, 3, 7, 7]", "trainable_parameters": 10},
            {"method": "sensitivity-20", "experts": "[2, 2, 8, 8]", "trainable_parameters": 10},
            {"method": "sensitivity-20", "experts": "[3, 3, 7, 7]", "trainable_parameters": 10},
        ]
    )
    found = recorded_experts(cells)
    assert found["sensitivity-20"] == [2.5, 2.5, 7.5, 7.5]
    layers = [{"self_attn.q_proj": (32, 32)}] * 4
    adapted = chosen.model_copy(
        update={"adapter": chosen.adapter.model_copy(update={"target_modules": ["q_proj"]})}
    )
    shape = closed_form(adapted, "mola-2468", layers)
    assert closed_form(adapted, "alphalora-20", layers) == shape == 20 * (8 * 64 + 32)
    assert closed_form(adapted, "alphalora-20", [*layers[:3], {"q_proj": (32, 16)}]) is None
    rows = [tables._capacity(chosen, label, cells, layers) for label in chosen.method_by_label]
    assert [row["experts_per_layer"] for row in rows] == [
        "1 × 2, 1 × 4, 1 × 6, 1 × 8",
        "2 × 3, 2 × 7",
        "differ by cell",
    ]
    assert [(row["experts"], row["budget"]) for row in rows] == [(20, 20)] * 3
    panels = experts_per_layer.draw(StudyData(chosen, cells, None, None, 4, found)).axes
    assert [panel.get_title().strip() for panel in panels if panel.get_visible()] == list(
        chosen.method_by_label
    )
