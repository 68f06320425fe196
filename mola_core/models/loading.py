"""Base models: their identity, the folder they are prepared in, and loading them from it.

A prepared folder is a Hugging Face model folder with `model.json`, which holds the sha256 of each of its files.
torch and transformers are imported where they are needed: the workflow reads `model_identity` at every start.
"""

import contextlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mola_core.code_hash import code_hash
from mola_core.errors import MolaError, one_line
from mola_core.files import (
    HASH_CACHE,
    MAX_JSON,
    atomic_write,
    read_json,
    remembered_sha256,
    sha256_file,
    write_json,
)
from mola_core.models.sources import check_folder, fetch_model, licence_of, model_files
from mola_core.module_names import is_named, place_of
from mola_core.records import versions
from mola_core.study.sections import DirectoryModel, HubModel, ModelSource

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

FINGERPRINT = "model.json"
UNLIMITED = 2**31 - 1
"""Positions of a model that has no last one; PyTorch warns of slices with larger numbers."""


def model_identity(source: ModelSource, hash_cache: Path = HASH_CACHE) -> dict[str, Any]:
    """The facts that pin a base model's weights, as JSON; equal identities mean equal weights.

    How they are loaded (`dtype`, `quantization`) is not part of it, nor is the place of a local folder, only its
    content. Raises `MolaError` where a local folder is missing or is not a whole model.
    """
    if not isinstance(source, DirectoryModel):
        facts = source.model_dump(exclude={"name", "paper", "dtype", "quantization"})
        # A wheel is converted and a random model made by our own code, which then decides the weights too.
        return (
            facts
            if isinstance(source, HubModel)
            else facts | {"code": code_hash("mola_core.models.sources:fetch_model")}
        )
    folder = Path(source.path).expanduser()
    check_folder(folder, "model.path")
    for file in model_files(folder):
        if file.suffix != ".safetensors" and file.stat().st_size > MAX_JSON:
            raise MolaError(
                f"model.path: {file} has more than {MAX_JSON} bytes, which no tokenizer has; copy it anew"
            )
    files = {file.name: remembered_sha256(file, hash_cache) for file in model_files(folder)}
    return {"source": source.source, "files": files}


def prepare_model(source: ModelSource, folder: str | Path) -> None:
    """Make `folder` a Hugging Face model folder with `model.json`, whole or not at all.

    A folder that already holds this model, unaltered, is kept. Raises `MolaError` where the source cannot be
    reached, differs from its pin, or is not a whole model with safetensors weights and a tokenizer.
    """
    folder = Path(folder)
    identity = model_identity(source)
    with contextlib.suppress(MolaError):
        verify_model(folder)
        record = read_json(folder / FINGERPRINT)
        if record["identity"] == identity and "depth" in record:
            return
    with atomic_write(folder) as target:
        target.mkdir()
        fetch_model(source, target)
        check_folder(target, "model")
        fingerprint = {
            "model": source.model_dump(),
            "identity": identity,
            "depth": _depth(target),
            "files": {file.name: sha256_file(file) for file in model_files(target)},
            "licence": licence_of(source),
            "versions": versions(),
        }
        write_json(target / FINGERPRINT, fingerprint)


def _depth(folder: Path) -> int | None:
    """Layers of the model; None where its config cannot be read, which `check_model` says better."""
    try:
        return int(load_config(folder).get_text_config().num_hidden_layers)
    except Exception:  # transformers raises what it likes for damaged files
        return None


