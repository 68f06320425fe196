"""The arithmetic of the experts: two differentiable functions, written out so that no pass over the data is spent.

For modules that read the same input x, `route` computes `z = gate * (A dropout(x)) * scaling` and `add_experts` each
module's `y + B z`. Plain autograd gives the same gradients from a dozen operations more, each with its own
intermediate tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .routing import Observation


@dataclass(frozen=True)
class RouteSettings:
    """How the modules that share an input are routed."""

    rank: int
    top_k: int
    scaling: float
    dropout: float
    """Probability of zeroing an input of the experts: 0 when not training."""
    observation: Observation | None
    """Where to count the choices for the balance loss, if there is one."""


def route(
    x: Tensor, A: Sequence[Tensor], routers: Sequence[Tensor], settings: RouteSettings
) -> tuple[Tensor, ...]:
    """Gated and scaled hidden activations of each module's experts, ready for its B.

    Args:
        x: The modules' common input, shape (tokens, d_in).
        A: For each module its stacked A, shape (E * r, d_in).
        routers: For each module its router, shape (E, d_in).

    Returns:
        For each module, shape (tokens, E * r).
    """
    return _Route.apply(x, settings, *A, *routers)


def add_experts(y: Tensor, z: Tensor, B: Tensor, in_place: bool) -> Tensor:
    """`y + B z`. With `in_place` y is overwritten: right where no one else needs the base layer's output.

    Args:
        y: The base layer's output, shape (..., d_out).
        z: Shape (tokens, E * r).
        B: Stacked B, shape (d_out, E * r).
    """
    return _AddExperts.apply(y, z, B, in_place)


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: RouteSettings, *weights: Tensor) -> tuple[Tensor, ...]:
        modules = len(weights) // 2
        A, router = (_stack(w) for w in (weights[:modules], weights[modules:]))
        dropped = _draw_dropped(x, settings.dropout) if settings.dropout else None
        kept = x if dropped is None else _zero_(x.clone(), dropped)
        hidden = (kept @ A.T).view(len(x), modules, -1, settings.rank)
        # This way round the product with the few rows of the router takes half the time.
        logits = (router @ x.T).T.reshape(len(x), modules, -1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        gates, chosen = top_k_gates(logits, settings.top_k)
        # Dropout scales what it keeps by 1 / (1 - dropout).
        gates *= settings.scaling / (1 - settings.dropout)
        probabilities = None
        if settings.observation is not None:
            probabilities = logits.softmax(-1)
            settings.observation.count(probabilities, chosen)
        ctx.settings = settings
        ctx.save_for_backward(x, kept, dropped, A, router, hidden, gates, probabilities)
        return (hidden * gates.to(hidden.dtype).unsqueeze(-1)).flatten(2).unbind(1)

    @staticmethod
    def backward(ctx: Any, *dz: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, dropped, A, router, hidden, gates, probabilities = ctx.saved_tensors
        settings, modules = ctx.settings, len(dz)
        dz = torch.stack(dz, 1).view_as(hidden)
        dhidden = (dz * gates.to(dz.dtype).unsqueeze(-1)).flatten(1)
        dgates = (dz * hidden).sum(-1).to(gates.dtype)
        # The softmax over the chosen experts; `gates` sum to the scaling, not to 1.
        total = settings.scaling / (1 - settings.dropout)
        dlogits = gates * (dgates - (gates * dgates).sum(-1, keepdim=True) / total)
        if settings.observation is not None:
            dlogits += settings.observation.logit_gradient(probabilities)
        dlogits = dlogits.flatten(1).to(x.dtype)
        dA, drouter = dhidden.T @ kept, dlogits.T @ x
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dhidden @ A
            if dropped is not None:
                _zero_(dx, dropped)
            dx.addmm_(dlogits, router)
        return dx, None, *dA.chunk(modules), *drouter.chunk(modules)


class _AddExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, B: Tensor, in_place: bool) -> Tensor:
        ctx.save_for_backward(z, B)
        if y.dtype != z.dtype:
            return y + (z @ B.T).view_as(y).to(y.dtype)
        if not in_place:
            return torch.addmm(y.reshape(len(z), -1), z, B.T).view_as(y)
        ctx.mark_dirty(y)
        y.view(len(z), -1).addmm_(z, B.T)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        z, B = ctx.saved_tensors
        g = dy.reshape(len(z), -1).to(z.dtype)
        return dy, g @ B, g.T @ z, None


def top_k_gates(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Router probabilities of the `top_k` best experts scaled to sum to 1, zero for the others.

    That is the softmax over the best experts' logits alone: the sum over all experts cancels.

    Args:
        logits: Shape (..., E).

    Returns:
        The gates, shape (..., E), and the chosen experts, shape (..., top_k).
    """
    top = logits.topk(top_k, dim=-1)
    return torch.zeros_like(logits).scatter_(-1, top.indices, top.values.softmax(-1)), top.indices


def _stack(weights: Sequence[Tensor]) -> Tensor:
    return weights[0] if len(weights) == 1 else torch.cat(list(weights))


def _draw_dropped(x: Tensor, probability: float) -> Tensor:
    """Which elements of `x` to drop, each with `probability` on its own: what `_zero_` takes.

    On a CPU these are positions: the gaps between drops are geometric, so only the drops are drawn, not every
    element. That takes a tenth of the time of a mask, which would cost as much as the experts. Elsewhere it is a
    mask, since the number of positions is not known ahead.
    """
    if x.device.type != "cpu":
        return torch.empty_like(x, dtype=torch.bool).bernoulli_(probability)
    mean = x.numel() * probability
    enough = (
        int(mean + 7 * math.sqrt(mean)) + 16
    )  # seven standard deviations: what is left out is below 1e-11
    uniform = torch.rand(enough)
    gaps = uniform.neg_().log1p_().div_(math.log1p(-probability)).long().add_(1)
    positions = gaps.cumsum_(0).sub_(1)
    return positions[: int(torch.searchsorted(positions, x.numel()))]


def _zero_(x: Tensor, dropped: Tensor) -> Tensor:
    if dropped.dtype == torch.bool:
        return x.masked_fill_(dropped, 0)
    x.view(-1).index_fill_(0, dropped, 0)
    return x
