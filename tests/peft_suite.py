"""A pytest plugin that runs PEFT's own tests on MoLA: it puts MolaConfig into their parametrisation from outside.

`make peft-suite` fetches the source distribution of the installed PEFT and runs its `tests/test_custom_models.py` and
`tests/test_config.py` with it.
"""

import importlib
import importlib.util
import sys
from unittest import mock

import pytest

from mola_core.adapter import MolaConfig

CASES = [
    ("Vanilla MLP 1 MoLA", "MLP", MolaConfig, {"target_modules": "lin0"}),
    ("Vanilla MLP 2 MoLA", "MLP", MolaConfig, {"target_modules": ["lin0"]}),
    ("Vanilla MLP 3 MoLA", "MLP", MolaConfig, {"target_modules": ["lin1"]}),
    ("Vanilla MLP 4 MoLA", "MLP", MolaConfig, {"target_modules": ["lin0", "lin1"]}),
    ("Vanilla MLP 5 MoLA", "MLP", MolaConfig, {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("Vanilla MLP 6 MoLA", "MLP", MolaConfig, {"target_modules": ["lin0"], "router_aux_loss_coef": 0.1}),
    ("Embedding + transformers Conv1D MoLA", "EmbConv1D", MolaConfig, {"target_modules": ["conv1d"]}),
]
CANNOT_MERGE = "a MoLA adapter cannot be merged: its routing depends on the input"
DESELECTED = {
    "merg": CANNOT_MERGE,
    "test_forward_float16": f"ends with a merge; {CANNOT_MERGE}",
    "test_forward_bfloat16": f"ends with a merge; {CANNOT_MERGE}",
}


def pytest_configure(config):
    if importlib.util.find_spec("diffusers") is None:
        sys.modules["diffusers"] = (
            mock.MagicMock()
        )  # imported by their helpers for image models, not used here
    utils = importlib.import_module("tests.testing_utils")
    theirs = utils.set_init_weights_false

    def ours(config_cls, kwargs):
        return (
            {**kwargs, "init_lora_weights": False} if config_cls is MolaConfig else theirs(config_cls, kwargs)
        )

    utils.set_init_weights_false = ours


def pytest_collectstart(collector):
    if isinstance(collector, pytest.Module):
        cases = getattr(collector.obj, "TEST_CASES", None)
        if cases is not None:
            cases[:] = CASES


def pytest_collection_modifyitems(config, items):
    kept = [i for i in items if "MolaConfig" in i.name or "MoLA" in i.name]
    selected = [i for i in kept if not any(word in i.originalname for word in DESELECTED)]
    config.hook.pytest_deselected(items=[i for i in items if i not in selected])
    items[:] = selected
