"""Invented rows in the hub's layout, and the prompts that they must give, written out in full."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

HEAD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n"
)

ROWS: dict[str, dict[str, Any]] = {
    "mrpc": {"sentence1": "The cat sat .", "sentence2": "A cat { sat }.", "label": 1, "idx": 7},
    "rte": {"sentence1": "It rained all day.", "sentence2": "It was dry.", "label": 1, "idx": 3},
    "cola": {"sentence": "Them runs.", "label": 0, "idx": 0},
    "scienceqa": {
        "has_image": False,
        "question": "Which is heavier?",
        "choices": ["a pin", "a car", "a cup"],
        "answer": 1,
        "hint": "Weigh them.",
        "topic": "physics",
        "lecture": "",
    },
    "commonsenseqa": {
        "id": "x1",
        "question": "Where do fish live?",
        "question_concept": "fish",
        "choices": {"label": ["A", "B", "C", "D", "E"], "text": ["sea", "sky", "oven", "desert", "moon"]},
        "answerKey": "A",
    },
    "openbookqa": {
        "id": "7-1",
        "question_stem": "Ice melts into",
        "choices": {"text": ["gold", "sand", "salt", "water"], "label": ["A", "B", "C", "D"]},
        "answerKey": "D",
    },
}

PROMPTS = {
    "mrpc": HEAD + "Tell me if the statements equivalent, not equivalent.\n"
    "Sentence 1: The cat sat .\nSentence 2: A cat { sat }.\n\n\n### Response:\n",
    "rte": HEAD + "Tell me if the statements entailment, not entailment.\n"
    "Sentence 1: It rained all day.\nSentence 2: It was dry.\n\n\n### Response:\n",
    "cola": HEAD
    + "Tell me if the statement unacceptable, acceptable.\nSentence: Them runs.\n\n\n### Response:\n",
    "scienceqa": HEAD + "Context: Weigh them.\nQuestion: Which is heavier?\n"
    "Options: (A) a pin (B) a car (C) a cup\n\n\n### Response:\n",
    "commonsenseqa": HEAD + "Question: Where do fish live?\n"
    "Options: (A) sea (B) sky (C) oven (D) desert (E) moon\n\n\n### Response:\n",
    "openbookqa": HEAD + "Question: Ice melts into\n"
    "Options: (A) gold (B) sand (C) salt (D) water\n\n\n### Response:\n",
}

OPTIONS = {
    "mrpc": [" not equivalent", " equivalent"],
    "rte": [" entailment", " not entailment"],
    "cola": [" unacceptable", " acceptable"],
    "scienceqa": [" A", " B", " C"],
    "commonsenseqa": [" A", " B", " C", " D", " E"],
    "openbookqa": [" A", " B", " C", " D"],
}

ANSWERS = {"mrpc": 1, "rte": 1, "cola": 0, "scienceqa": 1, "commonsenseqa": 0, "openbookqa": 3}

FOLDERS = {
    "mrpc": "glue/mrpc",
    "rte": "glue/rte",
    "cola": "glue/cola",
    "scienceqa": "scienceqa",
    "commonsenseqa": "commonsense_qa",
    "openbookqa": "openbookqa/main",
}


def write_split(root: Path, folder: str, split: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows as `<root>/<folder>/<split>.parquet`."""
    path = root / folder / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_root(root: Path) -> Path:
    """A `data_root` with one row in each split of each task."""
    for task, row in ROWS.items():
        for split in ("train", "validation", "test"):
            write_split(root, FOLDERS[task], split, [row])
    return root
