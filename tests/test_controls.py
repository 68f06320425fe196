"""Controls: ranks and scales of plain and matched LoRAs, read back on every architecture; and what they are equal to."""

import json

import pytest
import torch
from peft.tuners.lora import LoraLayer
from test_adapter_models import ARCHITECTURES, SIZES
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from mola_core.adapter.layer import MolaLayer
from mola_core.errors import MolaError
from mola_core.methods.registry import adapter_config
from mola_core.methods.settings import AdapterSettings, MethodSettings
from mola_core.models import building
from mola_core.models.weights import load_adapter, new_adapter, save_weights

OTHERS = {
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, ["q_proj", "v_proj", "out_proj", "fc1", "fc2"]),
    "mixtral": ({"num_local_experts": 4, "num_experts_per_tok": 2}, ["q_proj", "v_proj", "gate"]),
}
MODELS = {name: ARCHITECTURES[name] for name in ("llama", "gpt2", "phi", "gpt_neox")} | OTHERS
LAYERS = 12
"""More than ten, so that layer 1 is not to be taken for layer 11."""


def base_of(name):
    torch.manual_seed(0)
    sizes = SIZES | MODELS[name][0] | {"num_hidden_layers": LAYERS}
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**sizes), attn_implementation="eager")


def study_of(name, **changes):
    return AdapterSettings(rank=2, alpha=3, dropout=0.0, target_modules=MODELS[name][1], **changes)


def layer_of(name):
    return next(int(part) for part in name.split(".") if part.isdigit())


def built(model):
    """Rank and scale of each adapted module, read from tensors and from what PEFT multiplies with."""
    return {
        name: (module.lora_A["default"].weight.shape[0], module.scaling["default"])
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_matched_lora_has_the_rank_and_scale_of_its_layers_experts(name, tmp_path):
    experts = [1] * 3 + [3] * 3 + [2] * 3 + [4] * 3
    method = MethodSettings(method="lora-matched-1324")
    model = new_adapter(base_of(name), method, study_of(name), tmp_path)
    found = built(model)
    assert len(found) == LAYERS * len(MODELS[name][1])
    for module, (rank, scale) in found.items():
        count = experts[layer_of(module)]
        assert (rank, scale) == (2 * count, pytest.approx(3 / (2 * count))), module
    save_weights(model, tmp_path / "adapter", "tiny", "float32", tmp_path)
    assert built(load_adapter(base_of(name), tmp_path / "adapter")) == found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("own", "rank", "scale"),
    [({}, 6, 1.5), ({"alpha": 3.0}, 6, 0.5), ({"rslora": True}, 6, 3 / 6**0.5)],
)
def test_a_plain_lora_has_one_rank_and_its_own_scale(name, own, rank, scale, tmp_path):
    model = new_adapter(base_of(name), MethodSettings(method="lora-r6", **own), study_of(name), tmp_path)
    assert len(found := built(model)) == LAYERS * len(MODELS[name][1])
    assert all(value == (rank, pytest.approx(scale)) for value in found.values())


def test_a_matched_lora_is_the_mola_whose_gates_are_equal(tiny_llama, tmp_path):
    """Equal gates by hand: a router of zeros, and top-k over all experts of a layer."""
    experts = [2, 2, 2, 2]
    study = AdapterSettings(rank=3, alpha=5, dropout=0.0, top_k=2)
    mola = new_adapter(tiny_llama(), MethodSettings(method="mola-2222"), study, tmp_path)
    lora = new_adapter(tiny_llama(), MethodSettings(method="lora-matched-2222"), study, tmp_path)
    layers = {name: module for name, module in mola.named_modules() if isinstance(module, MolaLayer)}
    twins = {name: module for name, module in lora.named_modules() if isinstance(module, LoraLayer)}
    assert layers.keys() == twins.keys() and len(layers) == 7 * len(experts)
    torch.manual_seed(1)
    for name, layer in layers.items():
        for mine, theirs in (("mola_A", "lora_A"), ("mola_B", "lora_B")):
            value = 0.1 * torch.randn_like(getattr(layer, mine)["default"])
            getattr(layer, mine)["default"].data = value
            getattr(twins[name], theirs)["default"].weight.data = value.clone()
        layer.mola_router["default"].data.zero_()
    ids = torch.randint(1, 60, (2, 9))
    with torch.no_grad():
        ours, plain = mola.eval()(ids).logits, lora.eval()(ids).logits
        bare = tiny_llama().eval()(ids).logits
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)
    assert (ours - bare).abs().max() > 0.01, "the adapters act"


def test_what_is_built_otherwise_is_refused(tiny_llama, tmp_path, monkeypatch):
    """PEFT falls back to `r` without a word where a pattern matches nothing: here none does."""
    monkeypatch.setattr(building.re, "escape", lambda name: "no_such_layer")
    with pytest.raises(MolaError, match=r"lora-matched-2468: .*layers\.0\..* has rank 2 .* asked for were 4"):
        new_adapter(
            tiny_llama(), MethodSettings(method="lora-matched-2468"), AdapterSettings(rank=2), tmp_path
        )


@pytest.mark.parametrize("method", ["lora-r4", "lora-matched-2468", "mola-2468"])
def test_a_target_that_is_nowhere_is_refused(tiny_llama, tmp_path, method):
    """PEFT adapts what it finds of a list and says nothing of the rest."""
    study = AdapterSettings(target_modules=["q_proj", "v_porj"])
    with pytest.raises(MolaError, match="v_porj.*q_proj"):
        new_adapter(tiny_llama(), MethodSettings(method=method), study, tmp_path)


def test_ranks_of_another_depth_and_modules_in_no_layer_are_refused(tiny_llama):
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "layer_ranks": [2, 4],
        "target_modules": ["q_proj"],
    }
    with pytest.raises(ValueError, match="ranks of 2 layers are given, .* is in one of 4"):
        building.build(tiny_llama(), config)
    with pytest.raises(ValueError, match="lm_head is in no layer"):
        building.build(tiny_llama(), config | {"target_modules": ["lm_head"]})


def test_the_config_that_is_hashed_holds_each_layers_rank():
    configs = [
        adapter_config(MethodSettings(method=f"lora-matched-{shape}"), AdapterSettings(), 8)
        for shape in ("2468", "8642")
    ]
    assert configs[0]["layer_ranks"] == [16, 16, 32, 32, 48, 48, 64, 64]
    assert configs[1]["layer_ranks"] == configs[0]["layer_ranks"][::-1]
    assert json.loads(json.dumps(configs)) == configs


@pytest.mark.parametrize(
    ("method", "own", "field"),
    [
        ("lora-r4", {"rank": 8}, "rank"),
        ("lora-r4", {"top_k": 1}, "top_k"),
        ("lora-matched-2468", {"rslora": True}, "rslora"),
        ("lora-matched-2468", {"balance_loss": 0.1}, "balance_loss"),
        ("mola-2468", {"rslora": True}, "rslora"),
        ("prompt-tuning", {"target_modules": ["q_proj"]}, "target_modules"),
        ("full", {"dropout": 0.1}, "dropout"),
        ("base", {"learning_rate": 1e-3}, "learning_rate"),
    ],
)
def test_a_setting_that_changes_nothing_is_refused(method, own, field):
    with pytest.raises(ValueError, match=f"{method}.*: {field} means nothing to it"):
        MethodSettings(method=method, **own)
