"""lm-eval task objects over prepared parquet files, and the examples that they make. Imports lm-eval (2 s)."""

import functools
import itertools
import json
import operator
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from lm_eval import utils
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from mola_core.errors import MolaError, one_line
from mola_core.tasks import (
    SCORING,
    SPLIT_KEYS,
    Example,
    evaluation_split,
    splits_of,
    task_config,
    task_file,
)

HELD_OUT = 1000
"""Training documents held out for validation: a tenth, at most so many."""


class EmptyCell(ValueError):
    """A template printed None, as it does for a cell of a table that is empty."""


def _filled(value: Any) -> Any:
    if value is None:
        raise EmptyCell
    return value


# A template of a stranger's task file reads the document and nothing else: Jinja's plain environment lets it call any code.
# lm-eval compiles a template anew for every document, which takes 1 ms; the templates are few.
if not isinstance(utils.env, SandboxedEnvironment):
    plain = utils.env
    utils.env = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_filled)
    utils.env.filters |= plain.filters
    utils.env.from_string = functools.lru_cache(maxsize=256)(utils.env.from_string)


class PreparedTask(ConfigurableTask):
    """A task whose rows are read straight from parquet files.

    `datasets.load_dataset` would first copy them into the user's cache folder, which parallel cells share and which
    outlives a change of the files.
    """

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        files = self.config.dataset_kwargs["data_files"]
        self.dataset = datasets.DatasetDict(
            {split: datasets.Dataset(pq.read_table(file)) for split, file in files.items()}
        )
        if self.config.dataset_kwargs["hold_out"]:
            train = self.dataset["train"]
            order = np.random.default_rng(0).permutation(len(train))
            size = min(len(train) // 10, HELD_OUT)
            if not size:
                raise MolaError(
                    f"task {self.config.task}: has {len(train)} rows to train on, of which a tenth is held out for validation: "
                    "it needs 10 at least"
                )
            self.held_out_rows = np.sort(order[:size]).tolist()
            self.dataset["validation"] = train.select(self.held_out_rows)
            self.dataset["train"] = train.select(np.sort(order[size:]))

    def fewshot_docs(self) -> None:
        """None: every study is zero-shot, and lm-eval would decode the whole training split."""


def load_prepared(name: str, protocol: str, folder: Path, validated: bool = False) -> PreparedTask:
    """See `mola_core.tasks.load_task`."""
    task_config(name, protocol)  # Refuses tasks that cannot be trained on.
    files = {split: folder / f"{split}.parquet" for split in SPLIT_KEYS}
    for split in ("train", evaluation_split(name)):
        if not files[split].is_file():
            raise MolaError(
                f"task {name}: {files[split]} is missing; prepare the data again with `mola data`"
            )
    config = deepcopy(load_yaml(task_file(name, protocol)))
    for key in ("tag", "group", "task_list", "dataset_name"):
        config.pop(key, None)
    known = splits_of(name)
    roles = {
        split: key
        for split, key in SPLIT_KEYS.items()
        if key in config and split in known and files[split].is_file()
    }
    hold_out = False
    if validated:
        # Whatever else is there, the evaluation split stays out of sight.
        hold_out = evaluation_split(name) == "validation" or "validation" not in roles
        roles = {"train": SPLIT_KEYS["train"], "validation": SPLIT_KEYS["validation"]}
    metrics = config.get("metric_list") or []
    if config["output_type"] == "multiple_choice":
        # acc_mutual_info asks each option once more without its prompt, which would be taken for further options. What
        # lm-eval has no metric for it would fetch, code included.
        metrics = [
            each for each in metrics if each["metric"] in SCORING and each["metric"] != "acc_mutual_info"
        ]
        if all(metric["metric"] != "acc" for metric in metrics):
            metrics = [*metrics, {"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    config |= {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {
            "data_files": {split: str(files[split]) for split in roles if split == "train" or not hold_out},
            "hold_out": hold_out,
        },
        "num_fewshot": 0,
        "fewshot_split": None,
        "fewshot_config": None,
        "metric_list": metrics,
    }
    config |= {key: None for key in SPLIT_KEYS.values()} | {key: split for split, key in roles.items()}
    return PreparedTask(config=config)


def documents_of(task: ConfigurableTask, split: str) -> Iterable[dict[str, Any]]:
    """The documents of a split as the task's own process_docs leaves them. Raises `MolaError` where it has no such split."""
    docs = {"train": task.training_docs, "validation": task.validation_docs, "test": task.test_docs}[split]()
    if docs is None:
        raise MolaError(f"task {task.task_name}: it has no split {split!r}; choose another")
    return docs


def make_examples(task: ConfigurableTask, split: str, documents: int | None) -> list[Example]:
    """See `mola_core.tasks.render`."""
    taken = list(itertools.islice(documents_of(task, split), documents))
    examples = []
    for row, doc in enumerate(taken):
        try:
            examples.append(_example(task, doc, f"row {row} of {split}"))
        except EmptyCell:
            raise MolaError(
                f"task {task.task_name}: row {row} of {split} has an empty cell, which its prompt or answer would say as "
                "'None'; fill it or leave the row out"
            ) from None
    if task.OUTPUT_TYPE == "multiple_choice":
        _check_reading(task, taken, split)
        if split != "train":
            _check_scoring(task, taken, examples)
    return examples


def _example(task: ConfigurableTask, doc: dict[str, Any], where: str) -> Example:
    # The very calls of lm-eval's `build_all_requests`.
    context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))
    if task.OUTPUT_TYPE == "generate_until":
        completion = task.config.target_delimiter + task.doc_to_target(doc)
        return Example(document_id(doc), context, completion, [], None)
    choices = task.doc_to_choice(doc)
    where = f"task {task.task_name}: {where}"
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise MolaError(f"{where} has options that are no texts ({str(choices)[:80]}); write each in quotes")
    if len(choices) < 2:
        raise MolaError(f"{where} has {len(choices)} options, so nothing can be chosen; remove it")
    answer = _answer(
        task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc), choices, where
    )
    requests = [request.args for request in task.construct_requests(doc, context)][: len(choices)]
    prompt, completion = requests[answer]
    if task.multiple_input:
        return Example(document_id(doc), prompt, completion, [completion], 0)
    return Example(document_id(doc), prompt, completion, [option for _, option in requests], answer)


