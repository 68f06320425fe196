"""Router counts: which experts a trained adapter chooses, and with which weight (the paper's Figure 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch

from mola_core.adapter.experts import top_k_gates
from mola_core.adapter.layer import MolaLayer
from mola_core.errors import MolaError
from mola_core.module_names import place_of, short_names
from mola_core.training.batches import left_pad

COLUMNS = ("layer", "module", "expert", "tokens", "chosen", "mean_weight", "probability")


class Counts:
    """Choices of one module's router, summed over tokens."""

    def __init__(self, experts: int) -> None:
        self.tokens = 0
        self.chosen = torch.zeros(experts, dtype=torch.float64)
        """Times that each expert was chosen."""
        self.weight = torch.zeros(experts, dtype=torch.float64)
        """Sum of its gates over these times."""
        self.probability = torch.zeros(experts, dtype=torch.float64)
        """Sum of its router probabilities, before the top-k, over all tokens."""

    def add(self, logits: torch.Tensor, top_k: int) -> None:
        """Count tokens with these router logits, shape (tokens, E)."""
        gates, chosen = top_k_gates(logits, top_k, dim=-1)
        self.tokens += len(logits)
        self.chosen += torch.bincount(chosen.flatten(), minlength=logits.shape[-1]).double().cpu()
        self.weight += gates.double().sum(0).cpu()
        self.probability += logits.softmax(-1).double().sum(0).cpu()


class Watch:
    """Counts the routing of a model's forward passes, module by module."""

    def __init__(self) -> None:
        self.mask: torch.Tensor | None = None
        """1 for the tokens of the pass that count, 0 for padding, shape (batch, length)."""
        self.counts: dict[str, Counts] = {}

    def see(self, name: str, layer: MolaLayer, x: torch.Tensor) -> None:
        """Count the routing of `layer` on its input, shape (batch, length, d_in) or (batch * length, d_in)."""
        adapter = layer.active_adapters[0]
        router = layer.mola_router[adapter]
        assert self.mask is not None
        if x.shape[:-1].numel() != self.mask.numel():
            raise MolaError(
                f"{name}: sees {x.shape[:-1].numel()} of {self.mask.numel()} tokens, so its routing cannot be counted"
            )
        tokens = x.flatten(0, -2)[self.mask.flatten().bool()].to(router.dtype)
        logits = (tokens @ router.T).float()
        self.counts.setdefault(name, Counts(len(router))).add(logits, layer.config[adapter].top_k)

    def frame(self) -> pd.DataFrame:
        """One row an expert: layer, module, expert (all from 0), tokens, chosen, mean_weight, probability.

        `chosen` is the number of tokens that chose the expert, `mean_weight` its mean gate on these (missing where
        there are none), `probability` its mean router probability over all tokens.
        """
        rows = []
        places = {name: place for name in self.counts if (place := place_of(name))}
        short = short_names(module for _, module in places.values())
        for name, counts in self.counts.items():
            layer, module = places[name][0], short[places[name][1]]
            weight = counts.weight / counts.chosen
            for expert in range(len(weight)):
                times = int(counts.chosen[expert])
                mean = float(weight[expert]) if times else float("nan")
                share = float(counts.probability[expert]) / counts.tokens
                rows.append((layer, module, expert, counts.tokens, times, mean, share))
        return pd.DataFrame(rows, columns=list(COLUMNS))


@contextmanager
def watched(model: Any) -> Iterator[Watch]:
    """Count the routing of all forward passes of `model`; set the watch's `mask` before each.

    Raises `MolaError` where the model has no MoLA layers.
    """
    watch = Watch()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MolaLayer)}
    if not layers:
        raise MolaError("adapter: it has no router; choose a MoLA method")
    handles = [
        module.register_forward_pre_hook(
            lambda module, inputs, name=name: watch.see(name, module, inputs[0])  # type: ignore[misc]
        )
        for name, module in layers.items()
    ]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def routing_frame(model: Any, documents: Sequence[Sequence[int]], batch_size: int, pad: int) -> pd.DataFrame:
    """`Watch.frame` of `model` on token lists; padding does not count."""
    model.eval()
    # Longest first: batches of like length, and running out of memory shows at once.
    ordered = sorted(documents, key=len, reverse=True)
    with watched(model) as watch:
        for start in range(0, len(ordered), batch_size):
            batch = left_pad(ordered[start : start + batch_size], pad)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            watch.mask = batch["attention_mask"]
            model(**batch, logits_to_keep=1, use_cache=False)
    return watch.frame()
