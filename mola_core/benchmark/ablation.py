"""What each part of the adapter costs or saves in a training step: the step with it against the step without."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from torch import Tensor, nn
from torch.nn import functional as F

from mola_core.adapter import experts
from mola_core.benchmark.steps import BATCH, LENGTH, SHAPE, adapted, step
from mola_core.benchmark.timing import Row, device, in_turn, ratio
from mola_core.models.loading import load_model

PAYS = 1.05
"""A part that makes the code harder to read must save at least 5 % of a step."""


def ablation(model_folder: Path, repeats: int, dtype: str) -> list[Row]:
    """Rows of the prepared model, shape 2468, seven modules."""
    return rows(load_model(model_folder, dtype=dtype).to(device()), repeats, dtype)


def rows(base: nn.Module, repeats: int, dtype: str) -> list[Row]:
    """Rows of any base model."""
    method = f"mola-{SHAPE}"
    balanced = adapted(base, method, 0.0)
    for config in balanced.peft_config.values():
        config.router_aux_loss_coef = 0.001
    with_dropout = step(adapted(base, method, 0.05))
    variants: dict[str, Callable[[], object]] = {
        "drawn positions": with_dropout,
        "torch's dropout": _with(_torch_dropout, with_dropout),
        "no dropout": step(adapted(base, method, 0.0)),
        "balance loss": step(balanced),
    }
    on_cpu = device().type == "cpu"
    seconds = in_turn(variants, repeats)
    where = f"{BATCH} x {LENGTH} tokens, {dtype}"
    medians = ", ".join(f"{name} {statistics.median(times):.3f} s" for name, times in seconds.items())
    return [
        Row(
            "ablation",
            f"dropout as torch draws it / by positions (a CPU's), {where}",
            ratio(seconds, "torch's dropout", "drawn positions"),
            PAYS if on_cpu else None,
            at_most=False,
            note=medians,
        ),
        Row(
            "ablation",
            f"dropout 0.05, which copies the input / no dropout, {where}",
            ratio(seconds, "drawn positions", "no dropout"),
            None,
        ),
        Row(
            "ablation", f"balance loss / without, {where}", ratio(seconds, "balance loss", "no dropout"), None
        ),
    ]


def _with(
    drop: Callable[[Tensor, float], tuple[Tensor, float]], call: Callable[[], object]
) -> Callable[[], object]:
    def changed() -> object:
        with mock.patch.object(experts, "drop", drop):
            return call()

    return changed


def _torch_dropout(x: Tensor, probability: float) -> tuple[Tensor, float]:
    return F.dropout(x, probability), 1.0
