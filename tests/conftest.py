"""Fixtures that several test modules share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture
def tiny_llama() -> Callable[..., LlamaForCausalLM]:
    """Makes random Llamas of a few thousand parameters, the same one each time for the same arguments."""

    def make(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
        sizes = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 64,
            "max_position_embeddings": 64,
        }
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**sizes | overrides))

    return make
