"""Mixed precision: frozen weights converted once are what autocast converts each time; evaluation has a precision of its own."""

import copy

import pytest
import torch

from mola_core.errors import MolaError
from mola_core.methods.registry import adapter_config
from mola_core.methods.settings import SEVEN_MODULES, AdapterSettings, MethodSettings
from mola_core.models.building import build
from mola_core.models.precision import computed_in, frozen_in


def adapted(base, method):
    torch.manual_seed(0)
    settings = AdapterSettings(dropout=0.0, target_modules=SEVEN_MODULES)
    own = {"method": method} if isinstance(method, str) else {"method": "peft", "name": "x", "config": method}
    config = adapter_config(MethodSettings(**own), settings, 4)
    assert config
    model = build(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(len(name))
                )
    return model


def loss_and_gradients(model, block):
    ids = torch.arange(24).reshape(2, 12) % 64
    model.zero_grad()
    with block, torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    return loss, [p.grad.clone() for p in model.parameters() if p.requires_grad]


READERS = ["dora-r4", {"peft_type": "HIRA", "r": 4}, {"peft_type": "SHIRA", "r": 2}]
"""Adapters that read the base weight itself."""


@pytest.mark.parametrize("method", ["mola-2468", "lora-r4", "lora-matched-2468", *READERS])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_converted_once_give_the_same_bits(tiny_llama, method, tied):
    model = adapted(tiny_llama(tie_word_embeddings=tied), method)
    plain = loss_and_gradients(model, frozen_in(model, "fp32"))
    held = loss_and_gradients(model, frozen_in(model, "bf16"))
    assert torch.equal(plain[0], held[0])
    assert len(plain[1]) > 0 and all(torch.equal(a, b) for a, b in zip(plain[1], held[1], strict=True))


def test_what_is_held_and_what_is_not(tiny_llama):
    model = adapted(tiny_llama(tie_word_embeddings=True), "lora-r4")
    before = {name: (id(p), p.dtype) for name, p in model.named_parameters(remove_duplicate=False)}
    with frozen_in(model, "bf16"):
        inside = {name: p.dtype for name, p in model.named_parameters(remove_duplicate=False)}
        frozen = [name for name, dtype in inside.items() if dtype == torch.bfloat16]
        assert any("q_proj.base_layer" in name for name in frozen) and any(
            "lm_head" in name for name in frozen
        )
        assert not any("embed_tokens" in name or "norm" in name or "lora_" in name for name in frozen)
    assert before == {name: (id(p), p.dtype) for name, p in model.named_parameters(remove_duplicate=False)}


def test_weights_come_back_after_an_error(tiny_llama):
    model = tiny_llama().requires_grad_(False)
    with pytest.raises(RuntimeError), frozen_in(model, "bf16"):
        raise RuntimeError
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_model_that_is_trained_whole_keeps_its_weights(tiny_llama):
    model = tiny_llama().requires_grad_(True)
    with frozen_in(model, "bf16"):
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_forward_passes_are_computed_as_asked(tiny_llama):
    model = tiny_llama().requires_grad_(False)
    ids = torch.arange(12).unsqueeze(0)
    exact = model(ids).logits
    with computed_in(model, "fp32"):
        assert torch.equal(model(ids).logits, exact)
    with computed_in(model, "bf16"):
        rounded = model(ids).logits
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_not_rounded_in_evaluation(tiny_llama, tied):
    model = adapted(tiny_llama(tie_word_embeddings=tied), "mola-2468").requires_grad_(False)
    ids = torch.arange(12).unsqueeze(0)
    inside = {}
    model.get_submodule("base_model.model.model.layers.3.mlp.down_proj").register_forward_hook(
        lambda module, args, output: inside.update(layer=output.dtype)
    )
    model.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: inside.update(hidden=args[0].float())
    )
    with computed_in(model, "bf16"):
        logits = model(ids).logits
    assert inside["layer"] == torch.bfloat16
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, inside["hidden"] @ model.get_output_embeddings().weight.T, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(ids).logits.dtype == torch.bfloat16, "as it was"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nor_are_those_of_a_base_that_is_held_in_16_bits(tiny_llama, tied, dtype, precision):
    model = tiny_llama(tie_word_embeddings=tied).requires_grad_(False).to(dtype)
    head, ids, inside = model.get_output_embeddings(), torch.arange(12).unsqueeze(0), {}
    head.register_forward_pre_hook(lambda module, args: inside.update(hidden=args[0]))
    with computed_in(model, precision):
        logits = model(ids).logits
    assert torch.equal(logits, inside["hidden"].float() @ head.weight.float().T)
    assert model(ids).logits.dtype == head.weight.dtype == dtype, "as it was"


