"""The MoLA layer and tuner: what they compute, save and refuse."""

import json
import re
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from reference import balance_loss, loop_forward, loop_over_experts
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from mola_core.adapter import MolaConfig, MolaLayer, MolaLinear, MolaModel
from mola_core.adapter import experts as adapter_experts
from mola_core.benchmark.loop import ReleasedLinear

ALL_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def mola(model, seed=1, **settings):
    """`model` with a MoLA adapter that changes the output: B is not zero."""
    settings = {"num_experts": [2, 3, 4, 5], "target_modules": ALL_MODULES, "lora_dropout": 0.0} | settings
    torch.manual_seed(seed)
    return get_peft_model(model, MolaConfig(**{"init_lora_weights": False} | settings))


def batch(rows=2, length=7, seed=2):
    ids = torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


def padded_batch():
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]])
    return batch() | {"attention_mask": mask}


def gradients(model, **inputs):
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return output.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_same(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def one_layer(experts, top_k, r=4, d_in=12, d_out=10, dtype=torch.float32, **settings):
    """A single adapted layer, in a model of one linear layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(d_in, d_out)).to(dtype)
    config = MolaConfig(
        num_experts=experts,
        top_k=top_k,
        r=r,
        target_modules=["0"],
        init_lora_weights=False,
        **{"lora_dropout": 0.0} | settings,
    )
    return MolaModel(model, config, "default").model[0]


def parts(layer):
    return [layer.mola_A["default"], layer.mola_B["default"], layer.mola_router["default"]]


# ---- the layer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12), (1, 1, 12)])
@pytest.mark.parametrize(
    ("experts", "top_k", "r"), [(1, 1, 4), (2, 2, 8), (4, 2, 4), (8, 2, 8), (6, 3, 1), (5, 1, 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stacked_experts_equal_a_loop_over_experts(experts, top_k, r, shape, dtype):
    layer = one_layer(experts, top_k, r, dtype=dtype)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    ours = layer(x)
    added, *_ = loop_over_experts(x, *parts(layer), top_k, 16 / r)
    theirs = layer.base_layer(x) + added
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours, [x, *parts(layer)], upstream, allow_unused=True),
        torch.autograd.grad(theirs, [x, *parts(layer)], upstream, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_stacked_experts_equal_the_released_code_at_bf16():
    layer = one_layer(8, 2, 8, d_in=64, d_out=48, dtype=torch.bfloat16)
    x = torch.randn(2, 9, 64, dtype=torch.bfloat16)
    ours, theirs = layer(x), ReleasedLinear(layer)(x)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.05, atol=0.05)


def test_stacked_experts_equal_the_released_code():
    layer = one_layer(8, 2, 8)
    x = torch.randn(3, 5, 12)
    torch.testing.assert_close(layer(x), ReleasedLinear(layer)(x))


def test_permuting_the_experts_changes_nothing():
    layer = one_layer(6, 2, 3)
    x = torch.randn(4, 5, 12)
    before = layer(x)
    order = torch.randperm(6)
    for weight, axis in zip(parts(layer), (0, 1, 0), strict=True):
        blocks = torch.stack(weight.data.chunk(6, axis))[order]
        weight.data = torch.cat(list(blocks), axis)
    torch.testing.assert_close(layer(x), before)


def test_experts_that_are_not_chosen_get_no_gradient():
    layer = one_layer(6, 2, 4)
    x = torch.randn(1, 12)
    _, _, chosen = loop_over_experts(x, *parts(layer), 2, 1.0)
    layer(x).sum().backward()
    touched = parts(layer)[0].grad.unflatten(0, (6, 4)).abs().sum((1, 2)) > 0
    assert touched.tolist() == chosen[0].tolist()


def test_dropout_touches_the_experts_input_only():
    """With an input of ones, A of ones and B of ones the adapter's output counts the inputs that were kept."""
    layer = one_layer(4, 4, r=1, d_in=4000, d_out=1, lora_dropout=0.25, lora_alpha=1)
    with torch.no_grad():
        parts(layer)[0].fill_(1), parts(layer)[1].fill_(1)
    x = torch.ones(200, 4000)
    layer.train()
    sums = (layer(x) - layer.base_layer(x)).squeeze(-1)
    kept = sums * 0.75
    torch.testing.assert_close(
        kept, kept.round(), rtol=0, atol=0.1
    )  # whole numbers of inputs, scaled by 1/0.75
    assert sums.mean().item() == pytest.approx(4000, rel=0.005)  # the expectation is the input's
    assert kept.var().item() == pytest.approx(4000 * 0.25 * 0.75, rel=0.4)  # each input on its own
    layer.eval()
    torch.testing.assert_close(
        layer(x) - layer.base_layer(x), torch.full((200, 1), 4000.0), rtol=1e-4, atol=0.1
    )


def test_one_expert_is_lora(tiny_llama):
    ours = mola(tiny_llama(), num_experts=1, top_k=1, r=4, lora_alpha=8)
    theirs = get_peft_model(
        tiny_llama(), LoraConfig(r=4, lora_alpha=8, target_modules=ALL_MODULES, task_type="CAUSAL_LM")
    )
    weights = {
        name.replace("mola_", "lora_").replace(".default", ".default.weight"): value
        for name, value in ours.state_dict().items()
        if "mola_router" not in name
    }
    assert not theirs.load_state_dict(weights, strict=False).unexpected_keys
    our_loss, our_gradients = gradients(ours, **batch())
    their_loss, their_gradients = gradients(theirs, **batch())
    torch.testing.assert_close(our_loss, their_loss)
    for name, gradient in our_gradients.items():
        if "mola_router" in name:
            assert gradient.abs().max() < 1e-6
        else:
            lora = name.replace("mola_", "lora_").replace(".default", ".default.weight")
            torch.testing.assert_close(gradient, their_gradients[lora], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("everywhere_else", [False, True], ids=["positions", "torch's own"])
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (3, 3), (4, 2)])
def test_gradients_are_those_of_the_forward_pass(monkeypatch, everywhere_else, experts, top_k):
    """First and second order against finite differences, with dropout, for a CPU's form and a GPU's."""
    if everywhere_else:
        monkeypatch.setattr(adapter_experts, "drop", lambda x, p: (nn.functional.dropout(x, p), 1.0))
    layer = one_layer(experts, top_k, r=2, d_in=5, d_out=4, dtype=torch.float64, lora_dropout=0.4).train()
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()

    def forward(x, *weights):
        torch.manual_seed(3)
        return layer(x)

    assert torch.autograd.gradcheck(forward, (x, *parts(layer)))
    assert torch.autograd.gradgradcheck(forward, (x, *parts(layer)))
    assert torch.equal(x, before)


