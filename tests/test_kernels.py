"""Kernels of float32 products: chosen by time and by accuracy, recorded, and never a lower precision unasked."""

import json
from collections import Counter

import pytest
import torch

from mola_core.models import kernels

SIZES = Counter({(256, 192): 8, (192, 256): 2})


@pytest.fixture(autouse=True)
def as_before():
    precision, record = torch.get_float32_matmul_precision(), dict(kernels._chosen)
    yield
    torch.set_float32_matmul_precision(precision)
    kernels._keep(record)


def measured(default, onednn, error):
    return {
        "default": {"milliseconds": default, "error": 4e-7},
        "onednn": {"milliseconds": onednn, "error": error},
        "bf16": {"milliseconds": 1.0, "error": 3e-3},
    }


@pytest.mark.parametrize(
    ("default", "onednn", "error", "taken"),
    [
        (10.0, 4.5, 1e-6, "onednn"),
        (10.0, 10.0, 1e-6, "default"),  # no AVX-512, or a library that uses it by itself
        (10.0, 8.5, 1e-6, "default"),  # within the noise of a busy machine
        (10.0, 2.0, 3e-3, "default"),  # AMX: "medium" computes in bfloat16
        (10.0, 4.5, 2.1e-6, "default"),
    ],
)
def test_auto_takes_what_is_clearly_faster_and_accurate(monkeypatch, default, onednn, error, taken):
    monkeypatch.setattr(kernels, "measure", lambda sizes: measured(default, onednn, error))
    record = kernels.choose("auto", SIZES)
    assert record["matmul"] == taken
    assert record["measured"]["onednn"]["error"] == error
    assert torch.get_float32_matmul_precision() == {"default": "highest", "onednn": "medium"}[taken]


def test_whatever_auto_takes_on_this_machine_is_accurate_to_float32():
    record = kernels.choose("auto", Counter({(576, 1536): 3}))
    assert record["measured"][record["matmul"]]["error"] <= kernels.MAX_ERROR
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randn(200, 576, generator=generator) for _ in range(2))
    exact = x.double() @ w.double().T
    assert ((x @ w.T).double() - exact).abs().max() / exact.abs().max() <= kernels.MAX_ERROR


def test_measuring_sees_an_inaccurate_kernel():
    found = kernels.measure([(256, 192)])
    assert found["default"]["error"] <= kernels.MAX_ERROR < found["bf16"]["error"]
    assert all(entry["milliseconds"] > 0 for entry in found.values())


def test_measuring_leaves_random_numbers_and_precision_as_they_were():
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    kernels.measure([(64, 64)])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_float32_matmul_precision() == "high"


def test_small_models_and_the_default_are_not_measured(monkeypatch):
    monkeypatch.setattr(kernels, "measure", lambda sizes: pytest.fail("nothing to gain"))
    assert kernels.choose("auto", Counter({(32, 64): 28}))["matmul"] == "default"
    assert kernels.choose("default", SIZES) == {
        "setting": "default",
        "matmul": "default",
        "attention": "fused",
    }


def test_onednn_is_taken_when_asked_for_and_its_error_is_recorded():
    record = kernels.choose("onednn", SIZES)
    assert record["matmul"] == "onednn" and record["measured"]["onednn"]["error"] < 1e-2
    assert torch.get_float32_matmul_precision() == "medium"


def test_on_a_gpu_nothing_is_changed(monkeypatch):
    """There the same switch would mean TF32."""
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert kernels.choose("onednn", SIZES)["matmul"] == "default"
    assert torch.get_float32_matmul_precision() == "highest"


def test_slow_bf16_is_said(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "measure", lambda sizes: measured(0.25, 0.25, 1e-6))
    kernels.choose("auto", SIZES)
    kernels.tell_slow_bf16("fp32")
    assert capsys.readouterr().err == ""
    kernels.tell_slow_bf16("bf16")
    assert "4.0 times as slow" in capsys.readouterr().err


def test_records_name_cpu_kernel_and_measurement(bench, monkeypatch):
    monkeypatch.setattr(kernels, "measure", lambda sizes: measured(10.0, 4.5, 1e-6))
    monkeypatch.setattr(kernels, "MIN_WORK", 1)
    runner = bench(tasks=["cola"], methods=["mola-2468"], seeds=[0])
    [cell] = runner.study.cells()
    runner.run(cell)
    manifest = json.loads((runner.layout.cell(cell) / "manifest.json").read_text())
    for record in (manifest["training"]["kernels"], manifest["evaluation"]["kernels"]):
        assert record["setting"] == "auto" and record["matmul"] == "onednn"
        assert record["measured"]["default"]["milliseconds"] == 10.0
        assert record["cpu"] and record["capability"] == torch.backends.cpu.get_cpu_capability()


def test_the_kernel_is_no_part_of_a_key(bench):
    """Like the number of threads it changes rounding only: a study begun on one machine goes on on another."""
    from mola_core.runs.key import keys

    found = {}
    for matmul in ("auto", "default", "onednn"):
        runner = bench(tasks=["cola"], methods=["mola-2468"], seeds=[0], compute={"matmul": matmul})
        found[matmul] = keys(runner.layout, runner.study.cells()[0])
    assert found["auto"] == found["default"] == found["onednn"]
