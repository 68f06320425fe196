"""The tasks: one lm-eval YAML each, the only place where a prompt is written.

The same lm-eval task object makes the training text and the evaluation's requests, so that they cannot drift apart.
Importing this module is cheap; lm-eval is imported by `load_task`, `render` and for tasks that are not ours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mola_core.errors import MolaError, did_you_mean
from mola_core.study.sections import SCIENCEQA_TOPICS
from mola_core.tasks.included import IncludedTasks, read_included

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

FOLDER = Path(__file__).parent
SPLITS = ("train", "validation", "test")
SPLIT_KEYS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
"""lm-eval's key that names the dataset's split for each role."""

PARTS = ("train", "validation", "evaluation")
"""Of a task's examples."""
COLUMNS = ("document", "prompt", "completion", "options", "answer", "cluster")
"""Of an example: the fields of `Example`, which keys hash."""


@dataclass(frozen=True)
class Example:
    """One document as a model sees it."""

    document: str
    """lm-eval's doc_hash: the id of the document in the score matrix."""
    prompt: str
    """What stands before the right answer."""
    completion: str
    """What is trained on: the right option, or the whole target text of the generate protocol."""
    options: list[str]
    """What may follow the prompt under the choice protocol, each with its delimiter; empty under generate. A task
    that puts its options into the prompt (such as winogrande) has one."""
    answer: int | None
    """Index of the right option; None under generate."""
    cluster: str | None = None
    """What several documents have in common (a premise, a skill): they are no independent draws."""


class _PlainLoader(yaml.SafeLoader):
    """Reads lm-eval's YAML without importing the functions that it names."""


_PlainLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@functools.cache
def task_names() -> tuple[str, ...]:
    """The tasks of this project; a YAML file put beside the others is one more."""
    own = sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("_"))
    return (*(name for name in own if not name.endswith("_generate")), *SCIENCEQA_TOPICS)


_included: IncludedTasks | None = None


def included() -> IncludedTasks | None:
    """The user's folder of task files that this process reads, if any."""
    return _included


def include(tasks: IncludedTasks | Path | None, functions: bool = False) -> None:
    """Read a folder of task files beside this project's and lm-eval's from now on, or with None no longer.

    `functions` lets the code run that the files name after `!function`: for who typed the command to say, never for a
    study. Raises `MolaError` for a folder that `read_included` refuses.
    """
    global _included
    _included = read_included(tasks, functions) if isinstance(tasks, Path) else tasks
    task_config.cache_clear()


def is_own(name: str) -> bool:
    """True for a task of this project, false for one of lm-eval's or of the user's folder."""
    return name in task_names()


def task_file(name: str, protocol: str = "choice") -> Path:
    """The YAML file of a task. Raises `MolaError` where neither this project nor lm-eval has the task."""
    if is_own(name):
        stem = "scienceqa" if name in SCIENCEQA_TOPICS else name
        path = FOLDER / (f"{stem}_generate.yaml" if protocol == "generate" else f"{stem}.yaml")
        if not path.exists():
            raise MolaError(f"task {name}: no protocol {protocol!r}; add {path.name} or use protocol choice")
        return path
    if protocol != "choice":
        raise MolaError(
            f"task {name}: protocol {protocol!r} is for this project's tasks; use protocol choice"
        )
    return (_included and _included.file(name)) or _lm_eval_file(name)


@functools.cache
def _lm_eval_file(name: str) -> Path:
    """lm-eval's YAML file of a task, found by its text: indexing all of lm-eval's tasks takes 16 s, this one."""
    import lm_eval

    line = re.compile(
        rf"^[\"']?task[\"']?:[ \t]*([\"']?){re.escape(name)}\1[ \t]*(#.*)?$".encode(), re.MULTILINE
    )
    for path in sorted((Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml")):
        if line.search(path.read_bytes()):
            return path
    raise MolaError(
        f"task {name!r}: unknown{did_you_mean(name, task_names())}; use one of {', '.join(task_names())} or the name of an lm-eval "
        "task (not of a group), or name the folder of its file: --include DIR, --config include=DIR"
    )


@functools.cache
def task_config(name: str, protocol: str = "choice") -> dict[str, Any]:
    """The task's lm-eval configuration, functions by their names; do not change it. Imports lm-eval for foreign tasks only.

    Raises `MolaError` where the task is unknown, is no multiple-choice task, has no training split, or is one of the
    user's that runs code which nobody allowed.
    """
    path = task_file(name, protocol)
    if is_own(name):
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
        if "include" not in config:
            return config
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(path, resolve_func=False)
    if is_own(name):
        return _without_places(config, f"{FOLDER}/")
    reason = unfit(config)
    if reason:
        raise MolaError(f"task {name}: {reason}; choose another task")
    if _included and (reason := _included.refused(name)):
        raise MolaError(f"task {name}: {reason}")
    return _without_places(config, f"{_root_of(path)}/")


def _root_of(path: Path) -> Path:
    """The folder that a foreign task's file is part of."""
    if _included and path.is_relative_to(_included.folder):
        return _included.folder
    import lm_eval

    return (Path(lm_eval.__file__).parent / "tasks").resolve()


def _without_places(value: Any, root: str) -> Any:
    """lm-eval gives a function's file by its absolute path; keys must be the same wherever that is."""
    if isinstance(value, dict):
        return {key: _without_places(each, root) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each, root) for each in value]
    return value.removeprefix(root) if isinstance(value, str) else value


SCORING = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "f1", "mcc", "brier_score")
"""lm-eval's metrics that say which option was chosen."""


