"""Trainable parameters of each method in closed form, from the sizes of the base model's tensors.

The sizes are read from the headers of its safetensors files: no weight is loaded and no model is built.
"""

from pathlib import Path

from safetensors import safe_open

from mola_core.errors import MolaError
from mola_core.methods import registry
from mola_core.module_names import is_named, place_of
from mola_core.study.study import Study

Sizes = list[dict[str, tuple[int, int]]]
"""For each layer its matrices: name within the layer -> (d_in, d_out)."""


def layer_matrices(folder: Path) -> Sizes:
    """The matrices of each layer of the model in `folder`, first layer first; empty where no model is there."""
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            shapes |= {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118 - no mapping
    layers: dict[int, dict[str, tuple[int, int]]] = {}
    for key, shape in shapes.items():
        place = place_of(key.removesuffix(".weight")) if key.endswith(".weight") else None
        if place and len(shape) == 2:
            d_out, d_in = shape
            # GPT-2's are the other way round, as their biases tell.
            if shapes.get(f"{key.removesuffix('weight')}bias", [d_out]) != [d_out]:
                d_out, d_in = d_in, d_out
            layers.setdefault(place[0], {})[place[1]] = (d_in, d_out)
    return [layers[index] for index in sorted(layers)]


def closed_form(study: Study, label: str, layers: Sizes) -> int | None:
    """Trainable parameters of a method; None for methods without a closed form here.

    Raises `MolaError` where a layer has no matrix that the method adapts.
    """
    settings = study.method_by_label[label]
    adapter = settings.adapter(study.adapter)
    config = registry.adapter_config(settings, adapter, len(layers)) or {}
    if "target_modules" not in config:
        return registry.closed_form(settings, adapter, [{} for _ in layers])
    adapted = []
    for index, layer in enumerate(layers):
        sizes = {
            name: size
            for name, size in layer.items()
            if any(is_named(name, target) for target in adapter.target_modules)
        }
        if not sizes:
            raise MolaError(
                f"method {label}: layer {index} of the base model has none of the modules "
                f"{', '.join(adapter.target_modules)}; correct adapter.target_modules"
            )
        adapted.append(sizes)
    return registry.closed_form(settings, adapter, adapted)
