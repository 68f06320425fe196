"""Fixtures that several test modules share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from smoke_study import smoke
from transformers import LlamaConfig, LlamaForCausalLM

from mola_core.models.loading import prepare_model
from mola_core.runs.cell import CellRunner
from mola_core.runs.layout import Layout
from mola_core.runs.prepare import prepare_examples
from mola_core.study.sections import RandomModel
from mola_core.tasks.prepare import prepare_rows


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
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a prepared random model, a Llama of four layers; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    prepare_model(RandomModel(name="tiny", source="random"), folder)
    return folder


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory: what is remembered of files' hashes is below it."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real benchmarks' parquet files (MOLA_TEST_DATA, or ../shared/data); skips where there is none."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MOLA_TEST_DATA", default))
    if not (folder / "glue").is_dir():
        pytest.skip(f"no benchmark rows in {folder}; set MOLA_TEST_DATA to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and rows that the tests' results folders share."""
    root = tmp_path_factory.mktemp("prepared")
    for name in ("models", "data"):
        (root / name).mkdir()
    return root


@pytest.fixture
def bench(prepared: Path, tmp_path: Path) -> Callable[..., CellRunner]:
    """Makes a workbench for a (changed) smoke study in a results folder of its own, model and rows and examples prepared."""

    def make(**changes: Any) -> CellRunner:
        for name in ("models", "data"):
            if not (tmp_path / name).exists():
                (tmp_path / name).symlink_to(prepared / name)
        layout = Layout(smoke(**changes), tmp_path)
        if not (layout.model / "model.json").is_file():
            prepare_model(layout.study.model, layout.model)
        for name in layout.study.rows():
            if not (layout.data(name) / "fingerprint.json").is_file():
                prepare_rows(layout.study, name, layout.data(name))
        runner = CellRunner(layout)
        for name in layout.study.rows():
            prepare_examples(layout, name, lambda: runner.base.tokenizer)
        return runner

    return make
