"""The benchmark runs to its end on the tiny model. Its numbers are not tested: nothing here is timed."""

import json

from mola_core.cli import main

PARTS = ("steps", "memory", "large", "evaluation", "prefix", "padding")


def test_every_part_gives_rows_with_numbers(tmp_path, capsys):
    parts = [argument for part in PARTS for argument in ("--part", part)]
    places = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "out")]
    assert main(["benchmark", "--study", "smoke", "--repeats", "1", *places, *parts]) == 0
    written = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert {row["group"] for row in written["rows"]} == {"step", *PARTS[1:]}
    assert all(row["value"] > 0 for row in written["rows"])
    printed = capsys.readouterr().out
    assert all(row["what"] in printed for row in written["rows"])
    assert (tmp_path / "out/benchmark.svg").is_file()
