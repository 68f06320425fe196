"""Tables hold the cells' numbers, the paper's numbers are the CSV's, and what is missing stays empty."""

import dataclasses
import itertools
import re

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from simulated_study import make_study, simulate

from mola_core.analysis import collect
from mola_core.analysis.notices import continual_notices, notices
from mola_core.analysis.pages import summary
from mola_core.analysis.paper import catalogue, comparison
from mola_core.analysis.paper import tables as paper_tables
from mola_core.analysis.paper.coverage import reproduce
from mola_core.analysis.reference import numbers as reference
from mola_core.analysis.statistics import continual
from mola_core.analysis.tables import accuracy as tables
from mola_core.analysis.tables.parameters import closed_form, layer_matrices
from mola_core.analysis.tables.render import KINDS, latex, percent, points
from mola_core.errors import MolaError
from mola_core.records import read_record, write_record
from mola_core.shapes import lora_parameters, mola_parameters
from mola_core.study.loading import load_study
from mola_core.study.study import Study

LLAMA = {"name": "llama", "source": "hub", "id": "x/llama", "revision": "0" * 40, "paper": "Llama-2-7b"}
HUB = {"source": "hub"}


@pytest.fixture
def layout(tmp_path):
    layout = simulate(tmp_path, make_study(), documents=60)
    collect.write(layout)
    return layout


@pytest.fixture
def paper_layout(tmp_path):
    study = make_study(
        model=LLAMA,
        data=HUB,
        tasks=list(reference.TASKS),
        methods=["base", "lora-r64", "mola-2468", {"method": "mola-2468", "name": "wide", "rank": 16}],
        seeds=[0, 1],
    )
    layout = simulate(tmp_path, study, documents=50)
    collect.write(layout)
    return layout


def test_accuracies_are_means_over_seeds(layout):
    cells = collect.read_cells(layout.folder)
    table = tables.accuracy_table(layout.study, cells).set_index("method")
    own = cells[(cells.method == "mola-2468") & (cells.task == "cola")]
    assert table.loc["mola-2468", "cola"] == pytest.approx(own["correct"].sum() / (3 * 60))
    assert table.loc["mola-2468", "cola_sd"] == pytest.approx(np.std(own["correct"] / 60, ddof=1))
    by_seed = cells[cells.method == "mola-2468"].groupby("seed")["accuracy"].mean()
    assert table.loc["mola-2468", "mean"] == pytest.approx(by_seed.mean())
    assert table.loc["mola-2468", "mean_sd"] == pytest.approx(by_seed.std())
    assert list(table.index[:2]) == [tables.MAJORITY, "base"]
    assert table.loc[tables.MAJORITY, "cola"] == cells.query("task == 'cola'")["majority"].iloc[0] / 60
    assert pd.isna(table.loc["base", "cola_sd"])


def test_no_mean_over_tasks_where_one_is_missing(layout):
    cells = collect.read_cells(layout.folder)
    cells = cells[~((cells.method == "mola-2468") & (cells.task == "cola"))]
    table = tables.accuracy_table(layout.study, cells).set_index("method")
    assert pd.isna(table.loc["mola-2468", "mean"])
    assert pd.notna(table.loc["mola-8642", "mean"])
    shown = tables.shown_accuracy(layout.study, table.reset_index()).set_index("Method")
    assert shown.loc["mola-2468", "CoLA"] == shown.loc["mola-2468", "Mean"] == "–"


def test_a_missing_seed_is_named(layout):
    cells = collect.read_cells(layout.folder)
    cells = cells[~((cells.method == "mola-2468") & (cells.task == "cola") & (cells.seed == 2))]
    shown = tables.shown_accuracy(layout.study, tables.accuracy_table(layout.study, cells)).set_index(
        "Method"
    )
    assert shown.loc["mola-2468", "CoLA"].endswith("[2 of 3 seeds]")


def test_files_of_every_kind_name_the_stand_in(layout):
    tables.write(layout)
    paper_tables.write(layout)
    stems = [*tables.TABLES, *catalogue.tables_of(layout.study)]
    found = {path.name for path in (layout.folder / "tables").iterdir()}
    assert found == {f"{stem}.{kind}" for stem, kind in itertools.product(stems, KINDS)}
    for path in (layout.folder / "tables").iterdir():
        assert "Stand-in data" in path.read_text(encoding="utf-8"), path.name


