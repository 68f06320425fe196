"""The published numbers: the MoLA paper's tables, read from `mola_core/reference/*.csv`, in this project's names."""

import functools
from pathlib import Path

import pandas as pd

from mola_core.methods import parse_method
from mola_core.study import MethodSettings

FOLDER = Path(__file__).parent.parent / "reference"

PAPER = "the MoLA paper (Findings of NAACL 2025)"
TASKS = {
    "mrpc": ("MRPC", 1725),
    "cola": ("CoLA", 1043),
    "rte": ("RTE", 277),
    "scienceqa": ("ScienceQA", 2224),
    "commonsenseqa": ("CommonsenseQA", 1221),
    "openbookqa": ("OpenbookQA", 500),
}
"""The paper's tasks in the order of its tables: how a table heads them, and the documents that it evaluates."""
TOPIC_DOCUMENTS = {"biology": 397, "physics": 192, "chemistry": 119, "economics": 84, "earth-science": 65}
"""The topics of its continual learning in the order in which they are learnt, and their test documents."""

_TASK_NAMES = {"commonsense_qa": "commonsenseqa"}
_BASE_MODELS = {"Gemma": "Gemma-7b"}


def task_title(task: str) -> str:
    return TASKS[task][0] if task in TASKS else task


@functools.cache
def results() -> pd.DataFrame:
    """The paper's accuracies in percent: table, base_model, setting, method, task, accuracy, ci_low, ci_high, note."""
    frame = pd.read_csv(FOLDER / "paper_results.csv")
    frame["task"] = frame["task"].replace(_TASK_NAMES)
    frame["base_model"] = frame["base_model"].replace(_BASE_MODELS)
    return frame


@functools.cache
def parameters() -> pd.DataFrame:
    """The paper's counts: base_model, method, trainable_parameters."""
    return pd.read_csv(FOLDER / "paper_parameters.csv")


@functools.cache
def continual() -> pd.DataFrame:
    """The paper's Table 6: method, trained_up_to, tested_on, accuracy in percent."""
    return pd.read_csv(FOLDER / "paper_continual.csv")


def paper_name(settings: MethodSettings, initialisation: str = "default") -> str | None:
    """The paper's row for a method of a study; None where the paper has none.

    A method whose own settings differ from its study's (another rank, say) is not the paper's, whatever its name.
    """
    own = settings.model_dump(exclude={"method", "name", "initialisation"}, exclude_none=True)
    if own or parse_method(settings).kind == "base":
        return None
    name = ("pissa-" if initialisation == "pissa" else "") + settings.method
    known = set(results()["method"])
    return name if name in known else None


def accuracy(base_model: str | None, method: str | None, task: str) -> float | None:
    """The paper's accuracy in percent after direct fine-tuning (its single run); None where it prints none."""
    frame = results()
    direct = frame["setting"].isin(["direct", "direct-pissa"])
    found = frame[
        direct & (frame["base_model"] == base_model) & (frame["method"] == method) & (frame["task"] == task)
    ]
    return None if found.empty else float(found["accuracy"].iloc[0])


def on_grid(percent: float, documents: int, decimals: int = 2) -> bool:
    """Whether a printed percentage can be k of `documents`, rounded or cut to so many decimals."""
    unit = 10.0**-decimals
    nearest = 100 * round(percent / 100 * documents) / documents
    return abs(nearest - percent) < unit * (1 - 1e-9)
