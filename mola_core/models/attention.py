"""Attention on a CPU: in float32 under autocast, and as two batched products where oneDNN computes these.

PyTorch's fused kernel walks through a batch in blocks. On a CPU its bfloat16 form takes twice the time of its float32 form, and
where oneDNN computes float32 products each small block pays for a call of it: three times the time of products over the
whole batch. What those cost is memory for the scores, so they are for small batches of short prompts only.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kernel = Literal["fused", "products"]
MAX_SCORES = 2**21
"""Scores of a layer (rows x heads x queries x keys) up to which products are taken: 8 MB, kept for the backward pass."""
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
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    before, mixed = value.dtype, torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", enabled=False):
        if mixed:
            query, key, value = query.float(), key.float(), value.float()
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.to(query.dtype)
        scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
        if _kernel == "fused" or scores > MAX_SCORES or options.get("dropout"):
            output = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
        else:
            causal = options.get("is_causal")
            causal = getattr(module, "is_causal", True) if causal is None else causal
            if attention_mask is None and causal and query.shape[2] > 1:
                attention_mask = _causal(query.shape[2], key.shape[2])
            output = products(query, key, value, attention_mask, options.get("scaling")).transpose(1, 2)
    return output.to(before).contiguous(), None


def products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """softmax(query key' * scaling, masked) value, shape (rows, heads, queries, width), by two batched products."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    scores = torch.matmul(query * (scaling or query.shape[-1] ** -0.5), key.transpose(-1, -2))
    if mask is not None and mask.dtype == torch.bool:
        # The least number, not minus infinity: a row of padding sees nothing, and must not become NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return torch.matmul(scores.softmax(-1), value)


@functools.lru_cache(maxsize=8)
def _causal(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril()


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
