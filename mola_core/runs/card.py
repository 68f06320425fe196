"""The model card of a cell's adapter: where it comes from, how it is loaded, its scores once it is evaluated."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig

from mola_core.adapter import MolaConfig
from mola_core.adapter.card import section
from mola_core.files import write_text
from mola_core.records import versions
from mola_core.runs.layout import Layout
from mola_core.study.study import Cell


def write_card(
    layout: Layout, cell: Cell, training: dict[str, Any], evaluation: dict[str, Any] | None = None
) -> None:
    """Write `README.md` beside the cell's adapter; nothing where the whole model was trained.

    Args:
        training: The record of training.json.
        evaluation: Accuracy and documents, or under `tasks` those of each task.
    """
    folder = layout.weights(cell)
    if not (folder / "adapter_config.json").is_file():
        return
    study, source = layout.study, layout.study.model
    hub = source.on_hub
    config = PeftConfig.from_pretrained(str(folder))
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    header = ["---", "library_name: peft", f"tags: [{kind}]"]
    header += [f"base_model: {hub[0]}"] if hub else []
    base = f"`{hub[0]}` at commit `{hub[1]}`" if hub else f"`{source.name}` ({source.source})"
    parts = [
        "\n".join([*header, "---"]),
        f"# {cell.method} on {cell.task}",
        f"Cell `{cell.path}` of the study `{study.name}`, trained by mola-core {versions()['mola-core']} on {base}: "
        f"{training['trainable_parameters']:,} trainable parameters, {training['documents']:,} documents, "
        f"{training['steps']:,} steps.",
        section(config) if isinstance(config, MolaConfig) else _plain(config, kind),
    ]
    if evaluation:
        scores = evaluation.get("tasks", {cell.task: evaluation})
        rows = [
            f"| {task} | {100 * one['accuracy']:.1f} | {one['documents']:,} |" for task, one in scores.items()
        ]
        parts += [
            "## Scores",
            "\n".join(["| task | accuracy, % | documents |", "| --- | ---: | ---: |", *rows]),
        ]
    if study.stand_in:
        parts.append("The documents are generated, a stand-in for the benchmarks.")
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def _plain(config: PeftConfig, kind: str) -> str:
    return f"""## Loading

A PEFT adapter of the type {kind} for `{config.base_model_name_or_path}`:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base, "this folder or its hub id")
```"""
