"""What the stacked experts are checked against: the same layer written out one expert at a time."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mola_core.adapter import MolaLinear


def loop_over_experts(
    x: Tensor, A: Tensor, B: Tensor, router: Tensor, top_k: int, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Experts one by one on every token. A, B and router are stacked expert by expert, as in `MolaLayer`.

    Returns what the experts add, shape (..., d_out), the router probabilities (..., E) and a mask of the chosen
    experts (..., E).
    """
    experts = router.shape[0]
    probabilities = F.linear(x, router).softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32))
    chosen = torch.zeros_like(probabilities, dtype=torch.bool)
    chosen.scatter_(-1, probabilities.topk(top_k, dim=-1).indices, True)  # topk also says how ties are broken
    total = (probabilities * chosen).sum(-1)
    added = torch.zeros(*x.shape[:-1], B.shape[0], dtype=x.dtype)
    for e, (a, b) in enumerate(zip(A.chunk(experts, 0), B.chunk(experts, 1), strict=True)):
        gate = torch.where(chosen[..., e], probabilities[..., e] / total, 0).to(x.dtype)
        added = added + gate.unsqueeze(-1) * F.linear(F.linear(x, a), b) * scaling
    return added, probabilities, chosen


def loop_forward(layer: MolaLinear, x: Tensor) -> Tensor:
    """`MolaLinear.forward` as a loop, without dropout; keeps probabilities and choices as `layer.routed`."""
    adapter = layer.active_adapters[0]
    config = layer.config[adapter]
    added, *layer.routed = loop_over_experts(
        x,
        layer.mola_A[adapter],
        layer.mola_B[adapter],
        layer.mola_router[adapter],
        config.top_k,
        layer.scaling(adapter),
    )
    return layer.base_layer(x) + added


def balance_loss(probabilities: list[Tensor], chosen: list[Tensor], mask: Tensor | None = None) -> Tensor:
    """E * sum_i f_i P_i of one layer: the probabilities and choices of its modules, each (..., E), pooled."""
    experts = probabilities[0].shape[-1]
    keep = slice(None) if mask is None else mask.flatten().bool()
    p = torch.cat([t.reshape(-1, experts)[keep] for t in probabilities])
    c = torch.cat([t.reshape(-1, experts)[keep] for t in chosen]).float()
    share = c.sum(0) / c.sum()
    return experts * (share * p.mean(0)).sum()
