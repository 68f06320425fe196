"""Trainable parameters of each method in closed form, from the sizes of the base model's tensors.

The sizes are read from the headers of its safetensors files: no weight is loaded and no model is built.
"""

from pathlib import Path

from safetensors import safe_open

from mola_core.errors import MolaError
from mola_core.methods import registry
from mola_core.models.loading import stored_depth
from mola_core.models.sources import weight_files
from mola_core.module_names import is_named, places_in_stack
from mola_core.study.study import Study

Sizes = list[dict[str, tuple[int, int]]]
"""For each layer its matrices: name within the layer -> (d_in, d_out)."""


def layer_matrices(folder: Path) -> Sizes:
    """The matrices of each layer of the model in `folder`, first layer first; empty where no model is there, or its weights
    are packed (bitsandbytes), so that their sizes are not those of the matrices."""
    shapes: dict[str, list[int]] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="np") as tensors:
            shapes |= {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118 - no mapping
    if any(".weight.quant_state." in key for key in shapes):
        return []
    layers: dict[int, dict[str, tuple[int, int]]] = {}
    matrices = [
        key.removesuffix(".weight")
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) == 2
    ]
    for name, (layer, module) in places_in_stack(matrices, stored_depth(folder)).items():
        d_out, d_in = shapes[f"{name}.weight"]
        # GPT-2's are the other way round, as their biases tell.
        if shapes.get(f"{name}.bias", [d_out]) != [d_out]:
            d_out, d_in = d_in, d_out
        layers.setdefault(layer, {})[module] = (d_in, d_out)
    return [layers[index] for index in sorted(layers)]


def closed_form(study: Study, label: str, layers: Sizes) -> int | None:
    """Trainable parameters of a method; None for methods without a closed form here, and for modules outside of layers.

    Raises `MolaError` where no layer has a matrix that the method adapts.
    """
    settings = study.method_by_label[label]
    adapter = settings.adapter(study.adapter)
    config = registry.adapter_config(settings, adapter, len(layers)) or {}
    if "target_modules" not in config:
        return registry.closed_form(settings, adapter, [{} for _ in layers])
    targets = adapter.target_modules
    if config["target_modules"] != targets:
        return None  # a PEFT config that names its own
    adapted = [
        {name: size for name, size in layer.items() if any(is_named(name, target) for target in targets)}
        for layer in layers
    ]
    names = {name for layer in adapted for name in layer}
    if not names:
        raise MolaError(
            f"method {label}: the base model's layers have none of the modules {', '.join(targets)}; "
            "correct adapter.target_modules"
        )
    if not all(any(is_named(name, target) for name in names) for target in targets):
        return None  # an output layer, or a module by its whole name
    return registry.closed_form(settings, adapter, adapted)
