"""What a study can train: method names, and the PEFT config that each becomes.

| name                     | what it is                                                                        |
| ------------------------ | --------------------------------------------------------------------------------- |
| `base`                   | the base model, untrained                                                         |
| `full`                   | full fine-tuning: every weight is trained, in float32                             |
| `prompt-tuning`          | 40 trained embeddings before every prompt (Lester et al., 2021)                   |
| `llama-adapter`          | 40 trained vectors that every attention layer attends to through a gate that      |
|                          | starts closed (LLaMA-Adapter; Llama and Mistral models only)                      |
| `lora-r<k>`              | plain LoRA of rank k in every layer                                               |
| `lora-matched-<shape>`   | plain LoRA whose rank in each layer is rank × experts: the same capacity in the   |
|                          | same place, without routing                                                       |
| `mola-<shape>`           | LoRA experts per layer by shape, with a top-k router                              |
| `mola` with `experts`    | the same, the experts of each layer listed                                        |
| `alphalora-<budget>`,    | the same, the experts of each layer chosen by data (`mola_core/allocation.py`) at |
| `sensitivity-<budget>`,  | a shape's budget                                                                  |
| `random-<budget>-<n>`    |                                                                                   |

`pissa-<name>` in a study file is a LoRA or MoLA that starts at the leading singular directions of the base weights.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from mola_core.shapes import SHAPE_PATTERN, experts_per_layer, parse_shape

if TYPE_CHECKING:
    from peft import PeftConfig

    from mola_core.methods.settings import AdapterSettings, MethodSettings


@dataclasses.dataclass(frozen=True)
class Method:
    """A method name taken apart."""

    kind: str
    """A key of `FORMS`."""
    rank: int | None = None
    """Rank of a plain LoRA."""
    shape: str | None = None
    allocation: str | None = None
    """How data choose the experts of a `mola`: `alphalora`, `sensitivity` or `random`."""
    budget: int | None = None
    """Of an allocation: the sum over the four quarters, as a shape's."""
    draw: int | None = None
    """Seed of a random allocation."""


FORMS = {
    "base": r"base",
    "full": r"full",
    "prompt-tuning": r"prompt-tuning",
    "llama-adapter": r"llama-adapter",
    "lora": r"lora-r(?P<rank>[1-9]\d*)",
    "lora-matched": rf"lora-matched-(?P<shape>{SHAPE_PATTERN})",
    "mola": rf"mola(?:-(?P<shape>{SHAPE_PATTERN}))?",
}
ALLOCATIONS = (
    r"(?P<allocation>alphalora|sensitivity)-(?P<budget>[1-9]\d*)",
    r"(?P<allocation>random)-(?P<budget>[1-9]\d*)-(?P<draw>\d+)",
)
"""Names of the `mola` methods whose experts data choose."""
VIRTUAL_TOKENS = 40
"""Of prompt tuning and LLaMA-Adapter: the length that the paper's parameter counts imply."""


def parse_method(settings: MethodSettings) -> Method:
    """Take a method's name apart. Raises ValueError (pydantic adds the field) for one that does not exist."""
    name = settings.method
    for kind, form in [*FORMS.items(), *(("mola", form) for form in ALLOCATIONS)]:
        match = re.fullmatch(form, name)
        if match:
            groups = match.groupdict()
            rank, budget, draw = (
                int(groups[key]) if groups.get(key) else None for key in ("rank", "budget", "draw")
            )
            method = Method(kind, rank, groups.get("shape"), groups.get("allocation"), budget, draw)
            break
    else:
        if re.match(r"(mola|lora-matched)-", name):
            parse_shape(name.removeprefix("mola-").removeprefix("lora-matched-"))
        raise ValueError(
            f"unknown method {name!r}; use base, full, prompt-tuning, llama-adapter, lora-r<k>, lora-matched-<shape>,"
            " mola-<shape>, alphalora-<budget>, sensitivity-<budget> or random-<budget>-<n>"
        )
    if (name == "mola") != (settings.experts is not None):
        raise ValueError(f"method {name!r}: `experts` goes with method `mola`, one count for each layer")
    return method


