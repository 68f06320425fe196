"""One adapted linear layer: the frozen base layer plus its LoRA experts, all computed together."""

import math
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from .config import MolaConfig
from .experts import RouteSettings, add_experts, route
from .routing import BalanceLoss


class MolaLayer(BaseTunerLayer):
    """The parameters of the adapters of one layer.

    With E experts of rank r, expert by expert: `mola_A` (E * r, d_in), `mola_B` (d_out, E * r) and `mola_router`
    (E, d_in). With the PiSSA start also the frozen `mola_start_A` (r, d_in) and `mola_start_B` (d_out, r).
    """

    adapter_layer_names = ("mola_A", "mola_B", "mola_router")
    frozen_names = ("mola_start_A", "mola_start_B")
    other_param_names = (*frozen_names, "config")

    def __init__(self, base_layer: nn.Module, name: str, block: str, balance: BalanceLoss) -> None:
        self.base_layer = base_layer
        self.name = name
        self.block = block
        self.balance = balance
        self.mola_A = nn.ParameterDict()
        self.mola_B = nn.ParameterDict()
        self.mola_router = nn.ParameterDict()
        self.mola_start_A = BufferDict(persistent=True)
        self.mola_start_B = BufferDict(persistent=True)
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
        if config.init_lora_weights == "pissa":
            self.start_at_leading_directions(adapter_name, config, num_experts)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @torch.no_grad()
    def start_at_leading_directions(self, adapter_name: str, config: MolaConfig, num_experts: int) -> None:
        """PiSSA (Meng et al., 2024) for experts: all start as the same B0 A0, `lora_alpha / r * B0 A0` being the best
        approximation of the base weight of rank r, and the base keeps the rest.

        As the gates sum to 1, experts that are all B0 A0 add up to it whatever the router does, so the untrained
        adapter changes nothing. They part in training because the router, drawn at random, gives each expert other
        tokens; it learns itself once they differ. The base weight is left alone: what the experts start with is
        taken from the output instead (`mola_start_B mola_start_A`), so that a quantised base will do, and the saved
        adapter, which holds these two matrices, belongs to the unmodified base model. As in PEFT's PiSSA only the
        experts see dropout, not what the base keeps.
        """
        weight = dequantize_module_weight(self.get_base_layer())
        weight = weight.T if isinstance(self.get_base_layer(), Conv1D) else weight
        if config.r > min(weight.shape):
            raise ValueError(
                f"r is {config.r}, above the {min(weight.shape)} singular directions of {self.name}"
            )
        if weight.is_meta:
            A, B = weight.new_empty(config.r, weight.shape[1]), weight.new_empty(weight.shape[0], config.r)
        else:
            # Unchanged function needs no exact directions, only that the same ones are added and taken away.
            size = min(config.r + 8, *weight.shape)
            left, values, right = torch.svd_lowrank(weight.float(), q=size, niter=16)
            root = (values[: config.r] * config.r / config.lora_alpha).sqrt()
            A, B = root[:, None] * right.T[: config.r], left[:, : config.r] * root
        self.mola_start_A[adapter_name], self.mola_start_B[adapter_name] = A.contiguous(), B.contiguous()
        self.mola_A[adapter_name] = nn.Parameter(A.repeat(num_experts, 1))
        self.mola_B[adapter_name] = nn.Parameter(B.repeat(1, num_experts))

    def _start(self, adapter: str, x: Tensor) -> Tensor:
        """What the experts of `adapter` started with, shape (..., d_out)."""
        A, B = self.mola_start_A[adapter], self.mola_start_B[adapter]
        if not torch.is_autocast_enabled(x.device.type):
            x = self._cast_input_dtype(x, A.dtype)
        config = self.config[adapter]
        return F.linear(F.linear(x, A), B) * (config.lora_alpha / config.r)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Raises ValueError: which experts run depends on the input, so no single weight can stand for them."""
        raise ValueError(
            "a MoLA adapter cannot be merged, its routing depends on the input: keep it beside the model"
        )

    unmerge = merge


class MolaLinear(nn.Module, MolaLayer):
    """`y = base(x) + B (gate * (A dropout(x))) * lora_alpha / r`, the sum of what each adapter adds to the base.

    `gate` is the top-k of the softmax over all experts, scaled to sum to 1, so experts not chosen add nothing: the
    sum over the chosen experts, in two matrix products and without a gather. One dropout mask serves all experts of
    a module, and of the modules that read the same input (`SharedInput`).
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
        shared: "SharedInput",
    ) -> None:
        nn.Module.__init__(self)
        MolaLayer.__init__(self, base_layer, name, block, balance)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, num_experts)
        self.shared = shared
        shared.add(self)
        # Overwriting its output saves a pass over it; other layers may hand out a view of something they keep.
        self.owns_output = type(base_layer) is nn.Linear

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Shape (..., d_in) to (..., d_out), in the type that the base layer returns."""
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for adapter in self.active_adapters:
            if adapter in self.mola_start_A:
                y = y - self._start(adapter, x).to(y.dtype)
            if adapter in self.mola_A:
                z = self.shared.route(self, adapter, x)
                in_place = self.owns_output and not y._is_view() and not self.base_layer._forward_hooks
                y = add_experts(y, z, self.mola_B[adapter].to(z.dtype), in_place)
        return y

    def __repr__(self) -> str:
        return "mola." + super().__repr__()


@dataclass
class _Ready:
    """What `SharedInput.route` has computed ahead, and for which call."""

    x: Tensor
    hidden: dict[MolaLinear, tuple[tuple[Any, ...], Tensor]]
    """For each layer that has not come for it, the stamp of its call and its hidden activations."""


class SharedInput:
    """Modules of one block that read the same tensor, as q, k and v do.

    Their experts are routed together when the first of them is called: one dropout mask and two matrix products
    instead of one for each. The others take their part if they are then called with that very tensor, and compute
    for themselves if not.
    """

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names
        """The modules' names in the order in which they are called."""
        self.members: list[MolaLinear] = []
        self._ready: dict[str, _Ready] = {}

    def add(self, layer: MolaLinear) -> None:
        self.members.append(layer)
        if self.names:
            self.members.sort(key=lambda member: self.names.index(member.name.rpartition(".")[2]))

    def route(self, layer: MolaLinear, adapter: str, x: Tensor) -> Tensor:
        """Hidden activations of the layer's experts (`experts.route`), shape (E * r, tokens)."""
        ready = self._ready.get(adapter)
        if ready and ready.x is x and layer in ready.hidden:
            stamp, hidden = ready.hidden.pop(layer)
            if not ready.hidden:
                del self._ready[adapter]
            if stamp == _stamp(layer, adapter, x):
                return hidden
        layers = [m for m in self.members if adapter in m.active_adapters and adapter in m.mola_A]
        if layer is not layers[0]:
            return _route([layer], adapter, x)[0]
        mine, *others = _route(layers, adapter, x)
        if others:
            stamps = [_stamp(m, adapter, x) for m in layers[1:]]
            self._ready[adapter] = _Ready(
                x, dict(zip(layers[1:], zip(stamps, others, strict=True), strict=True))
            )
        return mine


