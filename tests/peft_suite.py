"""A pytest plugin that runs PEFT's own tests on MoLA, offline: where they say LoraConfig, they get MolaConfig.

`make peft-suite` fetches the source distribution of the installed PEFT, which carries its tests, and runs the modules in
`MODULES` with this plugin; no file of theirs is changed. The models that they take from the hub are made on the spot, with
random weights, as a cache of the hub in the folder `HF_HOME`. What is left out of the tests of LoRA stands in `LEFT_OUT`, with
the reason.
"""

import importlib.util
import inspect
import os
import sys
from collections import defaultdict
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"  # read where huggingface_hub is imported
HUB = Path(os.environ.setdefault("HF_HOME", "hub")) / "hub"

import peft  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft.tuners.lora import layer as lora_layer  # noqa: E402

from mola_core import adapter  # noqa: E402


@dataclass
class MolaConfig(adapter.MolaConfig):
    """With the defaults that the tests take for granted, as they are LoRA's."""

    lora_dropout: float = 0.0
    bias: str = "none"

    def __post_init__(self):
        super().__post_init__()
        if self.bias != "none":
            pytest.skip("MoLA trains no bias")


MODULES = [
    "custom_models",
    "decoder_models",
    "encoder_decoder_models",
    "feature_extraction_models",
    "initialization",
    "tuners_utils",
    "config",
    "low_level_api",
]
OWN_CASES = [
    (
        "Vanilla MLP MoLA balance loss",
        "MLP",
        MolaConfig,
        {"target_modules": ["lin0"], "router_aux_loss_coef": 0.1},
    ),
    (
        "Vanilla MLP MoLA rank",
        "MLP",
        MolaConfig,
        {"target_modules": ["lin0", "lin1"], "r": 3, "num_experts": 5},
    ),
]
"""Beside those of LoRA's cases that MoLA can be given."""
LINEAR_MODELS = {"MLP", "DeepMLP", "MLP2"}

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "peft-internal-testing/opt-125m": (
        "OPTForCausalLM",
        {"num_hidden_layers": 12, "word_embed_proj_dim": 32},
    ),
    "peft-internal-testing/tiny-random-OPTForCausalLM": (
        "OPTForCausalLM",
        {"ffn_dim": 64, "word_embed_proj_dim": 32},
    ),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", {}),
    "peft-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", {}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", {}),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", {"rotary_dim": 4}),
    "peft-internal-testing/tiny-random-GPTNeoXForCausalLM": ("GPTNeoXForCausalLM", {}),
    "peft-internal-testing/tiny-random-BloomForCausalLM": ("BloomForCausalLM", {"num_hidden_layers": 5}),
    "peft-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", {}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", {}),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", {}),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", {"head_dim": 8}),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", {}),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": (
        "T5ForConditionalGeneration",
        {},
    ),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration": (
        "T5ForConditionalGeneration",
        {"decoder_start_token_id": 0},
    ),
    "peft-internal-testing/tiny-random-t5": ("T5ForConditionalGeneration", {"decoder_start_token_id": 0}),
    "google/flan-t5-small": ("T5ForConditionalGeneration", {"decoder_start_token_id": 0}),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("BartForConditionalGeneration", {}),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", {}),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", {}),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "RobertaForSequenceClassification",
        {},
    ),
    "peft-internal-testing/tiny-random-DebertaModel": ("DebertaModel", {}),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", {}),
    "peft-internal-testing/tiny-clip-text-2": ("CLIPTextModel", {}),
}
"""Class and sizes of each model, by its name on the hub."""
ADAPTERS = {
    "peft-internal-testing/tiny-OPTForCausalLM-lora": "main",
    "peft-internal-testing/tiny-opt-lora-revision": "test",
}
"""Revision of adapters of the tiny OPT, by their name on the hub."""

