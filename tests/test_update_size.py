"""Update sizes against a computation by hand, without a trace in the training; and what a summary says of trainings."""

import math

import pandas as pd
import pytest
import torch
from smoke_study import smoke
from test_peft_methods import STUDY, Words, adapted, documents, peft, settings

from mola_core.analysis.pages.summary import training_notes
from mola_core.methods.settings import MethodSettings
from mola_core.models.weights import new_adapter
from mola_core.training import trainer
from mola_core.training.batches import first_micro_batches
from mola_core.training.trainer import train
from mola_core.training.update_size import update_sizes

METHODS = [
    MethodSettings(method="lora-r4"),
    MethodSettings(method="mola-2468", balance_loss=0.1),
    MethodSettings(method="adalora-r3"),
    peft(peft_type="OFT", oft_block_size=4),
]


def batch():
    return first_micro_batches(documents(), 4, 4, 0, 0, "answer", 1)[0]


def test_the_size_of_a_lora_is_what_its_matrices_give(tiny_llama, tmp_path):
    study = STUDY.model_copy(update={"target_modules": ["up_proj"]})
    model = new_adapter(tiny_llama(), MethodSettings(method="lora-r4"), study, tmp_path)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    inputs = {}
    for index, layer in enumerate(model.base_model.model.model.layers):
        layer.mlp.up_proj.base_layer.register_forward_pre_hook(
            lambda module, args, index=index: inputs.setdefault(index, args[0])
        )
    found = update_sizes(model, batch())
    for index, layer in enumerate(model.base_model.model.model.layers):
        up, x = layer.mlp.up_proj, inputs[index]
        update = 2.0 * x.detach() @ up.lora_A["default"].weight.T @ up.lora_B["default"].weight.T
        base = x @ up.base_layer.weight.T
        assert found[index] == pytest.approx(
            (update.square().mean() / base.square().mean()).sqrt().item(), rel=1e-5
        )
    assert len(found) == 4


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16], ids=["computed", "held"])
@pytest.mark.parametrize("method", METHODS[:3], ids=lambda method: method.label)
def test_small_sizes_are_seen_in_16_bits(tiny_llama, tmp_path, method, held):
    """Of a first step nearly all is below the rounding of the output that it is added to."""
    model = new_adapter(tiny_llama(), method, STUDY, tmp_path, steps=10)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("_E" in name or ("_B" in name and method.label != "adalora-r3")):
            parameter.data.normal_(std=1e-3 if "_E" in name else 1e-5)
    wide = update_sizes(model, batch())
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "base_layer"):
                module.base_layer.to(held)
    with torch.autocast("cpu", torch.bfloat16):
        assert update_sizes(model, batch()) == pytest.approx(wide, rel=0.05)
    assert {
        module.base_layer.weight.dtype for module in model.modules() if hasattr(module, "base_layer")
    } == {held}
    assert 0 < max(wide) < 1e-3


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_measuring_leaves_no_trace_in_the_training(tiny_llama, tmp_path, monkeypatch, method):
    def trained(name):
        torch.manual_seed(0)
        model = adapted(tiny_llama(), method, tmp_path)
        outcome, _ = train(model, Words(), documents(), settings(), 0, tmp_path / name)
        return model, outcome

    measured, outcome = trained("with")
    sizes = outcome["update_size"]
    assert len(sizes["first"]) == len(sizes["last"]) == 4
    assert 0 < sum(sizes["first"]) < sum(sizes["last"])
    assert update_sizes(measured, batch()) == pytest.approx(sizes["last"], rel=1e-4)

    class Blind(trainer.UpdateSize):
        def on_step_end(self, *args, **kwargs):
            pass

    monkeypatch.setattr(trainer, "UpdateSize", Blind)
    plain, without = trained("without")
    assert "update_size" not in without
    assert all(torch.equal(a, b) for a, b in zip(measured.parameters(), plain.parameters(), strict=True))


