"""Redundancy against dense differences, of files and whole studies; the figures are drawn."""

import itertools

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from mola_core.analysis.experts import redundancy
from mola_core.analysis.experts.left_out import told
from mola_core.analysis.experts.redundancy import (
    adapter_redundancy,
    expert_differences,
    measure,
    mola_cells,
    write,
)
from mola_core.errors import MolaError
from mola_core.runs.layout import Layout
from mola_core.study.loading import load_study
from mola_core.study.study import Study

RANK = 3


def matrices(experts: int, seed: int = 0, d_in: int = 11, d_out: int = 7) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return (
        draw.normal(size=(experts * RANK, d_in)).astype(np.float32),
        draw.normal(size=(d_out, experts * RANK)).astype(np.float32),
    )


def dense(A: np.ndarray, B: np.ndarray, experts: int) -> dict[str, tuple[float, float]]:
    """The same by forming every matrix."""
    As, Bs = np.split(A, experts), np.split(B, experts, axis=1)
    found = {}
    for name, each in {"A": As, "B": Bs, "BA": [b @ a for a, b in zip(As, Bs, strict=True)]}.items():
        raw = np.mean([np.linalg.norm(x - y) for x, y in itertools.combinations(each, 2)])
        found[name] = (raw, raw / np.mean([np.linalg.norm(x) for x in each]))
    return found


@pytest.mark.parametrize("experts", [2, 5])
def test_differences_are_the_dense_ones(experts):
    A, B = matrices(experts)
    found, expected = expert_differences(A, B, experts), dense(A, B, experts)
    for name in ("A", "B", "BA"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


def test_equal_experts_do_not_differ():
    A, B = matrices(1)
    found = expert_differences(np.vstack([A, A]), np.hstack([B, B]), 2)
    assert [raw for raw, _ in found.values()] == pytest.approx([0, 0, 0], abs=1e-6)


def test_what_is_not_defined_is_nan():
    A, B = matrices(1)
    assert np.isnan(list(expert_differences(A, B, 1).values())).all()
    A, B = matrices(2)
    found = expert_differences(A, 0 * B, 2)
    assert found["B"][0] == found["BA"][0] == 0
    assert np.isnan([found["B"][1], found["BA"][1]]).all()
    assert found["A"] == pytest.approx(dense(A, B, 2)["A"])


def save_adapter(folder, experts_by_layer, seed=0, names=("self_attn.q_proj", "mlp.down_proj")):
    tensors = {}
    for layer, experts in enumerate(experts_by_layer):
        for place, name in enumerate(names):
            A, B = matrices(experts, seed=seed + 10 * layer + place)
            key = f"base_model.model.model.layers.{layer}.{name}.mola_"
            router = np.zeros((experts, 11), np.float32)
            tensors |= {f"{key}A": A, f"{key}B": B, f"{key}router": router}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


def test_a_saved_adapter_is_read_module_by_module(tmp_path):
    tensors = save_adapter(tmp_path / "adapter", [2, 4])
    frame = adapter_redundancy(tmp_path / "adapter")
    assert len(frame) == 2 * 2 * 3
    row = frame[(frame["layer"] == 1) & (frame["module"] == "down_proj") & (frame["matrix"] == "BA")].iloc[0]
    key = "base_model.model.model.layers.1.mlp.down_proj.mola_"
    raw, relative = dense(tensors[f"{key}A"], tensors[f"{key}B"], 4)["BA"]
    assert row["experts"] == 4
    assert (row["raw"], row["relative"]) == pytest.approx((raw, relative), rel=1e-5)


def test_modules_that_share_the_end_of_their_names_are_told_apart(tmp_path):
    """GPT-2 has a c_proj in attention and one in the MLP."""
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_proj")
    save_adapter(tmp_path / "adapter", [2, 4], names=names)
    frame = adapter_redundancy(tmp_path / "adapter")
    assert set(frame["module"]) == {"c_attn", "attn.c_proj", "mlp.c_proj"}
    assert len(frame) == 2 * 3 * 3


@pytest.fixture
def layout(tmp_path) -> Layout:
    content = load_study("smoke").model_dump(mode="json", exclude_none=True)
    methods = ["base", "lora-r4", "mola-2468", "random-20-1"]
    return Layout(Study.model_validate(content | {"methods": methods, "seeds": [0]}), tmp_path)


def test_a_study_is_measured_where_its_adapters_are(layout):
    cells = mola_cells(layout.study)
    assert {cell.method for cell in cells} == {"mola-2468", "random-20-1"}
    for place, cell in enumerate(cells[:-1]):
        save_adapter(layout.weights(cell), [2, 4, 6, 8], seed=100 * place)
    frame, left_out = measure(layout)
    assert left_out[redundancy.WITHOUT] == cells[-1:]
    assert told(left_out) == [
        f"Incomplete: without 1 cell without an adapter here, the first is {cells[-1].path}."
    ]
    assert frame.columns.tolist()[:4] == ["task", "method", "seed", "layer"]
    assert len(frame) == (len(cells) - 1) * 4 * 2 * 3


def test_files_and_figures_are_written_and_the_same_each_time(layout):
    for cell in mola_cells(layout.study):
        save_adapter(layout.weights(cell), [2, 4, 6, 8])
    assert not told(write(layout))
    names = [f"figures/{name}.{kind}" for name in redundancy.FIGURES for kind in ("svg", "png")]
    first = {name: (layout.folder / name).read_bytes() for name in names}
    write(layout)
    assert {name: (layout.folder / name).read_bytes() for name in names} == first
    written = pd.read_csv(layout.folder / "redundancy.csv")
    pd.testing.assert_frame_equal(written, pd.read_parquet(layout.folder / "redundancy.parquet"))


def test_a_study_without_adapters_is_refused(layout):
    with pytest.raises(MolaError, match="no MoLA adapter here"):
        measure(layout)
    cell = mola_cells(layout.study)[0]
    with pytest.raises(MolaError, match="no such file"):
        adapter_redundancy(layout.weights(cell))
    layout.weights(cell).mkdir(parents=True)
    save_file({"lora_A": np.zeros((2, 2))}, layout.weights(cell) / "adapter_model.safetensors")
    with pytest.raises(MolaError, match="no MoLA adapter$"):
        adapter_redundancy(layout.weights(cell))
