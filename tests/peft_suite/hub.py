"""Small models with random weights under the names of the hub's, as a cache of the hub."""

import inspect
import os
from pathlib import Path

import torch
import transformers

COMMIT = "0" * 40
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "peft-internal-testing/opt-125m": (
        "OPTForCausalLM",
        {"num_hidden_layers": 12, "word_embed_proj_dim": 32},
    ),
    "peft-internal-testing/tiny-random-OPTForCausalLM": (
        "OPTForCausalLM",
        {"ffn_dim": 64, "word_embed_proj_dim": 32},
    ),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", {}),
    "peft-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", {}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "bert-base-uncased": ("BertForSequenceClassification", {}),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", {}),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", {"rotary_dim": 4}),
    "peft-internal-testing/tiny-random-GPTNeoXForCausalLM": ("GPTNeoXForCausalLM", {}),
    "peft-internal-testing/tiny-random-BloomForCausalLM": ("BloomForCausalLM", {"num_hidden_layers": 5}),
    "peft-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", {}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", {}),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", {}),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", {"head_dim": 8}),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", {}),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": (
        "T5ForConditionalGeneration",
        {"d_ff": 64, "d_kv": 8, "num_decoder_layers": 4},
    ),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration": (
        "T5ForConditionalGeneration",
        {"d_ff": 64, "d_kv": 8, "num_decoder_layers": 4},
    ),
    "peft-internal-testing/tiny-random-t5": (
        "T5ForConditionalGeneration",
        {"d_ff": 64, "d_kv": 8, "num_decoder_layers": 4},
    ),
    "google/flan-t5-small": ("T5ForConditionalGeneration", {"d_ff": 64, "d_kv": 8, "num_decoder_layers": 4}),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("BartForConditionalGeneration", {}),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", {}),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", {}),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "RobertaForSequenceClassification",
        {},
    ),
    "peft-internal-testing/tiny-random-DebertaModel": ("DebertaModel", {}),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", {}),
    "peft-internal-testing/tiny-clip-text-2": ("CLIPTextModel", {}),
}
"""Class and sizes of each model, by its name on the hub."""
ADAPTED = "peft-internal-testing/tiny-random-OPTForCausalLM"
ADAPTERS = {
    "peft-internal-testing/tiny-OPTForCausalLM-lora": "main",
    "peft-internal-testing/tiny-opt-lora-revision": "test",
}
"""Revision of adapters of that model, by their name on the hub."""


def make() -> None:
    """Put what is missing into the cache in the folder `HF_HOME`."""
    for name, (kind, sizes) in MODELS.items():
        folder = snapshot(name, "main")
        if (folder / "config.json").exists():
            continue
        cls = getattr(transformers, kind)
        torch.manual_seed(0)
        model = cls(cls.config_class(**_known(cls.config_class) | sizes))
        if model.config.is_encoder_decoder:
            model.generation_config.decoder_start_token_id = 0
        model.save_pretrained(folder)


def snapshot(name: str, revision: str) -> Path:
    """Folder of the files of `name` at `revision`."""
    repository = Path(os.environ["HF_HOME"]) / "hub" / ("models--" + name.replace("/", "--"))
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def _known(config_class: type) -> dict:
    """The sizes that a config class has a name for."""
    names = set(inspect.signature(config_class.__init__).parameters) | set(config_class.attribute_map)
    return {name: value for name, value in SIZES.items() if name in names}