def test_a_first_step_of_a_matched_lora_is_as_large_as_mola_s_and_that_of_plain_lora_larger(
    tiny_llama, tmp_path
):
    """What the control is for: at one rate plain LoRA of the same ranks takes a larger step."""
    first = {}
    for name in ("mola-5555", "lora-matched-5555", "lora-r10"):
        torch.manual_seed(0)
        model = adapted(tiny_llama(), MethodSettings(method=name), tmp_path)
        outcome, _ = train(model, Words(), documents(), settings(), 0, tmp_path / name)
        first[name] = sum(outcome["update_size"]["first"])
    assert 0.3 < first["lora-matched-5555"] / first["mola-5555"] < 3
    assert first["lora-r10"] / first["lora-matched-5555"] == pytest.approx(5, rel=0.1), (
        "its scale is five times that"
    )


def test_a_constant_rate_has_its_warm_up(tiny_llama, tmp_path):
    """What transformers calls `constant` has none, and would move in the first step."""
    rates = []

    class Told(trainer.UpdateSize):
        def on_step_end(self, args, state, control, **kwargs):
            rates.append(kwargs["lr_scheduler"].get_last_lr()[0])

    model = adapted(tiny_llama(), MethodSettings(method="lora-r4"), tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "UpdateSize", Told)
        told = settings(warmup_steps=3, scheduler="constant", learning_rate=3e-3)
        train(model, Words(), documents(), told, 0, tmp_path / "scratch")
    assert rates[:4] == pytest.approx([1e-3, 2e-3, 3e-3, 3e-3])


def test_the_first_step_of_a_warm_up_which_moves_nothing_is_not_the_first(tiny_llama, tmp_path):
    model = adapted(tiny_llama(), MethodSettings(method="lora-r4"), tmp_path)
    outcome, _ = train(
        model, Words(), documents(), settings(warmup_steps=3, scheduler="linear"), 0, tmp_path / "scratch"
    )
    assert 0 < sum(outcome["update_size"]["first"]) < sum(outcome["update_size"]["last"])


def test_a_method_that_adapts_no_module_has_no_size(tiny_llama, tmp_path):
    model = adapted(tiny_llama(), MethodSettings(method="prompt-tuning"), tmp_path)
    outcome, _ = train(model, Words(), documents(), settings(), 0, tmp_path / "scratch")
    assert "update_size" not in outcome


def test_the_summary_says_what_diverged_and_how_large_updates_are():
    study = smoke(tuning={"learning_rates": [1e-3, 1e-2, 1e-1]}, methods=["base", "lora-r4", "mola-2468"])
    cells = pd.DataFrame(
        {
            "task": ["cola"] * 4,
            "method": ["lora-r4", "lora-r4", "mola-2468", "mola-2468"],
            "seed": [0, 1, 0, 1],
            "learning_rate": [1e-2, 1e-2, 1e-1, 1e-1],
            "diverged": [math.nan, math.nan, 7.0, math.nan],
            "update_first": [0.1, 0.3, 0.5, 0.5],
            "update_last": [1.0, 3.0, math.nan, 5.0],
        }
    )
    told = "\n".join(training_notes(study, cells))
    assert "Learning rates chosen: lora-r4 0.01; mola-2468 0.1" in told
    assert "At the edge of the rates tried: mola-2468." in told
    assert "Diverged: 1 of 4 trainings" in told and "cola/mola-2468/seed0 (step 7)" in told
    assert "lora-r4 0.2 and 2; mola-2468 0.5 and 5" in told
    by_task = pd.concat([cells, cells.assign(task="rte", learning_rate=[1e-2, 1e-2, 1e-2, 1e-2])])
    told = "\n".join(training_notes(study, by_task))
    assert "Learning rates chosen: lora-r4 0.01; mola-2468 0.1 (CoLA), 0.01 (RTE) (" in told
    assert "At the edge of the rates tried: mola-2468." in told
    shared = training_notes(study, cells.assign(learning_rate=1e-2))
    assert "Learning rates chosen: lora-r4, mola-2468 0.01 (" in shared[0] and "edge" not in shared[1]
    plain = smoke(methods=["base", "lora-r4", "mola-2468"])
    assert not any("edge" in line or "chosen" in line for line in training_notes(plain, cells))
