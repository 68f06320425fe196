"""The published numbers: the MoLA paper's tables, read from the CSV files beside this one, in this project's names."""

import functools
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from mola_core.methods.settings import AdapterSettings
from mola_core.study.study import Study

FOLDER = Path(__file__).parent

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

NOT_COMPARED = {"initialisation": "default", "balance_loss": AdapterSettings().balance_loss}
"""Settings of the adapter that the paper's rows are told apart by, or that it leaves open."""

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


def setting(study: Study, label: str) -> str:
    """The paper's setting of a method's cells, as the reference file names it."""
    if study.instruction:
        return "instruction-tuned"
    return "direct-pissa" if _starts_as_pissa(study, label) else "direct"


def _starts_as_pissa(study: Study, label: str) -> bool:
    return study.method_by_label[label].adapter(study.adapter).initialisation == "pissa"


def paper_names(study: Study) -> dict[str, str]:
    """Method of the study -> the paper's row.

    A method that does not have the paper's adapter (another rank or top-k, say) is not the paper's, whatever its name;
    its learning rate may differ, since the paper does not print its baselines'. Of several that differ in nothing
    else, the one that goes by the paper's name.
    """
    rows, names = set(results()["method"]), {}
    for label, settings in study.method_by_label.items():
        pissa = _starts_as_pissa(study, label)
        name = ("pissa-" if pissa else "") + settings.method
        changed = settings.adapter(study.adapter).model_copy(update=NOT_COMPARED) != AdapterSettings()
        changed |= settings.rslora or settings.loraplus_ratio is not None or isinstance(settings.rank, list)
        if name in rows and not (changed and re.match("lora|mola", settings.method)):
            names[label] = name
    many = {name for name, count in Counter(names.values()).items() if count > 1}
    return {label: name for label, name in names.items() if name not in many or label == name}


def accuracy(study: Study, label: str, task: str) -> float | None:
    """The paper's accuracy in percent (a single run) for a method of a study; None where it prints none."""
    if study.model.paper is None or label not in study.method_by_label:
        return None
    wanted = {
        "base_model": study.model.paper,
        "setting": setting(study, label),
        "method": paper_names(study).get(label),
        "task": task,
    }
    frame = results()
    found = frame.loc[(frame[list(wanted)] == pd.Series(wanted)).all(axis=1), "accuracy"]
    return None if found.empty else float(found.iloc[0])


def on_grid(percent: float, documents: int, decimals: int = 2) -> bool:
    """Whether a printed percentage can be k of `documents`, rounded or cut to so many decimals."""
    unit = 10.0**-decimals
    nearest = 100 * round(percent / 100 * documents) / documents
    return abs(nearest - percent) < unit * (1 - 1e-9)
