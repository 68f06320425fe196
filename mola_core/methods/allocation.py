"""Experts per layer chosen by data instead of by a shape, at exactly a shape's budget.

| method                  | experts in proportion to                                                               |
| ----------------------- | -------------------------------------------------------------------------------------- |
| `alphalora-<budget>`    | PL_Alpha_Hill of the layer's base weights to the power 2.5 (AlphaLoRA, EMNLP 2024)     |
| `sensitivity-<budget>`  | the gradient of the base weights that are adapted, on the cell's first training batches |
| `random-<budget>-<n>`   | four numbers drawn with seed n, one a quarter of the depth: a control, and a point      |
|                         | for the depth slope                                                                    |

A budget b is b/4 experts a layer on average, as the sum over the quarters of a shape; every layer has at least top-k.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mola_core.errors import MolaError
from mola_core.files import read_json, write_json
from mola_core.methods.registry import Method
from mola_core.shapes import quarters

if TYPE_CHECKING:
    import torch

    from mola_core.study.sections import TrainingSettings
    from mola_core.training.batches import Encoded

BETA = 2.5
"""AlphaLoRA's exponent: the default of its released code."""
PROBE_BATCHES = 4
"""Micro-batches whose gradients `sensitivity` takes."""


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Experts of each layer and the scores that they are in proportion to, first layer first."""

    experts: list[int]
    scores: list[float]
    score: str
    """What the scores are, in words."""


def total_experts(budget: int, depth: int) -> int:
    """Experts of all layers together: budget / 4 a layer, rounded half up."""
    return math.floor(budget * depth / 4 + 0.5)


def apportion(scores: Sequence[float], total: int, least: int) -> list[int]:
    """`total` experts over the layers in proportion to their scores, at least `least` each.

    A layer whose share is below `least` gets `least`, and the others share the rest; fractions go by largest
    remainder, equal ones to the lower layer first. Raises ValueError where `total` is too small or a score is not a
    number above zero.
    """
    if not all(math.isfinite(score) and score >= 0 for score in scores) or not any(scores):
        raise ValueError("the layers' scores must be numbers of at least zero, not all zero")
    if total < least * len(scores):
        raise ValueError(
            f"{total} experts are fewer than {least} for each of {len(scores)} layers; raise the budget or lower top_k"
        )
    weights = np.asarray(scores, dtype=float)
    fixed = np.zeros(len(weights), dtype=bool)
    while True:
        rest = total - least * int(fixed.sum())
        share = weights[~fixed].sum()
        quotas = np.where(
            fixed, least, weights * rest / share if share > 0 else rest / max(1, (~fixed).sum())
        )
        below = quotas < least
        if not below.any():
            break
        fixed |= below
    experts = np.floor(quotas + 1e-9).astype(int)
    remainders = quotas - experts
    # Stable, so that equal remainders go to the lower layer first.
    order = np.argsort(-np.round(remainders, 9), kind="stable")
    experts[order[: total - int(experts.sum())]] += 1
    return experts.tolist()


def random_experts(budget: int, draw: int, depth: int, least: int) -> list[int]:
    """Experts of each layer at `budget`, drawn with seed `draw`.

    The quarters' weights are uniform on the simplex, so that draws differ in their centre of depth, which draws layer
    by layer would not. The middle layer of an odd depth belongs to the second quarter.
    """
    first, second, third, fourth = np.random.default_rng(draw).dirichlet(np.ones(4))
    a, b, c, d = quarters(depth)
    scores = [first] * a + [second] * (b + depth % 2) + [third] * c + [fourth] * d
    return apportion(scores, total_experts(budget, depth), least)


def alphalora(qualities: Sequence[float], budget: int, least: int) -> Allocation:
    """AlphaLoRA: experts in proportion to `PL_Alpha_Hill ** 2.5` of each layer.

    Qing et al., "AlphaLoRA: Assigning LoRA Experts Based on Layer Training Quality", EMNLP 2024, with the exponent of
    their code. That rounds each share and then moves single experts; here it is the largest remainder. Their code lets
    a layer have one expert, with top-1 there.
    """
    scores = [quality**BETA for quality in qualities]
    experts = apportion(scores, total_experts(budget, len(scores)), least)
    return Allocation(experts, list(qualities), f"PL_Alpha_Hill (fitted tail), to the power {BETA}")


def sensitivity(norms: Sequence[float], budget: int, least: int) -> Allocation:
    """Experts in proportion to the gradient norms of `gradient_norms`."""
    experts = apportion(norms, total_experts(budget, len(norms)), least)
    return Allocation(experts, list(norms), "gradient norm of the adapted base weights")


def gradient_norms(
    base: Any,
    target_modules: Sequence[str],
    documents: Sequence[Encoded],
    settings: TrainingSettings,
    pad: int,
    seed: int,
) -> list[float]:
    """Frobenius norm of the loss gradient by a layer's adapted base weights, together, averaged over batches.

    The batches are the first `PROBE_BATCHES` micro-batches that training with `seed` would see. No weight gets a
    gradient: for `y = W x` over the tokens t of a batch, `|dL/dW|^2 = sum_{s,t} (dy_s . dy_t) (x_s . x_t)` (the ghost
    norm of Li et al., ICLR 2022), which needs no memory for gradients and also works on quantised weights.
    """
    import torch

    from mola_core.training.batches import Collator, LengthGrouped

    order = list(LengthGrouped([len(d.tokens) for d in documents], settings.batch_size, seed))
    size = settings.micro_batch_size
    batches = [order[i : i + size] for i in range(0, min(len(order), PROBE_BATCHES * size), size)]
    collate = Collator(pad, settings.loss_on)
    depth = base.config.get_text_config().num_hidden_layers
    squares: dict[int, torch.Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
    modules = _adapted(base, target_modules)
    unfrozen = [parameter for parameter in base.parameters() if parameter.requires_grad]
    handles = [module.register_forward_hook(_ghost_norm(layer, squares)) for layer, module in modules]
    # The weights need no gradient, so the graph starts at the embeddings.
    handles.append(base.get_input_embeddings().register_forward_hook(_require_grad))
    norms = np.zeros(depth)
    training = base.training
    base.eval()
    try:
        for parameter in unfrozen:
            parameter.requires_grad_(False)
        for batch in batches:
            squares.clear()
            inputs = collate([documents[index] for index in batch])
            inputs = {k: v.to(base.device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            base(**inputs, use_cache=False).loss.backward()
            norms += [math.sqrt(max(0.0, float(squares[layer]))) for layer in range(depth)]
    finally:
        for handle in handles:
            handle.remove()
        for parameter in unfrozen:
            parameter.requires_grad_(True)
        base.train(training)
    return (norms / len(batches)).tolist()


def _adapted(base: Any, target_modules: Sequence[str]) -> list[tuple[int, Any]]:
    """(layer, module) of each module that the adapter will adapt."""
    found = []
    for name, module in base.named_modules():
        place = re.search(r"\.(\d+)\.", name)
        if place and any(name == target or name.endswith(f".{target}") for target in target_modules):
            found.append((int(place[1]), module))
    return found


def _require_grad(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_(True)


def _ghost_norm(layer: int, squares: dict[int, torch.Tensor]) -> Any:
    def forward(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0].detach().flatten(0, -2).float()

        def backward(gradient: torch.Tensor) -> None:
            dy = gradient.flatten(0, -2).float()
            squares[layer] = squares[layer] + ((dy @ dy.T) * (x @ x.T)).sum().double().cpu()

        output.register_hook(backward)

    return forward


def allocate(
    bench: Any, cell: Any, documents: Sequence[Encoded], settings: TrainingSettings, scratch: Path
) -> Allocation | None:
    """The allocation of a cell whose method has one, None for other methods.

    `bench` is the cell's `Workbench`. A sensitivity is kept in `scratch`, so that a training that goes on from a
    checkpoint there has the experts that it began with. Raises `MolaError` where the budget is too small.
    """
    from mola_core.methods.registry import parse_method
    from mola_core.models.layer_quality import layer_quality, layer_scores

    study = bench.study
    own = study.method_by_label[cell.method]
    method: Method = parse_method(own)
    if method.allocation is None:
        return None
    assert method.budget is not None
    adapter = own.adapter(study.adapter)
    depth = bench.base.config.get_text_config().num_hidden_layers
    try:
        if method.allocation == "random":
            assert method.draw is not None
            experts = random_experts(method.budget, method.draw, depth, adapter.top_k)
            return Allocation(experts, [float(n) for n in experts], f"drawn with seed {method.draw}")
        if method.allocation == "alphalora":
            frame = layer_quality(bench.layout.model, bench.layout.quality)
            return alphalora(layer_scores(frame), method.budget, adapter.top_k)
        kept = scratch / "gradient_norms.json"
        if kept.is_file():
            norms = read_json(kept)
        else:
            pad = bench.tokenizer.pad_token_id
            seed = bench.study.training_seed(cell)
            norms = gradient_norms(bench.base, adapter.target_modules, documents, settings, pad, seed)
            write_json(kept, norms)
        return sensitivity(norms, method.budget, adapter.top_k)
    except ValueError as error:
        raise MolaError(f"method {cell.method}: {error}") from None
