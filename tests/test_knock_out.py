"""Knock-out: what is off is off and nothing else, scores against evaluations by hand, and the study's table and figure."""

import dataclasses

import pandas as pd
import pytest
import torch
from test_peft_methods import STUDY, peft

from mola_core.analysis.experts import knock_out as gathered
from mola_core.analysis.experts import redundancy, routing
from mola_core.analysis.experts.left_out import told
from mola_core.errors import MolaError
from mola_core.evaluation.knock_out import parts, switched_off
from mola_core.methods.settings import MethodSettings
from mola_core.models.weights import new_adapter

METHODS = [
    MethodSettings(method="mola-2468"),
    MethodSettings(method="lora-r4"),
    peft(peft_type="OFT", oft_block_size=4),
    MethodSettings(method="mola-2468", initialisation="pissa"),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.label}-{method.initialisation}")
def test_layers_are_off_during_the_block_and_on_again_after_it(tiny_llama, tmp_path, method):

    model = new_adapter(tiny_llama(), method, method.adapter(STUDY), tmp_path).eval()
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    ids = torch.randint(1, 60, (2, 7))
    seen = {}

    def outputs():
        handles, found = [], {}
        for index, layer in enumerate(model.base_model.model.model.layers):
            up = layer.mlp.up_proj
            handles.append(
                up.register_forward_hook(
                    lambda module, args, output, index=index: found.setdefault(
                        index, torch.equal(output, module.base_layer(*args))
                    )
                )
            )
        with torch.no_grad():
            logits = model(ids).logits
        for handle in handles:
            handle.remove()
        return logits, found

    before, plain = outputs()
    assert plain == dict.fromkeys(range(4), False)
    with switched_off(model, [1, 2]) as modules:
        assert modules == 2 * 7
        _, seen = outputs()
    assert seen == {0: False, 1: True, 2: True, 3: False}
    after, _ = outputs()
    assert torch.equal(before, after)
    with switched_off(model, range(4)), torch.no_grad():
        torch.testing.assert_close(model(ids).logits, tiny_llama()(ids).logits)


def test_parts_cover_every_layer_once():
    for depth in (4, 5, 7, 30, 31):
        found = parts(depth, "quarter")
        assert list(found) == ["none", "1", "2", "3", "4", "all"]
        assert sum((found[str(number)] for number in (1, 2, 3, 4)), []) == list(range(depth)) == found["all"]
        assert [len(found[str(number)]) for number in (1, 4)] == [len(found["1"])] * 2
    assert parts(3, "layer") == {"none": [], "0": [0], "1": [1], "2": [2], "all": [0, 1, 2]}


def test_a_cells_table_and_the_studys(bench):
    runner = bench(
        tasks=["cola"], methods=["base", "mola-2468", "prompt-tuning"], seeds=[0], evaluation={"documents": 8},
        training={"learning_rate": 0.1},
    )  # fmt: skip
    cells = {cell.method: cell for cell in runner.study.cells()}
    assert gathered.knocked_out_cells(runner.study) == [cells["mola-2468"]]
    with pytest.raises(MolaError, match="no cell has knockout.csv"):
        gathered.write(runner.layout)
    for cell in cells.values():
        runner.run(cell)
    runner.knock_out(cells["mola-2468"])
    table = pd.read_csv(runner.layout.cell(cells["mola-2468"]) / "knockout.csv", keep_default_na=False)
    table["part"] = table["part"].astype(str)
    rows = table.set_index("part")
    assert rows["layers"].to_dict() == {"none": 0, "1": 1, "2": 1, "3": 1, "4": 1, "all": 4}
    for part, method in (("none", "mola-2468"), ("all", "base")):
        samples = pd.read_parquet(runner.layout.cell(cells[method]) / "samples.parquet")
        assert rows.loc[part, "accuracy"] == pytest.approx(samples["correct"].mean())
        chosen = [
            torch.tensor(row.loglikelihoods).softmax(0)[int(row.target)].item()
            for row in samples.itertuples()
        ]
        assert rows.loc[part, "likelihood"] == pytest.approx(sum(chosen) / len(chosen), abs=1e-5)
    assert rows["likelihood"].nunique() == 6, "each part changes the answers in its own way"
    assert not told(gathered.write(runner.layout))
    file = runner.layout.cell(cells["mola-2468"]) / "knockout.csv"
    whole = file.read_text()
    for wrong, message in [
        (table.drop(columns="accuracy"), "no column accuracy"),
        (table[table["part"] != "none"], "no row `none`"),
    ]:
        wrong.to_csv(file, index=False)
        with pytest.raises(MolaError, match=rf"knockout.csv: {message}; remove"):
            gathered.write(runner.layout)
    file.write_text("")
    with pytest.raises(MolaError, match=r"knockout.csv: cannot be read .*; remove the file and run"):
        gathered.write(runner.layout)
    file.write_text(whole)
    study = pd.read_csv(runner.layout.folder / "knockout.csv")
    lost = 100 * (rows.loc["none", "likelihood"] - rows.loc["2", "likelihood"])
    assert study[study["part"] == "2"]["likelihood_lost"].tolist() == pytest.approx([lost])
    assert (runner.layout.folder / "figures" / "knock_out.svg").is_file()
    # Of another adapter than the study would have now: not drawn as if it were of today's.
    slower = runner.study.training.model_copy(update={"learning_rate": 0.01})
    changed = dataclasses.replace(runner.layout, study=runner.study.model_copy(update={"training": slower}))
    said = "1 cell made otherwise than the study says now, the first is cola/mola-2468/seed0"
    for verb in (gathered.write, redundancy.write):
        with pytest.raises(MolaError, match=said):
            verb(changed)
    runner.count_routing(cells["mola-2468"])
    with pytest.raises(MolaError, match=said):
        routing.write(changed)
    other = runner.layout.cell(cells["mola-2468"]).parent / "seed1"
    other.mkdir()
    layers = table.assign(part=["none", "0", "1", "2", "3", "all"])
    layers.to_csv(other / "knockout.csv", index=False)
    both = runner.layout.study.model_copy(update={"seeds": [0, 1]})
    with pytest.raises(MolaError, match="knockout.csv of cola/mola-2468 is by other parts"):
        gathered.write(dataclasses.replace(runner.layout, study=both))
    table.assign(documents=9).to_csv(other / "knockout.csv", index=False)
    with pytest.raises(MolaError, match="knockout.csv of cola is of other numbers of documents in some"):
        gathered.write(dataclasses.replace(runner.layout, study=both))
    fewer = runner.study.evaluation.model_copy(update={"documents": 4})
    changed = dataclasses.replace(runner.layout, study=runner.study.model_copy(update={"evaluation": fewer}))
    for verb in (gathered.write, routing.write):
        with pytest.raises(MolaError, match="1 cell made otherwise than the study says now"):
            verb(changed)
    redundancy.write(changed)  # the adapter is what it was
    (runner.layout.cell(cells["mola-2468"]) / "samples.parquet").unlink()
    runner.evaluate(cells["mola-2468"])
    assert not (runner.layout.cell(cells["mola-2468"]) / "knockout.csv").exists(), "it was of other scores"
    with pytest.raises(MolaError, match="adapts no layer"):
        runner.knock_out(cells["prompt-tuning"])
    assert not (runner.layout.cell(cells["prompt-tuning"]) / "knockout.csv").exists()
