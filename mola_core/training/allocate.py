"""What data say of a base model's layers, measured on the spot, and the experts that an allocation makes of it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mola_core.files import read_json, write_json
from mola_core.methods.allocation import (
    Allocation,
    AllocationInput,
    alphalora,
    checked,
    fisher,
    random_experts,
    sensitivity,
    total_experts,
)
from mola_core.methods.registry import all_families
from mola_core.models.layer_quality import layer_quality, layer_scores
from mola_core.module_names import is_named, place_of
from mola_core.training.batches import first_micro_batches

if TYPE_CHECKING:
    from mola_core.methods.family import Method
    from mola_core.methods.settings import AdapterSettings
    from mola_core.models.base import Base
    from mola_core.models.tokens import Encoded
    from mola_core.study.sections import TrainingSettings

PROBE_BATCHES = 4
"""Micro-batches whose gradients `sensitivity` and `fisher` take."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """What an allocation makes of the loss gradient's squared norms."""

    file: str
    """Name of the file that keeps the layers' scores."""
    one_by_one: bool
    """Whether each document is a batch of its own."""
    score: Callable[[np.ndarray], np.ndarray]
    """From squared norms (batches, layers) to scores (layers,)."""
    experts: Callable[[Sequence[float], int, int], Allocation]


MEASURES = {
    "sensitivity": Measure(
        "gradient_norms", False, lambda squares: np.sqrt(squares).mean(axis=0), sensitivity
    ),
    "fisher": Measure("fisher_traces", True, lambda squares: squares.mean(axis=0), fisher),
}
"""`sensitivity`: the Frobenius norm of the gradient by a layer's adapted base weights, together, averaged over
micro-batches. `fisher`: the trace of their empirical Fisher information, the mean over documents of the squared norm of
each one's gradient, which is its variance where the mean gradient is small beside it."""


def gradient_scores(
    allocation: str,
    base: Any,
    target_modules: Sequence[str],
    documents: Sequence[Encoded],
    settings: TrainingSettings,
    pad: int,
    seed: int,
) -> list[float]:
    """What `MEASURES[allocation]` gives each layer, on the documents of the first `PROBE_BATCHES` micro-batches that
    training with `seed` would see."""
    measure, micro_batch = MEASURES[allocation], settings.micro_batch_size
    size, count = (1, PROBE_BATCHES * micro_batch) if measure.one_by_one else (micro_batch, PROBE_BATCHES)
    batches = first_micro_batches(documents, settings.batch_size, size, seed, pad, settings.loss_on, count)
    return measure.score(_squared_gradients(base, target_modules, batches)).tolist()


def _squared_gradients(
    base: Any, target_modules: Sequence[str], batches: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """Squared Frobenius norms of the loss gradient by the adapted base weights: (batches, layers).

    No weight gets a gradient: for `y = W x` over the tokens t of a batch, `|dL/dW|^2 = sum_{s,t} (dy_s . dy_t)
    (x_s . x_t)` (the ghost norm of Li et al., ICLR 2022), which needs no memory for gradients and also works on
    quantised weights.
    """
    depth = base.config.get_text_config().num_hidden_layers
    squares: dict[int, torch.Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
    modules = _adapted(base, target_modules)
    unfrozen = [parameter for parameter in base.parameters() if parameter.requires_grad]
    handles = [module.register_forward_hook(_ghost_norm(layer, squares)) for layer, module in modules]
    # The weights need no gradient, so the graph starts at the embeddings.
    handles.append(base.get_input_embeddings().register_forward_hook(_require_grad))
    found = np.zeros((len(batches), depth))
    training = base.training
    base.eval()
    try:
        for parameter in unfrozen:
            parameter.requires_grad_(False)
        for row, batch in zip(found, batches, strict=True):
            squares.clear()
            inputs = {k: v.to(base.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            base(**inputs, use_cache=False).loss.backward()
            row[:] = [max(0.0, float(squares[layer])) for layer in range(depth)]
    finally:
        for handle in handles:
            handle.remove()
        for parameter in unfrozen:
            parameter.requires_grad_(True)
        base.train(training)
    return found


def _adapted(base: Any, target_modules: Sequence[str]) -> list[tuple[int, Any]]:
    """(layer, module) of each module that the adapter will adapt."""
    found = []
    for name, module in base.named_modules():
        place = place_of(name)
        if place and any(is_named(name, target) for target in target_modules):
            found.append((place[0], module))
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
    method: Method,
    adapter: AdapterSettings,
    base: Base,
    documents: Sequence[Encoded],
    settings: TrainingSettings,
    seed: int,
    quality: Path,
    scratch: Path,
) -> Allocation:
    """The experts of each layer that `method`, which has an allocation, gets on this base model and these documents.

    `quality` is the file of the layers' scores; `seed` the training's. What gradients say is kept in `scratch`, so that a
    training that goes on from a checkpoint there has the experts that it began with. Raises ValueError where the
    budget is too small.
    """
    assert method.budget is not None
    depth = base.model.config.get_text_config().num_hidden_layers
    if method.allocation == "random":
        assert method.draw is not None
        experts = random_experts(method.budget, method.draw, depth, adapter.top_k)
        return Allocation(experts, [float(n) for n in experts], f"drawn with seed {method.draw}")
    if method.allocation == "alphalora":
        return alphalora(layer_scores(layer_quality(base.folder, quality)), method.budget, adapter.top_k)
    pad = base.tokenizer.pad_token_id
    others = all_families()[method.kind].allocate
    if others is not None:
        sizes = settings.batch_size, settings.micro_batch_size
        batches = first_micro_batches(documents, *sizes, seed, pad, settings.loss_on, PROBE_BATCHES)
        total = total_experts(method.budget, depth)
        given = AllocationInput(base.model, adapter.target_modules, batches, total, adapter.top_k)
        experts = _kept(scratch / "experts.json", lambda: checked(others(given), depth, total, adapter.top_k))
        return Allocation(experts, [float(n) for n in experts], f"{method.kind}, another package's")
    name, targets = str(method.allocation), adapter.target_modules
    measure = MEASURES[name]
    scores = _kept(
        scratch / f"{measure.file}.json",
        lambda: gradient_scores(name, base.model, targets, documents, settings, pad, seed),
    )
    return measure.experts(scores, method.budget, adapter.top_k)


def _kept(file: Path, compute: Callable[[], Any]) -> Any:
    """What a file keeps of an earlier start of the training, or what is computed now."""
    if not file.is_file():
        write_json(file, compute())
    return read_json(file)