@pytest.mark.parametrize("probability", [0.01, 0.05, 0.5, 0.9])
def test_dropped_positions_are_independent_draws(probability):
    size = 200_000
    dropped = adapter_experts.drawn_positions(size, probability)
    assert (dropped.diff() > 0).all() and dropped[0] >= 0 and dropped[-1] < size
    deviation = (size * probability * (1 - probability)) ** 0.5
    assert abs(len(dropped) - size * probability) < 5 * deviation
    both = (dropped.diff() == 1).sum().item()  # neighbours that are both dropped
    assert both == pytest.approx(size * probability**2, abs=6 * (size * probability**2) ** 0.5 + 5)
    late = (dropped >= size // 2).sum().item()
    assert abs(late - size * probability / 2) < 5 * deviation


def test_rare_drops_are_drawn_too():
    counts = [len(adapter_experts.drawn_positions(50_000_000, 1e-6)) for _ in range(20)]
    assert sum(counts) == pytest.approx(1000, abs=5 * 1000**0.5)


# ---- the balance loss ----------------------------------------------------------------------------------------


def reference_gradients(model, monkeypatch, coefficient, mask=None, **inputs):
    """Loss and gradients with the layers as loops and the balance loss through ordinary autograd."""
    with monkeypatch.context() as patch:
        patch.setattr(MolaLinear, "forward", loop_forward)
        model.zero_grad()
        loss = model.get_base_model()(**inputs).loss
        for block in model.get_base_model().model.layers:
            routed = [m.routed for m in block.modules() if isinstance(m, MolaLinear)]
            loss = loss + coefficient * balance_loss([p for p, _ in routed], [c for _, c in routed], mask)
        loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "checkpointed", "reentrant"])
