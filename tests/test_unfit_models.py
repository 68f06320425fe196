"""Base models that cannot be adapted right are refused in one line, and those that only look so are taken."""

import json
import os
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from model_folders import directory, one_line

from mola_core.cli import main
from mola_core.errors import MolaError
from mola_core.files import read_json
from mola_core.methods.settings import AdapterSettings, MethodSettings
from mola_core.models.check import (
    check_model,
    prepare_checked_model,
    refuse_looking_ahead,
    refuse_padded,
    refuse_tokens,
)
from mola_core.models.loading import load_model, load_tokenizer, stored_quantization
from mola_core.models.weights import new_adapter

pytestmark = pytest.mark.usefixtures("own_folder")


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


@pytest.mark.parametrize("kind", ["llama", "rwkv"])
def test_a_model_that_sees_padding_is_refused(tiny_llama, kind):
    from transformers import RwkvConfig, RwkvForCausalLM

    torch.manual_seed(0)
    if kind == "llama":
        refuse_padded(tiny_llama(), "model b")
        refuse_padded(tiny_llama().to(torch.bfloat16), "model b")
        return
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "vocab_size": 64}
    model = RwkvForCausalLM(RwkvConfig(**sizes)).eval()
    with pytest.raises(MolaError, match="model b: padding before a text changes what it says of it"):
        refuse_padded(model, "model b")


def test_a_model_is_not_refused_for_the_rounding_of_its_kernels(tiny_llama):
    """`compute.matmul: onednn` sets "medium", which means bfloat16 on processors with AMX: the hook rounds on any, and by
    the length of the row, as kernels do."""

    def rounded(_module, _given, out):
        medium = torch.get_float32_matmul_precision() == "medium"
        return out.bfloat16().float() if medium and out.shape[1] % 2 else out

    model = tiny_llama().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(rounded)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for refuse in (refuse_looking_ahead, refuse_padded):
            refuse(model, "model b")
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_sixteen_bits_of_a_mixture_round_and_are_no_padding_seen():
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 16, "num_attention_heads": 4}
    config = MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=200, num_local_experts=8)
    for seed in range(12):
        torch.manual_seed(seed)
        refuse_padded(MixtralForCausalLM(config).bfloat16().eval(), "model b")


STUDY = """
name: own
description: a module that is misspelt
model: {name: tiny, source: random}
data: {source: builtin, train_documents: 16, test_documents: 12}
tasks: [cola]
methods: [lora-r4, {method: mola-2468, name: half, target_modules: [self_attn.q_proj, layers.1.mlp.up_proj, v_prj]}]
seeds: [0]
training: {max_steps: 1, batch_size: 8, warmup_steps: 0}
"""


def test_a_module_that_is_misspelt_is_found_before_the_first_training(tmp_path, capsys):
    file, results = tmp_path / "own.yaml", tmp_path / "results"
    file.write_text(STUDY)
    assert main(["run", "--study", str(file), "--results", str(results)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        "method half: target_modules: 'v_prj' is no module of the base model, did you mean 'v_proj'?" in said
    )
    assert not (results / "own" / "cells").exists()


def test_a_mixture_s_own_balance_loss_is_off(tmp_path):
    """It would be added once a micro-batch, to the loss of routers that are frozen."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = MixtralConfig(
        **sizes, num_key_value_heads=2, vocab_size=64, num_local_experts=2, output_router_logits=True
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    ids = torch.arange(8).unsqueeze(0)
    output = load_model(tmp_path)(input_ids=ids, labels=ids)
    own = torch.nn.functional.cross_entropy(output.logits[0, :-1], ids[0, 1:])
    assert output.loss.item() == pytest.approx(own.item(), abs=1e-5)


def test_tokens_of_every_batch_have_embeddings(tiny_llama):
    class Padded:
        pad_token_id, bos_token_id, eos_token_id = 64, None, 2
        added_tokens_decoder: ClassVar[dict] = {}

        def get_vocab(self):
            return {}

    with pytest.raises(MolaError, match="pad_token is number 64, the model has embeddings for 64"):
        refuse_tokens(tiny_llama(), Padded(), "model.path: x")
    refuse_tokens(tiny_llama(vocab_size=65), Padded(), "model.path: x")


def test_a_tokenizer_of_a_larger_model_is_refused(tiny, tiny_llama):
    """Torch would find out in the middle of a training; tokens that were added, as Gemma's for images, may lack a row."""
    tokenizer = load_tokenizer(tiny)
    size = len(tokenizer)
    with pytest.raises(
        MolaError, match=rf"3 tokens of the tokenizer \(number {size - 3} on\) have no embedding"
    ):
        refuse_tokens(tiny_llama(vocab_size=size - 3), tokenizer, "model.path: x")
    refuse_tokens(tiny_llama(vocab_size=size), tokenizer, "model.path: x")
    tokenizer.add_tokens(["<image>"])
    refuse_tokens(tiny_llama(vocab_size=size), tokenizer, "model.path: x")


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


def test_a_config_that_counts_fewer_layers_than_the_weights_is_refused(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "model")
    config = read_json(tmp_path / "model/config.json")
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(MolaError, match=r"the weights hold model\.layers\.2\..*; correct num_hidden_layers"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention_bias": False}, r"_proj\.bias, of which config\.json knows nothing"),
        ({"intermediate_size": 16}, "have other sizes than config.json says"),
    ],
)
def test_weights_that_the_config_does_not_know_are_refused(tiny_llama, tmp_path, change, words):
    tiny_llama(attention_bias=True).save_pretrained(tmp_path / "model")
    config = read_json(tmp_path / "model/config.json")
    load_model(tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps(config | change))
    with pytest.raises(MolaError, match=words):
        load_model(tmp_path / "model")


def test_weights_that_are_quantised_already_are_not_quantised_otherwise(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "model")
    assert stored_quantization(tmp_path / "model") is None
    say_quantised(tmp_path / "model")
    with pytest.raises(MolaError, match=r"model\.quantization: .*quantised already, as 4bit"):
        load_model(tmp_path / "model", quantization="8bit")


@pytest.mark.parametrize("method", ["mola-2468", "lora-r4"])
def test_a_module_that_the_model_reads_and_does_not_call_is_refused(method, tmp_path):
    """Mamba takes the weight of `dt_proj` for a product of its own: an adapter there would never be trained."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=32, num_hidden_layers=4, vocab_size=64, state_size=4)
    for targets, words in ((["in_proj"], None), (["in_proj", "dt_proj"], "'dt_proj' would not be trained")):
        settings = AdapterSettings(rank=2, target_modules=targets)
        options = (MambaForCausalLM(config), MethodSettings(method=method), settings, tmp_path)
        if words is None:
            assert new_adapter(*options).get_nb_trainable_parameters()[0]
        else:
            with pytest.raises(MolaError, match=words):
                new_adapter(*options)
