"""From router logits to gates, and the loss that keeps the experts evenly used."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def top_k_gates(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Gates of the chosen experts: their probabilities scaled to sum to 1; zero for the others.

    Args:
        probabilities: Router probabilities, shape (..., E).
        chosen: Experts of each token, shape (..., k).

    Returns:
        Shape (..., E).
    """
    values = probabilities.gather(-1, chosen)
    values = values / values.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, chosen, values)


class BalanceLoss:
    """Load-balancing loss of Switch Transformers (Fedus et al., 2022, equations 4-6), layer by layer.

    For a layer with E experts it is `E * sum_i f_i P_i`. P_i is the mean router probability of expert i and f_i the
    share of the top-k choices that fell on it, both over the tokens of all adapted modules of the layer together.
    The layers' losses are summed, each times the adapter's coefficient.

    Its gradient does not run through the tensors of the forward pass: under reentrant gradient checkpointing these
    have none. Instead `attach` notes the gradient that reaches the loss, and `_Observe`, which sits between the
    router and the gates, adds `coefficient * E * f_i / tokens` times it to the gradient of each probability. Every
    path from the loss to a router leads through `attach`, so the note is there in time, in a recomputed layer too.
    """

    def __init__(self) -> None:
        self._forward: ForwardPass | None = None
        """The forward pass that is under way."""
        self._finished: ForwardPass | None = None
        """The last one that ended, until its loss is attached."""
        self._backward: ForwardPass | None = None
        """The one whose backward pass is under way: recomputed layers belong to it."""
        self._open: dict[Hashable, LayerRouting] = {}
        """The statistics of each layer that its modules add to now."""

    @contextmanager
    def watch(self, attention_mask: Tensor | None) -> Iterator[None]:
        """Collect the statistics of one forward pass of the model.

        Args:
            attention_mask: 1 for tokens and 0 for padding, shape (batch, length).
        """
        self._forward = ForwardPass(attention_mask)
        try:
            yield
        finally:
            self._finished, self._forward = self._forward, None

    def observe(
        self,
        layer: Hashable,
        module: str,
        probabilities: Tensor,
        chosen: Tensor,
        coefficient: float,
        mask: bool,
    ) -> Tensor:
        """Count a module's routing towards the loss of its layer; returns `probabilities` unchanged.

        Args:
            layer: Names the layer and the adapter: modules with the same key are pooled.
            module: Names the module within the model.
            probabilities: Shape (..., E), over batch and length.
            chosen: The chosen experts, shape (..., k).
            mask: Leave padding out.
        """
        forward_pass = self._forward or self._backward
        if forward_pass is None:
            return probabilities
        routing = self._open.get(layer)
        if routing is None or routing.forward_pass is not forward_pass or module in routing.modules:
            # A module that comes by again starts the layer anew: it is being recomputed, or used a second time.
            routing = self._open[layer] = LayerRouting(forward_pass, coefficient)
            if forward_pass is self._forward:
                forward_pass.layers.append(routing)
        weights = forward_pass.token_weights(probabilities) if mask else None
        routing.add(module, probabilities.detach(), chosen, weights)
        return _Observe.apply(probabilities, routing, weights)

    def attach(self, loss: Tensor) -> Tensor:
        """`loss` plus the balance loss of the last forward pass, whose gradient follows this one's."""
        finished, self._finished = self._finished, None
        self._open.clear()
        if finished is None or not finished.layers:
            return loss
        balance = torch.stack([layer.loss().to(loss) for layer in finished.layers]).sum()
        return _Attach.apply(loss, balance, finished, self)

    def _end_backward(self) -> None:
        self._backward = None


class ForwardPass:
    """What the layers of one forward pass share."""

    def __init__(self, attention_mask: Tensor | None) -> None:
        self.attention_mask = attention_mask
        self.layers: list[LayerRouting] = []
        self.loss_gradient: Tensor | None = None

    def token_weights(self, probabilities: Tensor) -> Tensor | None:
        """1 for tokens and 0 for padding, shape of `probabilities` without the experts.

        Raises ValueError where the attention mask does not have one entry for each token.
        """
        mask = self.attention_mask
        if mask is None:
            return None
        shape = probabilities.shape[:-1]
        if mask.dim() == 2 and len(shape) == 2:
            mask = mask[:, -shape[1] :]  # with a key-value cache the mask also covers earlier tokens
        if mask.numel() != shape.numel():
            raise ValueError(
                f"router_aux_loss_mask_padding needs an attention_mask with one entry a token, "
                f"got {tuple(mask.shape)} for tokens {tuple(shape)}: pass a (batch, length) mask or turn it off"
            )
        return mask.reshape(shape).to(probabilities)


class LayerRouting:
    """Routing statistics of one layer in one forward pass, pooled over its modules."""

    def __init__(self, forward_pass: ForwardPass, coefficient: float) -> None:
        self.forward_pass = forward_pass
        self.coefficient = coefficient
        self.modules: set[str] = set()

    def add(self, module: str, probabilities: Tensor, chosen: Tensor, weights: Tensor | None) -> None:
        choices = torch.zeros_like(probabilities).scatter(-1, chosen, 1 / chosen.shape[-1])
        if weights is None:
            tokens = probabilities.new_tensor(probabilities.shape[:-1].numel())
        else:
            probabilities, choices = (t * weights.unsqueeze(-1) for t in (probabilities, choices))
            tokens = weights.sum()
        sums = [t.flatten(0, -2).sum(0) for t in (probabilities, choices)]
        if not self.modules:
            self.probabilities, self.choices, self.tokens = *sums, tokens
        else:
            self.probabilities = self.probabilities + sums[0]
            self.choices = self.choices + sums[1]
            self.tokens = self.tokens + tokens
        self.modules.add(module)

    def loss(self) -> Tensor:
        """`coefficient * E * sum_i f_i P_i`, a scalar without gradient."""
        shares = self.choices / self.tokens
        return self.coefficient * shares.numel() * (shares * self.probabilities / self.tokens).sum()

    def gradient(self) -> Tensor:
        """Derivative of the loss by the probability of each expert for one token, shape (E,)."""
        return self.coefficient * self.choices.numel() * self.choices / self.tokens.square()


class _Observe(torch.autograd.Function):
    """The identity; backward adds the balance loss's gradient."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, routing: LayerRouting, weights: Tensor | None) -> Tensor:
        ctx.routing, ctx.weights = routing, weights
        return probabilities.view_as(probabilities)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        loss_gradient = ctx.routing.forward_pass.loss_gradient
        if loss_gradient is not None:
            balance = (ctx.routing.gradient() * loss_gradient.to(gradient.device)).to(gradient.dtype)
            gradient = gradient + (balance if ctx.weights is None else balance * ctx.weights.unsqueeze(-1))
        return gradient, None, None


class _Attach(torch.autograd.Function):
    """`loss + balance`; backward notes the gradient of the sum where `_Observe` finds it."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, balance: Tensor, forward_pass: ForwardPass, owner: BalanceLoss
    ) -> Tensor:
        ctx.forward_pass, ctx.owner = forward_pass, owner
        return loss + balance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.forward_pass.loss_gradient = gradient
        ctx.owner._backward = ctx.forward_pass
        torch.autograd.Variable._execution_engine.queue_callback(ctx.owner._end_backward)
        return gradient, None, None, None
