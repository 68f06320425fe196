"""Trainable parameters of each method in closed form, from the sizes of the base model's tensors.

The sizes are read from the headers of its safetensors files: no weight is loaded and no model is built.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from mola_core.errors import MolaError
from mola_core.methods.allocation import total_experts
from mola_core.methods.registry import layer_experts, parse_method
from mola_core.shapes import lora_parameters, mola_parameters
from mola_core.study.study import Study

Sizes = list[dict[str, tuple[int, int]]]
"""For each layer its matrices: name within the layer -> (d_in, d_out)."""


def layer_matrices(folder: Path) -> Sizes:
    """The matrices of each layer of the model in `folder`, first layer first; empty where no model is there."""
    layers: dict[int, dict[str, tuple[int, int]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - no mapping
                place = re.fullmatch(r"\D*\.(\d+)\.(.+)\.weight", key)
                shape = tensors.get_slice(key).get_shape() if place else ()
                if place and len(shape) == 2:
                    layers.setdefault(int(place[1]), {})[place[2]] = (shape[1], shape[0])
    return [layers[index] for index in sorted(layers)]


def closed_form(study: Study, label: str, layers: Sizes) -> int | None:
    """Trainable parameters of a method; None for methods without a closed form here.

    Raises `MolaError` where a layer has no matrix that the method adapts.
    """
    settings = study.method_by_label[label]
    method, adapter = parse_method(settings), settings.adapter(study.adapter)
    if method.kind == "base":
        return 0
    if method.kind not in {"lora", "lora-matched", "mola"}:
        return None
    experts = layer_experts(settings, len(layers))
    if method.budget is not None:
        # Which layer has how many is the data's choice: the sum alone is known, and enough where layers are alike.
        if any(layer != layers[0] for layer in layers):
            return None
        experts = [total_experts(method.budget, len(layers)), *[0] * (len(layers) - 1)]
    total = 0
    for index, layer in enumerate(layers):
        sizes = [size for name, size in layer.items() if _adapted(name, adapter.target_modules)]
        if not sizes:
            raise MolaError(
                f"method {label}: layer {index} of the base model has none of the modules "
                f"{', '.join(adapter.target_modules)}; correct adapter.target_modules"
            )
        if method.kind == "mola":
            assert experts is not None
            total += mola_parameters([experts[index]], sizes, adapter.rank)
        else:
            rank = method.rank if experts is None else adapter.rank * experts[index]
            assert rank is not None
            total += lora_parameters([rank], sizes)
    return total


def _adapted(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)
