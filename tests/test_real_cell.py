"""One cell with real weights and real rows, a few steps: what the tiny random model cannot show."""

import math

import pandas as pd
import pytest

from mola_core.files import read_json
from mola_core.models.loading import prepare_model
from mola_core.runs.cell import CellRunner
from mola_core.runs.layout import Layout
from mola_core.study.loading import load_study
from mola_core.study.study import Study
from mola_core.tasks.rows import prepare_task


@pytest.mark.slow
def test_smollm2_on_rte(real_data, tmp_path):
    content = load_study("smollm2", str(real_data)).model_dump(mode="json", exclude_none=True)
    content |= {"tasks": ["rte"], "methods": ["base", "mola-2468"], "seeds": [0]}
    content["training"] |= {"max_steps": 3, "warmup_steps": 0, "batch_size": 2, "micro_batch_size": 2}
    content["evaluation"]["documents"] = 8
    layout = Layout(Study.model_validate(content), tmp_path)
    prepare_model(layout.study.model, layout.model)
    prepare_task("rte", layout.study.data, layout.data("rte"))
    bench = CellRunner(layout)
    scores = {}
    for cell in layout.study.cells():
        bench.run(cell)
        manifest = read_json(layout.cell(cell) / "manifest.json")
        samples = pd.read_parquet(layout.cell(cell) / "samples.parquet")
        assert len(samples) == 8
        assert manifest["stand_in"] is False
        assert manifest["data_files"]["rte"]["splits"]["train"]["known"] is True
        scores[cell.method] = samples
    training = manifest["training"]
    assert training["experts"] == [2] * 8 + [4] * 7 + [6] * 7 + [8] * 8
    assert math.isfinite(training["final_loss"])
    assert training["trainable_parameters"] / training["base_parameters"] < 0.1
    assert (scores["base"]["document"] == scores["mola-2468"]["document"]).all()
    base, mola = ([list(row) for row in scores[name]["loglikelihoods"]] for name in ("base", "mola-2468"))
    assert base != mola
