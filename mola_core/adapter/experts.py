"""The arithmetic of the experts: two differentiable functions, written out so that no pass over the data is spent.

For modules that read the same input x, `route` computes `z = gate * (A dropout(x)) * scaling` and `add_experts` each
module's `y + B z`. Plain autograd gives the same gradients from a dozen operations more, each with its own
intermediate tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

    @property
    def gates_sum(self) -> float:
        """Sum of a token's gates, which carry the scaling and what dropout scales its output by."""
        return self.scaling / (1 - self.dropout)


def route(
    x: Tensor, A: Sequence[Tensor], routers: Sequence[Tensor], settings: RouteSettings
) -> tuple[Tensor, ...]:
    """Gated and scaled hidden activations of each module's experts, ready for its B.

    Activations inside have the tokens last: the products with few experts' rows and the gates, which hold for r
    rows each, then run along contiguous memory.

    Args:
        x: The modules' common input, shape (tokens, d_in).
        A: For each module its stacked A, shape (E * r, d_in).
        routers: For each module its router, shape (E, d_in).

    Returns:
        For each module, shape (E * r, tokens).
    """
    return _Route.apply(x, settings, *A, *routers)


def add_experts(y: Tensor, z: Tensor, B: Tensor, in_place: bool) -> Tensor:
    """`y + B z`. With `in_place` y is overwritten: right where no one else needs the base layer's output.

    Args:
        y: The base layer's output, shape (..., d_out).
        z: Shape (E * r, tokens).
        B: Stacked B, shape (d_out, E * r).
    """
    return _AddExperts.apply(y, z, B, in_place)


def top_k_gates(logits: Tensor, top_k: int, dim: int) -> tuple[Tensor, Tensor]:
    """Router probabilities of the `top_k` best experts scaled to sum to 1, zero for the others.

    That is the softmax over the best experts' logits alone: the sum over all experts cancels.

    Args:
        logits: Shape (..., E, ...), the experts along `dim`.

    Returns:
        The gates, same shape, and the chosen experts, shape (..., top_k, ...).
    """
    top = logits.topk(top_k, dim=dim)
    return torch.zeros_like(logits).scatter_(dim, top.indices, top.values.softmax(dim)), top.indices


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: RouteSettings, *weights: Tensor) -> tuple[Tensor, ...]:
        modules = len(weights) // 2
        A, router = _stack(weights[:modules]), _stack(weights[modules:])
        dropped = _draw_dropped(x, settings.dropout) if settings.dropout else None
        with _without(x, dropped) as kept:
            hidden = (A @ kept.T).view(modules, -1, settings.rank, len(x))
        logits = (router @ x.T).view(modules, -1, len(x))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        gates, chosen = top_k_gates(logits, settings.top_k, dim=1)
        gates *= settings.gates_sum
        probabilities = None
        if settings.observation is not None:
            probabilities = logits.softmax(1)
            settings.observation.count(probabilities, chosen)
        ctx.settings = settings
        ctx.save_for_backward(x, dropped, A, router, hidden, gates, probabilities)
        return (hidden * gates.to(hidden.dtype).unsqueeze(2)).flatten(1, 2).unbind()

    @staticmethod
    def backward(ctx: Any, *dz: Tensor) -> tuple[Tensor | None, ...]:
        x, dropped, A, router, hidden, gates, probabilities = ctx.saved_tensors
        settings, modules = ctx.settings, len(dz)
        dz = torch.stack(dz).view_as(hidden)
        dgates = (dz * hidden).sum(2).to(gates.dtype)
        dhidden = dz.mul_(gates.to(dz.dtype).unsqueeze(2)).view(len(A), -1)
        # The softmax over the chosen experts, for gates that do not sum to 1.
        dlogits = gates * (dgates - (gates * dgates).sum(1, keepdim=True) / settings.gates_sum)
        if settings.observation is not None:
            dlogits += settings.observation.logit_gradient(probabilities)
        dlogits = dlogits.view(len(router), -1).to(x.dtype)
        with _without(x, dropped) as kept:
            dA = dhidden @ kept
        drouter = dlogits @ x
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dhidden.T @ A
            if dropped is not None:
                _zero_(dx, dropped)
            dx.addmm_(dlogits.T, router)
        return dx, None, *dA.chunk(modules), *drouter.chunk(modules)


class _AddExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, B: Tensor, in_place: bool) -> Tensor:
        ctx.save_for_backward(z, B)
        if y.dtype != z.dtype:
            return y + (B @ z).T.reshape(y.shape).to(y.dtype)
        if not in_place:
            return torch.addmm(y.reshape(z.shape[1], -1), z.T, B.T).view_as(y)
        ctx.mark_dirty(y)
        y.view(z.shape[1], -1).addmm_(z.T, B.T)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        z, B = ctx.saved_tensors
        g = dy.reshape(z.shape[1], -1).to(z.dtype)
        return dy, B.T.contiguous() @ g.T, (z @ g).T, None


def _stack(weights: Sequence[Tensor]) -> Tensor:
    return weights[0] if len(weights) == 1 else torch.cat(list(weights))


def _draw_dropped(x: Tensor, probability: float) -> Tensor:
    """Which elements of `x` to drop, each with `probability` on its own: what `_without` and `_zero_` take.

    On a CPU these are positions: the gaps between drops are geometric, so only the drops are drawn, not every
    element. That takes a tenth of the time of a mask, which would cost as much as the experts. Elsewhere it is a
    mask, since the number of positions is not known ahead.
    """
    if x.device.type != "cpu":
        return torch.empty_like(x, dtype=torch.bool).bernoulli_(probability)
    mean = x.numel() * probability
    # Seven standard deviations more than expected: too few draws once in 1e11 times, and then a few drops too few.
    enough = int(mean + 7 * math.sqrt(mean)) + 16
    uniform = torch.rand(enough)
    gaps = uniform.neg_().log1p_().div_(math.log1p(-probability)).long().add_(1)
    positions = gaps.cumsum_(0).sub_(1)
    return positions[: int(torch.searchsorted(positions, x.numel()))]


@contextmanager
def _without(x: Tensor, dropped: Tensor | None) -> Iterator[Tensor]:
    """`x` with the dropped elements zero.

    On a CPU it is `x` itself while the context lasts, its values put back afterwards: a copy would take as long as
    the product it is for, and LoRA's copies are most of what its dropout costs in memory.
    """
    if dropped is None:
        yield x
    elif dropped.dtype == torch.bool:
        yield x.masked_fill(dropped, 0)
    else:
        elements = x.data.view(-1)  # `data`, because to autograd the tensor is the same before and after
        values = elements[dropped]
        elements.index_fill_(0, dropped, 0)
        try:
            yield x
        finally:
            elements[dropped] = values


def _zero_(x: Tensor, dropped: Tensor) -> Tensor:
    if dropped.dtype == torch.bool:
        return x.masked_fill_(dropped, 0)
    x.view(-1).index_fill_(0, dropped, 0)
    return x
