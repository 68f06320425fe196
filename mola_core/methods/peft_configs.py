"""A PEFT config in a study file: its keys against the fields of PEFT's dataclass, and nothing that names files or code.

The fields are read from PEFT's source as text: importing PEFT takes seconds, and every step reads the study file.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mola_core.errors import did_you_mean
from mola_core.methods.family import VIRTUAL_TOKENS

FOREIGN = {
    "base_model_name_or_path", "revision", "auto_mapping", "megatron_config", "megatron_core", "tokenizer_name_or_path",
    "tokenizer_kwargs", "prompt_tuning_init_state_dict_path", "adapters",
}  # fmt: skip
"""Keys that name files, repositories or code to import."""
SET_HERE = {
    "task_type": "it is always CAUSAL_LM",
    "inference_mode": "it follows from the stage",
    "peft_version": "it is recorded",
    "total_step": "it is the number of steps of the training",
}
UNSUPPORTED = {
    "corda_config": "CorDA needs a preparation of its own over a data set",
    "loftq_config": "LoftQ replaces the base weights",
    "arrow_config": "it routes among adapters that are trained already",
    "alora_invocation_tokens": "its adapter acts on a part of the prompt that no task here marks",
    "layer_replication": "it changes the model's depth",
    "runtime_config": "it is for inference",
    "prompt_tuning_init_text": "its text needs a tokenizer of the hub",
}
KINDS = {
    "MOLA": "use the methods mola-<shape>, or mola with `experts`",
    "XLORA": "it needs adapters that are trained already",
    "POLY": "it needs task numbers beside the tokens",
    "MULTITASK_PROMPT_TUNING": "it needs task numbers beside the tokens",
    "CPT": "it needs a context of its own",
    "CARTRIDGE": "it needs a cache that is made beforehand",
    "LILY": "its router pools a batch, so that an answer would depend on the others in it",
    "SHADOW": "it is a second model beside the first",
    "TRAINABLE_TOKENS": "no token of a task here stands for it",
}
"""Values of `peft_type` that do not go with one adapter, one task and tokens alone."""
MAX_VIRTUAL_TOKENS = 4096
STARTS = {"corda": UNSUPPORTED["corda_config"], "loftq": UNSUPPORTED["loftq_config"]}
"""Values of `init_lora_weights` that are not supported."""
PATTERNS = {
    "target_modules",
    "exclude_modules",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "feedforward_modules",
}
"""Keys whose values are regular expressions or hold some, in which a backslash is no path's."""
_PLAIN = {
    "bool": (bool, "true or false"),
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "str": (str, "text"),
}
TYPES: dict[str, tuple[Any, str]] = {
    "Optional[dict]": (dict, "a mapping"),
    "Optional[list[str]]": (list[str], "a list of names"),
    "Optional[Union[list[str], str]]": (str | list[str], "text or a list of texts"),
    "Optional[Union[list[int], int]]": (int | list[int], "a whole number or a list of them"),
    **_PLAIN,
    **{f"Optional[{name}]": kind for name, kind in _PLAIN.items()},
}
"""PEFT's plain annotations; a value under another is PEFT's to check."""


def check(config: Mapping[str, Any]) -> None:
    """Raise ValueError, which names the key, where PEFT has no such config or it would read files or run code."""
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise ValueError("config: peft_type is missing; name one of PEFT's, as LORA, VERA or OFT")
    if kind in KINDS:
        raise ValueError(f"config: peft_type {kind} cannot be trained here: {KINDS[kind]}")
    fields = fields_of(kind)
    if fields is None:
        raise ValueError(
            f"config: peft_type {kind[:40]!r} is none of PEFT's{did_you_mean(kind, kinds())}; use {', '.join(sorted(kinds()))}"
        )
    for key, value in config.items():
        if key in FOREIGN:
            raise ValueError(f"config.{key}: names files or code, which a study may not; remove it")
        if key in SET_HERE:
            raise ValueError(f"config.{key}: {SET_HERE[key]}; remove it")
        if key in UNSUPPORTED:
            raise ValueError(f"config.{key}: not supported: {UNSUPPORTED[key]}")
        if key not in fields:
            known = sorted(fields.keys() - FOREIGN - SET_HERE.keys() - UNSUPPORTED.keys())
            meant = did_you_mean(key, known)
            raise ValueError(f"config.{key}: {kind} has no such key{meant}; it has {', '.join(known)}")
        _check_value(f"config.{key}", value, key in PATTERNS)
        _check_type(key, value, fields[key])
        if key in ("r", "init_r", "target_r") and kind != "OFT" and isinstance(value, int) and value < 1:
            raise ValueError(f"config.{key}: must be at least 1, not {value}")
        if key.endswith("dropout") and isinstance(value, int | float) and not 0 <= value < 1:
            raise ValueError(f"config.{key}: must be at least 0 and below 1, not {value}")
        if key == "num_virtual_tokens" and isinstance(value, int) and not 1 <= value <= MAX_VIRTUAL_TOKENS:
            raise ValueError(f"config.{key}: must be 1 to {MAX_VIRTUAL_TOKENS:,}, not {value}")
        if key == "layers_to_transform" and value == []:
            raise ValueError(
                f"config.{key}: names no layer, which PEFT takes for all; list some, or remove it"
            )
    _check_together(kind, config)
    start = str(config.get("init_lora_weights", "")).lower()
    if start in STARTS:
        raise ValueError(f"config.init_lora_weights: {start} is not supported: {STARTS[start]}")


