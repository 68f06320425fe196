"""A method: its name taken apart, and the entry of its family, which says everything that this project knows of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mola_core.errors import MolaError
from mola_core.module_names import is_named

if TYPE_CHECKING:
    from mola_core.methods.allocation import AllocationInput
    from mola_core.methods.settings import AdapterSettings, MethodSettings

BASE = "base"
"""Name of the untrained model among the methods."""
Role = Literal["untrained", "routed", "matched", "baseline"]
"""Part in a study's questions: the untrained model, experts with a router, the same ranks without one, anything else."""
LAYER_RANKS, LAYER_ALPHAS = "layer_ranks", "layer_alphas"
"""In a LoRA's config: rank of each layer, first layer first, 0 where it is not adapted, and where it is not `lora_alpha`
its alpha; turned into PEFT's patterns when the model is known."""
SCHEDULE = "schedule"
"""In an AdaLoRA's config: shares of the training's steps before and after its ranks are changed."""
VIRTUAL_TOKENS = {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT"}
"""PEFT types that put trained vectors in front of the tokens."""
NEEDS_DATA = {"eva", "lora_ga"}
"""Values of `init_lora_weights` that look at batches of the training first."""
RANKS_BY_DATA = {"eva"}
"""Those of them that share ranks out among modules by what they see."""
IN_BASE = ("pissa", "olora", "lora_ga")
"""Beginnings of `init_lora_weights` that take the start out of the base weights."""
LayerSizes = Sequence[Mapping[str, tuple[int, int]]]
"""(d_in, d_out) of the adapted matrices of each layer by their names within it, first layer first."""
LayerNumbers = list[int] | dict[str, list[int]]
"""Experts or ranks of each layer, first layer first; by the names of target modules where these differ."""


def of_module(numbers: LayerNumbers, name: str) -> list[int]:
    """Of each layer in the module `name`, for which the longest of the target modules' names counts that ends it."""
    if isinstance(numbers, list):
        return numbers
    return numbers[max((key for key in numbers if is_named(name, key)), key=len)]


def of_layers(value: int | list[int], depth: int, what: str) -> list[int]:
    """One number for each layer. Raises ValueError where `value` lists another number of layers."""
    if isinstance(value, int):
        return [value] * depth
    if len(value) != depth:
        raise ValueError(f"{what} lists {len(value)} layers, the model has {depth}")
    return list(value)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method name taken apart."""

    kind: str
    """The family's."""
    rank: int | None = None
    """Rank of a plain LoRA."""
    shape: str | None = None
    allocation: str | None = None
    """How data choose the experts of a `mola`: `alphalora`, `sensitivity`, `fisher` or `random`."""
    budget: int | None = None
    """Of an allocation: the sum over the four quarters, as a shape's."""
    draw: int | None = None
    """Seed of a random allocation."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a family makes a PEFT config or a parameter count of."""

    method: Method
    settings: MethodSettings
    adapter: AdapterSettings
    """The study's adapter settings with the method's own in their place."""
    depth: int
    """Layers of the base model."""
    experts: LayerNumbers | None
    """None for methods without, and where data are yet to choose them."""

    @property
    def lora_common(self) -> dict[str, Any]:
        """What LoRA's and MoLA's configs share."""
        return {
            "task_type": "CAUSAL_LM",
            "target_modules": list(self.adapter.target_modules),
            "lora_dropout": self.adapter.dropout,
        }

    def known_rank(self) -> int:
        """The rank in the method's name."""
        assert self.method.rank is not None
        return self.method.rank

    def known_experts(self) -> LayerNumbers:
        """The experts of each layer. Raises `MolaError` where the method has none, and ValueError where they are given for
        other modules than its target modules."""
        label, targets = self.settings.label, self.adapter.target_modules
        if self.experts is None:
            raise MolaError(f"method {label!r}: has no experts per layer")
        if isinstance(self.experts, dict):
            for module in self.experts.keys() - set(targets):
                raise ValueError(
                    f"method {label!r}: experts: {module[:60]!r} is none of its target_modules, {', '.join(targets)}"
                )
            for module in set(targets) - self.experts.keys():
                raise ValueError(
                    f"method {label!r}: experts: target module {module!r} has none; add it, or leave it out of "
                    "target_modules"
                )
        return self.experts

    @property
    def rank(self) -> int | list[int]:
        """Rank of an expert: one number for all layers, or one for each."""
        own = self.settings.rank
        return own if isinstance(own, list) else self.adapter.rank

    def ranks(self) -> list[int]:
        """Rank of an expert in each layer. Raises ValueError where as many are listed as the model has not layers."""
        return of_layers(self.rank, self.depth, f"method {self.settings.label!r}: rank")


@dataclasses.dataclass(frozen=True)
class Family:
    """Methods whose names have one form. A module in `families/` with `FAMILIES` is all that a new one needs."""

    kind: str
    forms: tuple[str, ...]
    """Regular expressions of whole names; groups named as fields of `Method` fill these."""
    usage: str
    """The form as it is shown to who misspelt one."""
    role: Role
    colour: str
    marker: str
    """In figures, for methods that have no shape."""
    config: Callable[[Request], dict[str, Any] | None]
    """PEFT's config as JSON, `peft_type` in it; None where no adapter is trained. Raises ValueError where settings do
    not fit together."""
    parameters: Callable[[Request, LayerSizes], int | None]
    """Trainable parameters in closed form; None where there is none: what was built is then counted."""
    code: tuple[str, ...] = ()
    """Code of this project that PEFT or the Trainer calls back when such a method is trained: entry points for
    `code_hash`, beside those of every training."""
    takes: tuple[str, ...] = ()
    """Fields of `MethodSettings` that mean something to it, beside `name` and, where it is trained, `learning_rate`."""
    allocate: Callable[[AllocationInput], Sequence[int]] | None = None
    """Another package's allocation: the experts of each layer, first layer first, once the base model is there. What it
    returns is compared with the budget in the method's name."""
