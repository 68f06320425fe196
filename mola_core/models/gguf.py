"""GGUF files to Hugging Face folders: dequantised by transformers, saved as a plain model, read back and compared."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mola_core.errors import MolaError, one_line

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SAMPLE = "Question: is 1234 x 5 = 6170?\n  Answer: The answer is A\tpeut-être, 漢字."
"""A text whose tokens are compared after the tokenizer was saved."""
DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
"""Rules of splitting text (`tokenizer.ggml.pre`) that take digits one by one before GPT-2's. Source: llama.cpp, llm_tokenizer_bpe."""
AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais")
"""Those that are GPT-2's, by the same source."""
USE_FOLDER = "use a folder of the model"


def dequantise(gguf: Path, target: Path) -> None:
    """Turn a GGUF file into a Hugging Face folder, weights in float32, tokenizer from the same file.

    Raises `MolaError` where transformers cannot read it or leaves something of it out, it lacks a tensor, or what was saved is
    not what was read.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _readable():
        reader = GGUFReader(gguf)
    _refuse_scaled_positions(reader)
    with _readable():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model, info = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
        )
    if info["missing_keys"]:
        raise MolaError(f"model.file: the GGUF file lacks the tensor {min(info['missing_keys'])}")
    _refuse_unread(model, reader)
    _split_as_named(tokenizer, reader)
    tokenizer.save_pretrained(target)
    save_plain(model, target)
    _compare(model, tokenizer, target)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file fails anywhere in the reader, with any type
        raise MolaError(f"model.file: transformers cannot read this GGUF file ({one_line(error)})") from error


def _refuse_scaled_positions(reader: "GGUFReader") -> None:
    """Raise `MolaError` where rotary positions are scaled: transformers reads the file's base frequency and nothing more.

    A factor without a type is linear, as in llama.cpp (`load_hparams`); Llama 3's scaling is a tensor of its own.
    """
    told = {
        name.partition(".rope.")[2]: field.contents()
        for name, field in reader.fields.items()
        if ".rope." in name
    }
    factors = (told.get("scaling.factor", 0), told.get("scale_linear", 0))
    kind = told.get("scaling.type", "none" if set(factors) <= {0, 1} else "linear")
    tensor = next((tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")), None)
    if kind != "none" or tensor:
        raise MolaError(
            f"model.file: its positions are scaled ({tensor or f'rope.scaling.type {kind}'}), which transformers leaves out of a"
            f" GGUF file; {USE_FOLDER}"
        )


def _refuse_unread(model: "PreTrainedModel", reader: "GGUFReader") -> None:
    """Raise `MolaError` where the file holds more values than the model: transformers leaves out what it has no name for."""
    # Falcon's and Bloom's files hold the output layer, which is the embedding, twice.
    twice = "output.weight" if model.config.tie_word_embeddings else None
    there = sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name != twice)
    taken = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    if there > sum(taken.values()):
        biases = [tensor.name for tensor in reader.tensors if tensor.name.endswith(".bias")]
        raise MolaError(
            f"model.file: it holds {there - sum(taken.values())} weights that transformers does not read"
            f"{f' (probably {biases[0]})' if biases else ''}; {USE_FOLDER}"
        )


def save_plain(model: "PreTrainedModel", target: Path) -> None:
    """Save the model's weights and config as those of a model that was never quantised.

    transformers refuses to save some models that it has dequantised, and undoes conversions of loading where it saves.
    """
    import torch

    config = model.config
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.save_pretrained(target)


def _compare(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", target: Path) -> None:
    """Raise `MolaError` unless the saved folder gives the same weights and tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved = AutoModelForCausalLM.from_pretrained(
        target, dtype=torch.float32, local_files_only=True
    ).state_dict()
    for name, tensor in model.state_dict().items():
        if name not in saved or not torch.equal(saved[name], tensor):
            raise MolaError(
                f"model.file: {name} is not as it was read after it was saved; use another version of transformers"
            )
    again = AutoTokenizer.from_pretrained(target, local_files_only=True)
    if again(SAMPLE).input_ids != tokenizer(SAMPLE).input_ids:
        raise MolaError(
            "model.file: its tokenizer is not as it was read after it was saved; use another version of transformers"
        )


def _split_as_named(tokenizer: "PreTrainedTokenizerFast", reader: "GGUFReader") -> None:
    """Let a byte-level tokenizer split text by the rule that the file names.

    transformers splits by GPT-2's rule where it does not know the name, so that digits, say, become other tokens than the
    model was trained on. Raises `MolaError` for such a name.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    field = reader.get_field("tokenizer.ggml.pre")
    rule = None if field is None else field.contents()
    if rule in DIGITS_FIRST:
        digits_first = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(digits_first)
    elif isinstance(tokenizer.backend_tokenizer.pre_tokenizer, ByteLevel) and rule not in AS_GPT2:
        raise MolaError(
            f"model.file: its tokenizer splits text by the rule {rule or 'of no name'}, which transformers does not know; use a"
            " folder of the model with its tokenizer.json"
        )
