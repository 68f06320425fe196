"""The model card of a cell's adapter: where it comes from, how it is loaded, its scores once it is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig

from mola_core.adapter import MolaConfig
from mola_core.adapter.card import section
from mola_core.files import write_text
from mola_core.records import versions
from mola_core.runs.layout import Layout
from mola_core.study.study import Cell


def write_card(
    layout: Layout,
    cell: Cell,
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    base: str | None = None,
    licence: str | None = None,
) -> None:
    """Write `README.md` beside the cell's adapter; nothing where the whole model was trained.

    Args:
        training: The record of training.json.
        evaluation: Accuracy and documents, or under `tasks` those of each task.
        folder: Where the adapter is; by default in the cell.
        base: Hub id of the base model, where the study names none.
        licence: Of the base model, where known.
    """
    folder = folder or layout.weights(cell)
    if not (folder / "adapter_config.json").is_file():
        return
    study, source = layout.study, layout.study.model
    hub = source.on_hub
    config = PeftConfig.from_pretrained(str(folder))
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    header = ["---", "library_name: peft", f"tags: [{kind}]"]
    named = base or (hub and hub[0])
    header += [f"base_model: {named}"] if named else []
    header += [f"license: {licence}"] if licence else []
    parts = [
        "\n".join([*header, "---"]),
        f"# {cell.method} on {cell.task}",
        f"Cell `{cell.path}` of the study `{study.name}`, trained by mola-core {versions()['mola-core']} on "
        f"{_base(layout, base)}: {training['trainable_parameters']:,} trainable parameters, "
        f"{training['documents']:,} documents, {training['steps']:,} steps.",
        section(config) if isinstance(config, MolaConfig) else _plain(config, kind),
    ]
    if evaluation:
        parts += ["## Scores", _scores(evaluation.get("tasks", {cell.task: evaluation}))]
    if study.stand_in:
        parts.append("The documents are generated, a stand-in for the benchmarks.")
    parts.append(f"Licence of the base model: {licence or 'not known here; see its own page'}.")
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def _base(layout: Layout, base: str | None) -> str:
    """The weights that the adapter belongs to."""
    source = layout.study.model
    held = source.dtype + (f", quantized to {source.quantization}" if source.quantization else "")
    if source.on_hub:
        copy = f", of which `{base}` is to be a copy" if base and base != source.on_hub[0] else ""
        return "`{}` at commit `{}` in {}{} (on other weights its scores do not hold)".format(
            *source.on_hub, held, copy
        )
    facts = source.model_dump(
        exclude={"name", "paper", "dtype", "quantization", "path", "source"}, exclude_none=True
    )
    told = "".join(f", {key} {value}" for key, value in facts.items())
    of = f" of `{base}`" if base else ""
    return f"`{source.name}`{of} in {held} (source {source.source}{told}; on other weights its scores do not hold)"


def _scores(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy with Wilson's interval, which covers other documents; other seeds it cannot."""
    from scipy.stats import binomtest

    rows = []
    for task, one in tasks.items():
        accuracy, documents = one["accuracy"], one["documents"]
        low, high = binomtest(round(accuracy * documents), documents).proportion_ci(method="wilson")
        rows.append(
            f"| {task} | {100 * accuracy:.1f} | {100 * low:.1f} to {100 * high:.1f} | {documents:,} |"
        )
    head = ["| task | accuracy, % | 95 % interval | documents |", "| --- | ---: | ---: | ---: |"]
    note = (
        "The interval covers other documents like these; other seeds of the same training differ beside it."
    )
    return "\n".join([*head, *rows, "", note])


def _plain(config: PeftConfig, kind: str) -> str:
    return f"""## Loading

A PEFT adapter of the type {kind} for `{config.base_model_name_or_path}`:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base, "this folder or its hub id")
```"""
