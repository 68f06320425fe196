"""Attention on a CPU: in float32 under autocast, and as two batched products where oneDNN computes these.

PyTorch's fused kernel walks through a batch in blocks. On a CPU its bfloat16 form takes twice the time of its float32 form, and
where oneDNN computes float32 products each small block pays for a call of it: three times the time of products over the
whole batch. What those cost is memory for the scores, so they are for small batches of short prompts only.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import statistics
import sys
import time
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kernel = Literal["fused", "products"]
MAX_SCORES = 2**21
"""Scores of a layer (rows x heads x queries x keys) up to which products are taken: 8 MB, kept for the backward pass."""
UNUSUAL = ("dropout", "softcap", "position_bias", "cache")
"""Options with which attention is left to transformers."""
ROWS, LENGTH, REPEATS = 2, 96, 3
"""What is measured: a small batch of prompts of usual length."""

_kernel: Kernel = "fused"


def install(kernel: Kernel) -> None:
    """Take `kernel` in all models of this process that ask for `sdpa`."""
    global _kernel
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    _kernel = kernel
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers' `sdpa` computes: query (rows, heads, queries, width) to (rows, queries, heads, width).

    Keys and values may have fewer heads. `attention_mask` is boolean or added to the scores, None for causal attention.
    The option `packed` says of a single row which documents it holds (`Packed`), as its mask does.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    packed: Packed | None = options.pop("packed", None)
    if query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    before, mixed = value.dtype, torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", enabled=False):
        if mixed:
            query, key, value = query.float(), key.float(), value.float()
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.to(query.dtype)
        scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
        # A bias is a tensor; what is off is None, False or 0.
        unusual = [options[name] for name in UNUSUAL if options.get(name) is not None]
        ordinary = not any(isinstance(value, Tensor) or value for value in unusual)
        if packed and ordinary:
            output = of_packed(query, key, value, packed, options.get("scaling"))
        elif _kernel == "fused" or scores > MAX_SCORES or not ordinary:
            output = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
        else:
            causal = options.get("is_causal")
            causal = getattr(module, "is_causal", True) if causal is None else causal
            if attention_mask is None and causal and query.shape[2] > 1:
                attention_mask = _causal(query.shape[2], key.shape[2])
            output = products(query, key, value, attention_mask, options.get("scaling")).transpose(1, 2)
    return output.to(before).contiguous(), None


def products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """softmax(query key' * scaling, masked) value, shape (rows, heads, queries, width), by two batched products.

    The queries of heads that share a key stand beside each other, so that no key is copied for each of them.
    """
    rows, heads, queries, width = query.shape
    shared, keys = key.shape[1], key.shape[2]
    if mask is None:
        bias = query.new_zeros(())
    else:
        if mask.dtype == torch.bool:
            # The least number, not minus infinity: a row of padding sees nothing, and must not become NaN.
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
        bias = mask.expand(rows, heads, queries, keys).reshape(rows * shared, -1, keys)
    scores = torch.baddbmm(
        bias,
        query.reshape(rows * shared, -1, width),
        key.reshape(rows * shared, keys, width).transpose(1, 2),
        alpha=scaling or width**-0.5,
    )
    mixed = torch.bmm(scores.softmax(-1), value.reshape(rows * shared, keys, -1))
    return mixed.view(rows, heads, queries, -1)


def window(model: Any) -> int:
    """Positions that every layer of a model sees back at least, itself included; `sys.maxsize` where all see everything.

    0 where a layer is no attention (a convolution, a recurrence), whose state padding in the middle would change, and where
    the model takes no positions (MPT), so that padding counts as distance.
    """
    config = model.config.get_text_config()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return 0
    kinds = set(getattr(config, "layer_types", None) or ())
    if model._is_stateful or kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        return 0
    if kinds == {"full_attention"}:
        return sys.maxsize
    named = [
        getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")
    ]
    return min((size for size in named if isinstance(size, int)), default=sys.maxsize)


@dataclasses.dataclass(frozen=True)
class Packed:
    """Documents in one row: `shared` tokens that all begin with, then `lengths` more of each, document by document."""

    shared: int
    lengths: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.shared + sum(self.lengths)


def of_packed(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None) -> Tensor:
    """Attention of each document to the shared beginning and to itself: (1, heads, length, width) to (1, length, heads, width).

    A mask over the whole row would have nearly all scores computed for nothing: those between documents.
    """
    shared, documents, longest = packed.shared, len(packed.lengths), max(packed.lengths)
    places, kept = _places(packed)

    def apart(tokens: Tensor) -> Tensor:
        """(1, heads, length, width) to (documents, heads, longest, width); short documents filled up with some token."""
        rows = tokens[0].transpose(0, 1).index_select(0, places)
        return rows.view(documents, longest, *rows.shape[1:]).transpose(1, 2)

    def after_beginning(tokens: Tensor) -> Tensor:
        beginning = tokens[:, :, :shared].expand(documents, -1, -1, -1)
        return torch.cat([beginning, apart(tokens)], dim=2)

    # Causal from the end of the beginning on; what fills up a short document stands after it, where it is not seen.
    mask = _causal(longest, shared + longest)
    output = products(apart(query), after_beginning(key), after_beginning(value), mask, scaling)
    output = output.transpose(1, 2).flatten(0, 1).index_select(0, kept)
    if shared:
        first = (each[:, :, :shared] for each in (query, key, value))
        output = torch.cat([products(*first, _causal(shared, shared), scaling)[0].transpose(0, 1), output])
    return output.unsqueeze(0)


@functools.lru_cache(maxsize=8)
def _places(packed: Packed) -> tuple[Tensor, Tensor]:
    """Where in the row each token of each document stands, short ones filled up; and which of these are no filling."""
    lengths, within = torch.tensor(packed.lengths).unsqueeze(1), torch.arange(max(packed.lengths))
    starts = packed.shared + lengths.cumsum(0) - lengths
    return (starts + within.clamp(max=lengths - 1)).flatten(), (within < lengths).flatten().nonzero()[:, 0]


@functools.lru_cache(maxsize=8)
def _causal(queries: int, keys: int) -> Tensor:
    """Each query sees the keys up to its own, the last query all of them."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def measure(heads: int, width: int) -> dict[str, dict[str, float]]:
    """Milliseconds of CPU time of a forward and backward pass, and the output's error, of each kernel as things are set."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(ROWS, heads, LENGTH, width, generator=generator) for _ in range(3))
    mask = _causal(LENGTH, LENGTH)
    exact = products(query.double(), key.double(), value.double(), mask, None)
    calls = {
        "fused": lambda *x: F.scaled_dot_product_attention(*x, attn_mask=mask),
        "products": lambda *x: products(*x, mask, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    error = {}
    for turn in range(REPEATS + 1):
        for name, call in calls.items():
            inputs = [each.clone().requires_grad_() for each in (query, key, value)]
            started = time.process_time()
            output = call(*inputs)
            output.backward(query)
            if turn:  # the first call builds the kernel
                seconds[name].append(time.process_time() - started)
            error[name] = float((output.detach().double() - exact).abs().max() / exact.abs().max())
    return {
        name: {
            "milliseconds": round(1000 * statistics.median(taken), 3),
            "error": float(f"{error[name]:.3g}"),
        }
        for name, taken in seconds.items()
    }
