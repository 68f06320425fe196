"""Trained vectors in place of weights: prompt tuning (Lester et al., 2021) and LLaMA-Adapter (Zhang et al., 2023)."""

from typing import Any

from mola_core.methods.family import Family, LayerSizes, Request

VIRTUAL_TOKENS = 40
"""The length that the paper's parameter counts imply."""


def _prompt_tuning(request: Request) -> dict[str, Any]:
    return {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": VIRTUAL_TOKENS}


def _llama_adapter(request: Request) -> dict[str, Any]:
    """Vectors that every attention layer attends to through a gate that starts closed (Llama and Mistral models only)."""
    length = {"adapter_len": VIRTUAL_TOKENS, "adapter_layers": request.depth}
    return {"peft_type": "ADAPTION_PROMPT", "task_type": "CAUSAL_LM", **length}


def _counted(request: Request, sizes: LayerSizes) -> None:
    return None


FAMILIES = (
    Family(
        "prompt-tuning", ("prompt-tuning",), "prompt-tuning", "baseline",
        "#7F7F7F", "d", _prompt_tuning, _counted,
    ),
    Family(
        "llama-adapter", ("llama-adapter",), "llama-adapter", "baseline",
        "#7F7F7F", "X", _llama_adapter, _counted,
    ),
)  # fmt: skip