def verify_model(folder: str | Path) -> None:
    """Compare every file of a prepared model with the sha256 in its `model.json`.

    Raises `MolaError` that names the first file that is missing, altered, cut short or foreign.
    """
    folder = Path(folder)
    fix = f"remove {folder} and run again"
    if not (folder / FINGERPRINT).is_file():
        raise MolaError(f"{folder}: no prepared model; prepare it with `mola model`")
    content = read_json(folder / FINGERPRINT)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files or "identity" not in content:
        raise MolaError(f"{folder / FINGERPRINT}: no model fingerprint; {fix}")
    # Hidden files are the workflow's time stamps; any other could change what is loaded (adapter_config.json).
    for name in sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")):
        if name not in files and name != FINGERPRINT:
            raise MolaError(f"{folder / name}: not a file of the prepared model; {fix}")
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise MolaError(f"{folder / name}: missing; {fix}")
        actual = sha256_file(folder / name)
        if actual != expected:
            raise MolaError(f"{folder / name}: altered or cut short (sha256 {actual}, not {expected}); {fix}")


def leave_out_bitsandbytes() -> None:
    """For the rest of this process: PEFT imports bitsandbytes wherever it is installed, which takes a second and prints
    what it lacks. A process whose model is not quantised has no use for it; where it is imported already it stays."""
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # what importlib takes as "not there"


