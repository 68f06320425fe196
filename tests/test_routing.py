"""Router statistics against a count written out, their summary and figures; layer quality beside redundancy."""

import numpy as np
import pandas as pd
import pytest
import torch
from peft import get_peft_model
from scipy import stats

from mola_core.adapter import MolaConfig
from mola_core.analysis.experts import quality, routing
from mola_core.analysis.experts.left_out import told
from mola_core.cli import main
from mola_core.errors import MolaError
from mola_core.evaluation.router_counts import Counts, Watch, routing_frame
from mola_core.files import write_json
from mola_core.runs.cell import CellRunner
from mola_core.runs.layout import ROUTING, Layout
from mola_core.study.loading import load_study
from mola_core.study.study import Study

DOCUMENTS = [[5, 9, 13], [7, 7, 2, 40, 33, 12, 8], [3, 60, 21, 11]]


@pytest.fixture
def adapted(tiny_llama):
    config = MolaConfig(
        num_experts=[2, 3, 4, 5],
        top_k=2,
        r=2,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights=False,
    )
    torch.manual_seed(3)
    return get_peft_model(tiny_llama(), config).eval()


def test_counts_are_those_of_each_document_alone(adapted):
    """Token by token, without padding, from the modules' own inputs."""
    frame = routing_frame(adapted, DOCUMENTS, batch_size=2, pad=0)
    layer = adapted.base_model.model.model.layers[2].mlp.down_proj
    inputs: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, given: inputs.append(given[0][0]))
    with torch.no_grad():
        for document in DOCUMENTS:
            adapted(input_ids=torch.tensor([document]))
    handle.remove()
    chosen, weight, probability = np.zeros(4), np.zeros(4), np.zeros(4)
    for x in torch.cat(inputs):
        p = np.exp((layer.mola_router["default"].detach() @ x).numpy().astype(float))
        p /= p.sum()
        best = np.argsort(-p)[:2]
        chosen[best] += 1
        weight[best] += p[best] / p[best].sum()
        probability += p
    own = frame[(frame["layer"] == 2) & (frame["module"] == "down_proj")].sort_values("expert")
    assert own["tokens"].tolist() == [14] * 4
    assert own["chosen"].tolist() == chosen.tolist()
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(own["mean_weight"], weight / chosen, rtol=1e-5)
    np.testing.assert_allclose(own["probability"], probability / 14, rtol=1e-5)


def test_every_module_is_counted_and_batches_do_not_matter(adapted):
    one, all_at_once = (routing_frame(adapted, DOCUMENTS, size, pad=0) for size in (1, 3))
    assert len(one) == 2 * (2 + 3 + 4 + 5)
    assert (one.groupby(["layer", "module"])["chosen"].sum() == 2 * 14).all()
    pd.testing.assert_frame_equal(one, all_at_once, rtol=1e-4)


def test_the_hooks_are_gone_afterwards(adapted):
    def hooks():
        return [(list(m._forward_pre_hooks), list(m._forward_hooks)) for m in adapted.modules()]

    before = hooks()  # the adapter has some of its own
    routing_frame(adapted, DOCUMENTS, 3, pad=0)
    assert hooks() == before


def test_a_model_without_routers_is_refused(tiny_llama):
    with pytest.raises(MolaError, match="no router"):
        routing_frame(tiny_llama(), DOCUMENTS, 3, pad=0)


@pytest.mark.parametrize("chosen", [[5, 5, 5], [8, 1, 0, 3]])
def test_load_entropy_is_the_normalised_entropy(chosen):
    assert routing.load_entropy(chosen) == pytest.approx(stats.entropy(chosen, base=len(chosen)))


def test_load_entropy_of_extremes():
    assert routing.load_entropy([7, 0, 0]) == 0
    assert np.isnan(routing.load_entropy([7]))


