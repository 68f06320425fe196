"""A finished cell's adapter as a folder to load or to hand on: weights, config with the base's hub id, and a card."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from mola_core.errors import MolaError
from mola_core.files import atomic_write, read_json, write_json, write_text
from mola_core.records import read_record
from mola_core.runs.layout import Layout
from mola_core.runs.recovery import check_weights
from mola_core.runs.state import standing
from mola_core.study.sections import HubModel
from mola_core.study.study import Cell

WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")


def export_adapter(
    layout: Layout, name: str, folder: Path, base: str | None = None, licence: str | None = None
) -> Path:
    """Write the adapter of the cell `name` (TASK/METHOD/seedN) to `folder`, whole or not at all; its path.

    `base` is the base model's hub id and `licence` its licence, where study and model folder do not tell them. Raises
    `MolaError` where the cell is not complete or has no adapter, its weights are not those that were trained, or `folder`
    is there already.
    """
    from mola_core.adapter import MolaConfig, card
    from mola_core.models.weights import weights_sha256

    cell = _named(layout, name)
    if folder.exists():
        raise MolaError(f"{folder}: is there already; name a new folder")
    method = layout.study.method_by_label[cell.method]
    if method.method in ("base", "full"):
        raise MolaError(
            f"cell {cell.path}: {method.method} has no adapter; its model is {layout.weights(cell)}"
        )
    found = standing(layout, cell)
    if not found.trained or (layout.study.evaluated_on(cell) and not found.evaluated):
        raise MolaError(f"cell {cell.path}: not complete; run it first (`mola status` tells what it is at)")
    weights = layout.weights(cell)
    training = read_record(layout.cell(cell) / "training.json")
    check_weights(weights, training)
    source = layout.study.model
    if isinstance(source, HubModel):
        base, revision = base or source.id, source.revision
    else:
        base, revision = base or source.name, None
    config = read_json(weights / WEIGHTS[0]) | {"base_model_name_or_path": base, "revision": revision}
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        shutil.copyfile(weights / WEIGHTS[1], temporary / WEIGHTS[1])
        if weights_sha256(temporary) != training["adapter_sha256"]:
            raise MolaError(f"{folder}: the copy differs from {weights}; is the disk sound?")
        write_json(temporary / WEIGHTS[0], config)
        text = _card(layout, cell, training, config, licence or _licence(layout))
        write_text(temporary / "README.md", text)
        if config["peft_type"] == "MOLA":
            card.complete(temporary, MolaConfig.from_pretrained(str(temporary)))
    return folder


def _named(layout: Layout, name: str) -> Cell:
    found = re.fullmatch(r"([^/]+)/([^/]+)/seed(\d+)/?", name.removeprefix("cells/"))
    if not found:
        raise MolaError(f"{name}: write a cell as TASK/METHOD/seedN, as `mola cells` prints it")
    return layout.study.cell(found[1], found[2], int(found[3]))


def _licence(layout: Layout) -> str | None:
    """The licence that the base model's own card names."""
    card = layout.model / "README.md"
    found = re.search(r"^license: *(\S+)", card.read_text("utf-8"), re.M) if card.is_file() else None
    return found[1] if found else None


def _card(
    layout: Layout, cell: Cell, training: dict[str, Any], config: dict[str, Any], licence: str | None
) -> str:
    """README.md: what the hub reads, then what a person does."""
    study, base = layout.study, config["base_model_name_or_path"]
    settings = training["settings"]
    head = {"base_model": base, "library_name": "peft", "license": licence or "other"}
    tags = (
        ["mola", "lora", "peft"] if config["peft_type"] == "MOLA" else [config["peft_type"].lower(), "peft"]
    )
    lines = [
        "---",
        *(f"{key}: {value}" for key, value in head.items()),
        f"tags: [{', '.join(tags)}]",
        "---",
        "",
    ]
    lines += [f"## {cell.method} on {study.model.name}, trained on {study.trained_on(cell)}", ""]
    if study.stand_in:
        lines += [
            "**Trained on generated stand-in rows or a random model: for trying the harness, of no other use.**",
            "",
        ]
    lines += [
        f"- Method: `{cell.method}`, {training['trainable_parameters']:,} trained parameters"
        + (
            f"; experts of each layer, first layer first: {training['experts']}"
            if training["experts"]
            else ""
        ),
        f"- Base model: `{base}`{_source(layout)}",
        f"- Training data: {training['documents']:,} documents of `{study.trained_on(cell)}` from "
        f"{_rows(layout, cell)}, {training['steps']} steps of {settings['batch_size']} documents, learning rate "
        f"{settings['learning_rate']}, seed {cell.seed}",
        *_scores(layout, cell),
        f"- Licence of the base model: {licence or 'not known here: see its page'}",
        f"- Made by study `{study.name}`, training key `{training['key'][:16]}`, with "
        + ", ".join(f"{name} {value}" for name, value in training["versions"].items()),
    ]
    if config["peft_type"] != "MOLA":
        lines += ["", 'PEFT loads it: `PeftModel.from_pretrained(base, "this folder or its hub id")`.']
    return "\n".join(lines) + "\n"


def _source(layout: Layout) -> str:
    source = layout.study.model
    if isinstance(source, HubModel):
        return f" at commit `{source.revision}`"
    facts = source.model_dump(exclude={"name", "paper", "dtype", "quantization", "path"}, exclude_none=True)
    told = ", ".join(f"{key} {value}" for key, value in facts.items())
    return f" ({told}): load the very weights that it was trained on, scores hold for no others"


def _rows(layout: Layout, cell: Cell) -> str:
    data = layout.study.data.source
    return {"hub": "the Hugging Face hub", "directory": "a local copy", "builtin": "a generator"}.get(
        data, data
    )


def _scores(layout: Layout, cell: Cell) -> list[str]:
    """Accuracy of this training on each task that it was evaluated on, with its interval over documents."""
    import pandas as pd
    from scipy.stats import binomtest

    if not layout.study.evaluated_on(cell):
        return []
    samples = pd.read_parquet(layout.cell(cell) / "samples.parquet")
    tasks = samples["task"] if "task" in samples else pd.Series(cell.task, index=samples.index)
    lines = []
    for task, correct in samples["correct"].groupby(tasks):
        right, documents = int(correct.sum()), len(correct)
        interval = binomtest(right, documents).proportion_ci(method="wilson")
        lines.append(
            f"- Accuracy on `{task}`: {100 * right / documents:.2f} % of {documents:,} documents, 95 % interval "
            f"{100 * interval.low:.2f} to {100 * interval.high:.2f} (Wilson; of this one training, which says nothing of "
            "others with other seeds)"
        )
    return lines
