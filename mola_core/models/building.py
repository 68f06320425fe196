"""Build an untrained PEFT adapter from a method's config: ranks per layer as patterns of names, and reading back.

PEFT takes another rank than `r` by patterns that it matches with the modules' names, and is silent where one matches
nothing: what was built is therefore compared, module by module, with what was asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from torch import nn

import mola_core.adapter  # noqa: F401 - makes MoLA known to PEFT
from mola_core.adapter.shape import block_of
from mola_core.methods.family import LAYER_ALPHAS, LAYER_RANKS, NEEDS_DATA, SCHEDULE, of_module
from mola_core.methods.registry import takes_start_from_base
from mola_core.models import starts
from mola_core.module_names import is_named

ADAPTER = "default"
"""PEFT's name of the one adapter."""
WRAPPED = "base_model.model."
"""What PEFT puts in front of the base model's names."""


def build(
    base: nn.Module,
    config: Mapping[str, Any],
    batches: Sequence[Mapping[str, Any]] = (),
    steps: int | None = None,
) -> PeftModel:
    """An untrained adapter on `base`, by a method's config as JSON (`adapter_config`).

    `batches` are a few of the training's micro-batches, for starts that look at data (EVA, LoRA-GA); `steps` those of
    the training, for methods with a schedule (AdaLoRA). Raises ValueError where the model lacks a target module, or what
    PEFT built is not what was asked for, and whatever else PEFT raises where it cannot build the method.
    """
    found = resolved(base, config, steps)
    start = config.get("init_lora_weights") if config["peft_type"] == "LORA" else None
    if start in NEEDS_DATA and not batches:
        raise ValueError(f"init_lora_weights {start} needs batches of a training")
    if start == "lora_ga":
        starts.estimate_gradients(base, found, batches)
    model = get_peft_model(base, found)
    check_built(model, config)
    if start == "eva":
        starts.start_at_input_directions(model, batches)
    return model


def resolved(base: nn.Module, config: Mapping[str, Any], steps: int | None = None) -> PeftConfig:
    """The config as PEFT's own object, a rank for each layer as patterns of this model's layer names."""
    own = ("peft_type", LAYER_RANKS, LAYER_ALPHAS, SCHEDULE)
    options = {name: value for name, value in config.items() if name not in own}
    if config["peft_type"] == "ADALORA":
        options |= _schedule(steps, config.get(SCHEDULE))
    if options.get("use_rslora") and takes_start_from_base(dict(config)) and config.get("rank_pattern"):
        raise ValueError(
            "use_rslora and rank_pattern together: PEFT cannot save such a start as a LoRA of the base model"
        )
    if options.get("use_dora") and takes_start_from_base(dict(config)):
        raise ValueError(
            "use_dora with a start from the base weights: PEFT cannot save it as a LoRA of the base model"
        )
    found: PeftConfig = PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]](**options)
    if LAYER_RANKS in config:
        given, alphas = config[LAYER_RANKS], config.get(LAYER_ALPHAS)
        by_end = (
            {".*": given} if isinstance(given, list) else {rf"(.*\.)?{re.escape(m)}": given[m] for m in given}
        )
        blocks = _blocks(base, found, len(next(iter(by_end.values()))))
        left_out = []
        # PEFT takes the first pattern that the end of a name matches: a longer name must not meet a shorter one first.
        for block in sorted(blocks, key=len, reverse=True):
            for end in sorted(by_end, key=len, reverse=True):
                inside, rank = re.escape(f"{block}.") + end, by_end[end][blocks[block]]
                if not rank:
                    left_out.append(inside)
                    continue
                found.rank_pattern[inside] = rank
                if alphas is not None:
                    found.alpha_pattern[inside] = alphas[blocks[block]]
        if left_out:
            found.exclude_modules = "|".join(left_out)
    return found


def _schedule(steps: int | None, shares: Sequence[float] | None) -> dict[str, int]:
    """When AdaLoRA changes its ranks: `total_step`, and `tinit` and `tfinal` where they are given as shares of it."""
    if steps is None:
        raise ValueError("AdaLoRA needs the number of steps of the training")
    if shares is None:
        return {"total_step": steps}
    first, last = (int(share * steps) for share in shares)
    return {"total_step": steps, "tinit": first, "tfinal": last}


def _blocks(base: nn.Module, config: PeftConfig, depth: int) -> dict[str, int]:
    """Index of each layer that holds target modules by the layer's name in the model."""
    blocks = {}
    for name, _ in base.named_modules():
        if not name or not check_target_module_exists(config, name):
            continue
        block, layer, layers = block_of(base, name)
        if layer is None:
            raise ValueError(
                f"target module {name} is in no layer, so it has no rank; leave it out of target_modules"
            )
        if layers != depth:
            raise ValueError(f"ranks of {depth} layers are given, target module {name} is in one of {layers}")
        blocks[block] = layer
    return blocks


