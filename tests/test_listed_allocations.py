"""Ranks by layer and experts by module as a study lists them: built, counted, keyed, shown, and refused where they do not fit."""

import json

import pandas as pd
import pytest
import torch
import yaml
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from smoke_study import smoke
from test_adapter_models import ARCHITECTURES, SIZES
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from mola_core.adapter.layer import MolaLayer
from mola_core.analysis.tables.parameters import closed_form, layer_matrices
from mola_core.errors import MolaError
from mola_core.methods.registry import adapter_config
from mola_core.methods.settings import SEVEN_MODULES, AdapterSettings, MethodSettings
from mola_core.models.weights import load_adapter, new_adapter, save_weights
from mola_core.runs.key import keys
from mola_core.study.loading import load_study

RANKS = [1, 2, 3, 4]


def counts_of(targets):
    """Another list for each module: of layer l in the n-th module n + l + 2, and one number in the last."""
    listed = {name: [place + layer + 2 for layer in range(4)] for place, name in enumerate(targets[:-1])}
    return listed | {targets[-1]: 2}


def listed(**own):
    return MethodSettings(**{"method": "mola", "name": "listed"} | own)


def base_of(name):
    torch.manual_seed(0)
    sizes = SIZES | ARCHITECTURES[name][0]
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**sizes), attn_implementation="eager")


def built(model):
    """Experts (None without a router), rank of all together and scale of each adapted module, from the tensors."""
    found = {}
    for name, m in model.named_modules():
        if isinstance(m, MolaLayer):
            found[name] = len(m.mola_router["default"]), len(m.mola_A["default"]), m.scaling("default")
        elif isinstance(m, LoraLayer):
            found[name] = None, len(m.lora_A["default"].weight), m.scaling["default"]
    return found


@pytest.mark.parametrize("kind", ["mola", "lora-matched"])
@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "gpt_neox", "phi", "phi3"])
def test_each_module_of_each_layer_has_its_experts_and_rank(name, kind, tmp_path):
    targets = ARCHITECTURES[name][1]
    method = listed(method=kind, experts=counts_of(targets), rank=RANKS)
    study = smoke(
        methods=["base", method.model_dump(exclude_none=True)],
        adapter={"target_modules": targets, "dropout": 0.0},
    )
    adapter = method.adapter(study.adapter)
    model = new_adapter(base_of(name), method, adapter, tmp_path)
    found = built(model)
    assert len(found) == 4 * len(targets)
    for module, (experts, rank, scale) in found.items():
        layer = next(int(part) for part in module.split(".") if part.isdigit())
        place = targets.index(max((t for t in targets if module.endswith(f".{t}")), key=len))
        expected = 2 if place == len(targets) - 1 else place + layer + 2
        assert experts == (expected if kind == "mola" else None), module
        assert rank == (layer + 1) * expected, module
        assert scale == pytest.approx(16 / ((layer + 1) * (1 if kind == "mola" else expected))), module
    save_weights(model, tmp_path / "adapter", "tiny", "float32", tmp_path)
    assert built(load_adapter(base_of(name), tmp_path / "adapter")) == found
    base_of(name).save_pretrained(tmp_path / "base")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert closed_form(study, "listed", layer_matrices(tmp_path / "base")) == trained


def test_a_matched_lora_takes_ranks_by_layer(tiny_llama, tmp_path):
    method = MethodSettings(method="lora-matched-2468", name="listed", rank=RANKS)
    model = new_adapter(tiny_llama(), method, method.adapter(AdapterSettings(dropout=0.0)), tmp_path)
    for layer, (rank, experts) in enumerate(zip(RANKS, (2, 4, 6, 8), strict=True)):
        up = model.base_model.model.model.layers[layer].mlp.up_proj
        assert up.lora_A["default"].weight.shape[0] == rank * experts
        assert up.scaling["default"] == pytest.approx(16 / (rank * experts))
    save_file(dict(tiny_llama().state_dict()), tmp_path / "model.safetensors")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    study = smoke(methods=[method.model_dump(exclude_none=True)])
    assert closed_form(study, "listed", layer_matrices(tmp_path)) == trained


