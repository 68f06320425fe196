"""Kernels on a CPU: which library computes float32 products, measured at the start of a process and recorded.

PyTorch's CPU build carries two, MKL (its default) and oneDNN. On AMD processors MKL leaves AVX-512 unused, and oneDNN is
twice as fast. PyTorch hands float32 products to oneDNN only where reduced precision is allowed to it
(`torch.set_float32_matmul_precision("medium")`): oneDNN then computes in float32 on processors with AVX-512, but in bfloat16
on those with AMX. So its error is measured too, and a kernel that loses accuracy is never chosen by `auto`.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional as F

from mola_core.models import attention

Setting = Literal["auto", "default", "onednn"]
MAX_ERROR = 2e-6
"""Largest error of a float32 product against float64, as a share of the largest entry. Float32's own is 3e-7 to 1e-6,
that of bfloat16 products 1e-3."""
MIN_GAIN = 0.8
"""Share of the default's time below which another kernel is chosen. Kernels differ by a factor or not at all; the room
between keeps a process from choosing otherwise than the one before it on the same machine."""
ROWS, MAX_WIDTH = 256, 512
"""Tokens, and columns at most, of a product that is measured."""
MIN_WORK = 10_000_000
"""Multiplications of a product below which nothing is measured: it would be noise, and nothing is to be gained."""
REPEATS = 5

_PRECISION = {"default": "highest", "onednn": "medium"}
DEFAULT = {"setting": "default", "matmul": "default", "attention": "fused"}
"""What is recorded of PyTorch's own choice."""
_chosen: dict[str, Any] = {}


def choose(
    setting: Setting, sizes: Counter[tuple[int, int]], heads: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Set the kernels of this process's float32 products and attention on a CPU, and return what `kernels` then records.

    `sizes` are (d_in, d_out) of the model's linear modules and how many there are of each. With `auto` the fastest is
    taken of those whose error is at most `MAX_ERROR` in every size measured; `onednn` is taken as it is, with its error
    recorded. `heads` are their number and width. On a GPU nothing is changed.
    """
    if torch.cuda.is_available():
        return _keep({"setting": setting, "matmul": "default"})
    largest = [(d_in, min(d_out, MAX_WIDTH)) for (d_in, d_out), _ in sizes.most_common()]
    largest = [size for size in dict.fromkeys(largest) if ROWS * size[0] * size[1] >= MIN_WORK]
    # By share of the model's work; three sizes are most of it in any transformer.
    measured = measure(largest[:3]) if largest and setting != "default" else {}
    matmul = fastest(measured) if setting == "auto" else setting
    torch.set_float32_matmul_precision(_PRECISION[matmul])
    record = {"setting": setting, "matmul": matmul, "attention": "fused"}
    if measured and heads and matmul == "onednn":
        found = attention.measure(*heads)
        record["attention"] = "products" if _better(found["products"], found["fused"]) else "fused"
        measured |= {f"attention, {name}": entry for name, entry in found.items()}
    attention.install(record["attention"])
    return _keep(record | ({"measured": measured} if measured else {}))


def follow(record: dict[str, Any]) -> None:
    """Take the kernels that another process chose."""
    if not torch.cuda.is_available():
        torch.set_float32_matmul_precision(_PRECISION[record["matmul"]])
        attention.install(record["attention"])
    _keep(record)


def kernels() -> dict[str, Any]:
    """What computes in this process: CPU, its capability as PyTorch uses it, kernel, and the measurement behind it."""
    return {"cpu": cpu_name(), "capability": torch.backends.cpu.get_cpu_capability(), **_chosen}


def fastest(measured: dict[str, dict[str, float]]) -> str:
    """The kernel to take: oneDNN where it is clearly faster and accurate to float32."""
    if not measured:
        return "default"
    return "onednn" if _better(measured["onednn"], measured["default"]) else "default"


def _better(one: dict[str, float], other: dict[str, float]) -> bool:
    return one["error"] <= MAX_ERROR and one["milliseconds"] <= MIN_GAIN * other["milliseconds"]


def measure(sizes: Sequence[tuple[int, int]]) -> dict[str, dict[str, float]]:
    """Milliseconds and error of each kernel, and of bfloat16 products, over forward and input gradient of `sizes`.

    Milliseconds are the sum over sizes of median CPU time; the error is the largest. Leaves the generators of random
    numbers and the precision that was set as they are.
    """
    before = torch.get_float32_matmul_precision()
    found: dict[str, list[tuple[float, float]]] = {"default": [], "onednn": [], "bf16": []}
    try:
        for d_in, d_out in sizes:
            generator = torch.Generator().manual_seed(0)
            x, w, y = (
                torch.randn(*shape, generator=generator)
                for shape in ((ROWS, d_in), (d_out, d_in), (ROWS, d_out))
            )
            for left, right in ((x, w), (y, w.T.contiguous())):
                exact = F.linear(left.double(), right.double())
                for name, result in _in_turn(left, right).items():
                    error = (result[1].double() - exact).abs().max() / exact.abs().max()
                    found[name].append((result[0], float(error)))
    finally:
        torch.set_float32_matmul_precision(before)
    return {
        name: {
            "milliseconds": round(1000 * sum(seconds for seconds, _ in results), 3),
            "error": float(f"{max(error for _, error in results):.3g}"),
        }
        for name, results in found.items()
    }


def _in_turn(left: torch.Tensor, right: torch.Tensor) -> dict[str, tuple[float, torch.Tensor]]:
    """Median CPU seconds and result of each kernel, the kernels in turn."""

    def float32(kernel: str) -> Callable[[], torch.Tensor]:
        def product() -> torch.Tensor:
            torch.set_float32_matmul_precision(_PRECISION[kernel])
            return F.linear(left, right)

        return product

    lower = left.bfloat16(), right.bfloat16()
    calls = {
        "default": float32("default"),
        "onednn": float32("onednn"),
        "bf16": lambda: F.linear(*lower),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, torch.Tensor] = {}
    for turn in range(REPEATS + 1):
        for name, call in calls.items():
            started = time.process_time()
            results[name] = call()
            if turn:  # the first call builds the kernel
                seconds[name].append(time.process_time() - started)
    return {name: (statistics.median(seconds[name]), results[name]) for name in calls}


def attention_heads(model: Any) -> tuple[int, int] | None:
    """Number and width of the model's attention heads; None where it has none (Mamba, RWKV)."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return None
    heads = int(heads)
    return heads, int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def linear_sizes(model: torch.nn.Module) -> Counter[tuple[int, int]]:
    """(d_in, d_out) of the model's linear modules, counted."""
    return Counter(
        (module.in_features, module.out_features)
        for module in model.modules()
        if type(module) is torch.nn.Linear
    )


def tell_slow_bf16(precision: str) -> None:
    """Say on standard error where bfloat16, which a study asks for, is slower on this CPU than float32."""
    measured = _chosen.get("measured")
    if precision != "bf16" or not measured:
        return
    ours = measured[_chosen["matmul"]]["milliseconds"]
    if measured["bf16"]["milliseconds"] > ours:
        slower = measured["bf16"]["milliseconds"] / ours
        print(
            f"precision bf16: {slower:.1f} times as slow as fp32 on this CPU, which has no instructions for it",
            file=sys.stderr,
            flush=True,
        )


def cpu_name() -> str:
    """The processor's name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _keep(record: dict[str, Any]) -> dict[str, Any]:
    _chosen.clear()
    _chosen.update(record)
    return dict(_chosen)
