"""A pytest plugin that gives PEFT's own tests MolaConfig where they say LoraConfig, and leaves out what is LoRA's alone."""

import importlib.util
import inspect
import os
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, fields
from functools import cache
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"  # read where huggingface_hub is imported

import peft
import pytest
import torch
import transformers
from peft.tuners.lora import layer as lora_layer

from mola_core import adapter

from . import hub


@dataclass
class MolaConfig(adapter.MolaConfig):
    """With the defaults that the tests take for granted, as they are LoRA's."""

    lora_dropout: float = 0.0
    bias: str = "none"

    def __post_init__(self):
        super().__post_init__()
        if self.bias != "none":
            pytest.skip("MoLA trains no bias")


OWN_CASES = [
    ("MoLA balance loss", "MLP", MolaConfig, {"target_modules": ["lin0"], "router_aux_loss_coef": 0.1}),
    ("MoLA rank", "MLP", MolaConfig, {"target_modules": ["lin0", "lin1"], "r": 3, "num_experts": 5}),
    ("MoLA Conv1D", "EmbConv1D", MolaConfig, {"target_modules": ["conv1d"]}),
]
"""Beside those of LoRA's cases that MoLA can be given."""

CANNOT_MERGE = "a MoLA adapter cannot be merged: its routing depends on the input"
LORAS_NAMES = "reads LoRA's own parameters or repeats its class names"
LORAS_OPTION = "an option of LoRA that MoLA does not have"
LINEAR_ONLY = "MoLA adapts linear layers only"
CLOSED = "PEFT's list of tuners that can be mixed is closed"
HUB_ONLY = "downloads from the hub"
LEFT_OUT = {
    "merg": CANNOT_MERGE,
    "test_forward_float16": f"ends with a merge; {CANNOT_MERGE}",
    "test_forward_bfloat16": f"ends with a merge; {CANNOT_MERGE}",
    "weighted": "no weighted combination: routers of different adapters do not add up",
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
    "test_mixed_model_raises": CLOSED,
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
    "PeftMixedModel": CLOSED,
    "test_mixed_model_from_pretrained": CLOSED,
    "test_get_peft_model_low_cpu_mem_usage_works": LORAS_NAMES,
    "test_get_peft_model_with_task_type_low_cpu_mem_usage_works": LORAS_NAMES,
    "test_from_pretrained_missing_keys_warning": "an error here, not a warning",
    "rejects_duplicate_name_without_mutation[True]": CLOSED,
    "token_ind": LORAS_OPTION,
    "trainble_tokens": LORAS_OPTION,
    "targeting_lora_to_embedding_layer": LINEAR_ONLY,
    "test_load_resized_embedding_ignore_mismatched_sizes": LINEAR_ONLY,
    "test_lora_embed_scale_is_applied": LINEAR_ONLY,
    "multihead_attention": LINEAR_ONLY,
    "mha": LINEAR_ONLY,
    "conv1d_emb": LINEAR_ONLY,
    "conv2d": LINEAR_ONLY,
    "dora": LORAS_OPTION,
    "monteclora": LORAS_OPTION,
    "bias_all": LORAS_OPTION,
    "TestMultiRankAdapter": LORAS_OPTION,
    "TestDynamicDispatch": LORAS_OPTION,
    "layer_replication": LORAS_OPTION,
    "TestLayerRepr": LORAS_NAMES,
    "TestRequiresGrad::test_requires_grad_modules_to_save": LORAS_NAMES,
    "test_requires_grad_follows_inference_mode_modules_to_save": LORAS_NAMES,
    "TestRequiresGrad::test_requires_grad_lora": LORAS_NAMES,
    "test_loading_adapter_preserves_custom_requires_grad": LORAS_NAMES,
    "test_prompt_tuning": "not about adapters in layers",
    "test_prefix_tuning": "not about adapters in layers",
}
"""Parts of the names of tests that are left out, with the reason."""


def pytest_configure(config):
    peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[adapter.config.MOLA] = MolaConfig
    hub.make()
    for name, revision in hub.ADAPTERS.items():
        base = transformers.AutoModelForCausalLM.from_pretrained(hub.ADAPTED)
        peft.get_peft_model(base, MolaConfig()).save_pretrained(hub.snapshot(name, revision))
    if importlib.util.find_spec("diffusers") is None:
        # Imported by the tests for image models, which are not used here.
        none = type("StableDiffusionPipeline", (), {})
        sys.modules["diffusers"] = mock.MagicMock(__version__="0", StableDiffusionPipeline=none)


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
        cases[:] = [case for case in cases if case[1] == "MLP" and _fits(case)] + OWN_CASES
    if cases := getattr(module, "ALL_CONFIGS", None):
        cases[:] = [case for case in cases if _fits(case)]
    if cases := getattr(module, "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES", None):
        # By the name of lora the test would also add the adapters up.
        cases[:] = [(name, "mola", *rest) for name, kind, *rest in cases if kind == "lora"]


def _fits(case: tuple) -> bool:
    """Whether a case is LoRA's, with options that MoLA has."""
    *_, config, settings = case
    names = {field.name for field in fields(MolaConfig)}
    start = settings.get("init_lora_weights", True)
    return config is MolaConfig and set(settings) <= names and start in (True, False)


def _large_model(self):
    """Theirs, with linear layers in the place of the other kinds."""
    names = ("lin0", "conv0", "emb0", "lin1", "conv1", "emb1")
    base = type("LargeModel", (torch.nn.ModuleDict,), {})({name: torch.nn.Linear(10, 10) for name in names})
    model = peft.get_peft_model(base, MolaConfig(target_modules=["lin0", "conv1", "emb0"]))
    model.add_adapter("other", MolaConfig(target_modules=["lin0", "lin1"], r=16))
    return model


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Their inputs go up to 89, where steps of 0.5 saturate a router: its softmax is 0 and 1, its gradient exactly 0."""
    if item.originalname != "test_only_params_are_updated" or item.callspec.params["model_id"] != "MLP":
        return (yield)
    given = {"X": torch.arange(90).view(9, 10) / 90}
    with mock.patch.object(item.cls, "prepare_inputs_for_testing", lambda self: given):
        return (yield)


left_out = Counter()


def pytest_collection_modifyitems(config, items):
    selected = [item for item in items if _selected(item)]
    config.hook.pytest_deselected(items=list(set(items) - set(selected)))
    items[:] = selected


def _selected(item) -> bool:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    given = [p if isinstance(p, type) else type(p) for p in parameters]
    configs = [p for p in given if issubclass(p, peft.PeftConfig)]
    if not (MolaConfig in configs if configs else "LoraConfig" in _source(item.cls or item.function)):
        return False  # another tuner's
    names = [name for name in LEFT_OUT if name in item.nodeid]
    left_out.update(names[:1])
    return not names


_source = cache(inspect.getsource)


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("left out of the tests that name LoRA")
    for name, number in left_out.items():
        terminalreporter.write_line(f"{number:4} {name}: {LEFT_OUT[name]}")
