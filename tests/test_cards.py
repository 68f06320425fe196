"""Model cards: of an adapter saved by itself, and of a cell's."""

import re

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from smoke_study import smoke

from mola_core.adapter import MolaConfig
from mola_core.files import read_json
from mola_core.models.weights import save_weights
from mola_core.runs.card import _base, write_card
from mola_core.runs.layout import Layout
from mola_core.study.sections import HubModel

COMMIT = "c" * 40
TRAINING = {"trainable_parameters": 1234, "documents": 56, "steps": 7}


def header(text):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.S)[1])


def test_an_adapters_card_says_what_it_is_and_how_it_is_loaded(tiny_llama, tmp_path):
    base = tiny_llama()
    base.name_or_path = base.config._name_or_path = "/cache/hub/models--org--name/snapshots/abc"
    config = MolaConfig(num_experts=[2, 2, 3, 4], r=3, target_modules=["q_proj"])
    model = get_peft_model(base, config)
    for _ in range(2):  # saved again it is completed again, not twice
        model.save_pretrained(tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert text.count("## MoLA adapter") == text.count("import mola_core") == 1
        assert "2 x 2, 3 x 1, 4 x 1; rank 3; top-k 2" in text
        assert "`org/name`" in text and "`mola-core`" in text
        assert header(text)["library_name"] == "peft"
    assert read_json(tmp_path / "adapter_config.json")["base_model_name_or_path"] == "org/name"
    (tmp_path / "README.md").write_text(text + "\n## Of the author\n\nKept.\n")
    model.save_pretrained(tmp_path)
    assert "Kept." in (tmp_path / "README.md").read_text()


def test_a_card_says_how_the_weights_were_held(tmp_path):
    held = {"dtype": "bfloat16", "quantization": "4bit"}
    source = HubModel(name="tiny", source="hub", id="org/tiny", revision=COMMIT, **held)
    layout = Layout(smoke().model_copy(update={"model": source}), tmp_path)
    assert _base(layout, None).startswith(
        f"`org/tiny` at commit `{COMMIT}` in bfloat16, quantized to 4bit (on other"
    )


@pytest.mark.parametrize("method", ["mola-2468", "lora-r8"])
def test_a_cells_card_and_base_are_the_hubs(tiny_llama, tmp_path, method):
    source = HubModel(name="tiny", source="hub", id="org/tiny", revision=COMMIT)
    study = smoke(methods=[{"method": "base"}, {"method": method}]).model_copy(update={"model": source})
    layout, cell = Layout(study, tmp_path), study.cell("cola", method, 0)
    base = tiny_llama()
    base.name_or_path = base.config._name_or_path = str(tmp_path)
    config = MolaConfig(num_experts=[2, 4, 6, 8], target_modules=["q_proj"])
    config = config if method.startswith("mola") else LoraConfig(target_modules=["q_proj"])
    name, revision = study.model.on_hub
    save_weights(
        get_peft_model(base, config), layout.weights(cell), name, "float32", tmp_path, revision=revision
    )
    stored = read_json(layout.weights(cell) / "adapter_config.json")
    assert (stored["base_model_name_or_path"], stored["revision"]) == ("org/tiny", COMMIT)
    write_card(layout, cell, TRAINING)
    text = (layout.weights(cell) / "README.md").read_text()
    assert header(text)["base_model"] == "org/tiny"
    assert str(tmp_path) not in text and "Scores" not in text
    assert ("import mola_core" in text) == method.startswith("mola")
    write_card(layout, cell, TRAINING, {"accuracy": 0.625, "documents": 64})
    text = (layout.weights(cell) / "README.md").read_text()
    assert "| cola | 62.5 | 50.3 to 73.3 | 64 |" in text and "stand-in" in text and "1,234 trainable" in text
