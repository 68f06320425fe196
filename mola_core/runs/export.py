"""A finished cell's adapter as a folder to load or to hand on: weights, config with the base's hub id, and a card."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from mola_core.errors import MolaError
from mola_core.files import atomic_write, read_json, write_json
from mola_core.models.loading import FINGERPRINT
from mola_core.models.sources import LICENCE
from mola_core.records import read_record
from mola_core.runs.layout import Layout
from mola_core.runs.recovery import check_weights
from mola_core.runs.state import standing
from mola_core.section import SAFE_NAME
from mola_core.study.study import Cell

WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")


def export_adapter(
    layout: Layout, name: str, folder: Path, base: str | None = None, licence: str | None = None
) -> Path:
    """Write the adapter of the cell `name` (TASK/METHOD/seedN) to `folder`, whole or not at all; its path.

    `base` is the base model's hub id and `licence` its licence, where study and prepared model do not tell them. Raises
    `MolaError` where the cell is not complete or has no adapter, its weights are not those that were trained, or `folder`
    is there already.
    """
    from mola_core.models.weights import weights_sha256
    from mola_core.runs.card import write_card

    if base and not re.fullmatch(f"{SAFE_NAME}(/{SAFE_NAME})?", base):
        raise MolaError(f"--base-model {base[:60]!r}: is no hub id (organisation/name)")
    if licence and not re.fullmatch(LICENCE, licence):
        raise MolaError(f"--license {licence[:60]!r}: write its short name, as apache-2.0")
    cell = _named(layout, name)
    if folder.exists():
        raise MolaError(f"{folder}: is there already; name a new folder")
    method = layout.study.method_by_label[cell.method]
    if cell.is_base:
        raise MolaError(f"cell {cell.path}: the untrained model has no adapter; name a cell that is trained")
    if method.method == "full":
        raise MolaError(
            f"cell {cell.path}: has no adapter but a whole model, {layout.weights(cell)}; copy that"
        )
    found, evaluated = standing(layout, cell), bool(layout.study.evaluated_on(cell))
    if not found.trained or (evaluated and not found.evaluated):
        raise MolaError(f"cell {cell.path}: not complete; run it first (`mola status` tells what it is at)")
    weights = layout.weights(cell)
    training = read_record(layout.cell(cell) / "training.json")
    check_weights(weights, training)
    evaluation = read_record(layout.cell(cell) / "manifest.json")["evaluation"] if evaluated else None
    config = read_json(weights / WEIGHTS[0])
    if base and base != config["base_model_name_or_path"]:
        config |= {"base_model_name_or_path": base, "revision": None}
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        shutil.copyfile(weights / WEIGHTS[1], temporary / WEIGHTS[1])
        if weights_sha256(temporary) != training["adapter_sha256"]:
            raise MolaError(f"{folder}: the copy differs from {weights}; is the disk sound?")
        write_json(temporary / WEIGHTS[0], config)
        write_card(layout, cell, training, evaluation, temporary, base, licence or _licence(layout))
    return folder


def _named(layout: Layout, name: str) -> Cell:
    found = re.fullmatch(r"([^/]+)/([^/]+)/seed(\d+)/?", name.removeprefix("cells/"))
    if not found:
        raise MolaError(f"{name}: write a cell as TASK/METHOD/seedN, as `mola cells` prints it")
    return layout.study.cell(found[1], found[2], int(found[3]))


def _licence(layout: Layout) -> str | None:
    """The licence that the base model's own card named when it was prepared; None where none is known."""
    record = layout.model / FINGERPRINT
    return read_json(record).get("licence") if record.is_file() else None
