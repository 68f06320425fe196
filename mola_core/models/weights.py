"""What a training starts from and what it leaves: an adapter, or after full fine-tuning a whole model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from safetensors import safe_open
from safetensors.torch import load_file

import mola_core.adapter  # noqa: F401 - makes MoLA known to PEFT
from mola_core.distributed import is_main
from mola_core.errors import MolaError, one_line
from mola_core.files import atomic_write, read_json, remove, sha256_file, write_json
from mola_core.methods.registry import adapter_config, takes_start_from_base
from mola_core.models.building import build, try_out
from mola_core.models.loading import load_model
from mola_core.models.memory import is_out_of_memory
from mola_core.models.sources import weight_files
from mola_core.module_names import is_named
from mola_core.records import digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mola_core.methods.settings import AdapterSettings, MethodSettings

ADAPTER_FILE = "adapter_model.safetensors"
INITIAL = "initial"
"""Folder, beside the checkpoints, of the adapter that a PiSSA LoRA started as."""


def new_adapter(
    base: PreTrainedModel,
    settings: MethodSettings,
    adapter: AdapterSettings,
    scratch: Path,
    experts: list[int] | None = None,
    batches: Sequence[Mapping[str, Any]] = (),
    steps: int | None = None,
) -> PeftModel:
    """An untrained adapter of the method on `base`, which must be loaded again afterwards unless `unload` gives it back.

    `scratch` outlives a stopped training; `experts` are those of each layer where data chose them; `batches` and `steps`
    of the training are for methods whose start or schedule depends on them. Raises `MolaError` where the method does not
    fit the model.
    """
    depth = base.config.get_text_config().num_hidden_layers
    try:
        config = adapter_config(settings, adapter, depth, experts)
        if config is None:
            raise ValueError("the base model is not trained")
        model = build(base, config, batches, steps)
        try_out(model)
    except (MolaError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # PEFT raises what it likes where a method does not fit
        if is_out_of_memory(error):
            raise
        raise MolaError(f"method {settings.label}: {one_line(error)}") from error
    if _changes_base(model) and is_main():
        model.save_pretrained(str(scratch / INITIAL))
    return _trainable(model)


def continued_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """The adapter in `folder`, to be trained on."""
    config = PeftConfig.from_pretrained(str(folder))
    if not config.is_prompt_learning:
        return _trainable(
            PeftModel.from_pretrained(base, str(folder), is_trainable=True, local_files_only=True)
        )
    # PEFT refuses `is_trainable` for these, for no reason that concerns one whose parameters are its own.
    config.inference_mode, config.base_model_name_or_path = False, None
    model = get_peft_model(base, config)
    set_peft_model_state_dict(model, load_file(folder / ADAPTER_FILE))
    return _trainable(model)


def whole_model(folder: Path) -> PreTrainedModel:
    """The model in `folder`, all of it to be trained; in float32, since steps of 1e-5 are lost in bfloat16."""
    model = load_model(folder, dtype="float32")
    return (model.to("cuda") if torch.cuda.is_available() else model).requires_grad_(True)


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """The trained adapter in `folder` on `base`, which is changed even where this fails.

    Raises `MolaError` where the adapter is damaged or does not fit.
    """
    try:
        with warnings.catch_warnings():
            # Those of a trained AdaLoRA name its own parameters; what a study asks for was read back when it was built.
            warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
            return _fitted(PeftModel.from_pretrained(base, str(folder), local_files_only=True))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # PEFT and safetensors raise what they like for damaged files
        raise MolaError(f"{folder}: no loadable adapter ({one_line(error)}); train the cell again") from error


def unload(model: PeftModel) -> PreTrainedModel | None:
    """The base model without the adapter; None where it is no longer what it was and must be loaded again."""
    if (
        not isinstance(model, PeftModel)
        or not isinstance(model.base_model, BaseTuner)
        or _changes_base(model)
        or not _leaves_base(model)
    ):
        return None
    return model.unload()


def save_weights(
    model: Any, folder: Path, base: str, dtype: str, scratch: Path, revision: str | None = None
) -> None:
    """Write the adapter as PEFT does, or the whole model in `dtype`, whole or not at all.

    `base` is the base model's id on the hub, or its name, which takes the place of this machine's path; `revision` its
    commit on the hub. The adapter always belongs to the unmodified base: a PiSSA LoRA, which trains beside a residual,
    is written as the LoRA of twice its rank that is the difference to its start.
    """
    with atomic_write(folder) as temporary:
        if not isinstance(model, PeftModel):
            weights = {name: weight.to(getattr(torch, dtype)) for name, weight in model.state_dict().items()}
            model.save_pretrained(str(temporary), state_dict=weights)
            return
        initial = {"path_initial_model_for_weight_conversion": str(scratch / INITIAL)}
        model.save_pretrained(
            str(temporary), save_embedding_layers=False, **(initial if _changes_base(model) else {})
        )
        # Set afterwards: PEFT would look up any name that is no local folder on the hub.
        config = read_json(temporary / "adapter_config.json") | {
            "base_model_name_or_path": base,
            "revision": revision,
        }
        if isinstance(config.get("target_modules"), list):
            config["target_modules"].sort()  # PEFT writes a set, whose order is another in each process
        write_json(temporary / "adapter_config.json", config)
        # PEFT's model card names this machine's paths; a cell gets its own.
        remove(temporary / "README.md")


def weights_sha256(folder: Path) -> str:
    """sha256 of the weights in `folder`. Raises `MolaError` where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise MolaError(f"{folder}: no weights; train the cell again")
    if files == [folder / ADAPTER_FILE]:
        return sha256_file(files[0])
    return digest({file.name: sha256_file(file) for file in files})