def test_a_number_is_the_list_of_it_and_every_entry_is_in_the_config():
    def config(**own):
        found = adapter_config(listed(**own), AdapterSettings(target_modules=["q_proj", "v_proj"]), 4)
        return json.dumps(found, sort_keys=True)

    assert config(experts=3) == config(experts=[3, 3, 3, 3])
    assert config(experts={"q_proj": 3, "v_proj": [2, 2, 2, 4]}) == config(
        experts={"q_proj": [3, 3, 3, 3], "v_proj": [2, 2, 2, 4]}
    )
    different = [
        {"experts": {"q_proj": [2, 2, 2, 4], "v_proj": 3}},
        {"experts": {"q_proj": 3, "v_proj": [2, 2, 2, 4]}},
        {"experts": 3, "rank": [1, 2, 3, 4]},
        {"experts": 3, "rank": [4, 3, 2, 1]},
        {"experts": 3},
    ]
    assert len({config(**own) for own in different}) == len(different)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"experts": []}, r"methods\.1\.experts: is empty; give one number for each layer"),
        ({"experts": {}}, r"experts: is empty; give each target module"),
        ({"experts": [2, 2, 2.0, 2]}, r"experts: layer 2: '2\.0' is no whole number from 1 to 1,024"),
        ({"experts": [2, True, 2, 2]}, r"experts: layer 1: 'True' is no whole number"),
        ({"experts": ["2", 2, 2, 2]}, r"experts: layer 0: '2' is no whole number"),
        ({"experts": [0, 0, 0, 0]}, r"experts: layer 0: '0' is no whole number"),
        ({"experts": [2, 2, 2, 1025]}, r"experts: layer 3: '1025' is no whole number"),
        ({"experts": 0}, r"experts: '0' is no whole number"),
        ({"experts": "2468"}, r"experts: '2468' is no whole number"),
        ({"experts": dict.fromkeys(SEVEN_MODULES, 0)}, r"experts: down_proj: '0' is no whole number"),
        ({"experts": {"q_proj": [2, None]}}, r"experts: q_proj: layer 1: 'None' is no whole number"),
        ({"experts": {3: 2}}, r"experts: 3 is no module's name"),
        ({"experts": dict.fromkeys(SEVEN_MODULES, 1)}, r"top_k 2 is above the 1 experts of a layer"),
        (
            {"experts": dict.fromkeys(SEVEN_MODULES, 2) | {"o_prj": 2}},
            r"experts: 'o_prj' is none of its target",
        ),
        (
            {"experts": dict.fromkeys(SEVEN_MODULES[:6], 2)},
            r"target module 'down_proj' has none; add it, or leave it out of target_modules",
        ),
        ({"experts": [2] * 4, "rank": [8] * 5}, r"rank and experts list 4 and 5 layers"),
        (
            {"experts": {"q_proj": [2] * 4, "v_proj": [2] * 3}, "target_modules": ["q_proj", "v_proj"]},
            r"rank and experts list 3 and 4 layers",
        ),
        ({"experts": [2] * 4, "rank": []}, r"methods\.1\.rank: is empty; give one number for each layer"),
        (
            {"experts": [2] * 4, "rank": [8, 8, 0, 8]},
            r"rank: layer 2: '0' is no whole number from 1 to 65,536",
        ),
        ({"experts": [2] * 4, "rank": {"q_proj": 8}}, r"rank: .* is no whole number"),
        ({"method": "mola-2468", "experts": [2] * 4}, r"`experts` goes with methods mola and lora-matched"),
        ({"method": "lora-matched"}, r"method 'lora-matched': needs `experts`"),
        (
            {"method": "lora-matched", "experts": {"q_proj": 2}},
            r"experts: target module '\w+_proj' has none; add it",
        ),
        ({"method": "mola-2468", "rank": [8, 8]}, r"depth 2: a shape needs a model of at least 4 layers"),
        ({"method": "lora-r8", "rank": [8] * 4}, r"method 'lora-r8': rank means nothing to it"),
    ],
)
def test_lists_that_cannot_be_are_one_line(tmp_path, own, words):
    content = smoke().model_dump(mode="json", exclude_none=True)
    content["methods"] = ["base", {"method": "mola", "name": "listed"} | own]
    file = tmp_path / "listed.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(MolaError, match=words) as caught:
        load_study(file)
    assert "\n" not in str(caught.value) and "errors:" not in str(caught.value)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"experts": [2] * 5}, r"experts lists 5 layers, the model has 4"),
        ({"experts": dict.fromkeys(SEVEN_MODULES, [2] * 5)}, r"experts of q_proj lists 5 layers"),
        ({"experts": 2, "rank": [8] * 5}, r"rank lists 5 layers, the model has 4"),
        ({"method": "mola-2468", "rank": [8] * 5}, r"rank lists 5 layers, the model has 4"),
        ({"method": "lora-matched-2468", "rank": [8] * 5}, r"rank lists 5 layers, the model has 4"),
        ({"method": "lora-matched", "experts": [2] * 5}, r"experts lists 5 layers, the model has 4"),
        ({"method": "sensitivity-20", "rank": [8] * 5}, r"rank lists 5 layers, the model has 4"),
    ],
)
def test_lists_of_another_depth_are_refused_before_training(bench, own, words):
    runner = bench(methods=["base", {"method": "mola", "name": "listed"} | own], tasks=["cola"])
    with pytest.raises(MolaError, match=words):
        keys(runner.layout, runner.study.cell("cola", "listed", 0))