CANNOT_MERGE = "a MoLA adapter cannot be merged: its routing depends on the input"
LORAS_NAMES = "reads LoRA's own parameters or repeats its class names"
LORAS_OPTION = "an option of LoRA that MoLA does not have"
HUB_ONLY = "downloads from the hub"
LEFT_OUT = {
    "merge": CANNOT_MERGE,
    "test_forward_float16": f"ends with a merge; {CANNOT_MERGE}",
    "test_forward_bfloat16": f"ends with a merge; {CANNOT_MERGE}",
    "test_weighted_combination_of_adapters": "no weighted combination: routers of different adapters do not add up",
    "test_from_pretrained_cache_dir": HUB_ONLY,
    "test_inject_from_state_dict_stable_diffusion": "diffusers is not installed",
    "test_save_pretrained_with_runtime_config": LORAS_OPTION,
    "test_nested_config_survives_save_load_roundtrip": LORAS_OPTION,
    "target_parameters": LORAS_OPTION,
    "TestTargetedParameterNames": LORAS_OPTION,
    "test_save_pretrained_with_target_modules": "MolaConfig keeps a list of target modules in its order",
    "test_lora_config_layers_to_transform_validation": "expects LoRA's wording",
    "TestLowLevelFunctional::test_inject_adapter_in_model": LORAS_NAMES,
    "TestLowLevelFunctional::test_get_peft_model_state_dict": LORAS_NAMES,
    "TestLowLevelFunctional::test_modules_to_save": LORAS_NAMES,
    "test_inject_from_state_dict_missing_keys_warning": LORAS_NAMES,
    "test_inject_from_state_dict_model_with_weight_conversion": LORAS_NAMES,
    "test_prefix_removal_is_undone": LORAS_NAMES,
    "test_save_pretrained_warns_for_unsharded_state_dict": LORAS_NAMES,
    "test_add_second_adapter_with_all_linear_works": LORAS_NAMES,
    "test_second_adapter_only_modules_to_save_raises": "refused too, but with the names that were not found",
    "test_some_modules_excluded_some_unmatched": "refused too, but with the names that were not found",
    "test_module_type_": LORAS_NAMES,
    "test_adapter_model_type_": LORAS_NAMES,
    "test_peft_types_": LORAS_NAMES,
    "test_nb_params_": LORAS_NAMES,
    "trainable_tokens": LORAS_OPTION,
    "test_mixed_model_raises": "PEFT's list of tuners that can be mixed is closed",
    "TestRankAndAlphaPattern": f"{LORAS_OPTION}: its ranks are given by layer",
    "test_prefixes_": LORAS_NAMES,
    "test_requires_grad_irregular": LORAS_NAMES,
    "test_model_requires_grad_model_irregular": LORAS_NAMES,
    "test_model_status_with_modules_to_save": LORAS_NAMES,
    "test_transformers_model": LORAS_NAMES,
    "test_model_with_injected_layers": LORAS_NAMES,
    **dict.fromkeys(
        [
            "TestLoraInitialization",
            "TestCordaInitialization",
            "TestEvaInitialization",
            "TestKasaInitialization",
        ],
        "ways in which LoRA starts",
    ),
    "TestHotSwapping": "PEFT swaps adapters of LoRA only",
    "TestScaling": "LoRA's set_scale and scale_layer",
    "TestWeightTying": LORAS_OPTION,
    "PeftMixedModel": "PEFT's list of tuners that can be mixed is closed",
    "test_mixed_model_from_pretrained": "PEFT's list of tuners that can be mixed is closed",
    "test_get_peft_model_low_cpu_mem_usage_works": LORAS_NAMES,
    "test_get_peft_model_with_task_type_low_cpu_mem_usage_works": LORAS_NAMES,
    "test_from_pretrained_missing_keys_warning": "an error here, not a warning",
}
"""Parts of the names of tests that are left out, with the reason."""


def make_hub() -> None:
    """The models as a cache of the hub, made once."""
    for name, (kind, sizes) in MODELS.items():
        folder = _snapshot(name, "main")
        if (folder / "config.json").exists():
            continue
        cls = getattr(transformers, kind)
        torch.manual_seed(0)
        cls(cls.config_class(**_known(cls.config_class) | sizes)).save_pretrained(folder)
    for name, revision in ADAPTERS.items():
        folder = _snapshot(name, revision)
        if not (folder / "adapter_config.json").exists():
            base = transformers.AutoModelForCausalLM.from_pretrained(
                "peft-internal-testing/tiny-random-OPTForCausalLM"
            )
            peft.get_peft_model(base, MolaConfig()).save_pretrained(folder)


def _known(config_class: type) -> dict:
    """The sizes that a config class has a name for."""
    names = set(inspect.signature(config_class.__init__).parameters) | set(config_class.attribute_map)
    return {name: value for name, value in SIZES.items() if name in names}


def _snapshot(name: str, revision: str) -> Path:
    repository = HUB / ("models--" + name.replace("/", "--"))
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    return repository / "snapshots" / commit


def pytest_configure(config):
    peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[adapter.config.MOLA] = MolaConfig
    make_hub()
    if importlib.util.find_spec("diffusers") is None:
        # Imported by the tests for image models, which are not used here.
        sys.modules["diffusers"] = mock.MagicMock(
            __version__="0", StableDiffusionPipeline=type("None_", (), {})
        )


class _Known(defaultdict):
    """What `hub_online_once` remembers, as if it had seen every model: so it stays offline."""

    def __contains__(self, name):
        return True


def pytest_collectstart(collector):
    if not isinstance(collector, pytest.Module):
        return
    with (
        mock.patch.object(peft, "LoraConfig", MolaConfig),
        mock.patch.object(lora_layer, "LoraLayer", adapter.MolaLayer),
    ):
        module = collector.obj  # imports it
    if utils := sys.modules.get("tests.testing_utils"):
        utils._HUB_MODEL_ACCESSES = _Known(int)
    if tests := getattr(module, "TestModelAndLayerStatus", None):
        tests.large_model = pytest.fixture(_large_model)
    if cases := getattr(module, "TEST_CASES", None):
        cases[:] = [case for case in cases if case[1] in LINEAR_MODELS and _fits(case)] + OWN_CASES
    if cases := getattr(module, "ALL_CONFIGS", None):
        cases[:] = [case for case in cases if _fits(case)]


def _large_model(self):
    """Theirs, with linear layers in the place of the other kinds."""
    names = ("lin0", "conv0", "emb0", "lin1", "conv1", "emb1")
    base = type("LargeModel", (torch.nn.ModuleDict,), {})({name: torch.nn.Linear(10, 10) for name in names})
    model = peft.get_peft_model(base, MolaConfig(target_modules=["lin0", "conv1", "emb0"]))
    model.add_adapter("other", MolaConfig(target_modules=["lin0", "lin1"], r=16))
    return model


def _fits(case: tuple) -> bool:
    *_, config, settings = case
    return config is MolaConfig and set(settings) <= {field.name for field in fields(MolaConfig)}


def pytest_collection_modifyitems(config, items):
    selected = [item for item in items if _selected(item)]
    config.hook.pytest_deselected(items=list(set(items) - set(selected)))
    items[:] = selected


def _selected(item) -> bool:
    if any(word in item.nodeid for word in LEFT_OUT):
        return False
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    given = [p if isinstance(p, type) else type(p) for p in parameters]
    configs = [p for p in given if issubclass(p, peft.PeftConfig)]
    if configs:
        return MolaConfig in configs
    return "LoraConfig" in _source(item.cls or item.function)


_source = cache(inspect.getsource)
