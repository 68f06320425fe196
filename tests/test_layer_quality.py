"""PL_Alpha_Hill against its definition, known samples, SciPy's singular values and a file that went stale."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mola_core.analysis.tables.parameters import layer_matrices
from mola_core.errors import MolaError
from mola_core.files import write_json
from mola_core.models.layer_quality import (
    hill,
    hill_fitted,
    hill_median,
    layer_quality,
    layer_scores,
    measure,
    spectrum,
)
from mola_core.models.sources import weight_files


def pareto(exponent: float, n: int, seed: int = 0) -> torch.Tensor:
    """Sorted sample with density `x ** -exponent` above 1."""
    uniform = np.random.default_rng(seed).uniform(size=n)
    return torch.tensor(np.sort((1 - uniform) ** (-1 / (exponent - 1))))


def test_hill_is_its_formula():
    values = torch.tensor([0.5, 1.0, 2.0, 3.0, 8.0], dtype=torch.float64)
    # k = n // 2 = 2: the two largest against the third largest.
    assert hill_median(values) == pytest.approx(1 + 2 / (np.log(3 / 2) + np.log(8 / 2)))
    assert hill(values, 2) == pytest.approx(1 + 3 / (np.log(2) + np.log(3) + np.log(8)))


@pytest.mark.parametrize("exponent", [2.0, 3.5])
@pytest.mark.parametrize("estimate", [hill_median, hill_fitted])
def test_the_exponent_of_a_pareto_sample_is_found(estimate, exponent):
    assert estimate(pareto(exponent, 20_000)) == pytest.approx(exponent, rel=0.05)


def test_the_fitted_tail_leaves_out_what_is_not_a_power_law():
    noise = torch.linspace(0.4, 1.0, 2_000, dtype=torch.float64)
    mixed = torch.cat([noise, pareto(2.5, 2_000)]).sort().values
    assert hill_fitted(mixed) == pytest.approx(2.5, rel=0.1)


def test_the_fitted_tail_is_the_best_of_all_candidates():
    """Against a direct search over NumPy arrays."""
    values = spectrum(torch.randn(40, 60, generator=torch.Generator().manual_seed(0)))
    x = values.numpy()
    counts, edges = np.histogram(np.log10(x), bins=100)
    peak = 10 ** edges[counts.argmax()]
    fits = []
    for first in x[:-1]:
        if 0.95 * peak <= first <= 1.5 * peak:
            tail = x[x >= first]
            alpha = 1 + len(tail) / np.log(tail / first).sum()
            model = 1 - (tail / first) ** (1 - alpha)
            fits.append((np.abs(model - np.arange(len(tail)) / len(tail)).max(), alpha))
    assert len(fits) > 1
    assert hill_fitted(values) == pytest.approx(min(fits)[1])


@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
def test_a_spectrum_is_the_squares_of_the_singular_values(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = np.linalg.svd(weight.double().numpy(), compute_uv=False) ** 2
    np.testing.assert_allclose(spectrum(weight).numpy(), expected[::-1], rtol=1e-9)


@pytest.mark.parametrize("estimate", [hill_median, hill_fitted])
@pytest.mark.parametrize("values", [[0.0] * 6, [2.0] * 6])
def test_a_spectrum_without_a_tail_is_refused(estimate, values):
    with pytest.raises(ValueError, match="no tail"):
        estimate(torch.tensor(values, dtype=torch.float64))


@pytest.fixture
def saved(tiny_llama, tmp_path):
    folder = tmp_path / "tiny"
    tiny_llama().save_pretrained(folder)
    write_json(folder / "model.json", {"files": {"model.safetensors": "one"}})
    return folder


def test_every_matrix_of_every_layer_is_measured(saved, tiny_llama):
    frame = measure(saved)
    assert frame.groupby("layer").size().tolist() == [7] * 4
    weight = tiny_llama().model.layers[2].mlp.down_proj.weight.detach()
    row = frame[(frame["layer"] == 2) & (frame["module"] == "mlp.down_proj")].iloc[0]
    singular = np.linalg.svd(weight.double().numpy(), compute_uv=False)[::-1] ** 2
    assert row["median"] == pytest.approx(hill_median(torch.tensor(singular.copy())))
    assert layer_scores(frame, "median")[2] == pytest.approx(frame[frame["layer"] == 2]["median"].mean())


@pytest.mark.parametrize("shards", [False, True])
def test_weights_that_the_model_is_not_loaded_from_do_not_count(saved, tiny_llama, tmp_path, shards):
    """An older copy beside the weights, whose name sorts after theirs or before."""
    expected, sizes = measure(saved), layer_matrices(saved)
    if shards:
        shutil.rmtree(saved)
        tiny_llama().save_pretrained(saved, max_shard_size="20KB")
        assert len(weight_files(saved)) > 1
    other = load_file(weight_files(saved)[0])
    for name in ("model_before.safetensors", "model-99999.safetensors", "a.safetensors"):
        save_file({key: torch.randn(3, 5) for key in other}, saved / name)
    assert measure(saved).equals(expected) and layer_matrices(saved) == sizes


def test_the_measurement_is_kept_until_the_model_changes(saved, tmp_path):
    file = tmp_path / "quality.json"
    first = layer_quality(saved, file)
    content = json.loads(file.read_text())
    content["matrices"][0]["fitted"] = 99.0
    write_json(file, content)
    assert layer_quality(saved, file)["fitted"][0] == 99.0
    write_json(saved / "model.json", {"files": {"model.safetensors": "two"}})
    assert layer_quality(saved, file)["fitted"].tolist() == first["fitted"].tolist()


@pytest.mark.parametrize("content", [[], {}, {"matrices": 1}, {"matrices": [{"layer": 0}]}])
def test_a_damaged_measurement_is_one_line(saved, tmp_path, content):
    write_json(tmp_path / "quality.json", content)
    with pytest.raises(MolaError, match="quality.json: damaged; remove it and run again"):
        layer_quality(saved, tmp_path / "quality.json")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_codes_of_a_quantised_model_are_no_weights(saved, dtype):
    file = saved / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: (100 * tensors[name]).to(dtype)}, file)
    with pytest.raises(
        MolaError, match=r"layer 1, mlp.up_proj: is stored as \w+; use the unquantised"
    ) as error:
        measure(saved)
    assert "\n" not in str(error.value)
    config = json.loads((saved / "config.json").read_text())
    write_json(saved / "config.json", config | {"quantization_config": {"load_in_8bit": True}})
    with pytest.raises(MolaError, match=r"stored quantised \(8bit\)"):
        measure(saved)


def test_a_folder_without_layers_is_refused(tmp_path):
    with pytest.raises(MolaError, match="no layers"):
        measure(tmp_path)