def check_built(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Compare what PEFT built with `config`: whatever it names is there, and each LoRA has its rank and scale.

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
        moved = [target for target in targets if target not in kept]
        beside = [
            _own_name(name)
            for name, module in model.named_modules()
            if hasattr(module, "in_features")
            and not isinstance(module, BaseTunerLayer)
            and any(is_named(name, target) for target in moved)
        ]
        if beside:
            raise ValueError(
                f"target_modules: PEFT adapts the mixture's experts instead of {beside[0]}; leave {', '.join(moved)} out for all methods"
            )
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    tied = getattr(base.config.get_text_config(), "tie_word_embeddings", False) if head is not None else False
    copied = [
        module
        for module in (head, base.get_input_embeddings() if tied else None)
        if isinstance(module, AuxiliaryTrainingWrapper)
    ]
    if tied and (copied or isinstance(head, BaseTunerLayer)):
        raise ValueError(
            f"{'modules_to_save' if copied else 'target_modules'}: the output layer shares its weights with the embeddings, to which lm-evaluation-harness ties it "
            "again; leave it out"
        )
    _check_names(model, adapted, config)
    if config["peft_type"] != "LORA":
        return
    ranks, alphas = config.get(LAYER_RANKS), config.get(LAYER_ALPHAS)
    for name, module in adapted.items():
        if not isinstance(module, LoraLayer):
            continue
        layer = block_of(model, name)[1]
        rank = (
            _own(config, "rank", name, config.get("r", 8)) if ranks is None else of_module(ranks, name)[layer]
        )  # type: ignore[index]
        alpha = _own(config, "alpha", name, config.get("lora_alpha", 8)) if alphas is None else alphas[layer]  # type: ignore[index]
        scale = alpha / max(1, math.sqrt(rank) if config.get("use_rslora") else rank)
        if ranks is None and hasattr(module, "parameter_name"):
            rank = module.r[
                ADAPTER
            ]  # PEFT doubles it for two projections that transformers holds as one parameter
        built = _rank(module), module.scaling[ADAPTER]
        if built[0] != rank or not math.isclose(built[1], scale, rel_tol=1e-9):
            raise ValueError(
                f"{name} has rank {built[0]} and scale {built[1]:g}, asked for were {rank}, {scale:g}"
            )


def _own(config: Mapping[str, Any], what: str, name: str, otherwise: float) -> Any:
    """What a config's pattern gives the module `name`, else `otherwise`."""
    patterns = config.get(f"{what}_pattern") or {}
    return patterns.get(get_pattern_key(list(patterns), name.removeprefix(WRAPPED)), otherwise)


def _check_names(model: nn.Module, adapted: Collection[str], config: Mapping[str, Any]) -> None:
    """Raise ValueError for a module, pattern or layer in `config` that the model has not: PEFT goes on without it."""
    every = [name for name, _ in model.named_modules()]
    named = {
        "rank_pattern": adapted,
        "alpha_pattern": adapted,
        "modules_to_save": every,
        "exclude_modules": every,
    }
    for key, modules in named.items():
        given = config.get(key) or ()
        for entry in [given] if isinstance(given, str) else given:
            names = (name.removeprefix(WRAPPED) for name in modules)
            if not any(_names(key, entry, name, isinstance(given, str)) for name in names):
                raise ValueError(f"{key}: {entry!r} is the name of nothing here; correct it")
    only = config.get("layers_to_transform")
    if only is not None:
        layers = {block_of(model, name)[1] for name in adapted}
        absent = [layer for layer in ([only] if isinstance(only, int) else only) if layer not in layers]
        if absent:
            raise ValueError(
                f"layers_to_transform: {absent}: no target module is in such a layer; correct it"
            )


def _names(key: str, entry: str, name: str, expression: bool) -> bool:
    """Whether PEFT takes an entry of a config's `key` for the module `name`."""
    if key.endswith("_pattern"):
        return bool(get_pattern_key([entry], name) == entry)
    if expression:
        return re.fullmatch(entry, name) is not None
    return name.endswith(entry) if key == "modules_to_save" else is_named(name, entry)


def try_out(model: PeftModel) -> None:
    """One forward and backward pass on three tokens: what fails in it would fail in the first step of a training.

    Raises ValueError where the modules of a name get no gradient: code that reads a module's weight instead of calling it
    (Mamba's `dt_proj`, the output of `nn.MultiheadAttention`) leaves an adapter there untrained.
    """
    ids = torch.ones(1, 3, dtype=torch.long, device=next(model.parameters()).device)
    training = model.training
    model.train()
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss.backward()
    reached: dict[str, bool] = {}
    for name, module in model.named_modules():
        trained = (
            [p for p in module.parameters() if p.requires_grad] if isinstance(module, BaseTunerLayer) else []
        )
        if trained:
            # By name: of a mixture's experts three tokens reach a few.
            short = name.rpartition(".")[2]
            reached[short] = reached.get(short, False) or any(p.grad is not None for p in trained)
    model.zero_grad(set_to_none=True)
    model.train(training)
    idle = [short for short, any_gradient in reached.items() if not any_gradient]
    if idle:
        raise ValueError(
            f"target_modules: {idle[0]!r} would not be trained: the model reads its weight and does not call it; leave it out"
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
        if not any(is_named(name, target) for name in adapted):
            linear = (name for name, module in model.named_modules() if hasattr(module, "in_features"))
            known = sorted({_own_name(name).rpartition(".")[2] for name in linear} - {ADAPTER})
            raise ValueError(
                f"target_modules: {target!r} is no module that can be adapted here; the model has {', '.join(known)}"
            )
