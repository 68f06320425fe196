"""How many experts, of which rank, an adapter has in each module: resolved from its config, counted, read back."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .config import MolaConfig


def block_of(model: nn.Module, name: str) -> tuple[str, int | None, int | None]:
    """The layer of `model` that holds module `name`: its name, index and the number of layers in its stack.

    The layers are the entries of the outermost `ModuleList` on the way to the module. A module outside of any is a
    layer of its own, with neither index nor stack.
    """
    parts = name.split(".")
    for end in range(len(parts)):
        blocks = model.get_submodule(".".join(parts[:end]))
        if isinstance(blocks, nn.ModuleList):
            return ".".join(parts[: end + 1]), int(parts[end]), len(blocks)
    return name, None, None


def experts_and_rank(config: MolaConfig, name: str, layer: int | None, layers: int | None) -> tuple[int, int]:
    """Number of experts and rank of each, of module `name` in layer `layer` of `layers`.

    Raises ValueError where the config has no entry for it.
    """
    experts = config.num_experts
    if isinstance(experts, dict):
        keys = [key for key in experts if name == key or name.endswith(f".{key}")]
        if not keys:
            raise ValueError(
                f"num_experts has no entry for target module {name}: its names are {', '.join(experts)}"
            )
        experts = experts[max(keys, key=len)]
    return _entry(experts, "num_experts", name, layer, layers), _entry(config.r, "r", name, layer, layers)


def _entry(value: int | list[int], what: str, name: str, layer: int | None, layers: int | None) -> int:
    if isinstance(value, int):
        return value
    if layer is None:
        raise ValueError(
            f"target module {name} is in no layer of the model, so {what} has no entry for it: "
            f"leave it out of target_modules or give {what} as a single number"
        )
    if len(value) != layers:
        raise ValueError(
            f"{what} has {len(value)} entries, the model has {layers} layers: give one number for each layer"
        )
    return value[layer]


def count_parameters(config: MolaConfig, modules: Mapping[str, tuple[int, int]], layers: int) -> int:
    """Trainable parameters of an adapter, in closed form: `sum over layers l and modules m of E_lm [r_l (d_in + d_out)
    + d_in]`, with E experts of rank r. It gives the counts that the MoLA paper prints (Table 1).

    Args:
        modules: d_in and d_out of the adapted modules of one layer, by name.
        layers: Number of layers of the model.

    Raises:
        ValueError: the config has no entry for a module or a layer, names single modules of layers, leaves modules out or
            trains others whole: what it then has depends on the model's names; count what was built.
    """
    named = [
        key
        for key in (config.num_experts if isinstance(config.num_experts, dict) else ())
        if key not in modules
    ]
    if named or config.exclude_modules or config.modules_to_save or config.layers_pattern:
        what = f"num_experts {named[0]}" if named else "exclude_modules, modules_to_save or layers_pattern"
        raise ValueError(f"{what}: no closed form; count the parameters of the adapter that was built")
    chosen = config.layers_to_transform
    adapted = (
        range(layers) if chosen is None else [chosen] if isinstance(chosen, int) else sorted(set(chosen))
    )
    if any(not 0 <= layer < layers for layer in adapted):
        raise ValueError(f"layers_to_transform is {chosen!r}: the model has {layers} layers")
    total = 0
    for layer in adapted:
        for name, (d_in, d_out) in modules.items():
            experts, rank = experts_and_rank(config, name, layer, layers)
            total += experts * (rank * (d_in + d_out) + d_in)
    return total


def built_shape(model: nn.Module, adapter: str = "default") -> dict[str, tuple[int, int]]:
    """Experts and rank of each adapted module of `model`, by name, read from the sizes of its tensors."""
    shape = {}
    for name, module in model.named_modules():
        if adapter in getattr(module, "mola_router", ()):
            experts, _ = module.mola_router[adapter].shape
            ranks = {module.mola_A[adapter].shape[0], module.mola_B[adapter].shape[1]}
            if len(ranks) > 1 or max(ranks) % experts:
                raise ValueError(
                    f"{name}: A and B of adapter {adapter!r} do not hold {experts} experts of one rank"
                )
            shape[name] = experts, ranks.pop() // experts
    return shape


def describe(config: MolaConfig) -> str:
    """The adapter's shape in words, runs of equal layers together, as `2 x 8, 4 x 7`."""

    def one(value: int | list[int]) -> str:
        if isinstance(value, int):
            return str(value)
        return ", ".join(f"{number} x {len(list(run))}" for number, run in itertools.groupby(value))

    experts = config.num_experts
    if isinstance(experts, dict):
        words = "; ".join(f"{name}: {one(value)}" for name, value in experts.items())
    else:
        words = one(experts)
    per_layer = isinstance(config.r, list) or not isinstance(experts, int)
    note = " (a list is read as number x layers, first layers first)" if per_layer else ""
    return f"experts {words}; rank {one(config.r)}; top-k {config.top_k}{note}"
