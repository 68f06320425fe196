"""Names of a model's modules and weights: which layer one is in, and which entries of a config name it."""

import re
import sys
from collections import Counter
from collections.abc import Iterable


def place_of(name: str) -> tuple[int, str] | None:
    """Layer (from 0) and name within it: 3 and `mlp.up_proj` of `model.layers.3.mlp.up_proj`; None outside of layers.

    Of stacks within stacks, such as a layer's experts, the outermost counts.
    """
    found = re.search(r"\.(\d+)\.(.+)$", name)
    return (int(found[1]), found[2]) if found else None


def is_named(name: str, entry: str) -> bool:
    """Whether `entry` names the module, by PEFT's rule for lists: its whole name, or the end of it after a dot."""
    return f".{name}".endswith(f".{entry}")


def places_in_stack(names: Iterable[str], depth: int | None = None) -> dict[str, tuple[int, str]]:
    """Of weights' or modules' names those in the model's layers, with their places.

    The layers are the entries of one stack: of those with at least `depth` layers the one with fewest, else the one with most
    names. A vision tower's blocks, and layers beyond the depth, which predict several tokens, are in files that a text model
    leaves them out of.
    """
    stacks: dict[str, dict[str, tuple[int, str]]] = {}
    for name in names:
        place = place_of(name)
        if place:
            stacks.setdefault(name[: -len(f"{place[0]}.{place[1]}")], {})[name] = place

    def likely(stack: dict[str, tuple[int, str]]) -> tuple[int, int]:
        layers = len({layer for layer, _ in stack.values()})
        return -layers if depth is not None and layers >= depth else -sys.maxsize, len(stack)

    chosen = max(stacks.values(), key=likely, default={})
    return {name: place for name, place in chosen.items() if depth is None or place[0] < depth}


def short_names(modules: Iterable[str]) -> dict[str, str]:
    """The last part of each name within a layer; of those that share it (GPT-2's `attn.c_proj`, `mlp.c_proj`) the last two."""
    every = sorted(set(modules))
    last = Counter(name.rpartition(".")[2] for name in every)
    return {
        name: name.rpartition(".")[2]
        if last[name.rpartition(".")[2]] == 1
        else ".".join(name.split(".")[-2:])
        for name in every
    }


def in_any_layer(name: str) -> str:
    """A module's name with `0` for each number in it: `model.layers.7.mlp.up_proj` as `model.layers.0.mlp.up_proj`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "0", name)
