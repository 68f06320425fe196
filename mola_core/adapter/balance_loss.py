"""Load-balancing loss of Switch Transformers (Fedus et al., 2022, equations 4-6), carried by an identity in each layer.

For a layer with E experts it is `E * sum_i f_i P_i`: P_i is the mean router probability of expert i and f_i the share
of the top-k choices that fell on it, both over the tokens of all adapted modules of the layer together. Where modules
of one layer have different numbers of experts, those with the same number are pooled, and the pools are weighted by
their tokens. The layers' losses are summed, each times the adapter's coefficient.

A layer's loss joins the graph at the layer's own output: `_Carry` hands the output on and, in the backward pass, gives
the loss its gradient. So it needs no loss of the model's: it is there where the loss is computed elsewhere (label
smoothing, `add_adapter`) and in a layer that checkpointing computes again. Where the model returns a loss, the balance
loss is added to its value and its gradient follows that of the loss (gradient accumulation, loss scaling). Elsewhere
its gradient is that of a loss which is added as it is or, where the Trainer gives `num_items_in_batch`, as it is times
the pass's share of these items. A loss that is scaled otherwise afterwards (by a factor of the processes, say) needs
`MolaModel.add_balance_loss`.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from .routing import Layer, Pass

IGNORED = -100
"""Label of a token without loss (PyTorch's `ignore_index`)."""


class _Here(threading.local):
    """What is under way in this thread."""

    current: Pass | None = None
    """The model's call."""
    last: Pass | None = None
    """The last call that began or, in a backward pass, the one whose layers may be computed again."""
    alone: set[str] | None = None
    """Layers that were called outside of a call of the model, in the pass that is `last`; None where it is a model's."""
    layer: Layer | None = None
    """The layer's call."""


class BalanceLoss:
    """The balance loss of one model; its hooks on the model and its layers.

    A module whose layer is not called as a module (or that is in no layer) is not pooled with others: its own loss
    counts for 1 / (adapted modules of the layer).
    """

    def __init__(self) -> None:
        self.here = _Here()
        self.configs: dict[str, Any] = {}
        """Of the model's adapters."""
        self.members: dict[tuple[str, str], set[str]] = {}
        """Names of the modules of a layer that an adapter has."""
        self.called: set[str] = set()
        """Layers that were called as modules."""

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle of the model takes no pass along."""
        return {name: value for name, value in vars(self).items() if name != "here"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, here=_Here())

    @property
    def wanted(self) -> bool:
        return any(config.router_aux_loss_coef > 0 for config in self.configs.values())

    def watch_model(self, model: nn.Module) -> None:
        """Take every call of `model` for one forward pass, and add the balance loss to the loss that it returns."""
        if not self._hooks(model, model._forward_hooks):
            model.register_forward_pre_hook(self._enter_model, with_kwargs=True)
            model.register_forward_hook(self._leave_model, with_kwargs=True)

    def watch_layer(self, layer: nn.Module, name: str) -> None:
        """Pool the modules of `layer` in each of its calls."""
        if name not in [hook.args[0] for hook in self._hooks(layer, layer._forward_hooks) if hook.args]:
            layer.register_forward_pre_hook(partial(self._enter_layer, name))
            layer.register_forward_hook(partial(self._leave_layer, name))

    def forget(self, adapter: str) -> None:
        """Modules of an adapter that was deleted; one of its name may have others."""
        self.members = {key: names for key, names in self.members.items() if key[1] != adapter}

    def unwatch(self, model: nn.Module) -> None:
        """Take the hooks out of `model` and its modules."""
        for module in model.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [key for key, hook in hooks.items() if _owner(hook) is self]:
                    del hooks[key]

    def _hooks(self, module: nn.Module, hooks: dict[int, Callable]) -> list[Any]:
        return [h if isinstance(h, partial) else partial(h) for h in hooks.values() if _owner(h) is self]

    def _enter_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.wanted:
            self._begin(_arguments(model, args, kwargs))

    @torch.compiler.disable
    def _begin(self, given: dict[str, Any]) -> None:
        counts = torch.is_grad_enabled() or given.get("labels") is not None
        self.here.current = self.here.last = Pass(given.get("attention_mask"), counts)
        self.here.alone = None
        self.here.layer = None

    def _leave_model(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        return self._end(model, _arguments(model, args, kwargs), output) if self.wanted else None

    @torch.compiler.disable
    def _end(self, model: nn.Module, given: dict[str, Any], output: Any) -> Any:
        """With `num_items_in_batch`, as the Trainer gives it where several passes make one batch, the balance loss is
        weighted by the pass's share of the batch's loss tokens, as the loss itself is, so that the coefficient means the same
        however a batch is cut. (The loss itself pools the tokens of a pass: cut otherwise it differs a little.)"""
        this, self.here.current = self.here.current or Pass(), None
        labels, items = given.get("labels"), given.get("num_items_in_batch")
        share = 1.0 if labels is None or items is None else _loss_tokens(model, given) / items
        if isinstance(getattr(output, "loss", None), Tensor):
            output.loss = self.add(output.loss, share, this)
        elif isinstance(output, tuple) and labels is not None and isinstance(output[0], Tensor):
            output = (self.add(output[0], share, this), *output[1:])
        first = _tensors(output)[:1] if torch.is_grad_enabled() else []
        if labels is None and first and first[0].requires_grad:
            first[0].register_hook(partial(self._resume, this, items))
        return output

    def _resume(self, forward_pass: Pass, items: Tensor | int | None, gradient: Tensor) -> None:
        """The backward pass enters the model: layers computed again belong to this pass.

        Of `items`, the loss tokens of the batch, this pass has those whose output has a gradient.
        """
        self.here.last = forward_pass
        if items is not None and not forward_pass.joined and not forward_pass.scaled:
            forward_pass.scale = gradient.reshape(-1, gradient.shape[-1]).ne(0).any(1).sum() / items

    def add(self, loss: Tensor, share: Tensor | float = 1.0, forward_pass: Pass | None = None) -> Tensor:
        """`loss` plus `share` times the balance loss of a forward pass, the last one by default.

        Returns `loss` itself where there is nothing to add, or where it was added before.
        """
        this = forward_pass or self.here.last
        if forward_pass is None and self.wanted and (this is None or this.value is None):
            warnings.warn(
                "add_balance_loss: no router ran in the last forward pass (a reference pass without the adapter?), so nothing "
                "is added; call it right after the pass that it belongs to",
                stacklevel=3,
            )
        if this is None or this.joined or this.value is None:
            return loss
        this.joined = True
        total = loss + this.value.to(loss) * share
        if total.requires_grad:
            total.register_hook(partial(self._note, this, share))
        return total

    def _note(self, forward_pass: Pass, share: Tensor | float, gradient: Tensor) -> None:
        """Every path from the loss to a layer leads by here, so this is known in time, in a recomputed layer too."""
        self.here.last = forward_pass
        forward_pass.scale = gradient * share

    def _enter_layer(self, name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        if self.wanted:
            self._open(name)

    @torch.compiler.disable
    def _open(self, name: str) -> None:
        self.called.add(name)
        self.here.layer = Layer(name, self._pass(name))

    def _pass(self, name: str) -> Pass:
        """Of the model's call that is under way, of the backward pass, or one of layers that are called without the model.

        The latter lasts until a layer is called again: so the layers of an inner model, called for a loss that is computed
        in parts, are one pass, and none is taken for part of a call that has ended.
        """
        here = self.here
        if here.current is not None:
            return here.current
        if torch._C._current_graph_task_id() != -1:  # in a backward pass: a layer is computed again
            return here.last or Pass()
        if here.last is None or here.alone is None or name in here.alone:
            here.last, here.alone = Pass(), set()
        here.alone.add(name)
        return here.last

    def _leave_layer(self, name: str, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self._close(output) if self.wanted else None

    @torch.compiler.disable
    def _close(self, output: Any) -> Any:
        layer, self.here.layer = self.here.layer, None
        return output if layer is None else self._carry(layer, output)

    @torch.compiler.disable
    def observe(
        self, module: Any, adapter: str, tokens: torch.Size, logits: Tensor, chosen: Tensor
    ) -> Layer | None:
        """Count the routing of one call of a `MolaLayer`.

        Args:
            tokens: Shape of the module's input without its last axis.
            logits: Of the router, shape (tokens, E).
            chosen: The chosen experts, shape (tokens, k).

        Returns:
            None where the layer that is being called takes it, else the statistics for `finish`.
        """
        config = module.config[adapter]
        layer = self.here.layer
        pooled = layer is not None and layer.name == module.block
        if layer is None or not pooled:
            layer = Layer(module.name, self._pass(module.name))
        if not layer.forward_pass.counts:
            return None
        if not torch.is_grad_enabled() and module.mola_router[adapter].requires_grad:
            layer.detached.append((module.name, adapter))
        weights = layer.forward_pass.token_weights(tokens) if config.router_aux_loss_mask_padding else None
        layer.count(adapter, config.router_aux_loss_coef, logits, chosen, weights)
        if torch.is_grad_enabled() and (module.name, adapter, logits.shape[1]) in layer.forward_pass.slopes:
            return layer
        # A part of a layer that is computed again was counted by the layer, but must save the same tensors.
        return None if pooled or module.block in self.called else layer

    @torch.compiler.disable
    def finish(self, layer: Layer, module: Any, y: Tensor) -> Tensor:
        """The output `y` of a module that is not pooled, or that is computed again, with its loss."""
        this = layer.forward_pass
        again = [
            (this.slopes[module.name, adapter, experts] * pool[1]).sum()
            for (adapter, experts), pool in layer.pools.items()
            if (module.name, adapter, experts) in this.slopes
        ]
        if again:
            return _Carry.apply(y, torch.stack(again).sum(), this)
        adapter = next(iter(layer.pools))[0]
        return self._carry(layer, y, 1 / len(self.members[module.block, adapter]))

    def _carry(self, layer: Layer, output: Any, weight: float = 1.0) -> Any:
        """`output`, whose gradient brings that of `weight` times the layer's loss."""
        loss = layer.loss()
        if loss is None:
            return output
        loss = loss * weight
        this = layer.forward_pass
        this.value = loss.detach() if this.value is None else this.value + loss.detach().to(this.value)
        if not torch.is_grad_enabled():
            return output
        # Reentrant checkpointing ran these without gradient; each brings its part when it is run again (`finish`).
        this.slopes.update(layer.slopes())
        if not loss.requires_grad:
            return output
        for tensor in _tensors(output)[:1]:
            return _replaced(output, tensor, _Carry.apply(tensor, loss, this))
        raise ValueError(
            f"router_aux_loss_coef needs layers that return a tensor, or a tuple or dict of them; {layer.name} "
            f"returns {type(output).__name__}"
        )


class _Carry(torch.autograd.Function):
    """`hidden`, and in the backward pass for `loss` the gradient of the loss that it is part of."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor, forward_pass: Pass) -> Tensor:
        ctx.forward_pass, ctx.like = forward_pass, (loss.dtype, loss.device)
        return hidden.clone()  # a view could not be changed in place by the model

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        this, (dtype, device) = ctx.forward_pass, ctx.like
        if this.scale is not None:
            return gradient, this.scale.to(device, dtype), None
        if this.scaled:
            raise RuntimeError(
                "router_aux_loss_coef: the loss was computed outside of the model under float16, whose gradients are "
                "scaled by an unknown factor: add the balance loss to it with add_balance_loss, or use bfloat16"
            )
        return gradient, torch.ones((), dtype=dtype, device=device), None


def _loss_tokens(model: nn.Module, given: dict[str, Any]) -> Tensor:
    """Number of tokens with loss, counted as the Trainer counts `num_items_in_batch`: those of a causal model, which shifts
    its labels itself, without the first of each row."""
    labels = given["labels"] if given.get("shift_labels") is None else given["shift_labels"]
    if given.get("shift_labels") is None and _shifts(model):
        labels = labels[..., 1:]
    return (labels != IGNORED).sum()


def _shifts(model: nn.Module) -> bool:
    causal = LOSS_MAPPING.get(str(getattr(model, "loss_type", None))) is ForCausalLMLoss
    return causal and not getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def _owner(hook: Callable) -> object:
    return getattr(hook.func if isinstance(hook, partial) else hook, "__self__", None)


def _arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """By name, those given by position too."""
    if not args:
        return kwargs
    try:
        return dict(inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments) | kwargs
    except (TypeError, ValueError):
        return kwargs


def _tensors(output: Any) -> list[Tensor]:
    """Those of floating point at the top of a layer's or model's output; the first is its hidden states."""
    values = (
        output.values()
        if isinstance(output, dict)
        else output
        if isinstance(output, tuple | list)
        else [output]
    )
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def _replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """`output` with `new` in the place of `old`."""
    if output is old:
        return new
    if isinstance(output, dict):
        for key in [key for key, value in output.items() if value is old]:
            output[key] = new
        return output
    values = [new if value is old else value for value in output]
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
