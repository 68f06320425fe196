"""MoLA reproduced and benchmarked: layer-wise LoRA experts, their baselines and a verdict.

Importing this package registers the `MOLA` tuner with PEFT as soon as PEFT itself is imported, whichever comes
first. PEFT is not imported here: the workflow reads study files in processes that never need it.
"""

import importlib
from types import ModuleType
from typing import Any

import wrapt

__version__ = "0.2.0"


@wrapt.when_imported("peft")
def _register_tuner(_peft: ModuleType) -> None:
    importlib.import_module("mola_core.adapter")


def __getattr__(name: str) -> Any:
    """`mola_core.verdict(frame)`: answers from a DataFrame of scores, imported when it is asked for."""
    if name == "verdict":
        from mola_core.analysis.notebook import verdict

        return verdict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
