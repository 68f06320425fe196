"""The baseline that the stacked experts are measured against: experts one by one, as the released code works."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mola_core.adapter import MolaLinear


class ReleasedLinear(nn.Module):
    """The layer as the authors' released code computes it, rewritten: each expert has its own A, B and dropout
    mask, works on the tokens that chose it, gathered by index lists, and is scattered back with `index_add_`.
    """

    def __init__(self, layer: MolaLinear, adapter: str = "default") -> None:
        super().__init__()
        config = layer.config[adapter]
        self.base_layer = layer.base_layer
        self.top_k = config.top_k
        self.scaling = layer.scaling(adapter)
        self.dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.router = _linear(layer.mola_router[adapter])
        experts = self.router.out_features
        self.A = nn.ModuleList(_linear(a) for a in layer.mola_A[adapter].chunk(experts, 0))
        self.B = nn.ModuleList(_linear(b) for b in layer.mola_B[adapter].chunk(experts, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., d_in) to (..., d_out)."""
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