def check_model_differs(folder: Path, base: Path) -> None:
    """Raise `MolaError` where the model in `folder` has the weights of the one in `base`, in the type that it has."""
    mine, theirs = (_tensors(place) for place in (folder, base))
    # A published model may lack the prefix that a saved one has (`h.0...` for `transformer.h.0...`).
    pairs = [(name, other) for name in mine for other in theirs if is_named(name, other)]
    for name, other in pairs:
        with (
            safe_open(mine[name], framework="pt") as trained,
            safe_open(theirs[other], framework="pt") as start,
        ):
            weight = trained.get_tensor(name)
            if not torch.equal(weight, start.get_tensor(other).to(weight.dtype)):
                return
    if not pairs:
        raise MolaError(
            f"{folder}: none of its weights has the name of one in {base}, so what was trained cannot be told"
        )
    raise MolaError(f"{folder}: the weights are those of the base model; it was not trained or not saved")


def _tensors(folder: Path) -> dict[str, Path]:
    found = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found


def _changes_base(model: Any) -> bool:
    """Whether the adapter took its start out of the base weights, as PEFT's PiSSA does."""
    return takes_start_from_base(vars(model.peft_config["default"]))


def _leaves_base(model: PeftModel) -> bool:
    """Whether what was trained stands beside the base model's weights, so that taking it off gives them back."""
    config = model.peft_config["default"]
    if config.peft_type not in ("LORA", "MOLA") or config.modules_to_save:
        return False
    others = ("trainable_token_indices", "kasa_config", "velora_config", "monteclora_config", "use_bdlora")
    return getattr(config, "bias", "none") == "none" and not any(getattr(config, n, None) for n in others)


def _trainable(model: PeftModel) -> PeftModel:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return _fitted(model)


def _fitted(model: PeftModel) -> PeftModel:
    if model.active_peft_config.is_prompt_learning:
        warnings.filterwarnings("ignore", message="Position ids are not supported")  # see below
        model.get_base_model().register_forward_pre_hook(_fit_virtual_tokens, with_kwargs=True)
    return model


def _fit_virtual_tokens(
    model: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Mend what PEFT hands to the base model after it put virtual tokens in front of left-padded prompts.

    It drops the positions, and counting from the left would place the padding between virtual tokens and prompt: a
    document's answer would depend on the others in its batch. And it lengthens labels that were cut to
    `logits_to_keep`.
    """
    mask, labels, kept = (options.get(name) for name in ("attention_mask", "labels", "logits_to_keep"))
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and options.get("position_ids") is None:
        inputs = (
            options["inputs_embeds"] if options.get("inputs_embeds") is not None else options["input_ids"]
        )
        options["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
    if labels is not None and kept:
        options["labels"] = labels[:, -kept:]
    return arguments, options
