"""Base models: each source, its pins, and what happens to damaged or hostile ones. No network is used."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from model_folders import directory, one_line
from pydantic import ValidationError

from mola_core.errors import MolaError
from mola_core.files import read_json, sha256_file
from mola_core.models.check import (
    loading,
    prepare_checked_model,
)
from mola_core.models.loading import (
    load_config,
    load_model,
    load_tokenizer,
    model_identity,
    module_dimensions,
    prepare_model,
    verify_model,
)
from mola_core.study.sections import (
    HubModel,
    RandomModel,
)

RANDOM = RandomModel(name="tiny", source="random")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = HubModel(name="tiny", source="hub", id="a/tiny", revision=COMMIT)
GGUF_FILE = "tiny/model.gguf"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


pytestmark = pytest.mark.usefixtures("own_folder")


def test_identity_is_the_pin_and_the_code_that_converts(monkeypatch):
    pins = {"source": "random", "layers": 4, "hidden": 32, "seed": 0}
    before = model_identity(RANDOM)
    assert before.items() > pins.items() and before.keys() - pins.keys() == {"code"}
    assert model_identity(RANDOM.model_copy(update={"dtype": "bfloat16", "name": "other"})) == before
    assert model_identity(HUB) == {"source": "hub", "id": "a/tiny", "revision": COMMIT}
    monkeypatch.setattr("mola_core.models.loading.code_hash", lambda *entries: "another conversion")
    assert model_identity(RANDOM) != before


# ------------------------------------------------------------------------------------------------- random


def test_random_model_is_the_same_every_time(tiny, tmp_path):
    state = torch.random.get_rng_state()
    prepare_model(RANDOM, tmp_path / "again")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert read_json(tmp_path / "again/model.json")["files"] == read_json(tiny / "model.json")["files"]
    prepare_model(RandomModel(name="tiny", source="random", seed=1), tmp_path / "other")
    assert sha256_file(tmp_path / "other/model.safetensors") != sha256_file(tiny / "model.safetensors")


def test_random_model_loads(tiny):
    verify_model(tiny)
    model, tokenizer = load_model(tiny), load_tokenizer(tiny)
    assert model.config.num_hidden_layers == 4 and not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert load_model(tiny, dtype="bfloat16").dtype == torch.bfloat16
    text = "Naïve  question: 12\n\tthe answer is </s> B"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    assert all(len(tokenizer(f" {letter}").input_ids) == 1 for letter in "ABCDE")
    assert model(**tokenizer(text, return_tensors="pt")).logits.isfinite().all()


def test_tokenizer_without_padding_uses_the_end_of_text_token(copy):
    settings = read_json(copy / "tokenizer_config.json")
    del settings["pad_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(copy).pad_token == "</s>"


def test_hidden_size_that_heads_cannot_share():
    with pytest.raises(ValidationError, match="multiple of 8"):
        RandomModel(name="tiny", source="random", hidden=20)


# ------------------------------------------------------------------------------------------------ verify


def test_verify_names_the_damaged_file(copy):
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(MolaError, match=r"model\.safetensors: altered or cut short") as error:
        verify_model(copy)
    assert "run again" in one_line(error)
    flipped = bytearray(weights)
    flipped[-5] ^= 1
    (copy / "model.safetensors").write_bytes(flipped)
    with pytest.raises(MolaError, match=r"model\.safetensors: altered"):
        verify_model(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(MolaError, match=r"model\.safetensors: missing"):
        verify_model(copy)


def test_verify_refuses_a_file_that_was_slipped_in(copy):
    (copy / ".snakemake_timestamp").touch()
    verify_model(copy)
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(MolaError, match="adapter_config.json: not a file of the prepared model"):
        verify_model(copy)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": {}}', '{"files": 3}'])
def test_verify_needs_a_whole_fingerprint(copy, content):
    (copy / "model.json").write_text(content)
    with pytest.raises(MolaError) as error:
        verify_model(copy)
    assert "model.json" in one_line(error)


def test_verify_without_a_model(tmp_path):
    with pytest.raises(MolaError, match="no prepared model"):
        verify_model(tmp_path / "nothing")


def test_prepare_keeps_a_good_folder_and_mends_a_bad_one(copy):
    inode = (copy / "model.safetensors").stat().st_ino
    prepare_model(RANDOM, copy)
    assert (copy / "model.safetensors").stat().st_ino == inode
    (copy / "model.safetensors").write_bytes(b"damaged")
    prepare_model(RANDOM, copy)
    verify_model(copy)
    prepare_model(RandomModel(name="tiny", source="random", layers=2), copy)
    assert load_config(copy).num_hidden_layers == 2


def test_load_refuses_weights_that_lack_a_tensor(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MolaError, match=r"lack model\.layers\.2\.mlp\.up_proj\.weight"):
        load_model(copy)


def test_load_refuses_code_of_the_model(copy):
    config = read_json(copy / "config.json")
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text("raise SystemExit('code of a model was run')")
    for load in (load_config, load_model):
        with pytest.raises(MolaError) as error:
            load(copy)
        one_line(error)


def test_quantised_loading_without_bitsandbytes(tiny, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MolaError, match="pip install bitsandbytes"):
        load_model(tiny, quantization="4bit")


# --------------------------------------------------------------------------------------------- directory


def test_directory_is_linked_and_followed(copy, tmp_path):
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    (copy / "modeling_tiny.py").write_text("raise SystemExit")
    before = model_identity(directory(copy))
    prepare_model(directory(copy), tmp_path / "prepared")
    names = {file.name for file in (tmp_path / "prepared").iterdir()}
    assert "model.safetensors" in names and not names & {"pytorch_model.bin", "modeling_tiny.py"}
    assert load_model(tmp_path / "prepared").config.num_hidden_layers == 4

    prepare_model(RandomModel(name="tiny", source="random", seed=3), tmp_path / "other")
    shutil.copyfile(tmp_path / "other/model.safetensors", copy / "model.safetensors")  # the same size
    assert model_identity(directory(copy)) != before
    with pytest.raises(MolaError, match="altered"):
        verify_model(tmp_path / "prepared")
    prepare_model(directory(copy), tmp_path / "prepared")
    verify_model(tmp_path / "prepared")


def test_identity_of_a_directory_is_its_content_not_its_place(copy, tmp_path):
    moved = shutil.copytree(copy, tmp_path / "moved")
    assert model_identity(directory(moved)) == model_identity(directory(copy))


def test_hashes_are_remembered_until_the_file_changes(copy, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    model_identity(directory(copy), cache)
    assert not cache.exists(), "files changed a moment ago must not be remembered"
    now = time.time_ns()
    monkeypatch.setattr("mola_core.files.time.time_ns", lambda: now + 10**10)
    first = model_identity(directory(copy), cache)
    monkeypatch.setattr(
        "mola_core.models.loading.sha256_file", lambda file: pytest.fail(f"{file} was hashed again")
    )
    assert model_identity(directory(copy), cache) == first
    monkeypatch.undo()
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert model_identity(directory(copy), cache) != first


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _cut_short(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-7])


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _adapter_only(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _bad_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_pickle_only, r"only pickled weights \(pytorch_model.bin\)"),
        (_no_weights, "no model.safetensors"),
        (_cut_short, "model.safetensors is cut short or damaged"),
        (_no_config, "copy has no config.json; give a Hugging Face model folder"),
        (_adapter_only, "copy holds an adapter; give the folder of the model that it was trained on"),
        (_bad_config, "no model configuration"),
        (_no_tokenizer, "no tokenizer"),
        (_missing_shard, r"lacks \.\./outside\.safetensors"),
        (_bad_index, "names no weights"),
    ],
)
def test_unusable_directories(copy, tmp_path, damage, said):
    damage(copy)
    with pytest.raises(MolaError, match=said) as error:
        prepare_model(directory(copy), tmp_path / "prepared")
    one_line(error)
    assert not list(tmp_path.glob("*prepared*"))


def _config(**changes: object):
    def damage(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(read_json(folder / "config.json") | changes))

    return damage


def _text(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def _another_shape(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"][:3].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


FOREIGN_KERNEL = {"text_config": {"attn_implementation": {"": "someone/kernel"}}}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_config(hidden_size=64), "have other sizes than config.json says"),
        (_config(hidden_size=-1), "cannot load"),
        (_config(hidden_size="x"), "cannot load"),
        (_config(vocab_size=10), "have other sizes than config.json says"),
        (_config(hidden_act="nope"), "cannot load"),
        (_config(rope_parameters={"rope_type": "nope"}), "cannot load"),
        (_config(num_attention_heads=0), "cannot load"),
        (_config(num_hidden_layers=5), r"lack model\.layers\.4"),
        (_config(pad_token_id=99999), "cannot load"),
        (_config(quantization_config="x"), "cannot load"),
        (_config(dtype="float33"), "cannot load"),
        (_config(model_type="nope"), "cannot read this config"),
        (_another_shape, "have other sizes than config.json says"),
        (_text("tokenizer.json", "{}"), "cannot load"),
        (_text("tokenizer.json", "[]"), "cannot load"),
        (_text("tokenizer_config.json", "[]"), "cannot load"),
        (_text("special_tokens_map.json", "[]"), "cannot load"),
        (_text("added_tokens.json", "[]"), "cannot load"),
        (_text("generation_config.json", "[]"), "cannot load"),
        (_config(attn_implementation="someone/kernel"), "asks for attn_implementation 'someone/kernel'"),
        (_config(_attn_implementation="someone/kernel@v1:f"), "asks for _attn_implementation"),
        (_config(attn_implementation="flash_attention_2"), "remove it there"),
        (_config(**FOREIGN_KERNEL), "remove it there"),
    ],
)
def test_a_damaged_model_is_refused_when_it_is_prepared(copy, tmp_path, damage, said):
    damage(copy)
    with pytest.raises(MolaError, match=said) as error:
        prepare_checked_model(directory(copy), tmp_path / "prepared")
    assert one_line(error).startswith(f"model.path: {copy}: ")
    assert not list(tmp_path.glob("*prepared*"))


def test_a_whole_model_is_kept_and_needs_no_memory_to_check(copy, tmp_path, monkeypatch):
    _config(attn_implementation="sdpa")(copy)
    prepare_checked_model(directory(copy), tmp_path / "prepared")
    inode = (tmp_path / "prepared").stat().st_ino
    devices = []

    def load(folder, device):
        devices.append(device)
        return load_model(folder, device=device)

    monkeypatch.setattr("mola_core.models.check.load_model", load)
    prepare_checked_model(directory(copy), tmp_path / "prepared")
    assert (tmp_path / "prepared").stat().st_ino == inode
    assert devices == ["meta"]


def test_too_little_memory_is_no_damage(copy):
    with pytest.raises(MemoryError), loading(copy):
        raise MemoryError


def test_directory_that_is_not_there(tmp_path):
    with pytest.raises(MolaError, match=r"model\.path: .* is not a folder"):
        model_identity(directory(tmp_path / "nowhere"))


# --------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch) -> Path:
    """The hub's cache after a download of the tiny model, as a snapshot of links to files named by hash."""
    cache = tmp_path / "hub/models--a--tiny"
    (cache / "snapshots" / COMMIT).mkdir(parents=True)
    (cache / "blobs").mkdir()
    shutil.copytree(tiny, tmp_path / "repository", ignore=shutil.ignore_patterns("model.json"))
    (tmp_path / "repository/modeling_tiny.py").write_text("raise SystemExit")
    (tmp_path / "repository/README.md").write_text("---\nlanguage: en\nlicense: 'mit'\n---\n# Tiny\n")
    for file in (tmp_path / "repository").iterdir():
        blob = cache / "blobs" / sha256_file(file)
        file.rename(blob)
        (cache / "snapshots" / COMMIT / file.name).symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
    return cache


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\r\nlicense: other\r\n---\r\ntext", "other"),
        ("# Tiny\n\nlicense: mit\n", None),
        ("---\nlanguage: en\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: mit\nbase_model: [x\n", None),
        ("---\nlicense: 'a b'\n---\n", None),
        (None, None),
    ],
)
def test_a_licence_is_what_the_head_of_the_models_card_names(tiny, tmp_path, card, licence):
    shutil.copytree(tiny, tmp_path / "own", ignore=shutil.ignore_patterns("model.json"))
    before = model_identity(directory(tmp_path / "own"))
    if card:
        (tmp_path / "own/README.md").write_bytes(card.encode())
    prepare_model(directory(tmp_path / "own"), tmp_path / "prepared")
    record = read_json(tmp_path / "prepared/model.json")
    assert (record["licence"], record["identity"]) == (licence, before)
    verify_model(tmp_path / "prepared")


