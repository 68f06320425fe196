"""A new study file: YAML with a comment at each setting, from a model's, tasks' and methods' names (`mola init`)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mola_core.errors import MolaError
from mola_core.files import write_text
from mola_core.locations import STUDIES, schema
from mola_core.methods.settings import SEVEN_MODULES, AdapterSettings
from mola_core.paths import given_path
from mola_core.section import SAFE_NAME
from mola_core.study.loading import load_study
from mola_core.study.sections import ComputeSettings, EvaluationSettings, TrainingSettings
from mola_core.study.study import Study
from mola_core.study.verdict import VerdictSettings

METHODS = ("lora-r40", "lora-matched-2468", "lora-matched-8642", "mola-2468", "mola-5555", "mola-8642")
"""The claim's shape, its mirror and the even one at one budget, the first two without a router, and plain LoRA."""
PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9._/ -]*[A-Za-z0-9./]")
"""Texts that are written without quotes."""
SETTINGS: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "adapter": (
        AdapterSettings,
        {"rank": 8, "alpha": 16, "dropout": 0.05, "top_k": 2, "target_modules": SEVEN_MODULES},
    ),
    "training": (
        TrainingSettings,
        {"epochs": 3, "batch_size": 32, "micro_batch_size": 8, "learning_rate": 3.0e-4, "warmup_steps": 10}
        | {"max_length": 256, "precision": "fp32"},
    ),
    "evaluation": (EvaluationSettings, {"batch_size": 16}),
    "compute": (ComputeSettings, {"threads": 2, "gpus": 0, "memory_gb": 4}),
    "verdict": (VerdictSettings, {"margin": 1.0}),
}
"""What a draft writes out of each section; the rest keeps its default."""


def write_draft(
    file: Path,
    model: str,
    revision: str | None,
    tasks: Sequence[str],
    methods: Sequence[str] | None,
    seeds: int,
    data: str,
    check: Callable[[Study], object] = lambda study: None,
) -> Path:
    """Write a study file that `load_study` and `check` accept; its path. `file` may be the study's name alone.

    `model` is a folder, a hub id or a shipped study's name; `data` is `hub`, `builtin` or a folder. Raises `MolaError`
    where the file is there already, the model or its commit cannot be told, or the study is not valid.
    """
    file = file if file.suffix in (".yaml", ".yml") else Path(f"{file}.yaml")
    name = file.stem
    if file.exists():
        raise MolaError(f"{file}: is there already; name another file")
    if (STUDIES / f"{name}.yaml").is_file():
        raise MolaError(f"{name}: is the name of a shipped study; choose another")
    content = {
        "name": name,
        "description": f"{', '.join(tasks)} on {model}, {seeds} seed{'s' if seeds > 1 else ''}",
        "model": _model(model, revision),
        "data": {"source": data} if data in ("hub", "builtin") else {"source": "directory", "root": data},
        "tasks": list(tasks),
        "methods": ["base", *(method for method in methods or METHODS if method != "base")],
        "seeds": list(range(seeds)),
    }
    text = _text(content)
    draft = file.with_name(f".{file.name}.draft.yaml")
    write_text(draft, text)
    try:
        check(load_study(draft))
    except MolaError as error:
        raise MolaError(str(error).replace(str(draft), str(file))) from None
    finally:
        draft.unlink()
    write_text(file, text)
    return file


def _model(model: str, revision: str | None) -> dict[str, Any]:
    folder = given_path("--model", model)
    if folder.is_dir():
        if revision:
            raise MolaError(f"--revision: {model} is a folder; leave it out")
        folder = folder.resolve()
        return {"name": _label(folder.name), "source": "directory", "path": str(folder)}
    if (STUDIES / f"{model}.yaml").is_file():
        if revision:
            raise MolaError(
                f"--revision: the study {model} pins its model; leave it out, or give --model the model's hub id"
            )
        return load_study(model).model.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    if not re.fullmatch(f"{SAFE_NAME}(/{SAFE_NAME})", model):
        shipped = ", ".join(sorted(file.stem for file in STUDIES.glob("*.yaml")))
        raise MolaError(
            f"--model {model}: no such folder, and no hub id (organisation/name); shipped studies are {shipped}"
        )
    commit = revision or _newest(model)
    return {"name": _label(model.split("/")[-1]), "source": "hub", "id": model, "revision": commit}


def _label(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).strip("-._") or "model"


def _newest(model: str) -> str:
    """The commit that the hub has today. Raises `MolaError` where it cannot be asked."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(model, timeout=10).sha)
    except Exception as error:  # the hub's client raises what its transports raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:150]
        raise MolaError(
            f"--model {model}: the hub was asked for its newest commit and did not give it ({reason}); "
            "give --revision, the 40 digits of a commit"
        ) from None


def _text(content: Mapping[str, Any]) -> str:
    lines = [
        f"# yaml-language-server: $schema={schema()}",
        "# A study: everything that decides its results. `mola schema` describes every setting.",
    ]
    for key, value in content.items():
        lines += _entry(Study, key, value)
    for key, (section, values) in SETTINGS.items():
        lines += [*_comment(Study, key), f"{key}:"]
        for name, value in values.items():
            lines += [f"  {line}" for line in _entry(section, name, value)]
    return "\n".join(lines) + "\n"


def _entry(section: type[BaseModel], key: str, value: Any) -> list[str]:
    """A setting with its comment above it: methods and mappings a line each, anything else on one line."""
    if key == "methods":
        lines = [f"{key}:", *(f"  - {_flow(method)}" for method in value)]
    elif isinstance(value, dict):
        lines = [f"{key}:", *(f"  {name}: {_flow(entry)}" for name, entry in value.items())]
    else:
        lines = [f"{key}: {_flow(value)}"]
    return [*_comment(section, key), *lines]


def _flow(value: Any) -> str:
    """A value on one line; a text that YAML could take for something else stands in quotes."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_flow(entry) for entry in value)}]"
    words = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in words:
        return value
    return json.dumps(value, ensure_ascii=False)


def _comment(section: type[BaseModel], key: str) -> list[str]:
    """The first sentence of a setting's description."""
    description = " ".join((section.model_fields[key].description or "").split())
    sentence = re.split(r"(?<=[.]) ", description, maxsplit=1)[0].rstrip(".")
    return [f"# {sentence}."]
