"""The sections of a study file that say which adapters are trained: what they share, and one for each method."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from mola_core.methods import peft_configs
from mola_core.methods.family import BASE, LAYER_RANKS
from mola_core.methods.registry import (
    adapter_config_without_model,
    family_of,
    is_method,
    name_pattern,
    parse_method,
)
from mola_core.section import (
    MAX_EXPERTS,
    MAX_RANK,
    MAX_SEED,
    SAFE_NAME,
    Closed,
    Coefficient,
    Experts,
    ExpertsOfLayers,
    Name,
    Rank,
    RankOfLayers,
    Rate,
    Share,
)
from mola_core.shapes import experts_per_layer


def _each_once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a module is named twice; name each once")
    return names


Modules = Annotated[
    list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]], Field(min_length=1), AfterValidator(_each_once)
]
"""Ends of the names of linear layers; no regular expressions."""
SEVEN_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class AdapterSettings(Closed):
    """What adapters share; a method of the study may override each."""

    rank: Rank = 8
    """Rank of each expert."""
    alpha: Annotated[float, Field(gt=0, le=1_000_000)] = 16
    """The scale of an expert is alpha / rank; MoLA adds the weighted mean of those chosen. A matched LoRA has alpha over
    the rank of its layer. Plain LoRA of rank k has the scale of one expert, so k · alpha / rank for its own alpha."""
    dropout: Share = 0.05
    """Probability with which an entry of the adapter's input is dropped in training."""
    top_k: Experts = 2
    """Experts that the router chooses for each token."""
    balance_loss: Coefficient = 0.0
    """Coefficient of the Switch Transformer's balance loss; in the released code 0.001 for instruction tuning and off for fine-tuning."""
    target_modules: Modules = SEVEN_MODULES
    """Names of the linear layers that are adapted; by default the seven of a Llama block."""
    initialisation: Literal["default", "pissa"] = "default"
    """`pissa` starts LoRA and MoLA at the leading singular directions of the base weights (PiSSA)."""