def _check_type(key: str, value: Any, annotation: str) -> None:
    if key.endswith("alpha") and annotation == "int":
        annotation = "float"  # PEFT takes more than its annotation of `lora_alpha` says
    if value is None or annotation not in TYPES:  # PEFT has defaults of None beside `int` too
        return
    expected, words = TYPES[annotation]
    try:
        TypeAdapter(expected).validate_python(value, strict=True)
    except ValidationError:
        raise ValueError(f"config.{key}: must be {words}, not {str(value)[:60]!r}") from None
    if key.endswith("alpha") and value == 0:
        raise ValueError(f"config.{key}: 0 scales whatever is learnt to nothing; give another number")


def _check_together(kind: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError for what PEFT would notice in the middle of a training, or in words that name no key."""
    if kind in VIRTUAL_TOKENS - {"ADAPTION_PROMPT"} and config.get("num_virtual_tokens") is None:
        raise ValueError("config.num_virtual_tokens: missing; add it")
    if kind == "ADALORA":
        first, target = config.get("init_r", 12), config.get("target_r", 8)
        if first is not None and target is not None and target >= first:
            raise ValueError(
                f"config.target_r: {target} is not below init_r {first}, from which AdaLoRA takes ranks away; lower it"
            )


def _check_value(where: str, value: Any, pattern: bool) -> None:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where}: {key!r} is no name; write it in quotes")
            if re.search(r"path|file|tokenizer|trust_remote", key):
                raise ValueError(f"{where}.{key}: names files or code, which a study may not; remove it")
            _check_value(where, key, pattern)
            _check_value(f"{where}.{key}", entry, pattern)
    elif isinstance(value, list):
        for entry in value:
            _check_value(where, entry, pattern)
    elif isinstance(value, str):
        if re.search(r"[/\0]|^~" if pattern else r"[/\\\0]|^~", value):
            raise ValueError(
                f"{where}: {value[:60]!r} looks like a path, which a study may not name; remove it"
            )
    elif value is not None and not isinstance(value, bool | int | float):
        raise ValueError(f"{where}: {str(value)[:60]!r} is no text, number, list or mapping")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} is no finite number; correct it")


def fields_of(kind: str) -> dict[str, str] | None:
    """The fields of PEFT's config of this `peft_type`, name and annotation; None where there is none."""
    found = kinds().get(kind)
    return None if found is None else _fields(found)


@functools.cache
def kinds() -> dict[str, str]:
    """The class of each `peft_type`'s config: the one that sets it to itself."""
    found = {}
    for name, definition in _classes().items():
        for node in ast.walk(definition):
            if (
                isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == "self.peft_type"
                and (place := re.fullmatch(r"PeftType\.(\w+)", ast.unparse(node.value)))
            ):
                found[place[1]] = name
    return found


def _fields(name: str) -> dict[str, str]:
    definition = _classes().get(name)
    if definition is None:
        return {}
    found: dict[str, str] = {}
    for base in definition.bases:
        found |= _fields(ast.unparse(base))
    return found | {
        node.target.id: ast.unparse(node.annotation)
        for node in definition.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not re.search(r"ClassVar|init=False", ast.unparse(node))
    }


@functools.cache
def _classes() -> dict[str, ast.ClassDef]:
    """The classes of PEFT's modules that define configs."""
    found = importlib.util.find_spec("peft")
    assert found is not None and found.origin is not None, "PEFT is a dependency"
    folder = Path(found.origin).parent
    files = [
        folder / "config.py",
        *sorted(folder.glob("tuners/*.py")),
        *sorted(folder.glob("tuners/*/config.py")),
    ]
    return {
        node.name: node
        for file in files
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
