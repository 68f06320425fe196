"""Routing statistics of the layers of one forward pass, and the load-balancing loss that they make."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Pass:
    """One forward pass of the model."""

    def __init__(self, attention_mask: Tensor | None = None, counts: bool = True) -> None:
        self.attention_mask = attention_mask
        self.counts = counts
        """False where nothing can come of it: no gradient and no labels, as in generation."""
        self.value: Tensor | None = None
        """The balance loss so far, without gradient."""
        self.joined = False
        """Whether it is part of a loss."""
        self.scale: Tensor | None = None
        """Gradient of the loss that it is part of, known in the backward pass."""
        self.slopes: dict[tuple[str, str, int], Tensor] = {}
        """Of modules that reentrant checkpointing will run again: derivative of the loss by a token's probabilities, (E,),
        by module, adapter and experts."""
        self.scaled = any(
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
            for device in ("cuda", "cpu")
        )

    def token_weights(self, tokens: torch.Size) -> Tensor | None:
        """1 for tokens and 0 for padding, one axis. None without an attention mask.

        Raises ValueError where the attention mask does not have one entry for each token.
        """
        mask = self.attention_mask
        if mask is None:
            return None
        if isinstance(mask, Tensor) and mask.dim() == 2 and len(tokens) == 2:
            mask = mask[
                :, mask.shape[1] - tokens[1] :
            ]  # a key-value cache's earlier tokens are in the mask too
        if not isinstance(mask, Tensor) or mask.numel() != tokens.numel():
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                f"router_aux_loss_mask_padding needs an attention_mask with one entry a token, "
                f"got {shape} for tokens {tuple(tokens)}: pass a (batch, length) mask or turn it off"
            )
        return mask.reshape(-1)


class Layer:
    """Routing statistics of one call of a layer: sums over the tokens of its modules, by adapter and experts."""

    def __init__(self, name: str, forward_pass: Pass) -> None:
        self.name = name
        self.forward_pass = forward_pass
        self.pools: dict[tuple[str, int], list[Any]] = {}
        """Coefficient, probabilities (E,), choices (E,) and number of tokens."""
        self.detached: list[tuple[str, str]] = []
        """Modules, each with its adapter, whose router is trained but was run without gradient."""

    def count(
        self, adapter: str, coefficient: float, logits: Tensor, chosen: Tensor, weights: Tensor | None
    ) -> None:
        """Add the routing of tokens.

        Args:
            logits: Shape (tokens, E).
            chosen: The chosen experts, shape (tokens, k).
            weights: Shape (tokens,); None for 1.
        """
        probabilities = logits.softmax(-1)
        choices = torch.zeros_like(probabilities).scatter(1, chosen, 1 / chosen.shape[1])
        tokens: Tensor | int = len(logits)
        if weights is not None:
            weights = weights.to(probabilities)
            tokens = weights.sum()
            probabilities, choices = (t * weights[:, None] for t in (probabilities, choices))
        pool = self.pools.setdefault((adapter, logits.shape[1]), [coefficient, 0.0, 0.0, 0])
        for index, more in enumerate((probabilities.sum(0), choices.sum(0), tokens), start=1):
            pool[index] = pool[index] + more

    def slopes(self) -> dict[tuple[str, str, int], Tensor]:
        """Derivative of the loss by a token's probabilities, shape (E,), for the modules in `detached`."""
        found: dict[tuple[str, str, int], Tensor] = {}
        for (adapter, experts), (coefficient, _, choices, _) in self.pools.items():
            total = sum(pool[3] for (name, _), pool in self.pools.items() if name == adapter)
            total = max(total, 1) if isinstance(total, int) else total.clamp(min=1)
            tokens = self.pools[adapter, experts][3]
            tokens = max(tokens, 1) if isinstance(tokens, int) else tokens.clamp(min=1)
            slope = coefficient * experts * choices / tokens / total
            found |= {(name, adapter, experts): slope for name, of in self.detached if of == adapter}
        return found

    def loss(self) -> Tensor | None:
        """`coefficient * E * sum_i f_i P_i`, a scalar; None where nothing was counted."""
        losses = []
        for (adapter, experts), (coefficient, probabilities, choices, tokens) in self.pools.items():
            total = sum(pool[3] for (name, _), pool in self.pools.items() if name == adapter)
            at_least_one = max(tokens, 1) if isinstance(tokens, int) else tokens.clamp(min=1)
            share = tokens / (max(total, 1) if isinstance(total, int) else total.clamp(min=1))
            f, P = choices / at_least_one, probabilities / at_least_one
            losses.append(coefficient * share * experts * (f * P).sum())
        return torch.stack([loss.to(losses[0].device) for loss in losses]).sum() if losses else None
