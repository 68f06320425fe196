"""Build an untrained PEFT adapter from a method's config: ranks per layer as patterns of names, and reading back.

PEFT takes another rank than `r` by patterns that it matches with the modules' names, and is silent where one matches
nothing: what was built is therefore compared, module by module, with what was asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn

import mola_core.adapter  # noqa: F401 - makes MoLA known to PEFT
from mola_core.adapter.shape import block_of
from mola_core.methods.family import LAYER_RANKS

ADAPTER = "default"
"""PEFT's name of the one adapter."""


def build(base: nn.Module, config: Mapping[str, Any]) -> PeftModel:
    """An untrained adapter on `base`, by a method's config as JSON (`adapter_config`).

    Raises ValueError where the model lacks a target module in any layer, or what PEFT built is not what was asked for.
    """
    model = get_peft_model(base, resolved(base, config))
    check_built(model, config)
    return model


def resolved(base: nn.Module, config: Mapping[str, Any]) -> PeftConfig:
    """The config as PEFT's own object, a rank for each layer as patterns of this model's layer names."""
    options = {name: value for name, value in config.items() if name not in ("peft_type", LAYER_RANKS)}
    found: PeftConfig = PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]](**options)
    if LAYER_RANKS in config:
        ranks = _block_ranks(base, found, config[LAYER_RANKS])
        # PEFT takes the first pattern that the end of a name matches: a longer name must not meet a shorter one first.
        found.rank_pattern = {
            re.escape(f"{block}.") + ".*": ranks[block]
            for block in sorted(ranks, key=lambda name: -len(name))
        }
    return found


def _block_ranks(base: nn.Module, config: PeftConfig, ranks: list[int]) -> dict[str, int]:
    """Rank of each layer of the model by the layer's name, for the layers that hold target modules."""
    blocks = {}
    for name, _ in base.named_modules():
        if not name or not check_target_module_exists(config, name):
            continue
        block, layer, layers = block_of(base, name)
        if layer is None:
            raise ValueError(
                f"target module {name} is in no layer, so it has no rank; leave it out of target_modules"
            )
        if layers != len(ranks):
            raise ValueError(
                f"ranks of {len(ranks)} layers are given, target module {name} is in one of {layers}"
            )
        blocks[block] = ranks[layer]
    return blocks


def check_built(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Compare what PEFT built with `config`: every target module in every layer, and each LoRA's rank and scale.

    Raises ValueError that names a module which is missing or was built otherwise.
    """
    adapted = {
        _own_name(name): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    targets = config.get("target_modules")
    if isinstance(targets, list):
        # Of a mixture of experts, whose projections transformers holds as parameters, PEFT has moved some elsewhere.
        built = getattr(model, "peft_config", {}).get(ADAPTER)
        kept = built.target_modules if getattr(built, "target_parameters", None) else targets
        _check_targets(model, list(adapted), [target for target in targets if target in kept])
    if config["peft_type"] != "LORA":
        return
    ranks = config.get(LAYER_RANKS)
    if ranks is None and (config.get("rank_pattern") or config.get("alpha_pattern")):
        return
    for name, module in adapted.items():
        if not isinstance(module, LoraLayer):
            continue
        layer = block_of(model, name)[1]
        rank = config["r"] if ranks is None else ranks[layer]  # type: ignore[index]
        share = math.sqrt(rank) if config.get("use_rslora") else rank
        scale = config["lora_alpha"] / share
        if ranks is None and hasattr(module, "parameter_name"):
            rank = module.r[
                ADAPTER
            ]  # PEFT doubles it for two projections that transformers holds as one parameter
        built = _rank(module), module.scaling[ADAPTER]
        if built[0] != rank or not math.isclose(built[1], scale, rel_tol=1e-9):
            raise ValueError(
                f"{name} has rank {built[0]} and scale {built[1]:g}, asked for were {rank}, {scale:g}"
            )


def _own_name(name: str) -> str:
    """Name of the base model's module that a wrapped one stands for."""
    return name.removesuffix(".base_layer")


def _rank(module: LoraLayer) -> int:
    """Read from the tensors: of one expert where the parameter holds those of a mixture of experts."""
    if ADAPTER in module.lora_embedding_A:
        return int(module.lora_embedding_A[ADAPTER].shape[0])
    return int(module.lora_A[ADAPTER].weight.shape[0]) // getattr(module, "num_experts", 1)


def _check_targets(model: nn.Module, adapted: list[str], targets: list[str]) -> None:
    """Raise ValueError where a target is adapted nowhere."""
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in adapted):
            linear = (name for name, module in model.named_modules() if hasattr(module, "in_features"))
            known = sorted({_own_name(name).rpartition(".")[2] for name in linear} - {ADAPTER})
            raise ValueError(
                f"target_modules: {target!r} is no module that can be adapted here; the model has {', '.join(known)}"
            )