def _answer(gold: Any, choices: list[str], where: str) -> int:
    """Index of the right option by the rules of lm-eval's `process_results`: its number, of any integer type, its text,
    or a list with one number."""
    if isinstance(gold, list | tuple):
        if len(gold) > 1:
            raise MolaError(
                f"{where} has {len(gold)} right answers of {len(choices)} options; use a task with one right option"
            )
        gold = gold[0] if gold and not isinstance(gold[0], str) else None
    if isinstance(gold, str):
        if choices.count(gold) == 1:
            return choices.index(gold)
        if gold in choices:
            raise MolaError(
                f"{where} has the right answer {gold!r} more than once among its options; mend it"
            )
    elif isinstance(gold, bool | np.bool_):
        raise MolaError(
            f"{where} has the answer {gold}, which names no option; give its number from 0, or its text"
        )
    elif hasattr(gold, "__index__") and 0 <= operator.index(gold) < len(choices):
        return operator.index(gold)
    raise MolaError(
        f"{where} has no answer among its {len(choices)} options (it says {str(gold)[:40]!r}); remove it or give the option's "
        "number from 0, or its text"
    )


_PLACE = r"\.index\([^()]*\)\s*-?}}\s*$"
"""End of a template that gives a place in a list."""


def _check_reading(task: ConfigurableTask, docs: Sequence[dict[str, Any]], split: str) -> None:
    """Refuse answers that can be read as an option's number and as its text, where the two differ.

    lm-eval takes a template's digits for a number: of the options 1, 2 and 3 the answer "1" is then the second.
    """
    template = task.config.doc_to_target
    if not isinstance(template, str) or template in task.features or re.search(_PLACE, template):
        return  # a column, a function or a place: what it gives is taken as it is
    column = re.fullmatch(r"\s*{{-?\s*(\w+)\s*-?}}\s*", template)
    if task.multiple_input or (column and any(isinstance(doc.get(column[1]), int) for doc in docs)):
        return
    differs, text, number = None, False, False
    for row, doc in enumerate(docs):
        gold, choices = task.doc_to_target(doc), task.doc_to_choice(doc)
        if isinstance(gold, list):
            return
        if isinstance(gold, str):
            text = True  # so it is in the rows whose text is digits
            continue
        number |= str(gold) not in choices
        if str(gold) in choices and differs is None and choices.index(str(gold)) != gold:
            differs = f"row {row} of {split} has the answer {gold} and the options {', '.join(choices)[:60]}"
    if differs and (text or not number):
        raise MolaError(
            f"task {task.task_name}: {differs}: the number of an option or its text? write doc_to_target so that it gives a "
            "column of text, or the option's number"
        )


def _check_scoring(
    task: ConfigurableTask, docs: Sequence[dict[str, Any]], examples: Sequence[Example]
) -> None:
    """Compare each document's right option with what lm-eval itself would count as right, and compute each metric once."""
    metrics: dict[str, list[Any]] = {}
    for row, (doc, example) in enumerate(zip(docs, examples, strict=True)):
        choices = len(task.doc_to_choice(doc))
        right = task.doc_to_text(doc) if task.multiple_input else example.answer
        for best, wanted in ((right, 1.0), ((right + 1) % choices, float(choices == 1))):
            answers = [(float(option == best), False) for option in range(choices)]
            found = task.process_results(doc, answers)
            for metric, value in found.items():
                metrics.setdefault(metric, []).append(value)
            if found["acc"] != wanted:
                raise MolaError(
                    f"task {task.task_name}: row {row} to evaluate on: lm-eval counts option {best} as "
                    f"{'wrong' if wanted else 'right'}, its answer says otherwise; give each document one right option"
                )
    for metric, values in metrics.items():
        try:
            task.aggregation().get(metric, np.mean)(values)
        # scikit-learn's, NumPy's, or a TypeError of an aggregation that lm-eval does not know.
        except Exception as error:
            raise MolaError(
                f"task {task.task_name}: metric_list: lm-eval cannot compute {metric} of these documents ({one_line(error)}); remove it"
            ) from None


def golds_in_prompts(task: ConfigurableTask, documents: int | None) -> list[tuple[int, int]] | None:
    """Place and number of the options of each document to evaluate on; None where they do not stand in the prompts."""
    if not task.multiple_input:
        return None
    docs = itertools.islice(task.eval_docs, documents)
    return [(task.doc_to_text(doc), len(task.doc_to_choice(doc))) for doc in docs]


def document_id(doc: dict[str, Any]) -> str:
    """lm-eval's doc_hash of a document."""
    text = json.dumps(doc, indent=2, default=utils.handle_non_serializable, ensure_ascii=False)
    return utils.hash_string(text)
