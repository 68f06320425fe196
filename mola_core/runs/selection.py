"""Choice of the epoch where `training.epochs` is a list: by accuracy on validation, the evaluation set out of sight.

The paper searches {10, 15, 20} and does not say on which split; its code scores every candidate on the evaluation set.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mola_core.files import atomic_write, remove


def candidate_folder(scratch: Path, epoch: int) -> Path:
    """Where a training puts the weights after a candidate epoch."""
    return scratch / f"epoch-{epoch}"


def choose_epoch(
    score: Callable[[Path], tuple[float, int]],
    candidates: list[int],
    scratch: Path,
    weights: Path,
    others: Path,
    split: str,
) -> dict[str, Any]:
    """Keep the candidate that is best on validation (of equals the earliest) as `weights`, the rest below `others`.

    `score` gives accuracy and number of documents of the weights in a folder. Returns what the training's record says.
    """
    accuracies, documents = {}, 0
    for epoch in candidates:
        accuracies[epoch], documents = score(candidate_folder(scratch, epoch))
    best = max(accuracies, key=lambda epoch: accuracies[epoch])
    remove(others)
    for epoch in candidates:
        # Copied: a job killed here finds everything in `scratch` again.
        with atomic_write(weights if epoch == best else others / str(epoch)) as temporary:
            shutil.copytree(candidate_folder(scratch, epoch), temporary)
    tried = [{"epoch": epoch, "validation_accuracy": accuracies[epoch]} for epoch in candidates]
    choice = {"chosen": best, "split": split, "documents": documents, "candidates": tried}
    return {"epoch_choice": choice, "epochs": best}


def compare_candidates(
    score: Callable[[Path], tuple[float, int]], choice: dict[str, Any], accuracy: float, others: Path
) -> dict[str, Any]:
    """The candidates with their accuracy on the evaluation set too, and what choosing by it would give.

    `choice` is the training's `epoch_choice`, `accuracy` that of the chosen epoch on the evaluation set.
    """
    candidates = []
    for candidate in choice["candidates"]:
        epoch = candidate["epoch"]
        own = accuracy if epoch == choice["chosen"] else score(others / str(epoch))[0]
        candidates.append(candidate | {"evaluation_accuracy": own})
    best = max(candidates, key=lambda candidate: candidate["evaluation_accuracy"])
    return {
        "candidates": candidates,
        "chosen_on_validation": {"epoch": choice["chosen"], "accuracy": accuracy},
        "chosen_on_evaluation_set": {"epoch": best["epoch"], "accuracy": best["evaluation_accuracy"]},
    }