def _stamp(layer: MolaLinear, adapter: str, x: Tensor) -> tuple[Any, ...]:
    """Differs between calls that must not share: parameters or input changed in place, another mode."""
    weights = (layer.mola_A[adapter], layer.mola_router[adapter])
    versions = [None if t.is_inference() else t._version for t in (x, *weights)]
    return layer.training, torch.is_grad_enabled(), *versions


def _route(layers: list[MolaLinear], adapter: str, x: Tensor) -> tuple[Tensor, ...]:
    first = layers[0]
    config = first.config[adapter]
    A = [layer.mola_A[adapter] for layer in layers]
    routers = [layer.mola_router[adapter] for layer in layers]
    tokens = x.shape[:-1]
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else A[0].dtype
    observation = None
    if config.router_aux_loss_coef > 0:
        observation = first.balance.observe(
            (first.block, adapter),
            {layer.name for layer in layers},
            tokens,
            config.router_aux_loss_coef,
            config.router_aux_loss_mask_padding,
        )
    settings = RouteSettings(
        rank=config.r,
        top_k=config.top_k,
        scaling=config.lora_alpha / config.r,
        dropout=config.lora_dropout if first.training else 0.0,
        observation=observation,
    )
    x = x.reshape(tokens.numel(), -1).to(dtype).contiguous()
    return route(x, [w.to(dtype) for w in A], [w.to(dtype) for w in routers], settings)
