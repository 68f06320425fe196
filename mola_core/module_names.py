"""Names of a model's modules and weights: which layer one is in, and which entries of a config name it."""

import re


def place_of(name: str) -> tuple[int, str] | None:
    """Layer (from 0) and name within it: 3 and `mlp.up_proj` of `model.layers.3.mlp.up_proj`; None outside of layers.

    Of stacks within stacks, such as a layer's experts, the outermost counts.
    """
    found = re.search(r"\.(\d+)\.(.+)$", name)
    return (int(found[1]), found[2]) if found else None


def is_named(name: str, entry: str) -> bool:
    """Whether `entry` names the module, by PEFT's rule for lists: its whole name, or the end of it after a dot."""
    return f".{name}".endswith(f".{entry}")