def load_model(
    folder: str | Path,
    dtype: str = "float32",
    quantization: str | None = None,
    device: str | None = None,
) -> "PreTrainedModel":
    """The base model of a prepared folder, in evaluation mode; `verify_model` first.

    `quantization` is `4bit` (NF4, double quantisation: QLoRA's setting) or `8bit`, through bitsandbytes, with the
    arithmetic in `dtype`. `device` is a torch device: by default the CPU, for quantised weights a GPU where there
    is one. Attention is transformers' choice for the architecture: `sdpa`, but `eager` where it soft-caps logits.
    Raises `MolaError` for an unknown architecture, a missing tensor, or missing bitsandbytes.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {}
    if quantization and stored_quantization(folder):
        raise MolaError(
            f"model.quantization: the weights in {folder} are quantised already, as {stored_quantization(folder)}, and would stay so; "
            "leave it out"
        )
    if quantization:
        options["quantization_config"] = _quantization_config(quantization, getattr(torch, dtype))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device:
        options["device_map"] = {"": device}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except (ValueError, ImportError, OSError) as error:
        raise MolaError(f"{folder}: transformers cannot load this model ({one_line(error)})") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise MolaError(
            f"{folder}: the weights have other sizes than config.json says; correct it"
        ) from error
    if info["missing_keys"]:
        missing = min(info["missing_keys"])
        raise MolaError(
            f"{folder}: the weights lack {missing}; use a whole model (transformers would invent it)"
        )
    refuse_dropped_weights(model, info["unexpected_keys"], folder)
    text = model.config.get_text_config()
    if getattr(text, "output_router_logits", False):
        # A mixture of experts would add the balance loss of its own routers, which are frozen, once a micro-batch.
        text.output_router_logits = False
    output = model.get_output_embeddings()
    if output is not None:
        output.register_forward_pre_hook(_in_one_piece)
    return model.eval()


def stored_quantization(folder: str | Path) -> str | None:
    """How the weights of a model folder are quantised, by its config; None where they are not."""
    stored = read_json(Path(folder) / "config.json").get("quantization_config")
    if not isinstance(stored, dict):
        return None
    bits = [f"{count}bit" for count in (4, 8) if stored.get(f"load_in_{count}bit")]
    return bits[0] if bits else str(stored.get("quant_method", "unknown"))


def refuse_dropped_weights(model: "PreTrainedModel", unexpected: Iterable[str], folder: str | Path) -> None:
    """Raise `MolaError` where the weights hold layers, or weights of modules, that the model was built without: another model
    than was saved. What belongs to no module of it (a vision tower, say) is left out by intent."""
    known = {name for name, _ in model.named_parameters()}
    modules = {name for name, _ in model.named_modules()}
    for name in sorted(unexpected):
        if place_of(name) and re.sub(r"\.\d+\.", ".0.", name, count=1) in known:
            raise MolaError(
                f"{folder}: the weights hold {name}, a layer that config.json does not count; correct num_hidden_layers"
            )
        module, _, leaf = name.rpartition(".")
        if module in modules and leaf in ("weight", "bias"):
            raise MolaError(
                f"{folder}: the weights hold {name}, of which config.json knows nothing; correct it"
            )


def _in_one_piece(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The last positions of a batch are a view with gaps, for which torch would copy the output layer's weights once a row
    of the batch (900 MB for 8 rows and SmolLM2's vocabulary), a fifth of a training step."""
    return arguments[0].contiguous(), *arguments[1:]


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a prepared folder. It always has a padding token: its own, else the end-of-text token.

    Whether a prompt starts with a BOS token is the tokenizer's own policy (Llama 2: yes, SmolLM2: no).
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (ValueError, ImportError, OSError) as error:
        raise MolaError(f"{folder}: transformers cannot load this tokenizer ({one_line(error)})") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise MolaError(f"{folder}: the tokenizer has no padding and no end-of-text token; give it one")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(folder: str | Path) -> "PreTrainedConfig":
    """The configuration of a local model folder. Raises `MolaError` for an unknown architecture."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (ValueError, ImportError, OSError) as error:
        raise MolaError(f"{folder}: transformers cannot read this config ({one_line(error)})") from error


def positions(model: "str | Path | PreTrainedConfig") -> int:
    """Tokens that a model takes at most, by its config or that of its local folder; prompts of the evaluation are cut there.
    `UNLIMITED` where the config names no number."""
    config = load_config(model) if isinstance(model, str | Path) else model
    for section in (getattr(config, "text_config", None), config):
        for name in ("n_positions", "max_position_embeddings", "n_ctx"):
            found = getattr(section, name, None)
            if isinstance(found, int):
                return found
    return UNLIMITED


def stored_depth(folder: str | Path) -> int | None:
    """Layers of the text model in a local folder, by its config.json; None where that does not say it."""
    file = Path(folder) / "config.json"
    config = read_json(file) if file.is_file() else None
    sections = [config.get("text_config"), config] if isinstance(config, dict) else []
    for section in (each for each in sections if isinstance(each, dict)):
        for name in ("num_hidden_layers", "n_layer", "num_layers"):
            if isinstance(section.get(name), int):
                return int(section[name])
    return None


def module_dimensions(
    model: "PreTrainedConfig | torch.nn.Module", target_modules: Iterable[str]
) -> tuple[int, list[tuple[int, int]]]:
    """Depth of a base model and (d_in, d_out) of the target modules of one layer, in the model's order.

    A configuration is instantiated on the meta device, without memory for weights. Raises `MolaError` where a
    layer lacks a named module (the linear modules that it has are listed) or where layers differ in size.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    if not isinstance(model, torch.nn.Module):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model, trust_remote_code=False)
    depth = model.config.get_text_config().num_hidden_layers
    layers: list[dict[str, tuple[int, int]]] = [{} for _ in range(depth)]
    for name, module in model.named_modules():
        place = place_of(name)
        if place and isinstance(module, torch.nn.Linear):
            layers[place[0]][place[1]] = (module.in_features, module.out_features)
        elif place and isinstance(module, Conv1D):
            layers[place[0]][place[1]] = tuple(module.weight.shape)
    targets = list(target_modules)
    for index, layer in enumerate(layers):
        for target in targets:
            if not any(is_named(module, target) for module in layer):
                have = ", ".join(dict.fromkeys(module.split(".")[-1] for module in layer))
                raise MolaError(
                    f"target_modules: layer {index} of the base model has no linear {target!r}, it has {have}"
                )
    adapted = [
        [size for module, size in layer.items() if any(is_named(module, target) for target in targets)]
        for layer in layers
    ]
    if any(sizes != adapted[0] for sizes in adapted):
        raise MolaError("target_modules: the base model's layers differ in size; name modules that do not")
    return depth, adapted[0]


def _quantization_config(quantization: str, dtype: "torch.dtype") -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise MolaError(f"model.quantization: {quantization} needs bitsandbytes; `pip install bitsandbytes`")
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
