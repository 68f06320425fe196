"""The arithmetic of a module's LoRA experts: `B (gate * (A dropout(x)))`, all experts in two matrix products.

Ordinary operations throughout, so that autograd (of any order), `torch.compile` and checkpointing treat them as any
others. The one thing that is special is how a CPU draws its dropout (`drop`).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def top_k_gates(logits: Tensor, top_k: int, dim: int) -> tuple[Tensor, Tensor]:
    """Router probabilities of the `top_k` best experts scaled to sum to 1, zero for the others.

    That is the softmax over the best experts' logits alone: the sum over all experts cancels.

    Args:
        logits: Shape (..., E, ...), the experts along `dim`.

    Returns:
        The gates, same shape, and the chosen experts, shape (..., top_k, ...).
    """
    top = logits.topk(top_k, dim=dim)
    return torch.zeros_like(logits).scatter(dim, top.indices, top.values.softmax(dim)), top.indices


def route(x: Tensor, router: Tensor) -> Tensor:
    """Logits of the router, shape (tokens, E), in float32 or more.

    Args:
        x: Shape (tokens, d_in), without dropout.
        router: Shape (E, d_in).
    """
    logits = F.linear(x, router)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def hidden_activations(x: Tensor, A: Tensor, gates: Tensor, scaling: float, dropout: float) -> Tensor:
    """`gate * (A dropout(x)) * scaling`, what B multiplies: shape (tokens, E * r).

    Args:
        x: Shape (tokens, d_in).
        A: Stacked expert by expert, shape (E * r, d_in).
        gates: Shape (tokens, E), zero for the experts not chosen.
        dropout: Probability of zeroing an element of x; 0 when not training.
    """
    if dropout:
        x, correction = drop(x, dropout)
        scaling *= correction
    experts = gates.shape[1]
    hidden = F.linear(x, A).unflatten(1, (experts, len(A) // experts))
    return (hidden * (gates * scaling).to(hidden.dtype).unsqueeze(2)).flatten(1, 2)


def add_experts(y: Tensor, hidden: Tensor, B: Tensor) -> Tensor:
    """`y + B hidden` as a new tensor of y's shape and type.

    Args:
        y: The base layer's output, shape (..., d_out).
        hidden: Shape (tokens, E * r).
        B: Stacked expert by expert, shape (d_out, E * r).
    """
    if y.dtype != hidden.dtype:
        return y + F.linear(hidden, B).reshape(y.shape).to(y.dtype)
    return torch.addmm(y.reshape(len(hidden), len(B)), hidden, B.T).view(y.shape)


def drop(x: Tensor, probability: float) -> tuple[Tensor, float]:
    """A copy of `x` with each element zeroed with `probability`, and the factor that its product is still to get.

    On a CPU only the positions of the zeros are drawn (`drawn_positions`), which takes a tenth of the time of a mask
    over all elements; a mask would cost as much as the experts. Elsewhere, and where a compiler needs sizes that do
    not depend on the draw, this is torch's own dropout.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, probability), 1.0
    positions = drawn_positions(x.numel(), probability)
    return x.reshape(-1).index_put((positions,), x.new_zeros(())).view(x.shape), 1 / (1 - probability)


def drawn_positions(size: int, probability: float) -> Tensor:
    """The elements, out of `size`, that are dropped, each with `probability` on its own, in ascending order.

    The gaps between drops are geometric: one uniform number for each drop instead of one for each element.
    """
    mean = size * probability
    # Seven standard deviations more than expected: too few draws once in 1e11 times, and then a few drops too few.
    enough = int(mean + 7 * math.sqrt(mean)) + 16
    # In double precision: a float's 2^-24 steps would cap the gaps, which matters where few elements are dropped.
    uniform = torch.rand(enough, dtype=torch.float64 if probability < 1e-3 else torch.float32)
    gaps = uniform.neg_().log1p_().div_(math.log1p(-probability)).long().add_(1)
    positions = gaps.cumsum_(0).sub_(1)
    return positions[: int(torch.searchsorted(positions, size))]