def study(**changes) -> Study:
    content = load_study("smoke").model_dump(mode="json", exclude_none=True)
    settings = {"methods": ["base", "lora-r4", "mola-2468", "mola-8642"], "seeds": [0], "tasks": ["cola"]}
    return Study.model_validate(content | settings | changes)


def cell_frame(draw: int) -> pd.DataFrame:
    random = np.random.default_rng(draw)
    rows = [
        (layer, module, expert, 50, int(random.integers(0, 50)), float(random.uniform(0.3, 0.7)), 0.25)
        for layer in range(4)
        for module in ("q_proj", "down_proj")
        for expert in range(2 + layer)
    ]
    columns = ["layer", "module", "expert", "tokens", "chosen", "mean_weight", "probability"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def counted(tmp_path) -> Layout:
    layout = Layout(study(), tmp_path)
    for place, cell in enumerate(routing.routed_cells(layout.study)):
        layout.cell(cell).mkdir(parents=True)
        cell_frame(place).to_csv(layout.cell(cell) / ROUTING, index=False)
    return layout


def test_routers_of_one_layer_whose_names_end_alike_are_two():
    watch = Watch()
    for name, logits in [("attn.c_proj", [2.0, 1.0]), ("mlp.c_proj", [1.0, 2.0])]:
        counts = Counts(2)
        counts.add(torch.tensor([logits] * 10), top_k=1)
        watch.counts[f"base_model.model.transformer.h.3.{name}"] = counts
    frame = watch.frame().set_index(["layer", "module", "expert"])["chosen"]
    assert frame.to_dict() == {
        (3, "attn.c_proj", 0): 10,
        (3, "attn.c_proj", 1): 0,
        (3, "mlp.c_proj", 0): 0,
        (3, "mlp.c_proj", 1): 10,
    }


def test_layers_stand_at_their_own_numbers(counted):
    """Of a hybrid model whose layers 1, 3, 5 and 7 have attention."""
    experts, _ = routing.read(counted)
    figure = routing.heat_map(counted.study, experts.assign(layer=2 * experts["layer"] + 1))
    image = figure.axes[0].images[0]
    assert image.get_extent()[2:] == [0.5, 8.5]
    rows = np.isnan(np.asarray(image.get_array().filled(np.nan))).all(axis=1)
    assert rows.tolist() == [True, False] * 4


def test_a_summary_has_a_row_for_each_module(counted):
    assert not told(routing.write(counted))
    summary = pd.read_csv(counted.folder / "routing.csv")
    own = cell_frame(0)
    own = own[(own["layer"] == 3) & (own["module"] == "q_proj")]
    row = summary[
        (summary["method"] == "mola-2468") & (summary["layer"] == 3) & (summary["module"] == "q_proj")
    ].iloc[0]
    assert len(summary) == 2 * 4 * 2
    assert row["experts"] == 5
    assert row["mean_weight"] == pytest.approx(np.average(own["mean_weight"], weights=own["chosen"]))
    assert row["load_entropy"] == pytest.approx(stats.entropy(own["chosen"], base=5))
    assert row["most_load"] == pytest.approx(own["chosen"].max() / own["chosen"].mean())
    for name in routing.FIGURES:
        assert (counted.folder / "figures" / f"{name}.svg").stat().st_size > 5_000


def test_cells_without_statistics_are_named_and_broken_files_refused(counted):
    first, second = routing.routed_cells(counted.study)
    cell_frame(0).head(0).to_csv(counted.cell(second) / ROUTING, index=False)
    assert told(routing.write(counted)) == [
        f"Incomplete: without 1 cell whose training diverged, the first is {second.path}."
    ]
    assert "Incomplete: without 1 cell" in (counted.folder / "figures/routing.svg").read_text()
    (counted.cell(second) / ROUTING).unlink()
    assert routing.write(counted)[routing.WITHOUT] == [second]
    cell_frame(0).drop(columns="chosen").to_csv(counted.cell(first) / ROUTING)
    with pytest.raises(MolaError, match="no column chosen"):
        routing.read(counted)
    (counted.cell(first) / ROUTING).write_text("")
    with pytest.raises(
        MolaError, match=r"routing.csv: cannot be read .*; remove the file and run `mola routing`"
    ):
        routing.read(counted)
    (counted.cell(first) / ROUTING).unlink()
    with pytest.raises(MolaError, match="no cell has routing.csv"):
        routing.read(counted)


def test_a_trained_cell_goes_through_all_verbs(tmp_path):
    file = tmp_path / "little.yaml"
    file.write_text(
        study(methods=["mola-2468"]).model_copy(update={"name": "little"}).model_dump_json(exclude_none=True)
    )
    options = ["--study", str(file), "--results", str(tmp_path)]
    cell = ["--task", "cola", "--method", "mola-2468", "--seed", "0"]
    assert main(["routing", *options, *cell]) == 2
    for verb in (
        ["model"],
        ["data"],
        ["train", *cell],
        ["routing", *cell],
        ["routing"],
        ["redundancy"],
        ["layers"],
    ):
        assert main([verb[0], *options, *verb[1:]]) == 0
    layout = Layout(load_study(str(file)), tmp_path)
    bench = CellRunner(layout)
    frame = pd.read_csv(layout.cell(layout.study.cells()[0]) / "routing.csv")
    assert frame.groupby(["layer", "module"]).size().loc[3].tolist() == [8] * 7
    bench.count_routing(layout.study.cells()[0])
    pd.testing.assert_frame_equal(pd.read_csv(layout.cell(layout.study.cells()[0]) / "routing.csv"), frame)
    made = {path.name for path in layout.folder.iterdir()}
    assert {"routing.csv", "redundancy.csv", "layer_quality.csv", "quality.csv"} <= made
    assert main(["routing", *options, "--task", "cola"]) == 2


def test_correlations_are_pearsons():
    scores = pd.DataFrame({"layer": range(6), "fitted": [3.0, 2, 5, 4, 7, 6], "median": [2.0] * 6})
    raw = [0.1, 0.4, 0.2, 0.6, 0.5, 0.9]
    redundancy = pd.DataFrame(
        [
            {"method": "m", "layer": layer, "module": module, "matrix": matrix, "raw": value + shift}
            for layer, value in enumerate(raw)
            for module, shift in [("q_proj", 0.1), ("k_proj", -0.1), ("up_proj", 7.0)]
            for matrix in ("A", "BA")
        ]
    )
    found = quality.correlations(scores, quality.layer_differences(redundancy))
    expected = stats.pearsonr(scores["fitted"], raw)
    # The scores of the other estimate are all the same: no correlation, no row.
    assert found["estimate"].tolist() == ["fitted"]
    assert (found["r"][0], found["p"][0]) == pytest.approx((expected.statistic, expected.pvalue))


def test_the_papers_scores_are_drawn_beside_its_models(tmp_path):
    model = {"name": "m", "source": "random", "paper": "Mistral-7B"}
    layout = Layout(study(model=model), tmp_path)
    with pytest.raises(MolaError, match="run `mola layers"):
        quality.layer_means(layout)
    matrices = [{"layer": n, "module": "q", "fitted": 3.0 + n % 2, "median": 2.0} for n in range(32)]
    write_json(layout.quality, {"matrices": matrices})
    assert quality.write(layout) is False
    assert "printed in the paper" in (layout.folder / "figures" / "layer_quality.svg").read_text()
    assert not (layout.folder / "quality.csv").exists()
    (layout.folder / "redundancy.parquet").write_bytes(b"PAR1 cut sho")
    with pytest.raises(
        MolaError, match=r"redundancy.parquet: cannot be read .*; run `mola redundancy` again"
    ):
        quality.write(layout)
    write_json(layout.quality, {"matrices": [{"layer": 0}]})
    with pytest.raises(MolaError, match=f"{layout.quality.name}: damaged; remove it"):
        quality.write(layout)
