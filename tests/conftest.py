"""Fixtures that several test modules share."""

import os
from collections.abc import Callable
from pathlib import Path
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


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real benchmarks' parquet files (MOLA_TEST_DATA, or ../shared/data); skips where there is none."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MOLA_TEST_DATA", default))
    if not (folder / "glue").is_dir():
        pytest.skip(f"no benchmark rows in {folder}; set MOLA_TEST_DATA to a folder that has them")
    return folder
