"""From cells to tables, figures and answers, without a model; `verdict` answers from a DataFrame in one call."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Imported when asked for: the workflow imports this package to plan and needs no pandas.
    if name == "verdict":
        from mola_core.analysis.notebook import verdict

        return verdict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
