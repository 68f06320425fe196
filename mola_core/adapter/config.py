"""The configuration of a MoLA adapter, stored with it as `adapter_config.json`."""

import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from peft.config import PeftConfig

from . import card


class MolaPeftType(str, Enum):  # noqa: UP042 - PEFT reads the name out of `str()`, which StrEnum leaves away
    """PEFT's own enum of methods is closed; this one has the same behaviour and one member."""

    MOLA = "MOLA"


MOLA = MolaPeftType.MOLA


@dataclass
class MolaConfig(PeftConfig):
    """Configuration of a `MolaModel`.

    Args:
        num_experts: LoRA experts of each adapted module: one number for all layers, or one for each layer of the
            model, first layer first; or a dict of module name (matched as a suffix, the longest one counts) to
            either of the two.
        top_k: Experts that each token uses; at most the smallest number of experts.
        r: Rank of each expert: one number for all layers, or one for each layer.
        lora_alpha: The experts' output is scaled by `lora_alpha / r`, in each layer with its own r.
        lora_dropout: Dropout on the experts' input while training. The router sees the undropped input.
        target_modules: Names of the modules to adapt (a list, matched as suffixes), a regular expression on the
            full name, or "all-linear". None takes PEFT's default for the architecture.
        exclude_modules: Names, or a regular expression, of modules left out.
        layers_to_transform: Index, or indices, of the only layers to adapt; None for all. Lists of `num_experts` and
            `r` still have an entry for every layer of the model.
        layers_pattern: Name, or names, of the `ModuleList` whose layers are counted, where a model has several.
        modules_to_save: Modules apart from the adapter that are trained and saved with it.
        router_aux_loss_coef: Coefficient of the load-balancing loss (`balance_loss`) that is added to the
            model's loss; the authors' code uses 0.001 where it is on.
        router_aux_loss_mask_padding: Leave padding tokens (by `attention_mask`) out of the balance loss. The
            authors' code counts them.
        init_lora_weights: True starts with B at zero. "pissa" starts every expert at the leading r singular
            directions of the base weight (`MolaLayer.start_at_leading_directions`). Either way the untrained
            adapter changes nothing. False draws B like A, which only tests need.

    Raises:
        ValueError: a value is out of its range.
    """

    num_experts: int | list[int] | dict[str, int | list[int]] = field(
        default=4,
        metadata={
            "help": "LoRA experts of each adapted module: one number, or one for each layer; or a dict of module "
            "name to either."
        },
    )
    top_k: int = field(default=2, metadata={"help": "Experts that each token uses."})
    r: int | list[int] = field(
        default=8, metadata={"help": "Rank of each expert: one number, or one for each layer."}
    )
    lora_alpha: float = field(default=16, metadata={"help": "The output is scaled by lora_alpha / r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the experts' input."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Names, or a regular expression, of the modules to adapt; or 'all-linear'."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names, or a regular expression, of modules left out."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Index, or indices, of the only layers to adapt."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={"help": "Name, or names, of the ModuleList that layers_to_transform counts in."},
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules apart from the adapter that are trained and saved with it."}
    )
    router_aux_loss_coef: float = field(
        default=0.0, metadata={"help": "Coefficient of the load-balancing loss."}
    )
    router_aux_loss_mask_padding: bool = field(
        default=False, metadata={"help": "Leave padding tokens out of the load-balancing loss."}
    )
    init_lora_weights: bool | Literal["pissa"] = field(
        default=True,
        metadata={"help": "Start with B at zero, or ('pissa') at the leading singular directions."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MOLA
        if not _is_count(self.top_k):
            raise ValueError(f"top_k is {self.top_k!r}: give a whole number of at least 1")
        self.r = _checked(self.r, "r", 1)
        if isinstance(self.num_experts, dict):
            if not self.num_experts:
                raise ValueError("num_experts is empty: give a number for each module name, or a single one")
            self.num_experts = {
                name: _checked(value, f"num_experts[{name!r}]", self.top_k)
                for name, value in self.num_experts.items()
            }
        else:
            self.num_experts = _checked(self.num_experts, "num_experts", self.top_k)
        for name in ("lora_alpha", "lora_dropout", "router_aux_loss_coef"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}: give a number")
        if self.lora_alpha <= 0:
            raise ValueError(f"lora_alpha is {self.lora_alpha!r}: give a number above 0")
        if not isinstance(self.router_aux_loss_mask_padding, bool):
            raise ValueError(
                f"router_aux_loss_mask_padding is {self.router_aux_loss_mask_padding!r}: give true or false"
            )
        if isinstance(self.modules_to_save, str):
            raise ValueError(f"modules_to_save is {self.modules_to_save!r}: give a list of names")
        layers = self.layers_to_transform
        if any(
            isinstance(layer, bool) for layer in (layers if isinstance(layers, list | tuple) else [layers])
        ):
            raise ValueError(f"layers_to_transform is {layers!r}: give indices of layers")
        if isinstance(layers, list | tuple) and not layers:
            raise ValueError("layers_to_transform is empty: give indices of layers, or None for all")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout!r}: give a number from 0 to below 1")
        if not self.router_aux_loss_coef >= 0:
            raise ValueError(
                f"router_aux_loss_coef is {self.router_aux_loss_coef!r}: give a number of at least 0"
            )
        regex = isinstance(self.target_modules, str) and self.target_modules.lower() != "all-linear"
        for name in ("layers_to_transform", "layers_pattern"):
            if regex and getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` cannot be used when `target_modules` is a str. Name the layers in the regular "
                    "expression, or give a list"
                )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern does nothing without layers_to_transform: give both or neither")
        if self.init_lora_weights not in (True, False, "pissa"):
            raise ValueError(f"init_lora_weights is {self.init_lora_weights!r}: give true, false or 'pissa'")

    def to_dict(self) -> dict[str, Any]:
        """As stored; sets, which PEFT makes of some fields, in a fixed order so that equal configs are equal files, and
        a base model that was loaded from the hub's cache by its id."""
        stored = {k: sorted(v) if isinstance(v, set) else v for k, v in super().to_dict().items()}
        return stored | {"base_model_name_or_path": card.hub_id(self.base_model_name_or_path)}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, and complete the model card that PEFT has put beside it, if there is one."""
        super().save_pretrained(save_directory, **kwargs)
        card.complete(Path(save_directory), self)


def _checked(value: Any, name: str, at_least: int) -> int | list[int]:
    """`value` if it is a number or a list of numbers, one a layer, each at least `at_least`, which is top_k or 1."""
    per_layer = isinstance(value, list | tuple)
    if per_layer and not value:
        raise ValueError(f"{name} is empty: give one number for each layer of the model, or a single one")
    for layer, number in enumerate(value if per_layer else [value]):
        what = f"{name} of layer {layer}" if per_layer else name
        if not _is_count(number):
            raise ValueError(f"{what} is {number!r}: give a whole number of at least 1")
        if number < at_least:
            raise ValueError(f"{what} is {number}, below top_k = {at_least}: lower top_k or add experts")
    return list(value) if per_layer else value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