def test_model_equals_the_loop_with_the_balance_loss(tiny_llama, monkeypatch, mask_padding, checkpointing):
    model = mola(tiny_llama(), router_aux_loss_coef=0.1, router_aux_loss_mask_padding=mask_padding)
    model.train()
    inputs = padded_batch()
    expected = reference_gradients(
        model, monkeypatch, 0.1, inputs["attention_mask"] if mask_padding else None, **inputs
    )
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    for _ in range(2):  # the second pass finds nothing left over from the first
        loss, ours = gradients(model, **inputs)
        torch.testing.assert_close(loss, expected[0])
        assert_same(ours, expected[1], rtol=1e-4, atol=1e-6)


def test_two_forward_passes_before_one_backward(tiny_llama):
    model = mola(tiny_llama(), router_aux_loss_coef=0.1)
    separate = [gradients(model, **batch(seed=seed))[1] for seed in (2, 3)]
    model.zero_grad()
    (model(**batch(seed=2)).loss + model(**batch(seed=3)).loss).backward()
    together = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert_same(together, {n: separate[0][n] + separate[1][n] for n in together}, rtol=1e-4, atol=1e-6)


def test_balance_loss_of_even_routing_is_the_number_of_layers(tiny_llama):
    model = mola(tiny_llama(), router_aux_loss_coef=1.0, num_experts=4, top_k=4)
    with_loss = model(**batch()).loss
    model.peft_config["default"].router_aux_loss_coef = 0.0
    assert (with_loss - model(**batch()).loss).item() == pytest.approx(4, abs=1e-4)


def test_balance_loss_can_join_a_loss_made_elsewhere(tiny_llama):
    model = mola(tiny_llama(), router_aux_loss_coef=0.1)
    inside = gradients(model, **batch())
    model.zero_grad()
    ids = batch()["input_ids"]
    logits = model(input_ids=ids).logits[:, :-1]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss = model.base_model.add_balance_loss(loss)
    loss.backward()
    torch.testing.assert_close(loss.detach(), inside[0])
    assert_same(
        {n: p.grad for n, p in model.named_parameters() if p.requires_grad}, inside[1], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("first", ["ignored", "labelled"])
def test_the_balance_loss_is_shared_among_the_passes_of_a_batch(tiny_llama, first):
    """Gradient accumulation as the Trainer does it: two equal halves carry the coefficient together, not each."""
    model = mola(tiny_llama(), router_aux_loss_coef=0.5)
    inputs = batch()
    inputs["labels"] = inputs["labels"].clone()
    if first == "ignored":
        inputs["labels"][:, 0] = -100  # no position predicts it, and the Trainer counts it in neither case
    loss, whole = gradients(model, **inputs)
    model.zero_grad()
    items = 2 * (inputs["labels"][:, 1:] != -100).sum()
    for _ in range(2):
        half = model(**inputs, num_items_in_batch=items).loss
        torch.testing.assert_close(half.detach(), loss / 2)
        half.backward()
    assert_same(
        {n: p.grad for n, p in model.named_parameters() if p.requires_grad}, whole, rtol=1e-4, atol=1e-6
    )


def test_generating_after_a_training_step_works(tiny_llama):
    model = mola(tiny_llama(), router_aux_loss_coef=0.1, router_aux_loss_mask_padding=True)
    model(**padded_batch()).loss.backward()
    model.eval()
    generated = model.generate(
        input_ids=batch()["input_ids"], max_new_tokens=3, do_sample=False, pad_token_id=0
    )
    assert generated.shape == (2, 10)


# ---- precision and memory ------------------------------------------------------------------------------------


def test_checkpointing_gives_the_same_gradients_with_dropout(tiny_llama):
    model = mola(tiny_llama(), lora_dropout=0.3).train()
    model.enable_input_require_grads()
    torch.manual_seed(5)
    expected = gradients(model, **batch())
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(5)
        loss, ours = gradients(model, **batch())
        torch.testing.assert_close(loss, expected[0])
        assert_same(ours, expected[1])


def test_bf16_base_keeps_its_type_and_trains_the_adapter_in_fp32(tiny_llama):
    model = mola(tiny_llama().to(torch.bfloat16), router_aux_loss_coef=0.01)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    output = model(**batch())
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    full = mola(tiny_llama().to(torch.bfloat16).float(), router_aux_loss_coef=0.01)
    torch.testing.assert_close(output.loss, full(**batch()).loss, rtol=0.02, atol=0.02, check_dtype=False)


def test_autocast_is_close_to_fp32(tiny_llama):
    # every expert is chosen: with fewer, rounding changes some choices and with them whole gradients
    model = mola(tiny_llama(), num_experts=3, top_k=3, router_aux_loss_coef=0.01)
    expected = gradients(model, **batch())
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            model.get_base_model().model.layers[0].self_attn.q_proj(torch.randn(2, 32)).dtype
            == torch.bfloat16
        )
        loss, ours = gradients(model, **batch())
    torch.testing.assert_close(loss, expected[0], rtol=0.02, atol=0.02)
    for name, gradient in ours.items():
        assert (gradient - expected[1][name]).norm() < 0.1 * expected[1][name].norm() + 1e-3, name