def test_a_study_trains_shows_and_reads_what_it_lists(bench):
    from mola_core.analysis import collect
    from mola_core.analysis.experts import redundancy, routing
    from mola_core.analysis.experts.left_out import told
    from mola_core.analysis.figures.study import write as draw
    from mola_core.analysis.tables.accuracy import write as write_tables

    by_module = counts_of(SEVEN_MODULES)
    runner = bench(
        tasks=["cola"], seeds=[0], evaluation={"documents": 8},
        methods=[
            "base",
            {"method": "mola", "name": "by-module", "experts": by_module, "rank": RANKS},
            {"method": "mola", "name": "by-layer", "experts": [2, 3, 4, 5]},
            {"method": "lora-matched", "name": "by-module-unrouted", "experts": by_module, "rank": RANKS},
            {"method": "sensitivity-20", "name": "ranked", "rank": RANKS},
        ],
    )  # fmt: skip
    layout = runner.layout
    for cell in runner.study.cells():
        runner.run(cell)
        if cell.method not in ("base", "by-module-unrouted"):
            runner.count_routing(cell)
    collect.write(layout)
    write_tables(layout)
    draw(layout)
    table = pd.read_csv(layout.folder / "tables" / "parameters.csv").set_index("method")
    assert table.loc["by-module", "closed_form"] == table.loc["by-module", "trained"] > 0
    for column in ("rank", "experts_per_layer"):
        assert table.loc["by-module", column] == table.loc["by-module-unrouted", column]
    unrouted = table.loc["by-module-unrouted"]
    assert 0 < unrouted["closed_form"] == unrouted["trained"] < table.loc["by-module", "trained"]
    assert table.loc["by-module", "rank"] == "1 × 1, 1 × 2, 1 × 3, 1 × 4"
    assert table.loc["by-module", "experts_per_layer"].startswith("q_proj 1 × 2, 1 × 3, 1 × 4, 1 × 5; k_proj")
    assert table.loc["by-module", "experts_per_layer"].endswith("down_proj 4 × 2")
    assert (table.loc["by-layer", "experts"], table.loc["by-layer", "rank"]) == (14, "8")
    assert pd.isna(table.loc["ranked", "closed_form"]), "which layer has how many decides it"
    assert "4 × 2" in (layout.folder / "tables" / "parameters.md").read_text()
    config = json.loads(
        (layout.weights(runner.study.cell("cola", "by-module", 0)) / "adapter_config.json").read_text()
    )
    assert config["num_experts"]["k_proj"] == [3, 4, 5, 6] and config["r"] == RANKS
    assert not told(routing.write(layout)) and not told(redundancy.write(layout))
    routed = pd.read_csv(layout.folder / "routing.csv")
    of_module = routed[(routed["method"] == "by-module") & (routed["module"] == "v_proj")]
    assert of_module["experts"].tolist() == [4, 5, 6, 7]
