"""MoLA on the architectures that the studies name, and on others that PEFT can adapt."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from mola_core.adapter import MolaConfig, MolaLinear

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_LIKE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ARCHITECTURES = {
    "llama": ({}, LLAMA_LIKE),
    "mistral": ({}, LLAMA_LIKE),
    "gemma": ({"head_dim": 8}, LLAMA_LIKE),
    "gemma2": ({"head_dim": 8}, LLAMA_LIKE),
    "gemma3_text": ({"head_dim": 8}, LLAMA_LIKE),
    "qwen2": ({}, LLAMA_LIKE),
    "gpt_neox": ({}, ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
    "phi": ({}, ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]),
    "phi3": ({}, ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "gpt2": ({}, ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name, tmp_path):
    extra, targets = ARCHITECTURES[name]

    def base():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            CONFIG_MAPPING[name](**SIZES | extra), attn_implementation="eager"
        )

    experts = [2, 3, 4, 5]
    model = get_peft_model(
        base(), MolaConfig(num_experts=experts, r=2, target_modules=targets, router_aux_loss_coef=0.01)
    )
    layers = {n: m for n, m in model.named_modules() if isinstance(m, MolaLinear)}
    assert len(layers) == 4 * len(targets)
    for full_name, layer in layers.items():
        index = int(next(part for part in full_name.split(".") if part.isdigit()))
        assert layer.mola_router["default"].shape[0] == experts[index]
    ids = torch.randint(3, 64, (2, 6))
    before = model.eval()(input_ids=ids).logits
    torch.testing.assert_close(before, base().eval()(input_ids=ids).logits, rtol=0, atol=0)

    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(2):  # B is zero at first, so the second step is the first that reaches A and the router
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in parameters)
    after = model.eval()(input_ids=ids).logits
    assert not torch.allclose(after, before, atol=1e-4)

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path)
    torch.testing.assert_close(loaded(input_ids=ids).logits, after, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2"])
def test_default_and_all_linear_targets(name):
    extra, targets = ARCHITECTURES[name]
    config = CONFIG_MAPPING[name](**SIZES | extra)
    by_default = get_peft_model(AutoModelForCausalLM.from_config(config), MolaConfig(num_experts=2))
    assert by_default.base_model.targeted_module_names
    everything = get_peft_model(
        AutoModelForCausalLM.from_config(config),
        MolaConfig(num_experts=[2, 3, 4, 5], target_modules="all-linear"),
    )
    assert len(everything.base_model.targeted_module_names) == 4 * len(targets)
