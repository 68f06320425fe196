"""The configuration of a MoLA adapter, stored with it as `adapter_config.json`."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from peft.config import PeftConfig
from peft.utils import TaskType


class MolaPeftType(StrEnum):
    """PEFT's own enum of methods is closed; this one has the same behaviour and one member."""

    MOLA = "MOLA"


MOLA = MolaPeftType.MOLA


@dataclass
class MolaConfig(PeftConfig):
    """Configuration of a `MolaModel`.

    Args:
        num_experts: LoRA experts of each adapted module: one number for all layers, or one for each layer of the
            model, first layer first.
        top_k: Experts that each token uses; at most the smallest number of experts.
        r: Rank of each expert.
        lora_alpha: The experts' output is scaled by `lora_alpha / r`.
        lora_dropout: Dropout on the experts' input while training. The router sees the undropped input.
        target_modules: Names of the modules to adapt (a list, matched as suffixes), a regular expression on the
            full name, or "all-linear". None takes PEFT's default for the architecture.
        exclude_modules: Names, or a regular expression, of modules left out.
        modules_to_save: Modules apart from the adapter that are trained and saved with it.
        router_aux_loss_coef: Coefficient of the load-balancing loss (`routing.BalanceLoss`) that is added to the
            model's loss; the authors' code uses 0.001 where it is on.
        router_aux_loss_mask_padding: Leave padding tokens (by `attention_mask`) out of the balance loss. The
            authors' code counts them.
        init_lora_weights: True starts with B at zero. "pissa" starts every expert at the leading r singular
            directions of the base weight (`MolaLayer.start_at_leading_directions`). Either way the untrained
            adapter changes nothing. False draws B like A, which only tests need.

    Raises:
        ValueError: a value is out of its range.
    """

    num_experts: int | list[int] = field(
        default=4,
        metadata={"help": "LoRA experts of each adapted module: one number, or one for each layer."},
    )
    top_k: int = field(default=2, metadata={"help": "Experts that each token uses."})
    r: int = field(default=8, metadata={"help": "Rank of each expert."})
    lora_alpha: float = field(default=16, metadata={"help": "The output is scaled by lora_alpha / r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the experts' input."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Names, or a regular expression, of the modules to adapt; or 'all-linear'."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names, or a regular expression, of modules left out."}
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
        # With no task type, PeftModel.forward passes the tuner by and its balance loss would be lost.
        self.task_type = self.task_type or TaskType.CAUSAL_LM
        for name in ("top_k", "r"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}: give a whole number of at least 1")
        for name in ("lora_alpha", "lora_dropout", "router_aux_loss_coef"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}: give a number")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout!r}: give a number from 0 to below 1")
        if not self.router_aux_loss_coef >= 0:
            raise ValueError(
                f"router_aux_loss_coef is {self.router_aux_loss_coef!r}: give a number of at least 0"
            )
        if self.init_lora_weights not in (True, False, "pissa"):
            raise ValueError(f"init_lora_weights is {self.init_lora_weights!r}: give true, false or 'pissa'")
        self._check_experts()

    def to_dict(self) -> dict[str, Any]:
        """As stored; sets, which PEFT makes of some fields, in a fixed order so that equal configs are equal files."""
        return {k: sorted(v) if isinstance(v, set) else v for k, v in super().to_dict().items()}

    def _check_experts(self) -> None:
        per_layer = isinstance(self.num_experts, list | tuple)
        if per_layer:
            self.num_experts = list(self.num_experts)
            if not self.num_experts:
                raise ValueError(
                    "num_experts is empty: give one number for each layer of the model, or a single one"
                )
        for layer, experts in enumerate(self.num_experts if per_layer else [self.num_experts]):
            name = f"num_experts of layer {layer}" if per_layer else "num_experts"
            if not _is_count(experts):
                raise ValueError(f"{name} is {experts!r}: give a whole number of at least 1")
            if experts < self.top_k:
                raise ValueError(
                    f"{name} is {experts}, below top_k = {self.top_k}: lower top_k or add experts"
                )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