# ---- within PEFT ---------------------------------------------------------------------------------------------


def llama_2_7b():
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (
            MolaConfig(num_experts=[2] * 8 + [4] * 8 + [6] * 8 + [8] * 8, target_modules=ALL_MODULES),
            105_635_840,
        ),
        (MolaConfig(num_experts=[8] * 8 + [2] * 16 + [8] * 8, target_modules=ALL_MODULES), 105_635_840),
        (MolaConfig(num_experts=8, target_modules=ALL_MODULES), 169_017_344),
        (MolaConfig(num_experts=4, target_modules=ALL_MODULES), 84_508_672),
        (LoraConfig(r=64, target_modules=ALL_MODULES), 159_907_840),
    ],
    ids=["2468", "8228", "8888", "4444", "lora-r64"],
)
def test_trainable_parameters_are_the_papers(config, parameters):
    model = get_peft_model(llama_2_7b(), config, low_cpu_mem_usage=True)
    assert model.get_nb_trainable_parameters()[0] == parameters


def test_untrained_adapter_changes_nothing(tiny_llama):
    base = tiny_llama()
    expected = base(**batch()).logits
    model = get_peft_model(base, MolaConfig(num_experts=[2, 3, 4, 5], target_modules=ALL_MODULES))
    torch.testing.assert_close(model.eval()(**batch()).logits, expected, rtol=0, atol=0)


