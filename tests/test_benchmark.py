"""The benchmark runs to its end on the tiny model. Its numbers are not tested: nothing here is timed."""

import json

from mola_core.cli import main

PARTS = ("steps", "ablation", "precision", "memory", "large", "evaluation", "prefix", "padding")


def test_every_part_gives_rows_with_numbers(tmp_path, capsys):
    parts = [argument for part in PARTS for argument in ("--part", part)]
    places = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "out")]
    assert main(["benchmark", "--study", "smoke", "--repeats", "1", *places, *parts]) == 0
    written = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert {row["group"] for row in written["rows"]} == {"step", *PARTS[1:]}
    assert all(row["value"] > 0 for row in written["rows"])
    assert written["kernels"]["capability"] and written["kernels"]["matmul"]
    printed = capsys.readouterr().out
    assert all(row["what"] in printed for row in written["rows"])
    assert (tmp_path / "out/benchmark.svg").is_file()


def test_kernels_are_named_with_what_they_were_chosen_by():
    from mola_core.benchmark.report import _kernels

    assert _kernels({"capability": "AVX2"}) == "AVX2, float32 products by default, attention by fused"
    measured = {"onednn": {"milliseconds": 4.0, "error": 1e-6}}
    record = {"capability": "AVX512", "matmul": "onednn", "attention": "products", "measured": measured}
    assert _kernels(record).endswith("by onednn, attention by products (onednn 4.0 ms, error 1.0e-06)")


def test_each_variant_is_measured_with_its_own_kernels(monkeypatch):
    from mola_core.benchmark import precision

    told = []
    call = precision._after(told.append, {"matmul": "onednn"}, lambda: told.append("called"))
    call()
    assert told == [{"matmul": "onednn"}, "called"]