class MethodSettings(Closed):
    """One method of the study. A plain string in the study file stands for `{method: <string>}`."""

    method: Annotated[str, Field(max_length=80, json_schema_extra={"pattern": f"^{name_pattern()}$"})]
    """`base`, `full`, `prompt-tuning`, `llama-adapter`, `lora-r<k>`, `lora-matched-<shape>`, `mola-<shape>`, `mola`
    with `experts`, or experts chosen by data: `alphalora-<budget>`, `sensitivity-<budget>`, `fisher-<budget>`, `random-<budget>-<n>`;
    `dora-r<k>`, `rslora-r<k>`, `adalora-r<k>`, `lora-upper-r<k>`, `lora-lower-r<k>`; `peft` with `config`. In a study
    file the plain string `pissa-<method>` is that method with `initialisation: pissa`."""
    name: Name | None = None
    """Name in results; needed where the same method appears twice with different settings."""
    experts: ExpertsOfLayers | None = None
    """For `method: mola` and `method: lora-matched`: experts of each layer, first layer first, or one number for all; or
    a mapping from each target module to either, as GuiLoMo and LoRA-SMoE choose them."""
    config: dict[str, Any] | None = None
    """For `method: peft`: PEFT's own config, `peft_type` in it; target modules are the study's where it names none."""
    rank: RankOfLayers | None = None
    """In place of `adapter.rank`; a list has the rank of an expert in each layer, first layer first, and its scale is
    then alpha over the rank of its layer."""
    alpha: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """The method's own: of a plain LoRA what PEFT calls `lora_alpha`, so that its scale is alpha / k."""
    rslora: bool | None = None
    """Of a plain LoRA: the scale is alpha / √k (rsLoRA) instead of alpha / k."""
    dropout: Share | None = None
    """In place of `adapter.dropout`."""
    top_k: Experts | None = None
    """In place of `adapter.top_k`."""
    balance_loss: Coefficient | None = None
    """In place of `adapter.balance_loss`."""
    target_modules: Modules | None = None
    """In place of `adapter.target_modules`."""
    initialisation: Literal["default", "pissa"] | None = None
    """In place of `adapter.initialisation`."""
    learning_rate: Rate | None = None
    """In place of `training.learning_rate`."""
    loraplus_ratio: Annotated[float, Field(ge=1, le=1_000_000)] | None = None
    """LoRA+: learning rate of a LoRA's B over that of its A."""

    @property
    def label(self) -> str:
        return self.name or self.method

    @property
    def is_base(self) -> bool:
        """Whether it is the untrained model."""
        return self.method == BASE

    @property
    def own_settings(self) -> dict[str, Any]:
        """What it does differently from the study's other methods of its kind, but for where its experts are."""
        return self.model_dump(exclude={"method", "name", "experts"}, exclude_none=True)

    def listed_layers(self) -> int | None:
        """How many layers its lists of ranks or experts are for; None without such. Raises ValueError where they differ."""
        experts = self.experts.values() if isinstance(self.experts, dict) else [self.experts]
        lengths = {len(value) for value in [self.rank, *experts] if isinstance(value, list)}
        if len(lengths) > 1:
            raise ValueError(
                f"method {self.label!r}: rank and experts list {' and '.join(map(str, sorted(lengths)))} layers; "
                "give each one number for each layer of the model"
            )
        return next(iter(lengths), None)

    def adapter(self, defaults: AdapterSettings) -> AdapterSettings:
        """The study's adapter settings with this method's own in their place, but for ranks by layer."""
        own = {key: getattr(self, key) for key in AdapterSettings.model_fields}
        single = {
            key: None if key == "rank" and isinstance(value, list) else value for key, value in own.items()
        }
        return defaults.model_copy(update={key: value for key, value in single.items() if value is not None})

    def _check_taken(self) -> None:
        """Raise ValueError for a setting that would say something and change nothing."""
        family = family_of(self)
        if self.initialisation == "pissa" and "initialisation" not in family.takes:
            raise ValueError(f"method {self.method!r}: initialisation pissa is for LoRA and MoLA")
        taken = {*family.takes, *(() if self.is_base else ("learning_rate",))}
        ignored = sorted(set(self.own_settings) - taken)
        if ignored:
            raise ValueError(
                f"method {self.method!r}: {ignored[0]} means nothing to it; remove it"
                + (f" (it takes {', '.join(sorted(taken))})" if taken else "")
            )

    @model_validator(mode="after")
    def _check(self) -> "MethodSettings":
        parsed = parse_method(self)
        if self.config is not None:
            peft_configs.check(self.config)
            if self.target_modules and "target_modules" in self.config:
                raise ValueError(
                    f"method {self.label!r}: target_modules stand in config too; remove one of them"
                )
            trains_b = self.config["peft_type"] == "LORA" and self.config.get("init_lora_weights") != "mica"
            if self.loraplus_ratio is not None and not trains_b:
                raise ValueError(
                    f"method {self.label!r}: loraplus_ratio is for a LoRA whose B is trained; remove it"
                )
        self._check_taken()
        self.listed_layers()
        experts = experts_per_layer(parsed.shape, 64) if parsed.shape else [1]
        for what, number, most in [
            ("rank", parsed.rank or 1, MAX_RANK),
            ("experts of a layer", max(experts), MAX_EXPERTS),
            ("budget", parsed.budget or 1, 4 * MAX_EXPERTS),
            ("number of the draw", parsed.draw or 0, MAX_SEED),
        ]:
            if number > most:
                raise ValueError(f"method {self.method!r}: {what} at most {most}; lower it")
        self._check_label()
        return self

    def _check_label(self) -> None:
        """Results are told apart by labels, and read by them: one that is a method's name must be that method."""
        if not re.fullmatch(SAFE_NAME, self.label):
            raise ValueError(f"method {self.method!r}: give it a `name` of letters, digits, dots and dashes")
        meant = self.label.removeprefix("pissa-") if self.initialisation == "pissa" else self.label
        named = is_method(self.label.removeprefix("pissa-")) and not self._is_named_by_its_config()
        if meant != self.method and (self.is_base or named):
            raise ValueError(
                f"name {self.label!r}: method {self.method!r} would be taken for another by it; choose another"
            )

    def _is_named_by_its_config(self) -> bool:
        """Whether a config of PEFT's is the method whose name it bears: `dora-r8` for DoRA of rank 8."""
        if self.config is None:
            return False
        try:
            named = adapter_config_without_model(MethodSettings(method=self.label), AdapterSettings())
        except ValueError:
            return False  # a method that a name alone does not give
        told = ("peft_type", "r", "target_r", "use_dora", "use_rslora")
        free = {*named, "lora_alpha", "lora_dropout", "target_modules", "task_type"} - {
            "init_lora_weights",
            LAYER_RANKS,
        }
        plain = self.config.keys() <= free and LAYER_RANKS not in named
        return plain and all(self.config.get(key) == named.get(key) for key in told)