def train_a_little(model, steps=3):
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        optimiser.zero_grad()
        model(**batch(seed=step)).loss.backward()
        optimiser.step()


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_adapter_gives_the_same_logits(tiny_llama, tmp_path, low_cpu_mem_usage):
    model = mola(tiny_llama(), init_lora_weights=True, router_aux_loss_coef=0.01)
    train_a_little(model)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["peft_type"] == "MOLA"
    assert stored["num_experts"] == [2, 3, 4, 5]
    assert stored["target_modules"] == ALL_MODULES
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert not any(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(loaded(**batch()).logits, model.eval()(**batch()).logits, rtol=0, atol=0)
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    trainable = {n for n, p in again.named_parameters() if p.requires_grad}
    assert trainable == {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("damage", ["missing", "extra", "misshapen", "another adapter's"])
@pytest.mark.parametrize("load", ["from_pretrained", "load_adapter"])
def test_damaged_adapter_is_refused(tiny_llama, tmp_path, damage, load):
    model = mola(tiny_llama())
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.2.mlp.up_proj.mola_A"
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        name = "base_model.model.model.layers.9.mlp.up_proj.mola_A"
        tensors[name] = torch.zeros(1)
    elif damage == "misshapen":
        tensors[name] = tensors[name][1:].contiguous()
    else:
        tensors = {k.replace("mola_", "lora_"): v for k, v in tensors.items()}
        name = "base_model.model.model.layers.0.self_attn.q_proj.mola_A"
    save_file(tensors, file)
    with pytest.raises(ValueError, match=re.escape(name)) as caught:
        if load == "from_pretrained":
            PeftModel.from_pretrained(tiny_llama(), tmp_path)
        else:
            model.load_adapter(tmp_path, "second")
    assert "\n" not in str(caught.value)


def test_other_tuners_load_as_before(tiny_llama, tmp_path):
    get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj", "v_proj"])).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)


def test_modules_to_save_survive(tiny_llama, tmp_path):
    model = mola(tiny_llama(), modules_to_save=["lm_head"])
    train_a_little(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    torch.testing.assert_close(loaded(**batch()).logits, model.eval()(**batch()).logits, rtol=0, atol=0)


def test_disable_adapter_gives_the_base_model(tiny_llama):
    expected = tiny_llama()(**batch()).logits
    model = mola(tiny_llama(), router_aux_loss_coef=0.1)
    adapted = model(**batch()).logits
    assert not torch.allclose(adapted, expected)
    with model.disable_adapter():
        output = model(**batch())
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(model(**batch()).logits, adapted, rtol=0, atol=0)
    torch.testing.assert_close(model.unload()(**batch()).logits, expected, rtol=0, atol=0)


def test_hooks_see_the_base_layers_own_output(tiny_llama):
    model = mola(tiny_llama())
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    seen = []
    layer.base_layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(3, 32)
    layer(x)
    torch.testing.assert_close(seen[0], nn.functional.linear(x, layer.base_layer.weight))


def test_two_adapters_side_by_side(tiny_llama, tmp_path):
    first = mola(tiny_llama(), seed=1)
    second = mola(tiny_llama(), seed=2, num_experts=3, top_k=1, r=2, target_modules=["q_proj", "down_proj"])
    second.save_pretrained(tmp_path)
    expected = [m.eval()(**batch()).logits for m in (first, second)]
    first.load_adapter(tmp_path, "second")
    torch.testing.assert_close(first(**batch()).logits, expected[0], rtol=0, atol=0)
    first.set_adapter("second")
    torch.testing.assert_close(first(**batch()).logits, expected[1], rtol=0, atol=0)
    trainable = {n.rpartition(".")[2] for n, p in first.named_parameters() if p.requires_grad}
    assert trainable == {"second"}
    layer = first.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.randn(3, 32)
    alone = []
    for name in ("default", "second"):
        layer.set_adapter(name)
        alone.append(layer(x) - layer.base_layer(x))
    layer.set_adapter(["default", "second"])
    torch.testing.assert_close(layer(x), layer.base_layer(x) + alone[0] + alone[1])
    first.delete_adapter("default")
    torch.testing.assert_close(first(**batch()).logits, expected[1], rtol=0, atol=0)


def test_trainer_resumes_from_its_checkpoint(tiny_llama, tmp_path):
    data = [{"input_ids": row, "labels": row} for row in batch(rows=16)["input_ids"]]

    def train(folder, resume=None):
        model = mola(tiny_llama(), lora_dropout=0.2, router_aux_loss_coef=0.01)
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=data).train(resume_from_checkpoint=resume)
        return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    whole = train(tmp_path / "whole")
    resumed = train(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(resumed, whole, rtol=0, atol=0)


def test_merging_is_refused(tiny_llama):
    model = mola(tiny_llama())
    for merge in (
        model.merge_and_unload,
        model.merge_adapter,
        model.get_base_model().model.layers[0].mlp.up_proj.merge,
    ):
        with pytest.raises(ValueError, match="cannot be merged"):
            merge()


# ---- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": [2, 2]}, "num_experts has 2 entries, the model has 4 layers"),
        ({"num_experts": [2, 2, 1, 2]}, "num_experts of layer 2 is 1, below top_k = 2"),
        ({"num_experts": 1}, "num_experts is 1, below top_k = 2"),
        ({"num_experts": [2, 0, 2, 2]}, "num_experts of layer 1 is 0"),
        ({"num_experts": []}, "num_experts is empty"),
        ({"num_experts": 2.5}, "num_experts is 2.5"),
        ({"top_k": 0}, "top_k is 0"),
        ({"r": 0}, "r is 0"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"lora_dropout": -0.1}, "lora_dropout is -0.1"),
        ({"lora_alpha": 0}, "lora_alpha is 0: give a number above 0"),
        ({"router_aux_loss_mask_padding": "no"}, "router_aux_loss_mask_padding is 'no'"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head': give a list"),
        ({"layers_to_transform": True}, "layers_to_transform is True"),
        ({"router_aux_loss_coef": -1.0}, "router_aux_loss_coef is -1.0"),
        ({"target_modules": ["q_proj", "query"]}, r"Target modules \['query'\] not found .* q_proj"),
        ({"target_modules": "query"}, "query"),
        (
            {"target_modules": ".*q_proj", "layers_to_transform": 1},
            "cannot be used when `target_modules` is a str",
        ),
        ({"layers_pattern": "layers"}, "layers_pattern does nothing"),
        ({"layers_to_transform": [1, 4]}, r"layers_to_transform \[4\]: the model has no target modules"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head is in no layer"),
        ({"target_modules": ["embed_tokens"], "num_experts": 2}, "embed_tokens is a Embedding"),
    ],
)
def test_bad_settings_are_refused_in_one_line(tiny_llama, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        mola(tiny_llama(), **settings)
    assert "\n" not in str(caught.value)


def test_mask_that_does_not_fit_is_refused(tiny_llama):
    model = mola(tiny_llama(), router_aux_loss_coef=0.1, router_aux_loss_mask_padding=True)
    four_dimensional = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match="router_aux_loss_mask_padding needs an attention_mask"):
        model(**batch(), attention_mask=four_dimensional)


# ---- what we rely on in PEFT ---------------------------------------------------------------------------------


def test_contract_with_peft(tiny_llama):
    from peft import mapping

    assert mapping.PEFT_TYPE_TO_CONFIG_MAPPING["MOLA"] is MolaConfig
    assert mapping.PEFT_TYPE_TO_TUNER_MAPPING["MOLA"] is MolaModel
    assert mapping.PEFT_TYPE_TO_PREFIX_MAPPING["MOLA"] == "mola_"
    model = mola(tiny_llama(), target_modules=["q_proj"])
    layer = model.get_base_model().model.layers[3].self_attn.q_proj
    assert isinstance(layer, MolaLayer)
    prefix = "base_model.model.model.layers.3.self_attn.q_proj"
    names = [f"{prefix}.{part}" for part in ("mola_A", "mola_B", "mola_router")]
    from peft import get_peft_model_state_dict

    saved = get_peft_model_state_dict(model)
    assert [name for name in saved if ".3." in name] == names
    assert [tuple(saved[name].shape) for name in names] == [(40, 32), (32, 40), (5, 32)]


@pytest.mark.parametrize(
    "order", [("peft", "mola_core"), ("mola_core", "peft"), ("mola_core.adapter", "peft")]
)
def test_importing_mola_core_is_all_it_takes(tiny_llama, tmp_path, order):
    mola(tiny_llama()).save_pretrained(tmp_path / "adapter")
    tiny_llama().save_pretrained(tmp_path / "base")
    script = f"""
import importlib, sys
for name in {order!r}:
    importlib.import_module(name)
importlib.reload(sys.modules["mola_core"])
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({str(tmp_path / "base")!r})
print(type(PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r}).base_model).__name__)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout.strip() == "MolaModel", run.stderr


def test_importing_mola_core_is_cheap():
    script = (
        "import sys, mola_core; print([m for m in ('torch', 'peft', 'transformers') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