def test_the_csv_is_in_percent(layout):
    tables.write(layout)
    table = pd.read_csv(layout.folder / "tables" / "accuracy.csv").set_index("method")
    cells = collect.read_cells(layout.folder)
    correct = cells[(cells.method == "lora-r40") & (cells.task == "cola")]["correct"].sum()
    assert table.loc["lora-r40", "cola"] == pytest.approx(100 * correct / 180, abs=1e-4)
    markdown = (layout.folder / "tables" / "accuracy.md").read_text()
    assert f"{100 * correct / 180:.2f} ±" in markdown


def test_the_base_model_is_a_row_even_where_it_was_not_run(tmp_path):
    layout = simulate(tmp_path, make_study(methods=["mola-2468"]), documents=20)
    cells = collect.write(layout)
    shown = tables.shown_accuracy(layout.study, tables.accuracy_table(layout.study, cells))
    assert shown["Method"].tolist() == [tables.MAJORITY, "base", "mola-2468"]
    assert shown.loc[1, "CoLA"] == "–"


def test_the_papers_numbers_stand_beside_ours(paper_layout):
    cells = collect.read_cells(paper_layout.folder)
    table = tables.accuracy_table(paper_layout.study, cells).set_index("method")
    assert table.loc["mola-2468", "cola_paper"] == pytest.approx(0.8687)
    assert table.loc["mola-2468", "mean_paper"] == pytest.approx(0.8459, abs=5e-5)
    assert pd.isna(table.loc["wide", "cola_paper"]), "another rank is not the paper's method"
    assert pd.isna(table.loc["base", "cola_paper"])


def test_parameters_agree_with_their_closed_form(layout):
    layers = layer_matrices(layout.model)
    modules = [(32, 32)] * 4 + [(32, 64)] * 2 + [(64, 32)]
    assert [sorted(layer.values()) for layer in layers] == [sorted(modules)] * 8
    study = layout.study
    experts = [2, 2, 4, 4, 6, 6, 8, 8]
    assert closed_form(study, "mola-2468", layers) == mola_parameters(experts, modules, 8)
    assert closed_form(study, "lora-r40", layers) == lora_parameters([40] * 8, modules)
    assert closed_form(study, "lora-matched-2468", layers) == lora_parameters(
        [8 * n for n in experts], modules
    )
    table = tables.parameter_table(study, collect.read_cells(layout.folder), layers).set_index("method")
    assert table.loc["mola-2468", "experts_per_layer"] == "2 × 2, 2 × 4, 2 × 6, 2 × 8"
    assert (table["closed_form"] == table["trained"]).all()


def test_a_count_that_differs_from_its_closed_form_is_refused(layout):
    cells = collect.read_cells(layout.folder)
    cells.loc[cells.method == "mola-2468", "trainable_parameters"] += 1
    with pytest.raises(MolaError, match="method mola-2468: .* closed form"):
        tables.parameter_table(layout.study, cells, layer_matrices(layout.model))


def test_sizes_that_data_decide_are_a_range(tmp_path):
    """EVA shares ranks out by what it sees, so that each cell trains another number of parameters."""
    config = {"peft_type": "LORA", "r": 8, "init_lora_weights": "eva", "eva_config": {"rho": 3.0}}
    eva = {"method": "peft", "name": "eva-r8", "config": config}
    layout = simulate(tmp_path, make_study(methods=["base", eva, "lora-r4"], seeds=[0, 1]), documents=40)
    collect.write(layout)
    cells = collect.read_cells(layout.folder)
    cells.loc[cells.method == "eva-r8", "trainable_parameters"] = [49_152, 49_664, 49_152, 49_792]
    cells.to_parquet(layout.folder / "cells.parquet", index=False)
    (layout.folder / "collected.json").unlink()
    for write in (tables.write, summary.write):
        write(layout)
    for name, column in (("accuracy", "trainable_parameters"), ("parameters", "trained")):
        assert " 49,152 to 49,792 |" in (layout.folder / "tables" / f"{name}.md").read_text()
        row = pd.read_csv(layout.folder / "tables" / f"{name}.csv").set_index("method").loc["eva-r8"]
        assert row[[column, f"{column}_from", f"{column}_to"]].tolist() == [49_440, 49_152, 49_792]
    assert "49,152 to 49,792" in (layout.folder / "summary.md").read_text()
    cells.loc[cells.method == "lora-r4", "trainable_parameters"] += [0, 1, 0, 0]
    with pytest.raises(MolaError, match="lora-r4: trainable parameters: the cells differ"):
        tables.accuracy_table(layout.study, cells)


