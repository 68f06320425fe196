"""What kernels and mixed precision bring: training steps and evaluation as PyTorch does them by default, and as studies do."""

from __future__ import annotations

import contextlib
import copy
import statistics
from collections.abc import Callable
from pathlib import Path

from mola_core.benchmark.steps import BATCH, LENGTH, SHAPE, adapted, equal_rank, floor, step
from mola_core.benchmark.timing import Row, device, in_turn, ratio
from mola_core.models.kernels import DEFAULT, attention_heads, choose, follow, linear_sizes
from mola_core.models.loading import load_model
from mola_core.models.precision import Precision, computed_in, frozen_in
from mola_core.runs.cell import CellRunner
from mola_core.runs.layout import Layout

DROPOUT = 0.05
DOCUMENTS = 32


def precision(model_folder: Path, repeats: int) -> list[Row]:
    """Training steps of shape 2468 in float32 and bf16, against PyTorch's default, plain LoRA and the frozen base."""
    base = load_model(model_folder).to(device())
    chosen = choose("auto", linear_sizes(base), attention_heads(base))
    measured: list[tuple[str, str | None, Precision, dict]] = [
        ("default", f"mola-{SHAPE}", "fp32", DEFAULT),
        ("fp32", f"mola-{SHAPE}", "fp32", chosen),
        ("bf16", f"mola-{SHAPE}", "bf16", chosen),
        ("lora", f"lora-r{equal_rank(base)}", "bf16", chosen),
        ("floor", None, "bf16", chosen),
    ]
    variants: dict[str, Callable[[], object]] = {}
    with contextlib.ExitStack() as held:
        for name, method, kind, kernels in measured:
            model = adapted(base, method, DROPOUT) if method else copy.deepcopy(base)
            call = step(model, precision=kind) if method else floor(model, kind)
            held.enter_context(frozen_in(model, kind))
            variants[name] = _after(follow, kernels, call)
        seconds = in_turn(variants, repeats)
    medians = ", ".join(f"{name} {statistics.median(times):.3f} s" for name, times in seconds.items())
    where = f"{BATCH} x {LENGTH} tokens, dropout {DROPOUT:g}"
    return [
        Row("precision", f"training step, float32 with the chosen kernels / by default, {where}", ratio(seconds, "fp32", "default"), 0.60, note=medians),
        Row("precision", f"training step, bf16 / float32 by default, {where}", ratio(seconds, "bf16", "default"), 0.34),
        Row("precision", f"MoLA / LoRA of equal size, bf16, {where}", ratio(seconds, "bf16", "lora"), 0.72),
        Row("precision", f"MoLA / frozen base forward and backward, bf16, {where}", ratio(seconds, "bf16", "floor"), 1.35),
    ]  # fmt: skip


def evaluation(layout: Layout, repeats: int) -> list[Row]:
    """Documents a second of the first task, shape 2468, against PyTorch's default."""
    from lm_eval import evaluator

    from mola_core.evaluation.harness import AnswerLM

    bench = CellRunner(layout)
    name = layout.study.tasks[0]
    task = bench._task(name, False)
    model = adapted(bench.base.model, f"mola-{SHAPE}", 0.0).requires_grad_(False).eval()
    chosen = choose("auto", linear_sizes(bench.base.model), attention_heads(bench.base.model))
    reader = AnswerLM(pretrained=model, tokenizer=bench.base.tokenizer, batch_size=16, device=str(device()))

    def evaluate(kind: Precision) -> Callable[[], object]:
        def call() -> None:
            with computed_in(model, kind):
                evaluator.evaluate(reader, {name: task}, limit=DOCUMENTS, bootstrap_iters=0)

        return call

    seconds = in_turn(
        {
            "default": _after(follow, DEFAULT, evaluate("fp32")),
            "fp32": _after(follow, chosen, evaluate("fp32")),
            "bf16": _after(follow, chosen, evaluate("bf16")),
        },
        repeats,
    )
    what = f"documents/s of {name}, mola-{SHAPE}"
    return [
        Row("precision", f"{what}, float32 with the chosen kernels / by default", ratio(seconds, "default", "fp32"), None, False),
        Row("precision", f"{what}, bf16 / float32 by default", ratio(seconds, "default", "bf16"), 2.2, False),
    ]  # fmt: skip


def _after(first: Callable[[dict], object], record: dict, call: Callable[[], object]) -> Callable[[], object]:
    def both() -> None:
        first(record)
        call()

    return both
