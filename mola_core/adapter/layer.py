"""One adapted linear layer: the frozen base layer plus its LoRA experts, all computed together."""

import math
from typing import Any, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import Tensor, nn
from torch.nn import functional as F

from .config import MolaConfig
from .routing import BalanceLoss, top_k_gates


class MolaLayer(BaseTunerLayer):
    """The parameters of the adapters of one layer.

    With E experts of rank r, expert by expert: `mola_A` (E * r, d_in), `mola_B` (d_out, E * r) and `mola_router`
    (E, d_in).
    """

    adapter_layer_names = ("mola_A", "mola_B", "mola_router")
    other_param_names = ("config",)

    def __init__(self, base_layer: nn.Module, name: str, block: str, balance: BalanceLoss) -> None:
        self.base_layer = base_layer
        self.name = name
        self.block = block
        self.balance = balance
        self.mola_A = nn.ParameterDict()
        self.mola_B = nn.ParameterDict()
        self.mola_router = nn.ParameterDict()
        self.config: dict[str, MolaConfig] = {}
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())

    def update_layer(self, adapter_name: str, config: MolaConfig, num_experts: int) -> None:
        """Add an adapter of `num_experts` experts. Initial values as in the authors' code: B is zero."""
        rank = num_experts * config.r
        self.config[adapter_name] = config
        self.mola_A[adapter_name] = nn.Parameter(torch.empty(rank, self.in_features))
        self.mola_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, rank))
        self.mola_router[adapter_name] = nn.Parameter(torch.empty(num_experts, self.in_features))
        for weight in (self.mola_A[adapter_name], self.mola_router[adapter_name]):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if not config.init_lora_weights:
            nn.init.kaiming_uniform_(self.mola_B[adapter_name], a=math.sqrt(5))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Raises ValueError: which experts run depends on the input, so no single weight can stand for them."""
        raise ValueError(
            "a MoLA adapter cannot be merged, its routing depends on the input: keep it beside the model"
        )

    unmerge = merge


class MolaLinear(nn.Module, MolaLayer):
    """`y = base(x) + B (gate * (A dropout(x))) * lora_alpha / r`, the sum of what each adapter adds to the base.

    `gate` is the top-k of the softmax over all experts, scaled to sum to 1, so experts not chosen add nothing: the
    sum over the chosen experts, in two matrix products and without a gather. One dropout mask serves all experts.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: MolaConfig,
        num_experts: int,
        name: str,
        block: str,
        balance: BalanceLoss,
    ) -> None:
        nn.Module.__init__(self)
        MolaLayer.__init__(self, base_layer, name, block, balance)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, num_experts)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Shape (..., d_in) to (..., d_out), in the type that the base layer returns."""
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for adapter in self.active_adapters:
            if adapter in self.mola_A:
                y = y + self._experts(adapter, x).to(y.dtype)
        return y

    def _experts(self, adapter: str, x: Tensor) -> Tensor:
        """What the adapter's experts add to the base layer's output, shape (..., d_out)."""
        config = self.config[adapter]
        A, B = self.mola_A[adapter], self.mola_B[adapter]
        if not torch.is_autocast_enabled(x.device.type):
            x = self._cast_input_dtype(x, A.dtype)
        gates = self._gates(adapter, x)
        hidden = F.linear(F.dropout(x, config.lora_dropout, self.training), A)
        scaled = gates.to(hidden.dtype) * (config.lora_alpha / config.r)
        chosen = hidden.unflatten(-1, (-1, config.r)) * scaled.unsqueeze(-1)
        return F.linear(chosen.flatten(-2), B)

    def _gates(self, adapter: str, x: Tensor) -> Tensor:
        config = self.config[adapter]
        logits = F.linear(x, self.mola_router[adapter])
        probabilities = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        chosen = probabilities.topk(config.top_k, dim=-1).indices
        if config.router_aux_loss_coef > 0:
            probabilities = self.balance.observe(
                (self.block, adapter),
                self.name,
                probabilities,
                chosen,
                config.router_aux_loss_coef,
                config.router_aux_loss_mask_padding,
            )
        return top_k_gates(probabilities, chosen)

    def __repr__(self) -> str:
        return "mola." + super().__repr__()
