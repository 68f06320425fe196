"""Base models: each source, its pins, and what happens to damaged or hostile ones. No network is used."""

import hashlib
import itertools
import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from pydantic import ValidationError

from mola_core.errors import MolaError
from mola_core.files import read_json, sha256_file
from mola_core.models import sources as model_sources
from mola_core.models.check import (
    check_model,
    loading,
    prepare_checked_model,
    refuse_looking_ahead,
    refuse_tokens,
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
    DirectoryModel,
    HubModel,
    RandomModel,
    WheelModel,
    WheelPart,
)

RANDOM = RandomModel(name="tiny", source="random")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = HubModel(name="tiny", source="hub", id="a/tiny", revision=COMMIT)
GGUF_FILE = "tiny/model.gguf"
NOWHERE = "http://127.0.0.1:9"


def directory(path: Path) -> DirectoryModel:
    return DirectoryModel(name="local", source="directory", path=str(path))


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A prepared random model; tests that damage it take a copy."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    prepare_model(RANDOM, folder)
    return folder


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The cache of hashes is below the working directory."""
    monkeypatch.chdir(tmp_path)


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
        (_no_config, "config.json: no such file"),
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
        (_config(hidden_size=64), "cannot load"),
        (_config(hidden_size=-1), "cannot load"),
        (_config(hidden_size="x"), "cannot load"),
        (_config(vocab_size=10), "cannot load"),
        (_config(hidden_act="nope"), "cannot load"),
        (_config(rope_parameters={"rope_type": "nope"}), "cannot load"),
        (_config(num_attention_heads=0), "cannot load"),
        (_config(num_hidden_layers=5), r"lack model\.layers\.4"),
        (_config(pad_token_id=99999), "cannot load"),
        (_config(quantization_config="x"), "cannot load"),
        (_config(dtype="float33"), "cannot load"),
        (_config(model_type="nope"), "cannot read this config"),
        (_another_shape, "cannot load"),
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


# ------------------------------------------------------------------------------------------------- wheel


def write_gguf(model_folder: Path, path: Path) -> None:
    """A GGUF file, as llama.cpp's converter would write it, of a small Llama with a byte-level tokenizer."""
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    config, bpe = model.config, json.loads((model_folder / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_types([3] * 3 + [1] * (config.vocab_size - 3))
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers.": "blk.",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        for part, count in heads.items():
            if part in name:  # llama.cpp pairs rotary dimensions next to each other
                tensor = tensor.reshape(count, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(
    folder: Path, members: dict[str, bytes], name: str = "tiny-model", file: str = GGUF_FILE
) -> WheelModel:
    """A wheel of version 1.0 with these members, and the source that pins it."""
    folder.mkdir(exist_ok=True)
    plain = name.replace("-", "_")
    wheel = folder / f"{plain}-1.0-py3-none-any.whl"
    info = f"{plain}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return WheelModel(
        name="tiny",
        source="wheel",
        package=name,
        version="1.0",
        sha256=sha256_file(wheel),
        file=file,
    )


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that is pip's only index."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def test_wheel_becomes_the_model_that_was_packed(tiny, index, tmp_path):
    write_gguf(tiny, tmp_path / "model.gguf")
    source = write_wheel(index, {GGUF_FILE: (tmp_path / "model.gguf").read_bytes()})
    prepare_model(source, tmp_path / "prepared")
    verify_model(tmp_path / "prepared")
    assert read_json(tmp_path / "prepared/model.json")["identity"]["sha256"] == source.sha256
    packed, unpacked = load_model(tiny).state_dict(), load_model(tmp_path / "prepared").state_dict()
    assert packed.keys() == unpacked.keys()
    assert all(torch.equal(packed[name], unpacked[name]) for name in packed)

    ours, theirs = load_tokenizer(tmp_path / "prepared"), load_tokenizer(tiny)
    text = "Question:  12\n The answer is C </s>"
    assert ours(text).input_ids == theirs(text).input_ids
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == ("<s>", "</s>", "<pad>")
    # SmolLM's rule: both blanks stand before the digit, none joins it.
    pieces = ours.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    assert [piece for piece, _ in pieces] == ["a", "ĠĠ", "1", "2"]


def in_parts(gguf: Path, index: Path) -> WheelModel:
    """The file cut into three wheels, and the source that pins them."""
    content, sources = gguf.read_bytes(), []
    cut = [0, len(content) // 3, len(content) // 2, len(content)]
    for number, (start, end) in enumerate(itertools.pairwise(cut)):
        file = f"tiny/model.gguf.part0{number}"
        sources.append(write_wheel(index, {file: content[start:end]}, f"tiny-part{number}", file))
    parts = [
        WheelPart(**source.model_dump(include={"package", "version", "sha256", "file"}))
        for source in sources[1:]
    ]
    return sources[0].model_copy(update={"further_parts": parts, "joined_sha256": sha256_file(gguf)})


def test_a_file_in_several_wheels_is_joined(tiny, index, tmp_path):
    write_gguf(tiny, tmp_path / "model.gguf")
    source = in_parts(tmp_path / "model.gguf", index)
    prepare_model(source, tmp_path / "prepared")
    packed, unpacked = load_model(tiny).state_dict(), load_model(tmp_path / "prepared").state_dict()
    assert all(torch.equal(packed[name], unpacked[name]) for name in packed)
    assert (
        read_json(tmp_path / "prepared/model.json")["identity"]["further_parts"][1]["package"] == "tiny-part2"
    )


def test_each_part_is_pinned_and_their_order_counts(tiny, index, tmp_path):
    write_gguf(tiny, tmp_path / "model.gguf")
    source = in_parts(tmp_path / "model.gguf", index)
    first, last = source.further_parts
    wrong = first.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(MolaError, match=r"model\.sha256: tiny_part1-1\.0"):
        prepare_model(source.model_copy(update={"further_parts": [wrong, last]}), tmp_path / "prepared")
    for parts in ([last, first], [first], [first, first, last]):
        with pytest.raises(MolaError, match=r"model\.joined_sha256: .* in their order"):
            prepare_model(source.model_copy(update={"further_parts": parts}), tmp_path / "prepared")
    with pytest.raises(ValidationError, match="joined_sha256: missing"):
        WheelModel(**source.model_dump(exclude={"joined_sha256"}))
    assert not list(tmp_path.glob("*prepared*"))


def test_what_is_saved_of_a_gguf_file_is_read_back(tiny, tmp_path, monkeypatch):
    """transformers may undo a conversion where it saves, or refuse to save: the weights are those that were read."""
    write_gguf(tiny, tmp_path / "model.gguf")
    plain = transformers.PreTrainedModel.save_pretrained

    def altered(self, *arguments, **options):
        self.model.norm.weight = torch.nn.Parameter(self.model.norm.weight + 1)
        return plain(self, *arguments, **options)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", altered)
    with pytest.raises(MolaError, match="model.norm.weight is not as it was read"):
        model_sources.dequantise(tmp_path / "model.gguf", tmp_path / "out")
    monkeypatch.undo()

    def refused(self, *arguments, **options):
        if getattr(self, "hf_quantizer", None) or hasattr(self.config, "quantization_config"):
            raise NotImplementedError("not serializable")
        return plain(self, *arguments, **options)

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", refused)
    (tmp_path / "saved").mkdir()
    model_sources.dequantise(tmp_path / "model.gguf", tmp_path / "saved")
    assert load_model(tmp_path / "saved").state_dict().keys() == load_model(tiny).state_dict().keys()


def test_wheel_with_another_hash(index, tmp_path):
    source = write_wheel(index, {GGUF_FILE: b"weights"})
    pinned = "0" * 64
    with pytest.raises(MolaError, match=r"model\.sha256") as error:
        prepare_model(source.model_copy(update={"sha256": pinned}), tmp_path / "prepared")
    assert pinned in one_line(error) and source.sha256 in str(error.value)
    assert not list(tmp_path.glob("*prepared*"))


def test_wheel_that_the_index_lacks(index, tmp_path):
    source = write_wheel(index, {GGUF_FILE: b"weights"})
    with pytest.raises(MolaError, match="pip cannot fetch tiny-model==2.0") as error:
        prepare_model(source.model_copy(update={"version": "2.0"}), tmp_path / "prepared")
    assert "mola model" in one_line(error)


def test_wheel_without_network(index, tmp_path, monkeypatch):
    source = write_wheel(index, {})
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    for name, value in {"INDEX_URL": NOWHERE, "RETRIES": "0", "TIMEOUT": "1", "NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(MolaError, match="check the network") as error:
        prepare_model(source, tmp_path / "prepared")
    one_line(error)
    assert not list(tmp_path.glob("*prepared*"))


def test_wheel_in_an_environment_without_pip(index, tmp_path, monkeypatch):
    source = write_wheel(index, {})
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(MolaError, match="python -m ensurepip"):
        prepare_model(source, tmp_path / "prepared")


def test_unpacking_lists_what_the_wheel_has(tmp_path):
    write_wheel(tmp_path / "index", {"other/weights.gguf": b"weights"})
    wheel = next((tmp_path / "index").iterdir())
    with pytest.raises(MolaError, match=r"has no tiny/model\.gguf; its GGUF files: other/weights\.gguf"):
        model_sources.unpack_gguf(wheel, GGUF_FILE, tmp_path / "out")


def test_unpacking_never_leaves_its_folder(tmp_path):
    hostile = ["../../escaped.gguf", "/escaped.gguf", "tiny/../../escaped.gguf"]
    write_wheel(tmp_path / "index", {name: b"weights" for name in hostile})
    wheel = next((tmp_path / "index").iterdir())
    (tmp_path / "a/b").mkdir(parents=True)
    for name in hostile:
        with pytest.raises(ValidationError):
            WheelModel(
                name="tiny", source="wheel", package="tiny-model", version="1.0", sha256="0" * 64, file=name
            )
        out = model_sources.unpack_gguf(wheel, name, tmp_path / "a/b/model.gguf")
        assert out.read_bytes() == b"weights"
    assert not [file for file in tmp_path.rglob("escaped*")] and not Path("/escaped.gguf").exists()


def test_unpacking_refuses_a_bomb_and_a_damaged_archive(tmp_path):
    write_wheel(tmp_path / "index", {GGUF_FILE: bytes(10**6)})
    wheel = next((tmp_path / "index").iterdir())
    with pytest.raises(MolaError, match="claims 1000000 bytes"):
        model_sources.unpack_gguf(wheel, GGUF_FILE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    content = wheel.read_bytes()
    wheel.write_bytes(content[: len(content) // 2])
    with pytest.raises(MolaError, match="cannot be unpacked"):
        model_sources.unpack_gguf(wheel, GGUF_FILE, tmp_path / "out")


def test_a_member_that_is_no_gguf(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(MolaError, match="cannot read this GGUF file") as error:
        model_sources.dequantise(tmp_path / "model.gguf", tmp_path / "out")
    one_line(error)


# --------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch) -> Path:
    """The hub's cache after a download of the tiny model, as a snapshot of links to files named by hash."""
    cache = tmp_path / "hub/models--a--tiny"
    (cache / "snapshots" / COMMIT).mkdir(parents=True)
    (cache / "blobs").mkdir()
    shutil.copytree(tiny, tmp_path / "repository", ignore=shutil.ignore_patterns("model.json"))
    (tmp_path / "repository/modeling_tiny.py").write_text("raise SystemExit")
    for file in (tmp_path / "repository").iterdir():
        blob = cache / "blobs" / sha256_file(file)
        file.rename(blob)
        (cache / "snapshots" / COMMIT / file.name).symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
    return cache


@pytest.mark.parametrize("offline", [True, False])
def test_hub_model_in_the_cache_needs_no_network(hub, tiny, tmp_path, monkeypatch, offline):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    prepare_model(HUB, tmp_path / "prepared")
    fingerprint = read_json(tmp_path / "prepared/model.json")
    assert fingerprint["identity"] == {"source": "hub", "id": "a/tiny", "revision": COMMIT}
    assert fingerprint["files"] == read_json(tiny / "model.json")["files"]
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


# ------------------------------------------------------------------------------ models that cannot be adapted right


def vision_model(folder: Path) -> Path:
    """A tiny Gemma 3 with a text and a vision tower."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 512, "sliding_window": 16,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("causal", [True, False])
def test_a_model_that_looks_ahead_is_refused(causal):
    """BERT has a causal head, and attends to the answer unless its config says that it is a decoder."""
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = BertLMHeadModel(BertConfig(vocab_size=64, is_decoder=causal, **sizes)).eval()
    if causal:
        refuse_looking_ahead(model, "model b")
    else:
        with pytest.raises(MolaError, match="model b: a later token changes .* no causal language model"):
            refuse_looking_ahead(model, "model b")


def test_tokens_of_every_batch_have_embeddings(tiny_llama):
    class Padded:
        pad_token_id, bos_token_id, eos_token_id = 64, None, 2

    with pytest.raises(MolaError, match="pad_token is number 64, the model has embeddings for 64"):
        refuse_tokens(tiny_llama(), Padded(), "model.path: x")
    refuse_tokens(tiny_llama(vocab_size=65), Padded(), "model.path: x")


def say_quantised(folder: Path) -> None:
    config = read_json(folder / "config.json")
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))


def test_of_quantised_weights_only_the_modules_are_looked_at(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "model")
    say_quantised(tmp_path / "model")
    check_model(tmp_path / "model", "model.path")


@pytest.mark.parametrize("quantised", [False, True])
def test_a_model_with_two_stacks_of_layers_is_refused(tiny, tmp_path, quantised):
    folder = vision_model(tmp_path / "vision")
    for file in tiny.glob("*token*"):
        shutil.copy(file, folder)
    if quantised:
        say_quantised(folder)
    with pytest.raises(MolaError, match=r"model\.path: .* has 2 stacks of layers .*vision") as error:
        prepare_checked_model(directory(folder), tmp_path / "prepared")
    one_line(error)
    assert not (tmp_path / "prepared").exists()


def test_a_mixture_of_experts_is_one_stack(tiny, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, num_local_experts=2,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    for file in tiny.glob("*token*"):
        shutil.copy(file, tmp_path / "moe")
    prepare_checked_model(directory(tmp_path / "moe"), tmp_path / "prepared")
    assert read_json(tmp_path / "prepared/model.json")["depth"] == 4


def test_a_tokenizer_that_ends_every_text_is_refused(tiny, tmp_path):
    from tokenizers.processors import TemplateProcessing

    shutil.copytree(tiny, tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(MolaError, match="ends every text with </s>"):
        prepare_checked_model(directory(tmp_path / "model"), tmp_path / "prepared")


def grow(folder: Path, name: str, size: int) -> None:
    """A file of holes, which takes an hour to hash; beside a config that is all right."""
    (folder / "config.json").write_text('{"model_type": "llama"}')
    os.truncate(folder / name, size)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: os.mkfifo(folder / "config.json"), "a pipe or a device"),
        (lambda folder: (folder / "config.json").symlink_to("/dev/zero"), "a pipe or a device"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda folder: grow(folder, "tokenizer.json", 2**40), "tokenizer.json has more than"),
        (
            lambda folder: grow(folder, "model.safetensors", 2**40),
            "model.safetensors is cut short or damaged",
        ),
        (
            lambda folder: (folder / "config.json").write_text(
                json.dumps({"model_type": "llama", "num_hidden_layers": 10**9})
            ),
            "num_hidden_layers 1000000000, the weights have",
        ),
    ],
)
def test_configs_that_hang_nest_or_bomb_are_one_line(tiny, tmp_path, change, words):
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model/config.json").unlink()
    change(tmp_path / "model")
    with pytest.raises(MolaError, match=words) as error:
        prepare_checked_model(directory(tmp_path / "model"), tmp_path / "prepared")
    one_line(error)