def test_without_the_base_models_files_the_closed_form_is_empty(layout):
    (layout.model / "model.safetensors").unlink()
    tables.write(layout)
    table = pd.read_csv(layout.folder / "tables" / "parameters.csv")
    assert table["closed_form"].isna().all()
    assert table.set_index("method").loc["mola-2468", "experts"] == 40, "the depth comes from the cells"


def test_notices():
    study = load_study("quickstart")
    said = " ".join(notices(study, study.cells()[:2]))
    assert "Stand-in data" in said
    assert f"first {study.evaluation.documents:,} documents" in said
    assert f"Incomplete: 2 of {len(study.cells())} cells" in said
    assert notices(load_study("llama2-7b")) == []


def test_limits_of_a_stage_are_said_of_what_it_decides(tmp_path):
    cells = {"training": {"warmup_steps": 1, "max_steps": 2}}
    chains = {"continual": {"max_steps": 3}}
    study = make_study(model=LLAMA, methods=["base", "mola-2468"], seeds=[0], **cells, **chains)
    layout = simulate(tmp_path, study, documents=20)
    collect.write(layout)
    tables.write(layout)
    paper_tables.write(layout)
    folder = layout.folder / "tables"
    assert "Limited run: at most 2 steps." in (folder / "accuracy.md").read_text()
    assert "at most 3 steps" not in (folder / "accuracy.md").read_text()
    assert "Limited run: at most 3 steps." in (folder / "paper-5.md").read_text()
    for path in (folder / "paper-5.md", layout.folder / "figures/continual.svg"):
        words = " ".join(re.sub("<[^>]*>", "", path.read_text()).split())
        assert "at most 3 steps." in words and "at most 2 steps" not in words
    first = {"instruction": {"documents": 8, "max_steps": 4}}
    study = make_study(data=HUB, **first, **chains)
    expected = "Limited run: tuned on 8 instructions first, on instructions at most 4 steps"
    assert f"{expected}." in notices(study)
    assert f"{expected}, at most 3 steps." in continual_notices(study, None)
    assert not any("Limited" in line for line in notices(make_study(data=HUB, instruction={})))


def test_rendering():
    assert percent(0.86875) == "86.88"
    assert percent(None) == percent(float("nan")) == "–"
    assert points(-0.0043) == "−0.43"
    text = latex("t", "A & B_c 5 %", pd.DataFrame({"a_b": ["−1 ± 2"], "c": ["▷◁ 50 %"]}), [], [])
    assert r"A \& B\_c 5 \%" in text
    assert r"$-$1 $\pm$ 2" in text
    assert r"$\bowtie$ 50 \%" in text
    assert text.isascii()


# The paper's tables


def test_the_papers_columns_are_the_csvs(paper_layout):
    cells = collect.read_cells(paper_layout.folder)
    published = pd.read_csv(reference.FOLDER / "paper_results.csv")
    seen = 0
    for table in catalogue.ACCURACY_TABLES:
        numbers = comparison.accuracy_numbers(table, paper_layout.study, cells)
        ours = numbers[numbers["column"].isin(reference.TASKS)]
        assert sorted(ours["paper"]) == sorted(published.loc[published["table"] == table.key, "accuracy"])
        seen += len(ours)
    assert seen == len(published)
    first = comparison.accuracy_numbers(catalogue.ACCURACY_TABLES[0], paper_layout.study, cells)
    counts = first[first["column"] == "parameters"].set_index("row")["paper"]
    assert counts["mola-2468"] == 105_635_840


