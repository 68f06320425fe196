"""What the stacked experts are checked against: the same layer written out one expert at a time."""

import torch
from torch import Tensor, nn
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
        config.lora_alpha / config.r,
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


class ReleasedLinear(nn.Module):
    """The layer as the authors' released code computes it, rewritten: each expert has its own A, B and dropout
    mask, works on the tokens that chose it, gathered by index lists, and is scattered back with `index_add_`.
    """

    def __init__(self, layer: MolaLinear, adapter: str = "default") -> None:
        super().__init__()
        config = layer.config[adapter]
        self.base_layer = layer.base_layer
        self.top_k = config.top_k
        self.scaling = config.lora_alpha / config.r
        self.dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.router = _linear(layer.mola_router[adapter])
        experts = self.router.out_features
        self.A = nn.ModuleList(_linear(a) for a in layer.mola_A[adapter].chunk(experts, 0))
        self.B = nn.ModuleList(_linear(b) for b in layer.mola_B[adapter].chunk(experts, 1))

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        tokens = x.reshape(-1, x.shape[-1])
        weights = F.softmax(self.router(tokens), dim=1, dtype=torch.float)
        weights, selected = torch.topk(weights, self.top_k, dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        by_expert = F.one_hot(selected, num_classes=len(self.A)).permute(2, 1, 0)
        added = torch.zeros(len(tokens), result.shape[-1], dtype=x.dtype, device=x.device)
        for e, (a, b) in enumerate(zip(self.A, self.B, strict=True)):
            position, token = torch.where(by_expert[e])
            if len(token) == 0:
                continue
            token_list, position_list = token.tolist(), position.tolist()
            mine = tokens[None, token_list].reshape(-1, tokens.shape[-1])
            output = b(a(self.dropout(mine))) * self.scaling * weights[token_list, position_list, None]
            added.index_add_(0, token, output.to(x.dtype))
        return result + added.reshape(result.shape)


def as_released(model: nn.Module) -> nn.Module:
    """Replace every MoLA layer of `model` by the loop with the same weights."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, MolaLinear):
                setattr(module, name, ReleasedLinear(child))
    return model


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device=weight.device)
    linear.weight.data.copy_(weight)
    return linear
