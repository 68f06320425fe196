"""One adapted linear layer: the frozen base layer plus its LoRA experts, all computed together."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from .balance_loss import BalanceLoss
from .config import MolaConfig
from .experts import add_experts, hidden_activations, route, top_k_gates


class MolaLayer(BaseTunerLayer):
    """The parameters of the adapters of one layer.

    With E experts of rank r, expert by expert: `mola_A` (E * r, d_in), `mola_B` (d_out, E * r) and `mola_router`
    (E, d_in). With the PiSSA start also the frozen `mola_start_A` (r, d_in) and `mola_start_B` (d_out, r).
    """

    adapter_layer_names = ("mola_A", "mola_B", "mola_router")
    frozen_names = ("mola_start_A", "mola_start_B")
    other_param_names = (*frozen_names, "config", "rank", "unread")

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
        self.rank: dict[str, int] = {}
        self.unread: dict[str, bool] = {}
        """Adapters made for weights that are still to be loaded, until their first use."""
        sizes = _get_in_out_features(self.get_base_layer())
        assert sizes[0] is not None and sizes[1] is not None, "only linear layers are adapted"
        self.in_features: int = sizes[0]
        self.out_features: int = sizes[1]

    def update_layer(self, adapter_name: str, config: MolaConfig, num_experts: int, rank: int) -> None:
        """Add an adapter of `num_experts` experts of rank `rank`. Initial values as in the authors' code: B is zero."""
        self.config[adapter_name], self.rank[adapter_name] = config, rank
        self.mola_A[adapter_name] = nn.Parameter(torch.empty(num_experts * rank, self.in_features))
        self.mola_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, num_experts * rank))
        self.mola_router[adapter_name] = nn.Parameter(torch.empty(num_experts, self.in_features))
        for weight in (self.mola_A[adapter_name], self.mola_router[adapter_name]):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if not config.init_lora_weights:
            nn.init.kaiming_uniform_(self.mola_B[adapter_name], a=math.sqrt(5))
        if config.init_lora_weights == "pissa":
            self.start_at_leading_directions(adapter_name, num_experts)
        if config.inference_mode:
            self._expect(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _expect(self, adapter_name: str) -> None:
        """Leave the adapter's tensors to be loaded: NaN, which `_check_read` finds where a loader leaves one out."""
        self.unread[adapter_name] = True
        for part in (*self.adapter_layer_names, *self.frozen_names):
            if adapter_name in getattr(self, part):
                getattr(self, part)[adapter_name].data.fill_(torch.nan)

    @torch.compiler.disable
    def _check_read(self, adapter_name: str) -> None:
        for part in (*self.adapter_layer_names, *self.frozen_names):
            if adapter_name in getattr(self, part) and getattr(self, part)[adapter_name].isnan().any():
                raise ValueError(
                    f"adapter {adapter_name!r}: no weights were loaded for {self.name}.{part}: load an adapter that has "
                    "them, or set inference_mode=False in its config to train a new one"
                )
        self.unread.pop(adapter_name, None)

    @torch.no_grad()
    def start_at_leading_directions(self, adapter_name: str, num_experts: int) -> None:
        """PiSSA (Meng et al., 2024) for experts: all start as the same B0 A0, `lora_alpha / r * B0 A0` being the best
        approximation of the base weight of rank r, and the base keeps the rest.

        As the gates sum to 1, experts that are all B0 A0 add up to it whatever the router does, so the untrained
        adapter changes nothing. They part in training because the router, drawn at random, gives each expert other
        tokens; it learns itself once they differ. The base weight is left alone: what the experts start with is
        taken from the output instead (`mola_start_B mola_start_A`), so that a quantised base will do, and the saved
        adapter, which holds these two matrices, belongs to the unmodified base model. As in PEFT's PiSSA only the
        experts see dropout, not what the base keeps.
        """
        weight: Tensor = dequantize_module_weight(self.get_base_layer())
        weight = weight.T if isinstance(self.get_base_layer(), Conv1D) else weight
        rank = self.rank[adapter_name]
        if rank > min(weight.shape):
            raise ValueError(f"r is {rank}, above the {min(weight.shape)} singular directions of {self.name}")
        if weight.is_meta:
            A, B = weight.new_empty(rank, weight.shape[1]), weight.new_empty(weight.shape[0], rank)
        else:
            # Unchanged function needs no exact directions, only that the same ones are added and taken away.
            size = min(rank + 8, *weight.shape)
            left, values, right = torch.svd_lowrank(weight.float(), q=size, niter=16)
            root = (values[:rank] / self.scaling(adapter_name)).sqrt()
            A, B = root[:, None] * right.T[:rank], left[:, :rank] * root
        self.mola_start_A[adapter_name], self.mola_start_B[adapter_name] = A.contiguous(), B.contiguous()
        self.mola_A[adapter_name] = nn.Parameter(A.repeat(num_experts, 1))
        self.mola_B[adapter_name] = nn.Parameter(B.repeat(1, num_experts))

    def scaling(self, adapter: str) -> float:
        """What the experts' output is multiplied with: `lora_alpha / r`."""
        return self.config[adapter].lora_alpha / self.rank[adapter]

    def _start(self, adapter: str, x: Tensor) -> Tensor:
        """What the experts of `adapter` started with, shape (..., d_out)."""
        A, B = self.mola_start_A[adapter], self.mola_start_B[adapter]
        if not torch.is_autocast_enabled(x.device.type):
            x = self._cast_input_dtype(x, A.dtype)
        return F.linear(F.linear(x, A), B) * self.scaling(adapter)

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
        rank: int,
        name: str,
        block: str,
        balance: BalanceLoss,
    ) -> None:
        nn.Module.__init__(self)
        MolaLayer.__init__(self, base_layer, name, block, balance)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, num_experts, rank)

    def forward(
        self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> Tensor:
        """Shape (..., d_in) to (..., d_out), in the type that the base layer returns.

        Args:
            adapter_names: The adapter of each row of x, or "__base__" for none, instead of the active ones.

        Raises:
            ValueError: `adapter_names` has not one name for each row.
        """
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        if adapter_names is not None:
            return self._mixed(x, y, adapter_names)
        for adapter in self.active_adapters:
            if adapter in self.mola_A:
                y = self._adapted(adapter, x, y)
        return y

    def _mixed(self, x: Tensor, y: Tensor, names: Sequence[str]) -> Tensor:
        if len(names) != len(x):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(names)} and {len(x)} respectively: give one name for each row"
            )
        for adapter in dict.fromkeys(names):
            if adapter in self.mola_A:
                rows = torch.tensor([i for i, name in enumerate(names) if name == adapter], device=x.device)
                y = y.index_copy(0, rows, self._adapted(adapter, x[rows], y[rows]))
        return y

    def _adapted(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        offloaded = [module for module in self._modules.values() if "_hf_hook" in module.__dict__]
        if not offloaded:
            return self._with_experts(adapter, x, y)
        with _on_device(offloaded, self.base_layer):
            return self._with_experts(adapter, x, y)

    def _with_experts(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        config = self.config[adapter]
        if adapter in self.unread:
            self._check_read(adapter)
        if adapter in self.mola_start_A:
            y = y - self._start(adapter, x).to(y.dtype)
        A, B, router = (weights[adapter] for weights in (self.mola_A, self.mola_B, self.mola_router))
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else A.dtype
        tokens, x = x.shape[:-1], x.reshape(-1, self.in_features).to(dtype)
        logits = route(x, router.to(dtype))
        gates, chosen = top_k_gates(logits, config.top_k, dim=1)
        alone = None
        if config.router_aux_loss_coef > 0:
            alone = self.balance.observe(self, adapter, tokens, logits, chosen)
        dropout = config.lora_dropout if self.training else 0.0
        hidden = hidden_activations(x, A.to(dtype), gates, self.scaling(adapter), dropout)
        y = add_experts(y, hidden, B.to(dtype))
        return y if alone is None else self.balance.finish(alone, self, y)

    def __repr__(self) -> str:
        return "mola." + super().__repr__()


@contextmanager
def _on_device(modules: list[Any], base_layer: nn.Module) -> Iterator[None]:
    """With the parameters that accelerate has offloaded at hand: it fetches those of a module that is called, but the
    dictionaries of an adapter's are read, not called."""
    modules = [module for module in modules if module is not base_layer]
    for module in modules:
        module._hf_hook.pre_forward(module)
    try:
        yield
    finally:
        for module in modules:
            module._hf_hook.post_forward(module, None)
