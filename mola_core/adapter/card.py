"""The model card of a saved adapter: what it is, what it needs, and how it is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from .shape import describe

if TYPE_CHECKING:
    from .config import MolaConfig

HEADING = "## MoLA adapter"
_SNAPSHOT = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")


def hub_id(name_or_path: str | None) -> str | None:
    """`org/name` for a folder of the hub's cache, anything else as it is."""
    found = _SNAPSHOT.search(name_or_path or "")
    return f"{found[1]}/{found[2]}" if found else name_or_path


def complete(folder: Path, config: MolaConfig) -> None:
    """Add what a reader needs to the card `README.md` that PEFT wrote into `folder`; nothing where there is none.

    A second time it replaces what it wrote the first time; whatever else is in the card stays.
    """
    file = folder / "README.md"
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    text = re.sub(rf"\n*{HEADING}\n.*?(?=\n##? |\n### Framework|\Z)", "", text, flags=re.S)
    header = re.match(r"---\n.*?\n---\n", text, re.S)
    start = header.end() if header else 0
    file.write_text(f"{text[:start]}\n{section(config)}\n{text[start:].rstrip()}\n", encoding="utf-8")


def section(config: MolaConfig) -> str:
    """What the adapter is and how it is loaded, in Markdown, for any card."""
    base = hub_id(config.base_model_name_or_path) or "BASE MODEL"
    return f"""{HEADING}

A [MoLA](https://arxiv.org/abs/2402.08562) adapter (layer-wise LoRA experts) for `{base}`: {describe(config)}.

PEFT does not know the method by itself: without `mola_core` loading ends with `KeyError: 'MOLA'`. Install the package
`mola-core` and import it before the adapter is loaded; the same goes for every program that loads it.

```python
import mola_core  # makes MoLA known to PEFT
from peft import PeftModel

model = PeftModel.from_pretrained(base, "this folder or its hub id")  # base: `{base}`, loaded as usual
```

`PeftModel` refuses an incomplete file. transformers' own `load_adapter` and `from_pretrained` only warn of one: what is
missing is an error at the first use or, with `is_trainable=True`, starts untrained."""