@pytest.mark.parametrize("offline", [True, False])
def test_hub_model_in_the_cache_needs_no_network(hub, tiny, tmp_path, monkeypatch, offline):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    prepare_model(HUB, tmp_path / "prepared")
    fingerprint = read_json(tmp_path / "prepared/model.json")
    assert fingerprint["identity"] == {"source": "hub", "id": "a/tiny", "revision": COMMIT}
    assert fingerprint["files"] == read_json(tiny / "model.json")["files"]
    assert (fingerprint["licence"], read_json(tiny / "model.json")["licence"]) == ("mit", None)
    shutil.rmtree(hub)
    verify_model(tmp_path / "prepared")
    assert not (tmp_path / "prepared/modeling_tiny.py").exists()


def test_hub_cache_that_was_damaged(hub, tmp_path):
    blob = (hub / "snapshots" / COMMIT / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    assert hashlib.sha256(content).hexdigest() != blob.name
    with pytest.raises(MolaError, match="in the hub's cache is damaged"):
        prepare_model(HUB, tmp_path / "prepared")
    assert not list(tmp_path.glob("*prepared*"))


def test_hub_without_network(hub, tmp_path):
    source = HUB.model_copy(update={"id": "a/other"})
    with pytest.raises(MolaError, match=r"a/other cannot be downloaded .*mola model") as error:
        prepare_model(source, tmp_path / "prepared")
    one_line(error)
    assert not list(tmp_path.glob("*prepared*"))


# -------------------------------------------------------------------------------------------- dimensions


def test_module_dimensions(tiny):
    model = load_model(tiny)
    expected = (4, [(32, 32), (32, 64), (64, 32)])
    assert module_dimensions(model, ["down_proj", "up_proj", "q_proj"]) == expected
    assert module_dimensions(load_config(tiny), ["mlp.up_proj", "q_proj", "down_proj"]) == expected


def test_module_dimensions_of_other_architectures():
    from transformers import GPT2Config, GPTNeoXConfig

    gpt2 = GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=64)
    assert module_dimensions(gpt2, ["c_attn"]) == (3, [(32, 96)])
    neox = GPTNeoXConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=64
    )
    assert module_dimensions(neox, ["query_key_value", "dense_h_to_4h"]) == (2, [(32, 96), (32, 64)])


def test_module_that_the_model_lacks(tiny):
    with pytest.raises(MolaError, match=r"no linear 'proj', it has q_proj, .*down_proj") as error:
        module_dimensions(load_config(tiny), ["q_proj", "proj"])
    one_line(error)