def test_ours_minus_the_papers(paper_layout):
    paper_tables.write(paper_layout)
    table = pd.read_csv(paper_layout.folder / "tables" / "paper-1.csv").set_index("row")
    cells = collect.read_cells(paper_layout.folder)
    ours = 100 * cells[(cells.method == "mola-2468") & (cells.task == "rte")]["correct"].sum() / 100
    row = table.loc["mola-2468"]
    assert row["rte_ours"] == pytest.approx(ours)
    assert row["rte_difference"] == pytest.approx(ours - 86.28)
    assert table.loc["mola-8642", [name for name in table if "_ours" in name]].isna().all()
    assert table.loc["mola-8642", "rte_paper"] == 84.84


def test_only_tables_with_something_to_put_are_written(paper_layout):
    paper_tables.write(paper_layout)
    written = {path.stem for path in (paper_layout.folder / "tables").glob("paper-*.csv")}
    assert written == set(catalogue.tables_of(paper_layout.study)) == {"paper-1", "paper-8"}


def test_another_base_model_is_named(layout):
    paper_tables.write(layout)
    assert "Our base model is tiny" in (layout.folder / "tables" / "paper-1.md").read_text()


def test_intervals_of_table_8(paper_layout):
    cells = collect.read_cells(paper_layout.folder)
    table = next(table for table in catalogue.ACCURACY_TABLES if table.number == 8)
    numbers = comparison.accuracy_numbers(table, paper_layout.study, cells).set_index(["row", "column"])
    values = 100 * cells[(cells.method == "mola-2468") & (cells.task == "mrpc")]["correct"] / 50
    half = 1.96 * values.std(ddof=1) / 2**0.5
    row = numbers.loc[("mola-2468", "mrpc")]
    assert (row["ours_low"], row["ours_high"]) == pytest.approx((values.mean() - half, values.mean() + half))
    assert (row["paper_low"], row["paper_high"]) == (83.06, 83.74)


def test_one_seed_has_no_interval(tmp_path):
    layout = simulate(tmp_path, make_study(seeds=[0]), documents=20)
    table = next(table for table in catalogue.ACCURACY_TABLES if table.number == 8)
    numbers = comparison.accuracy_numbers(table, layout.study, collect.write(layout))
    assert numbers[["ours", "ours_low", "difference"]].isna().all(axis=None)


def test_which_published_numbers_are_no_k_of_n():
    frame = reference.results()
    frame = frame[frame["table"] != "naacl-8"]
    off = frame[
        [
            not reference.on_grid(a, reference.TASKS[t][1])
            for a, t in zip(frame.accuracy, frame.task, strict=True)
        ]
    ]
    single = off[off["table"] != "naacl-9"][["method", "task"]].to_numpy().tolist()
    assert single == [["prompt-tuning", "rte"], ["mola-5555", "rte"]]
    assert set(off[off["table"] == "naacl-9"]["method"]) == {
        f"pissa-mola-{s}" for s in (5555, 8642, 8228, 2468, 2882)
    }


# Continual learning


def test_the_papers_table_6_gives_its_table_5():
    printed = {
        "lora-r64": (78.67, -2.17),
        "mola-5555": (88.80, -0.6),
        "mola-8228": (83.82, -3.92),
        "mola-8642": (88.84, -2.10),
        "mola-2468": (89.82, -0.47),
    }
    results = continual.summary(reference.continual().assign(seed=0)).set_index("method")
    for method, (op, pd_value) in printed.items():
        assert results.loc[method, "op"] == pytest.approx(op, abs=0.011)
        assert results.loc[method, "pd"] == pytest.approx(pd_value, abs=0.041)


def test_op_and_pd_by_hand():
    accuracies = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.3], [0.6, 0.65, 0.95]])
    assert continual.overall_performance(accuracies) == pytest.approx((0.6 + 0.65 + 0.95) / 3)
    by_hand = 2 / (3 * 2) * ((0.8 - 0.9) + (0.6 - 0.8) + (0.65 - 0.7))
    assert continual.performance_drop(accuracies) == pytest.approx(by_hand)