def test_nor_are_those_of_an_output_layer_that_is_trained_whole(tiny_llama):
    config = {"peft_type": "LORA", "r": 2, "modules_to_save": ["lm_head"]}
    model = adapted(tiny_llama(), config).requires_grad_(False)
    with computed_in(model, "bf16"):
        logits = model(torch.arange(12).unsqueeze(0)).logits
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_evaluation_in_bf16_is_another_key_and_other_likelihoods(bench):
    import pandas as pd

    from mola_core.runs.key import keys

    likelihoods, found = {}, {}
    for precision in ("fp32", "bf16"):
        runner = bench(tasks=["cola"], methods=["mola-2468"], seeds=[0], evaluation={"precision": precision})
        [cell] = runner.study.cells()
        runner.run(cell)
        found[precision] = keys(runner.layout, cell)
        frame = pd.read_parquet(runner.layout.cell(cell) / "samples.parquet")
        likelihoods[precision] = [value for values in frame["loglikelihoods"] for value in values]
    assert found["fp32"].training == found["bf16"].training
    assert found["fp32"].evaluation != found["bf16"].evaluation
    assert likelihoods["fp32"] != likelihoods["bf16"]
    assert likelihoods["fp32"] == pytest.approx(likelihoods["bf16"], abs=0.5)


def test_the_precision_of_evaluation_counts_where_it_chooses_an_epoch(bench):
    from mola_core.runs.key import keys

    found = {
        precision: keys(runner.layout, runner.study.cells()[0]).training
        for precision in ("fp32", "bf16")
        for runner in [
            bench(
                tasks=["cola"],
                methods=["mola-2468"],
                seeds=[0],
                training={"epochs": [1, 2]},
                evaluation={"precision": precision},
            )
        ]
    }
    assert None not in found.values() and found["fp32"] != found["bf16"]


@pytest.mark.parametrize("method", ["mola-2468", "lora-r4"])
def test_an_adapter_that_is_evaluated_gives_the_same_bits_too(tiny_llama, method):
    """Its own weights are frozen then, and LoRA's are linear modules."""
    model = adapted(tiny_llama(), method).requires_grad_(False).eval()
    ids = torch.arange(12).unsqueeze(0)
    with torch.inference_mode():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain = model(ids, output_hidden_states=True).hidden_states[-1]
        with computed_in(model, "bf16"):
            assert torch.equal(model(ids, output_hidden_states=True).hidden_states[-1], plain)


def test_experts_are_held_too_where_they_are_frozen(tiny_llama):
    model = adapted(tiny_llama(), "mola-2468")
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        with frozen_in(model, "bf16"):
            held = {p.dtype for name, p in model.named_parameters() if ".mola_" in name}
        assert held == {torch.bfloat16 if frozen else torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_half_precision_without_a_gpu_is_refused_before_a_step(bench):
    runner = bench(tasks=["cola"], methods=["lora-r4"], training={"precision": "fp16"})
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(MolaError, match=r"training\.precision: fp16 needs a GPU"):
        runner.run(runner.study.cell("cola", "lora-r4", 0))
    assert not (runner.layout.cell(runner.study.cell("cola", "lora-r4", 0)) / "training.json").exists()