def unfit(config: Mapping[str, Any]) -> str | None:
    """Why a task with this lm-eval configuration cannot be trained and compared by its options; None where it can."""
    kind = config.get("output_type", "generate_until")
    if "class" in config or "custom_dataset" in config or kind != "multiple_choice":
        return f"lm-eval's task is {kind}, not a plain multiple_choice"
    for key, what in _UNFIT.items():
        if config.get(key):
            return f"it has {key}, {what}"
    if not config.get("doc_to_choice"):
        return "it has no doc_to_choice, so no options"
    metrics = [metric["metric"] for metric in config.get("metric_list") or []]
    if metrics and not any(metric in SCORING for metric in metrics):
        return f"it is scored by {', '.join(map(str, metrics))[:80]}, not by the option that is chosen"
    train = config.get("training_split")
    tested = config.get("test_split") or config.get("validation_split")
    if not train:
        return "it has no training_split, so nothing to train on"
    if not tested:
        return "it has no split to evaluate on"
    if _overlap(train, tested):
        return f"it is evaluated on {tested!r}, which it is trained on"
    return None


_UNFIT = {
    "process_results": "code that scores in its own way",
    "filter_list": "which changes answers before they are scored",
    "use_prompt": "whose prompts come from promptsource",
    "doc_to_image": "and images cannot be shown to a language model",
    "doc_to_audio": "and sounds cannot be played to a language model",
    "unsafe_code": "which runs code of a model",
    "num_fewshot": "documents in front of each prompt, and a study is zero-shot",
}


def _overlap(one: str, other: str) -> bool:
    """Whether two splits share rows: the same name, or a slice (`train[:10%]`) of the whole other."""
    return one == other or (one.split("[")[0] == other.split("[")[0] and ("[" in one) + ("[" in other) < 2)


def dataset_of(name: str) -> str:
    """The dataset's folder in a `data_root`: "glue/mrpc" for nyu-mll/glue, mrpc."""
    return dataset_folder(task_config(name))


def dataset_folder(config: Mapping[str, Any]) -> str:
    """See `dataset_of`; `config` is a task's lm-eval configuration."""
    dataset = str(config["dataset_path"]).rstrip("/").split("/")[-1].lower()
    return f"{dataset}/{config['dataset_name']}" if config.get("dataset_name") else dataset


def splits_of(name: str) -> dict[str, str]:
    """The dataset's own names of the splits that the task uses or may use: {"train": "train", ...}."""
    config = task_config(name)
    named = {role: config[key] for role, key in SPLIT_KEYS.items() if config.get(key)}
    found = {role: role for role in SPLITS} | named if is_own(name) else named
    # A validation split that is one of the others is none: epochs would be chosen on what is trained or tested on.
    others = [found[role] for role in ("train", "test") if role in found]
    if len(others) == 2 and any(_overlap(found.get("validation", ""), other) for other in others):
        del found["validation"]
    return found


def cluster_of(name: str) -> str | None:
    """The column that says which documents belong together: `metadata: cluster:` in the YAML file of a task of ours or of the
    user's folder."""
    if not is_own(name) and not (_included and _included.file(name)):
        return None
    metadata = task_config(name).get("metadata") or {}
    column = metadata.get("cluster") if isinstance(metadata, dict) else metadata
    if column is not None and (not isinstance(column, str) or not isinstance(metadata, dict)):
        raise MolaError(
            f"task {name}: metadata: write `cluster: COLUMN`, the name of a column of its rows, or remove it"
        )
    return column


def evaluation_split(name: str) -> str:
    """`test` or `validation`: the split that the task is evaluated on."""
    return "test" if task_config(name).get("test_split") else "validation"


def load_task(name: str, protocol: str, data_folder: str | Path, validated: bool = False) -> ConfigurableTask:
    """The lm-eval task object that reads its rows from a prepared `data_folder`; never the network.

    `name` is one of `task_names()` or an lm-eval multiple-choice task with a training split; `protocol` is `choice`
    or `generate`. With `validated` the object evaluates on documents apart from the evaluation split: the task's
    validation split where it is evaluated on test, otherwise documents held out of its training split (a tenth, at
    most 1,000, always the same). Raises `MolaError` for another task, or where the folder lacks a split that the task needs.
    """
    from mola_core.tasks.loading import load_prepared

    return load_prepared(name, protocol, Path(data_folder), validated)


def render(task: ConfigurableTask, split: str, documents: int | None = None) -> list[Example]:
    """The documents of a split (`train`, `validation`, `test`) as the evaluation would put them to a model.

    `documents` takes only the first so many. Raises `MolaError` where a document's answer is none of its options.
    """
    from mola_core.tasks.loading import make_examples

    return make_examples(task, split, documents)
