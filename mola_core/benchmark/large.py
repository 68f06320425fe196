"""Memory that training LLaMA-2-7B needs, counted without allocating it: tensors that have sizes and no content."""

from __future__ import annotations

from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mola_core.benchmark.timing import Row
from mola_core.methods.registry import adapter_config
from mola_core.methods.settings import SEVEN_MODULES, AdapterSettings, MethodSettings
from mola_core.models.building import build

LAYERS, BATCH, LENGTH = 32, 8, 256
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}
TRAINED = 16
"""Bytes a trained parameter: float32 weight, gradient and AdamW's two moments."""


def large() -> list[Row]:
    """GiB of LLaMA-2-7B in bf16 with float32 adapters, 8 documents of 256 tokens, no dropout."""
    rows: list[Row] = []
    totals: dict[tuple[str, bool], float] = {}
    for method in ("mola-2468", "lora-r40"):
        one_layer = 0.0
        for checkpointing in (False, True):
            # Layers are alike but for their experts, 2 to 8 in quarters: a depth of 4 and 8 give the cost of four.
            four, eight = (_saved(depth, method, checkpointing) for depth in (4, 8))
            activations = four[0] + (eight[0] - four[0]) * (LAYERS - 4) / 4
            if checkpointing:
                activations += one_layer  # while it is computed again
            one_layer = activations / LAYERS
            trained = (eight[1] - four[1]) / 4 * LAYERS
            frozen = 2 * 6_738_415_616
            total = totals[method, checkpointing] = frozen + TRAINED * trained + activations
            how = "with gradient checkpointing" if checkpointing else "without"
            rows.append(
                Row(
                    "large",
                    f"LLaMA-2-7B, {method}, {BATCH} x {LENGTH} tokens, {how}, computed",
                    total / 2**30,
                    None,
                    unit="GiB",
                    note=f"weights {frozen / 2**30:.1f}, adapter with AdamW {TRAINED * trained / 2**30:.1f}, "
                    f"activations {activations / 2**30:.1f}: {activations / BATCH / LENGTH / 2**20:.1f} MiB a token",
                )
            )
    ratio = totals["mola-2468", False] / totals["lora-r40", False]
    rows.append(Row("large", "LLaMA-2-7B, memory of MoLA / LoRA, computed", ratio, 1.05))
    return rows


def _saved(depth: int, method: str, checkpointing: bool) -> tuple[int, int]:
    """Bytes that autograd keeps for the backward pass, weights apart, and trained parameters."""
    # The meta device knows no autocast: the adapter computes in float32, which keeps more than autocast would.
    with torch.device("meta"), mock.patch("torch.is_autocast_enabled", return_value=False):
        config = LlamaConfig(num_hidden_layers=depth, **LLAMA)
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
        settings = AdapterSettings(dropout=0.0, target_modules=SEVEN_MODULES)
        chosen = adapter_config(MethodSettings(method=method), settings, depth)
        assert chosen is not None, "an adapter is benchmarked"
        model = build(model, chosen).train()
        model.enable_input_require_grads()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()._cdata
            if storage not in weights:
                kept[storage] = tensor
            return tensor

        ids = torch.zeros(BATCH, LENGTH, dtype=torch.long)
        mask = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=ids,
                labels=ids[:, -2:],
                logits_to_keep=2,
                use_cache=False,
            )
        saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return saved, trained
