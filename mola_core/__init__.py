"""MoLA reproduced and benchmarked: layer-wise LoRA experts, their baselines and a verdict.

Importing this package registers the `MOLA` tuner with PEFT as soon as PEFT itself is imported, whichever comes
first. PEFT is not imported here: the workflow reads study files in processes that never need it.
"""

import importlib
from types import ModuleType

import wrapt


@wrapt.when_imported("peft")
def _register_tuner(_peft: ModuleType) -> None:
    importlib.import_module("mola_core.adapter")
