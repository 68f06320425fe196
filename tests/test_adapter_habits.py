"""The adapter in its users' habits: losses made elsewhere, mixed batches, plain modules, shapes per module."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from mola_core.adapter import MolaConfig, built_shape, count_parameters

IDS = torch.randint(0, 64, (3, 7), generator=torch.Generator().manual_seed(1))


def adapted(base, **settings):
    torch.manual_seed(0)
    settings = {"num_experts": 3, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.0} | settings
    return get_peft_model(base, MolaConfig(**{"init_lora_weights": False} | settings))


def router_gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "mola_router" in n])


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_balance_loss_is_there_where_the_loss_is_computed_outside(tiny_llama, reentrant):
    found = []
    for coefficient in (0.0, 0.5):
        model = adapted(tiny_llama(), router_aux_loss_coef=coefficient).train()
        inside = router_gradient(model, model(input_ids=IDS, labels=IDS).loss)
        if reentrant is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        logits = model(input_ids=IDS).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
        outside = router_gradient(model, loss)
        torch.testing.assert_close(outside, inside, rtol=1e-3, atol=1e-6)
        found.append(outside)
    assert not torch.allclose(*found, atol=1e-4)


def test_rows_of_a_mixed_batch_use_their_own_adapter(tiny_llama):
    model = adapted(tiny_llama())
    torch.manual_seed(5)
    model.add_adapter("b", MolaConfig(num_experts=2, target_modules=["q_proj"], init_lora_weights=False))
    model.eval()
    alone = []
    for name in ("default", "b"):
        model.set_adapter(name)
        alone.append(model(input_ids=IDS).logits)
    with model.disable_adapter():
        alone.append(model(input_ids=IDS).logits)
    mixed = model(input_ids=IDS, adapter_names=["default", "b", "__base__"]).logits
    for row in range(3):
        torch.testing.assert_close(mixed[row], alone[row][row], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="non-existing"):
        model(input_ids=IDS, adapter_names=["c"] * 3)


def test_plain_module_zero_tokens_and_read_only_inputs():
    model = get_peft_model(
        nn.Sequential(nn.Linear(4, 4)), MolaConfig(target_modules=["0"], router_aux_loss_coef=0.1)
    )
    assert model(torch.empty(2, 0, 4)).shape == (2, 0, 4)
    x = torch.randn(5, 4)
    version = x._version
    model.train()(x)
    assert x._version == version
    assert model.get_model_status().peft_types == {"default": "MOLA"}


def test_shape_per_module_and_rank_per_layer_are_built_and_counted(tiny_llama, tmp_path):
    config = {"num_experts": {"q_proj": [2, 3, 4, 5], "down_proj": 2}, "r": [1, 2, 3, 4]}
    model = adapted(tiny_llama(), **config)
    shape = built_shape(model)
    assert [v for k, v in shape.items() if "q_proj" in k] == [(2, 1), (3, 2), (4, 3), (5, 4)]
    dims = {"q_proj": (32, 32), "down_proj": (48, 32)}
    assert model.get_nb_trainable_parameters()[0] == count_parameters(model.peft_config["default"], dims, 4)
    model.save_pretrained(tmp_path)
    loaded = MolaConfig.from_pretrained(tmp_path)
    assert loaded.num_experts == config["num_experts"] and loaded.r == config["r"]
    card = (tmp_path / "README.md").read_text()
    assert "import mola_core" in card and "q_proj" in card
    with pytest.raises(ValueError, match="not found among"):
        adapted(tiny_llama(), num_experts={"q_proj": 2, "down_proj": 2, "quux": 2})


def test_lora_is_untouched(tiny_llama):
    get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]))(input_ids=IDS)
