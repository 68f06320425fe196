"""Names of modules: which layer one is in, which stack is the model's, and what a short name may be."""

import pytest

from mola_core.module_names import is_named, place_of, places_in_stack, short_names


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.mlp.up_proj", (3, "mlp.up_proj")),
        ("transformer.h.11.attn.c_attn", (11, "attn.c_attn")),
        ("model.layers.0.mlp.experts.5.w1", (0, "mlp.experts.5.w1")),
        ("lm_head", None),
        ("model.layers2.norm", None),
    ],
)
def test_the_outermost_number_is_the_layer(name, place):
    assert place_of(name) == place


def test_a_name_or_its_end_after_a_dot_names_a_module():
    assert is_named("layers.0.self_attn.q_proj", "q_proj")
    assert is_named("layers.0.self_attn.q_proj", "self_attn.q_proj")
    assert is_named("q_proj", "q_proj")
    assert not is_named("layers.0.self_attn.qq_proj", "q_proj")


def test_the_stack_is_the_one_of_the_models_depth():
    """Files may hold a vision tower, and layers for the prediction of several tokens, which a text model leaves out."""
    own = [f"model.language_model.layers.{layer}.mlp.up_proj" for layer in range(4)]
    beyond = ["model.language_model.layers.4.mlp.up_proj", "mtp.layers.0.mlp.up_proj"]
    tower = [f"model.visual.blocks.{layer}.{name}" for layer in range(6) for name in ("qkv", "proj", "fc")]
    found = places_in_stack([*tower, *beyond, *own, "lm_head"], depth=4)
    assert found == {name: (layer, "mlp.up_proj") for layer, name in enumerate(own)}
    assert places_in_stack([*own, "lm_head"]) == found, "the only stack, where the depth is not known"
    assert places_in_stack(["lm_head"], depth=4) == {}


def test_the_last_part_of_a_name_is_short_where_it_is_the_only_one():
    assert short_names(["self_attn.q_proj", "mlp.up_proj", "mlp.up_proj"]) == {
        "self_attn.q_proj": "q_proj",
        "mlp.up_proj": "up_proj",
    }
    assert short_names(["attn.c_proj", "mlp.c_proj", "attn.c_attn"]) == {
        "attn.c_proj": "attn.c_proj",
        "mlp.c_proj": "mlp.c_proj",
        "attn.c_attn": "c_attn",
    }
