"""The loss that keeps the experts evenly used."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class BalanceLoss:
    """Load-balancing loss of Switch Transformers (Fedus et al., 2022, equations 4-6), layer by layer.

    For a layer with E experts it is `E * sum_i f_i P_i`. P_i is the mean router probability of expert i and f_i the
    share of the top-k choices that fell on it, both over the tokens of all adapted modules of the layer together.
    The layers' losses are summed, each times the adapter's coefficient.

    Its gradient does not run through the tensors of the forward pass: under reentrant gradient checkpointing these
    have none. Instead `attach` notes the gradient that reaches the loss, and each router's own backward adds what
    the balance loss makes of it (`Observation.logit_gradient`). Every path from the loss to a router leads through
    `attach`, so the note is there in time, in a recomputed layer too.
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
        self, layer: Hashable, modules: Set[str], tokens: torch.Size, coefficient: float, mask_padding: bool
    ) -> Observation | None:
        """A place to count the routing of `modules`, or None outside of a watched forward pass.

        Args:
            layer: Names the layer and the adapter: modules with the same key are pooled.
            modules: Names within the model of the modules that are routed together.
            tokens: Shape of the modules' input without its last axis.
        """
        forward_pass = self._forward or self._backward
        if forward_pass is None:
            return None
        routing = self._open.get(layer)
        if routing is None or routing.forward_pass is not forward_pass or modules & routing.modules:
            # A module that comes by again starts the layer anew: it is being recomputed, or used a second time.
            routing = self._open[layer] = LayerRouting(forward_pass, coefficient)
            if forward_pass is self._forward:
                forward_pass.layers.append(routing)
        routing.modules |= modules
        return Observation(routing, forward_pass.token_weights(tokens) if mask_padding else None)

    def attach(self, loss: Tensor, share: Tensor | float = 1.0) -> Tensor:
        """`loss` plus `share` times the balance loss of the last forward pass, whose gradient follows this one's."""
        finished, self._finished = self._finished, None
        self._open.clear()
        if finished is None or not finished.layers:
            return loss
        balance = torch.stack([layer.loss().to(loss) for layer in finished.layers]).sum()
        return _Attach.apply(loss, balance * share, share, finished, self)

    def _end_backward(self) -> None:
        self._backward = None


class ForwardPass:
    """What the layers of one forward pass share."""

    def __init__(self, attention_mask: Tensor | None) -> None:
        self.attention_mask = attention_mask
        self.layers: list[LayerRouting] = []
        self.loss_gradient: Tensor | None = None

    def token_weights(self, tokens: torch.Size) -> Tensor | None:
        """1 for tokens and 0 for padding, one axis. None without an attention mask.

        Raises ValueError where the attention mask does not have one entry for each token.
        """
        mask = self.attention_mask
        if mask is None:
            return None
        if mask.dim() == 2 and len(tokens) == 2:
            mask = mask[:, -tokens[1] :]  # with a key-value cache the mask also covers earlier tokens
        if mask.numel() != tokens.numel():
            raise ValueError(
                f"router_aux_loss_mask_padding needs an attention_mask with one entry a token, "
                f"got {tuple(mask.shape)} for tokens {tuple(tokens)}: pass a (batch, length) mask or turn it off"
            )
        return mask.reshape(-1)


class LayerRouting:
    """Routing statistics of one layer in one forward pass, summed over the tokens of its modules."""

    def __init__(self, forward_pass: ForwardPass, coefficient: float) -> None:
        self.forward_pass = forward_pass
        self.coefficient = coefficient
        self.modules: set[str] = set()
        self.probabilities: Tensor | float = 0.0
        self.choices: Tensor | float = 0.0
        self.tokens: Tensor | float = 0.0

    def loss(self) -> Tensor:
        """`coefficient * E * sum_i f_i P_i`, a scalar without gradient."""
        shares = self.choices / self.tokens
        return self.coefficient * shares.numel() * (shares * self.probabilities / self.tokens).sum()

    def gradient(self) -> Tensor:
        """Derivative of the loss by the probability of each expert for one token, shape (E,)."""
        return self.coefficient * self.choices.numel() * self.choices / self.tokens**2


class Observation:
    """The part of a layer's routing that is computed together: some of its modules."""

    def __init__(self, layer: LayerRouting, weights: Tensor | None) -> None:
        self.layer = layer
        self.weights = weights

    def count(self, probabilities: Tensor, chosen: Tensor) -> None:
        """Add to the layer's statistics.

        Args:
            probabilities: Shape (modules, E, tokens).
            chosen: The chosen experts, shape (modules, k, tokens).
        """
        modules, _, tokens = probabilities.shape
        choices = torch.zeros_like(probabilities).scatter_(1, chosen, 1 / chosen.shape[1])
        if self.weights is not None:
            weights = self.weights.to(probabilities)
            tokens = weights.sum()
            probabilities, choices = (t * weights for t in (probabilities, choices))
        self.layer.probabilities = self.layer.probabilities + probabilities.sum((0, 2))
        self.layer.choices = self.layer.choices + choices.sum((0, 2))
        self.layer.tokens = self.layer.tokens + tokens * modules

    def logit_gradient(self, probabilities: Tensor) -> Tensor | float:
        """Gradient of the balance loss by the router logits, shape of `probabilities`; 0 where none is asked for."""
        loss_gradient = self.layer.forward_pass.loss_gradient
        if loss_gradient is None:
            return 0.0
        by_expert = (self.layer.gradient() * loss_gradient.to(probabilities)).unsqueeze(-1)
        gradient = probabilities * (by_expert - (probabilities * by_expert).sum(1, keepdim=True))
        return gradient if self.weights is None else gradient * self.weights.to(gradient)


class _Attach(torch.autograd.Function):
    """`loss + balance`; backward notes the gradient of the sum where `Observation.logit_gradient` finds it."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        balance: Tensor,
        share: Tensor | float,
        forward_pass: ForwardPass,
        owner: BalanceLoss,
    ) -> Tensor:
        ctx.share, ctx.forward_pass, ctx.owner = share, forward_pass, owner
        return loss + balance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        ctx.forward_pass.loss_gradient = gradient * ctx.share
        ctx.owner._backward = ctx.forward_pass
        torch.autograd.Variable._execution_engine.queue_callback(ctx.owner._end_backward)
        return gradient, None, None, None, None