def layer_experts(settings: MethodSettings, depth: int) -> list[int] | None:
    """Experts of each layer (rank of a matched LoRA divided by the expert rank), None for methods without.

    An allocation's experts are not in its name but in the cell's record: None too. Raises ValueError where listed
    experts do not fit the depth.
    """
    method = parse_method(settings)
    if settings.experts is not None:
        if len(settings.experts) != depth:
            raise ValueError(
                f"method {settings.label!r}: experts lists {len(settings.experts)} layers, the model has {depth}"
            )
        return list(settings.experts)
    return experts_per_layer(method.shape, depth) if method.shape else None


def adapter_config(
    settings: MethodSettings, adapter: AdapterSettings, depth: int, experts: list[int] | None = None
) -> dict[str, Any] | None:
    """The PEFT config of a method on a model `depth` layers deep, as JSON; None for the base model and full fine-tuning.

    `experts` are those of each layer where data have chosen them; until then `num_experts` is what they are chosen by.
    The scale of every update is the study's alpha / rank. MoLA adds the weighted mean of its chosen experts, LoRA all
    of its ranks at once: shapes differ in placement alone, MoLA and LoRA in the size of the update too.
    Raises ValueError where the settings do not fit together.
    """
    method = parse_method(settings)
    experts = experts or layer_experts(settings, depth)
    if method.kind == "prompt-tuning":
        return {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": VIRTUAL_TOKENS}
    if method.kind == "llama-adapter":
        length = {"adapter_len": VIRTUAL_TOKENS, "adapter_layers": depth}
        return {"peft_type": "ADAPTION_PROMPT", "task_type": "CAUSAL_LM", **length}
    pissa = adapter.initialisation == "pissa"
    common: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "target_modules": list(adapter.target_modules),
        "lora_dropout": adapter.dropout,
    }
    # A full SVD of 224 matrices takes minutes even on a GPU; sixteen subspace iterations agree with it closely.
    lora_start: Any = "pissa_niter_16" if pissa else True
    scale = adapter.alpha / adapter.rank
    if method.kind == "mola":
        if experts and adapter.top_k > min(experts):
            raise ValueError(
                f"method {settings.label!r}: top_k {adapter.top_k} is above the {min(experts)} experts of a layer;"
                " lower top_k or give every layer more experts"
            )
        return {
            "peft_type": "MOLA",
            "num_experts": experts or [method.allocation, method.budget, method.draw],
            "top_k": adapter.top_k,
            "r": adapter.rank,
            "lora_alpha": adapter.alpha,
            "router_aux_loss_coef": adapter.balance_loss,
            "init_lora_weights": "pissa" if pissa else True,
            **common,
        }
    lora = {"peft_type": "LORA", "init_lora_weights": lora_start, **common}
    if method.kind == "lora":
        assert method.rank is not None
        return lora | {"r": method.rank, "lora_alpha": method.rank * scale}
    if method.kind == "lora-matched":
        assert experts is not None
        # PEFT matches these keys against whole module names; the layer's number is the only numeric part of one.
        ranks = {rf"\D+\.{layer}\.\D+": adapter.rank * count for layer, count in enumerate(experts)}
        return lora | {
            "r": adapter.rank,
            "lora_alpha": adapter.alpha,
            "rank_pattern": ranks,
            "alpha_pattern": {key: rank * scale for key, rank in ranks.items()},
        }
    return None


def peft_config(
    settings: MethodSettings, adapter: AdapterSettings, depth: int, experts: list[int] | None = None
) -> PeftConfig | None:
    """`adapter_config` as PEFT's own object."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    import mola_core.adapter  # noqa: F401 - makes MoLA known to PEFT

    config = adapter_config(settings, adapter, depth, experts)
    if config is None:
        return None
    return PEFT_TYPE_TO_CONFIG_MAPPING[config.pop("peft_type")](**config)