def test_continual_tables_are_filled_from_the_tidy_frame(paper_layout):
    content = paper_layout.study.model_dump(exclude_unset=True) | {"continual": {}}
    paper_layout = dataclasses.replace(paper_layout, study=Study.model_validate(content))
    frame = reference.continual().assign(seed=0)
    frame = frame[frame.method.isin(["lora-r64", "mola-2468"])]
    frame.assign(accuracy=frame.accuracy / 100).to_parquet(paper_layout.folder / continual.FILE)
    paper_tables.write(paper_layout)
    table = pd.read_csv(paper_layout.folder / "tables" / "paper-5.csv").set_index("row")
    assert table.loc["mola-2468", "op_ours"] == pytest.approx(89.822, abs=1e-3)
    assert table.loc["mola-2468", "op_difference"] == pytest.approx(0, abs=1e-9)
    assert pd.isna(table.loc["mola-5555", "op_ours"])
    detail = pd.read_csv(paper_layout.folder / "tables" / "paper-6.csv").set_index("row")
    assert detail.loc["physics – biology", "mola-2468_ours"] == pytest.approx(91.69)
    assert (paper_layout.folder / "figures" / "continual.svg").is_file()


def test_continual_learning_from_its_cells(tmp_path):
    study = make_study(methods=["base", "mola-2468"], seeds=[0, 1], continual={})
    layout = simulate(tmp_path, study, documents=20)
    broken = next(cell for cell in study.continual_cells() if cell.seed == 1)
    (layout.cell(broken) / "manifest.json").unlink()
    with pytest.raises(
        MolaError, match=rf"1 of {len(study.cells()) + 10} cells are not complete.*{broken.path} \(missing"
    ):
        collect.write(layout)
    collect.write(layout, partial=True)
    frame = continual.read(layout.folder)
    assert set(frame["seed"]) == {0}, "a chain with an open stage is left out"
    assert list(dict.fromkeys(frame["trained_up_to"])) == list(reference.TOPIC_DOCUMENTS)
    stage = study.continual_cells()[1]
    samples = pd.read_parquet(layout.cell(stage) / "samples.parquet")
    row = frame[(frame.trained_up_to == "physics") & (frame.tested_on == "economics")]
    expected = samples.loc[samples["task"] == "scienceqa-economics", "correct"].mean()
    assert row["accuracy"].tolist() == [expected]
    paper_tables.write(layout)
    said = "Incomplete: 1 of 2 chains of continual learning are missing, the first is mola-2468 seed 1; means"
    assert all(said in (layout.folder / f"tables/paper-{number}.md").read_text() for number in (5, 6))
    assert "1 of 2 chains of continual" in (layout.folder / "figures/continual.svg").read_text()
    assert "continual learning of " in reproduce(layout).set_index("item").loc["Table 5", "missing"]
    table = pd.read_csv(layout.folder / "tables" / "paper-5.csv").set_index("row")
    assert table.loc["mola-2468", "op_ours"] == pytest.approx(100 * continual.summary(frame)["op"].iloc[0])


def test_instruction_tuned_cells_belong_to_table_4(tmp_path):
    study = make_study(model=LLAMA, data=HUB, methods=["mola-2468"], seeds=[0], instruction={})
    layout = simulate(tmp_path, study, documents=20)
    cells = collect.write(layout)
    ours = {
        table.number: comparison.accuracy_numbers(table, study, cells)["ours"].notna().sum()
        for table in catalogue.ACCURACY_TABLES
    }
    assert ours == {1: 0, 2: 0, 3: 0, 4: 2, 7: 0, 8: 0, 9: 0}
    assert reference.accuracy(study, "mola-2468", "cola") == 86.19


def test_another_order_of_the_papers_topics_is_the_studys():
    """A model that keeps all that it has learnt, and knows nothing of what it has not."""
    topics = list(reference.TOPIC_DOCUMENTS)[::-1]
    rows = [
        ("mola-2468", 0, trained, tested, 0.9 if topics.index(tested) <= stage else 0.5)
        for stage, trained in enumerate(topics)
        for tested in topics
    ]
    frame = pd.DataFrame(rows, columns=list(continual.COLUMNS))
    found = continual.summary(frame).iloc[0]
    assert (found["op"], found["pd"]) == (pytest.approx(0.9), pytest.approx(0.0))


