"""What a training step costs: MoLA against LoRA, the released loop and the frozen base; the layer alone; memory."""

from __future__ import annotations

import copy
import multiprocessing
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mola_core.benchmark.loop import as_released
from mola_core.benchmark.timing import Row, device, in_turn, ratio
from mola_core.methods.registry import adapter_config
from mola_core.methods.settings import SEVEN_MODULES, AdapterSettings, MethodSettings
from mola_core.models.building import build, check_built, resolved
from mola_core.models.loading import load_model, module_dimensions
from mola_core.models.precision import Precision, autocast
from mola_core.shapes import experts_per_layer, lora_parameters, mola_parameters

SHAPE = "2468"
BATCH, LENGTH, KEPT = 8, 96, 2
"""Documents, tokens a document, and positions whose logits are computed (answers of one token)."""


def steps(model_folder: Path, repeats: int, dtype: str) -> list[Row]:
    """Training steps of SmolLM2 or any other prepared model, shape 2468, seven modules."""
    rows = []
    base = load_model(model_folder, dtype=dtype).to(device())
    for dropout, goal in ((0.05, 0.90), (0.0, 1.02)):
        variants: dict[str, Callable[[], object]] = {
            "mola": step(adapted(base, f"mola-{SHAPE}", dropout)),
            "lora": step(adapted(base, f"lora-r{equal_rank(base)}", dropout)),
            "floor": floor(copy.deepcopy(base)),
        }
        if dropout:
            variants["loop"] = step(as_released(adapted(base, f"mola-{SHAPE}", dropout)))
            checkpointed = adapted(base, f"mola-{SHAPE}", dropout)
            checkpointed.enable_input_require_grads()
            checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
            variants["checkpointed"] = step(checkpointed)
        seconds = in_turn(variants, repeats)
        where = f"{BATCH} x {LENGTH} tokens, {dtype}, dropout {dropout:g}"
        medians = ", ".join(f"{name} {statistics.median(times):.3f} s" for name, times in seconds.items())
        rows.append(
            Row(
                "step",
                f"MoLA / LoRA of equal size, {where}",
                ratio(seconds, "mola", "lora"),
                goal,
                note=medians,
            )
        )
        if dropout:
            rows.append(
                Row("step", f"released loop / MoLA, {where}", ratio(seconds, "loop", "mola"), 2.5, False)
            )
            slower = ratio(seconds, "checkpointed", "mola")
            rows.append(Row("step", f"MoLA with gradient checkpointing / without, {where}", slower, None))
        rows.append(
            Row(
                "step",
                f"MoLA / frozen base forward and backward, {where}",
                ratio(seconds, "mola", "floor"),
                1.25,
            )
        )
    return rows


def equal_rank(base: nn.Module) -> int:
    """Rank of the plain LoRA whose trainable parameters are nearest to those of shape 2468."""
    depth, modules = module_dimensions(base.config, SEVEN_MODULES)
    mola = mola_parameters(experts_per_layer(SHAPE, depth), modules, AdapterSettings().rank)
    return round(mola / lora_parameters([1] * depth, modules))


def layers(repeats: int, dtype: str) -> list[Row]:
    """The adapted layer alone on LLaMA-2-7B's sizes: 8 experts of rank 8 against LoRA of rank 64."""
    rows = []
    for d_in, d_out in ((4096, 4096), (4096, 11008)):
        x = torch.randn(1, 2048, d_in, dtype=getattr(torch, dtype), device=device())
        variants = {}
        for name in ("mola-8888", "lora-r64"):
            block = _Blocks(d_in, d_out).to(device(), getattr(torch, dtype))
            variants[name] = _layer_pass(adapted(block, name, 0.05, ["linear"]), x)
        seconds = in_turn(variants, repeats)
        what = f"layer {d_in} -> {d_out}, 2,048 tokens, 8 experts: MoLA / LoRA r=64, {dtype}"
        rows.append(Row("layer", what, ratio(seconds, "mola-8888", "lora-r64"), 1.10))
    return rows


def memory(model_folder: Path, dtype: str) -> list[Row]:
    """Peak memory of a training process, each in a fresh process (resident on the CPU, allocated on a GPU)."""
    peaks = {}
    base = load_model(model_folder, dtype=dtype)
    rank = equal_rank(base)
    del base
    for name in (f"mola-{SHAPE}", f"lora-r{rank}"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[name] = pool.apply(_peak, (model_folder, name, dtype))
    mola, lora = peaks.values()
    note = ", ".join(f"{name} {peak / 2**30:.2f} GiB" for name, peak in peaks.items())
    return [
        Row(
            "memory",
            f"peak of training, MoLA / LoRA, {BATCH} x {LENGTH} tokens, {dtype}",
            mola / lora,
            1.05,
            note=note,
        )
    ]


def _peak(model_folder: Path, method: str, dtype: str) -> int:
    from mola_core.models.memory import peak_memory

    call = step(adapted(load_model(model_folder, dtype=dtype).to(device()), method, 0.05))
    for _ in range(2):
        call()
    return peak_memory()


class _Blocks(nn.Module):
    """Four blocks of one linear layer, so that shapes fit; only the last is run."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"linear": nn.Linear(1, 1)}) for _ in range(3))
        self.layers.append(nn.ModuleDict({"linear": nn.Linear(d_in, d_out, bias=False)}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[-1]["linear"](x)


def adapted(base: nn.Module, method: str, dropout: float, modules: list[str] | None = None) -> nn.Module:
    from peft import inject_adapter_in_model

    settings = AdapterSettings(dropout=dropout, target_modules=modules or SEVEN_MODULES)
    torch.manual_seed(0)
    model = copy.deepcopy(base)
    depth = 4 if modules else base.config.get_text_config().num_hidden_layers
    config = adapter_config(MethodSettings(method=method), settings, depth)
    assert config is not None, "an adapter is benchmarked"
    if not modules:
        return build(model, config).train()
    model = inject_adapter_in_model(resolved(model, config), model)
    check_built(model, config)
    return model.train()


def _batch(vocabulary: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (BATCH, LENGTH), generator=generator).to(device())
    return {"input_ids": ids, "labels": ids[:, -KEPT:], "logits_to_keep": KEPT}


def step(
    model: nn.Module, batch: dict[str, Any] | None = None, precision: Precision = "fp32"
) -> Callable[[], object]:
    """One optimiser step on `batch` (default: random tokens): forward (in `precision`), backward, AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    batch = batch or _batch(model.config.vocab_size)
    batch = {name: value.to(device()) if hasattr(value, "to") else value for name, value in batch.items()}

    def one() -> None:
        with autocast(device().type, precision):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return one


def floor(base: nn.Module, precision: Precision = "fp32") -> Callable[[], object]:
    """Forward and backward of the frozen base with inputs that require a gradient: no adapter can cost less."""
    base.requires_grad_(False).train()
    batch = _batch(base.config.vocab_size)
    embedded = base.get_input_embeddings()(batch.pop("input_ids")).detach()

    def step() -> None:
        with autocast(device().type, precision):
            loss = base(inputs_embeds=embedded.requires_grad_(True), **batch, use_cache=False).loss
        loss.backward()
        embedded.grad = None

    return step


def _layer_pass(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    gradient = torch.ones((), dtype=x.dtype, device=x.device)

    def step() -> None:
        y = model(x.requires_grad_(True))
        y.backward(gradient.expand_as(y))
        model.zero_grad()
        x.grad = None

    return step
