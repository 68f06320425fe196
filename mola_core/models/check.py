"""Base models are tried out where they are prepared and loaded, so that nothing later meets a damaged or unfit one."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mola_core.errors import MolaError, one_line
from mola_core.files import read_json, remove, write_json
from mola_core.models.loading import FINGERPRINT, load_config, load_model, load_tokenizer, prepare_model
from mola_core.models.sources import weight_files
from mola_core.module_names import in_any_layer
from mola_core.study.sections import DirectoryModel, ModelSource

MAX_COUNT = 4096
"""Layers or experts that a config may name whatever its weights hold."""
OWN_ATTENTION = (None, "eager", "sdpa", "flex_attention")
"""What transformers and torch compute themselves; for other names native code is fetched from the hub."""


def prepare_checked_model(source: ModelSource, folder: Path) -> None:
    """`prepare_model`, and try the model; a folder that cannot be loaded is removed again, with a `MolaError`."""
    prepare_model(source, folder)
    try:
        modules = check_model(
            folder, f"model.path: {source.path}" if isinstance(source, DirectoryModel) else str(folder)
        )
    except MolaError:
        remove(folder)
        raise
    record = read_json(folder / FINGERPRINT)
    if record.get("modules") != modules:
        write_json(folder / FINGERPRINT, record | {"modules": modules})


def check_model(folder: Path, name: str) -> list[str]:
    """Raise `MolaError`, which calls the folder `name`, unless config, tokenizer and weights can be loaded together; the
    names of the model's modules, those of one place in all layers once.

    No memory is taken for weights: they are loaded to torch's meta device, which compares names and shapes.
    """
    config = read_json(folder / "config.json")
    refuse_kernels(config, name)
    refuse_depth(config, name, folder)
    with loading(folder, name):
        load_config(folder)
        tokenizer = load_tokenizer(folder)
        tokens = tokenizer("Question").input_ids
        if not tokens:
            raise ValueError("the tokenizer makes no token of a word")
        if tokens[-1] == tokenizer.eos_token_id:
            # lm-eval and training cut a prompt from its option by the number of the prompt's tokens.
            raise MolaError(
                f"{name}: its tokenizer ends every text with {tokenizer.eos_token}; set add_eos_token to false in "
                "tokenizer_config.json, or save it without"
            )
        # Weights that were saved quantised may need a GPU or a library that this machine lacks: only their modules are made.
        quantised = isinstance(config.get("quantization_config"), dict)
        model = _empty(folder) if quantised else load_model(folder, device="meta")
        refuse_stacks(model, name)
        refuse_tokens(model, tokenizer, name)
        return sorted({in_any_layer(module) for module, _ in model.named_modules() if module})


def _empty(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(folder), trust_remote_code=False)


def refuse_depth(config: Any, name: str, folder: Path) -> None:
    """Raise `MolaError` where a config asks for more layers or experts than its weights can hold: building them hangs."""
    from safetensors import safe_open

    tensors = 0
    for file in weight_files(folder):
        with safe_open(file, framework="numpy") as weights:
            tensors += len(weights.keys())
    parts = [config] if isinstance(config, dict) else []
    while parts:
        part = parts.pop()
        parts += [value for value in part.values() if isinstance(value, dict)]
        for key, value in part.items():
            counted = re.fullmatch(r"(num|n)_.*(layers?|experts|blocks)", str(key))
            if counted and isinstance(value, int) and value > max(tensors, MAX_COUNT):
                raise MolaError(
                    f"{name}: config.json says {key} {value}, the weights have {tensors} tensors; copy it anew"
                )


def refuse_tokens(model: Any, tokenizer: Any, name: str) -> None:
    """Raise `MolaError` where a token that is put into every batch or text, or one that ordinary text has, has no embedding.

    Added tokens may have none, as Gemma's for images: no text has them but one that names them.
    """
    rows = model.get_input_embeddings().num_embeddings
    for kind in ("pad", "bos", "eos"):
        token = getattr(tokenizer, f"{kind}_token_id")
        if token is not None and token >= rows:
            raise MolaError(
                f"{name}: the tokenizer's {kind}_token is number {token}, the model has embeddings for {rows}; name one that "
                "it has in tokenizer_config.json, or save the model with resized embeddings"
            )
    without = [
        number
        for number in tokenizer.get_vocab().values()
        if number >= rows and number not in tokenizer.added_tokens_decoder
    ]
    if without:
        raise MolaError(
            f"{name}: {len(without)} tokens of the tokenizer (number {min(without)} on) have no embedding, the model has {rows}; "
            "take the tokenizer that belongs to it, or save the model with resized embeddings"
        )


def refuse_stacks(model: Any, name: str) -> None:
    """Raise `MolaError` for a model with two stacks of layers, as of text and of images: adapters would go into both."""
    import torch
    from transformers.pytorch_utils import Conv1D

    stacks: dict[str, set[str]] = {}
    for module, kind in model.named_modules():
        place = re.match(r"(\D*)\.(\d+)\.", module)
        if place and isinstance(kind, torch.nn.Linear | Conv1D):
            stacks.setdefault(place[1], set()).add(place[2])
    found = sorted(stack for stack, layers in stacks.items() if len(layers) > 1)
    if len(found) > 1:
        raise MolaError(
            f"{name}: has {len(found)} stacks of layers ({', '.join(found)}), of which an adapter is for one; save its "
            "text model alone (AutoModel, get_decoder(), save_pretrained) and use that"
        )


def refuse_looking_ahead(model: Any, name: str) -> None:
    """Raise `MolaError` where a later token changes the logits before it, as in BERT without `is_decoder`: training and
    evaluation would both see the answer. `model` has its weights."""
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = (vocabulary // 2 + torch.arange(4, device=model.device)).repeat(2, 1) % vocabulary
    tokens[1, -1] = (tokens[1, -1] + 1) % vocabulary
    with torch.inference_mode(), full_float32():
        logits = model(input_ids=tokens, use_cache=False).logits.float()
    change = (logits[0] - logits[1]).abs().amax(-1)
    # What rounds is how a mixture of experts groups its tokens.
    rounding = 1e-4 if model.dtype == torch.float32 else 0.05
    if bool((change[:-1] > rounding * change[-1]).any()):
        raise MolaError(
            f"{name}: a later token changes what it says of those before, so it is no causal language model; use one, or set "
            "is_decoder in its config.json"
        )


def refuse_padded(model: Any, name: str) -> None:
    """Raise `MolaError` where padding before a row changes what the model says of it, as in RWKV, which ignores the mask:
    training and answers would depend on the rows beside it. `model` has its weights."""
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings
    row = [(vocabulary // 2 + place) % vocabulary for place in range(4)]

    def last(tokens: list[int], padding: int = 0) -> torch.Tensor:
        batch = {
            "input_ids": [vocabulary // 3] * padding + tokens,
            "attention_mask": [0] * padding + [1] * len(tokens),
            "position_ids": [0] * padding + list(range(len(tokens))),
        }
        given = {key: torch.tensor([value], device=model.device) for key, value in batch.items()}
        return model(**given, use_cache=False).logits[0, -1].float()  # type: ignore[no-any-return]

    with torch.inference_mode(), full_float32():
        alone, padded = last(row), last(row, padding=5)
        change = (alone - last([*row[:-1], (row[-1] + 1) % vocabulary])).abs().max()
    # Sums over another length round otherwise, in 16 bits so that a token may go to another expert; RWKV's share is above 1.
    rounding = 1e-3 if model.dtype == torch.float32 and not getattr(model, "is_quantized", False) else 0.25
    if bool((alone - padded).abs().max() > rounding * change):
        raise MolaError(
            f"{name}: padding before a text changes what it says of it, so that training and answers would depend on the texts "
            "beside it; use another model"
        )


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 in float32: `compute.matmul: onednn` takes bfloat16 for them on some processors."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def refuse_kernels(config: Any, name: str) -> None:
    """Raise `MolaError` where a config asks for attention that would fetch native code from the hub."""
    parts = [config] if isinstance(config, dict) else []
    while parts:
        part = parts.pop()
        parts += [value for value in part.values() if isinstance(value, dict)]
        for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
            asked = part.get(key)
            if any(
                kind not in OWN_ATTENTION for kind in (asked.values() if isinstance(asked, dict) else [asked])
            ):
                raise MolaError(
                    f"{name}: config.json asks for {key} {str(asked)[:60]!r}, which can run foreign code;"
                    " remove it there"
                )


@contextlib.contextmanager
def loading(folder: Path, name: str | None = None) -> Iterator[None]:
    """Turn whatever the block raises, but for too little memory, into a `MolaError` that calls the folder `name`."""
    try:
        yield
    except MolaError as error:
        raise MolaError(str(error).replace(str(folder), name or str(folder))) from error
    except Exception as error:  # transformers and tokenizers raise what they like for damaged files
        from mola_core.models.memory import is_out_of_memory

        if is_out_of_memory(error):
            raise
        raise MolaError(
            f"{name or folder}: transformers cannot load this model ({one_line(error)}); its config.json, tokenizer or weights"
            " are damaged or not of one model: copy it anew"
        ) from error