def test_tables_5_and_6_are_those_of_the_papers_topics_and_model():
    topics = [f"scienceqa-{topic}" for topic in reference.TOPIC_DOCUMENTS]
    for changes, there in [
        ({}, True),
        ({"model": LLAMA, "data": HUB}, True),
        ({"model": LLAMA | {"paper": "Mistral-7B"}, "data": HUB}, False),
        ({"continual": {"tasks": topics[::-1]}}, False),
        ({"continual": {"tasks": topics[:2]}}, False),
    ]:
        study = make_study(methods=["mola-2468"], **{"continual": {"tasks": topics}, **changes})
        assert ("paper-5" in catalogue.tables_of(study)) == there, changes
    others = ["mola-2468", "lora-matched-2468"]
    for chained, there in ((others[:1], True), (others[1:], False)):
        study = make_study(methods=others, continual={"tasks": topics, "methods": chained})
        assert ("paper-5" in catalogue.tables_of(study)) == there, "chains decide, not the study's methods"


def test_chains_of_other_methods_leave_the_papers_columns_alone():
    empty = pd.DataFrame(columns=list(continual.COLUMNS))
    for table in (comparison.op_and_pd(empty), comparison.continual_detail(empty)):
        assert table["ours"].isna().all() and table["paper"].notna().all()


def test_a_method_with_other_ranks_or_scales_is_not_the_papers():
    for changes in ({"rslora": True}, {"rank": [8] * 8}, {"loraplus_ratio": 4.0}):
        study = make_study(
            methods=[{"method": "lora-r64" if "rank" not in changes else "mola-2468", **changes}]
        )
        assert reference.paper_names(study) == {}, changes
    assert len(reference.paper_names(make_study(methods=["lora-r64", "mola-2468"]))) == 2


def test_a_closed_form_is_of_modules_within_layers():
    sizes = {"self_attn.q_proj": (32, 32), "mlp.up_proj": (32, 48)}
    layers = [sizes, {"mlp.up_proj": (32, 48)}] * 2

    def parameters(method, *targets):
        study = make_study(methods=[method], adapter={"target_modules": list(targets)})
        return closed_form(study, study.methods[0].label, layers)

    assert parameters("lora-r4", "up_proj") == 4 * 4 * (32 + 48)
    assert parameters("lora-r4", "q_proj") == 2 * 4 * (32 + 32), "a hybrid model has attention in some layers"
    assert parameters("lora-r4", "up_proj", "lm_head") is None
    own = {"method": "peft", "name": "own", "config": {"peft_type": "LORA", "target_modules": ["c_attn"]}}
    assert parameters(own, "up_proj") is parameters(own, "gate_proj") is None
    with pytest.raises(MolaError, match="the base model's layers have none of the modules gate_proj"):
        parameters("lora-r4", "gate_proj")


def test_packed_weights_have_no_closed_form(layout):
    file = layout.model / "model.safetensors"
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(
        {name: np.zeros((9, 1), np.uint8), f"{name}.quant_state.bitsandbytes__nf4": np.zeros(3, np.uint8)},
        file,
    )
    assert layer_matrices(layout.model) == []
    assert (
        tables.parameter_table(layout.study, collect.read_cells(layout.folder), [])["closed_form"]
        .isna()
        .all()
    )


def test_experts_that_differ_by_cell_are_not_averaged(layout):
    study = make_study(methods=["base", {"method": "sensitivity-20", "name": "chosen"}], seeds=[0, 1])
    cells = collect.read_cells(layout.folder)
    own = cells[cells["method"] == "mola-2468"].head(2).assign(method="chosen")
    for lists, said in [(["[2, 8]", "[4, 6]"], "differ by cell"), (["[2, 8]", "[2, 8]"], "1 × 2, 1 × 8")]:
        table = tables.parameter_table(study, own.assign(experts=lists), []).set_index("method")
        assert table.loc["chosen", "experts_per_layer"] == said


def test_a_gap_in_continual_learning_is_named():
    frame = reference.continual().assign(seed=0)
    frame = frame[~((frame.trained_up_to == "physics") & (frame.tested_on == "biology"))]
    with pytest.raises(MolaError, match="no accuracy on biology after physics"):
        continual.summary(frame)


# The state of the reproduction, and the summary


def test_states_of_the_reproduction(paper_layout):
    state = reproduce(paper_layout).set_index("item")
    assert state.loc["Table 1", "state"] == "partly"
    assert "mola-5555" in state.loc["Table 1", "missing"]
    assert state.loc["Table 2"].tolist()[1:] == ["not started", "base model Mistral-7B"]
    assert "seeds: 3 instead of 2" in state.loc["Table 8", "missing"]
    cell = paper_layout.study.cell("rte", "mola-2468", 1)
    (paper_layout.cell(cell) / "manifest.json").unlink()
    assert "rte/mola-2468/seed1" in reproduce(paper_layout).set_index("item").loc["Table 1", "missing"]
    (paper_layout.folder / "redundancy.parquet").write_bytes(b"PAR1 cut sho")
    with pytest.raises(
        MolaError, match=r"redundancy.parquet: cannot be read .*; remove it and make it again"
    ):
        reproduce(paper_layout)


def test_a_whole_table_is_done(tmp_path):
    methods = [
        name for table in catalogue.ACCURACY_TABLES if table.number == 7 for name in table.rows("Gemma-7b")
    ]
    model = LLAMA | {"paper": "Gemma-7b"}
    study = make_study(model=model, data=HUB, tasks=list(reference.TASKS), methods=methods, seeds=[0])
    layout = simulate(tmp_path, study, documents=20)
    assert reproduce(layout).set_index("item").loc["Table 7"].tolist()[1:] == ["done", ""]


def test_the_summary(layout):
    tables.write(layout)
    summary.write(layout)
    text = (layout.folder / "summary.md").read_text()
    assert text.index("Stand-in data") < text.index("Base model")
    assert "26 of 26 complete" in text
    assert "yes, all 4 methods" in text
    assert "(tables/accuracy.md)" in text
    assert "## Answer" not in text


def test_training_that_does_not_help_is_called_so(layout):
    cells = collect.read_cells(layout.folder)
    cells.loc[cells.task == "cola", "correct"] = 10
    documents = cells.groupby("task")["documents"].max()
    accuracy = tables.accuracy_table(layout.study, cells)
    table = summary.did_training_help(layout.study, accuracy, documents).set_index("Task")
    assert table.loc["CoLA", "Answer"] == "no"
    assert table.loc["CoLA", "Over untrained"] == "+0.00"
    assert table.loc["CoLA", "Over majority"].startswith("−")
    accuracy.iloc[2:, accuracy.columns.get_loc("cola")] = accuracy.loc[:1, "cola"].max() + 0.01
    table = summary.did_training_help(layout.study, accuracy, documents).set_index("Task")
    assert table.loc["CoLA", "Answer"] == "no", "a point more on these documents is noise"


def test_the_summary_lists_missing_cells(layout):
    (layout.cell(layout.study.cell("cola", "mola-2468", 2)) / "manifest.json").unlink()
    collect.write(layout, partial=True)
    summary.write(layout)
    text = (layout.folder / "summary.md").read_text()
    assert "Incomplete: 1 of 26 cells" in text
    assert "- cola/mola-2468/seed2" in text


def test_nothing_collected_is_one_line(tmp_path):
    layout = simulate(tmp_path, make_study(), documents=10)
    for write in (tables.write, paper_tables.write, summary.write):
        with pytest.raises(MolaError, match="collect the study's cells first"):
            write(layout)


def test_cells_of_two_sizes_are_refused(layout):
    path = layout.cell(layout.study.cell("cola", "mola-2468", 2)) / "manifest.json"
    manifest = read_record(path)
    manifest["training"]["trainable_parameters"] += 5
    write_record(path, manifest)
    write_record(path.with_name("training.json"), manifest["training"])
    collect.write(layout)
    with pytest.raises(MolaError, match="mola-2468: trainable parameters: the cells differ"):
        tables.write(layout)
