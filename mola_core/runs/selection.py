"""Where `training.epochs` is a list: the epoch that is kept, chosen on validation, and what another choice would give.

The paper searches {10, 15, 20} and does not say on which split; its code scores every candidate on the evaluation set.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mola_core.files import atomic_write, remove

if TYPE_CHECKING:
    from mola_core.runs.cell import Workbench
    from mola_core.study.sections import TrainingSettings
    from mola_core.study.study import Cell


def candidate_folder(scratch: Path, epoch: int) -> Path:
    """Where a training puts the weights after a candidate epoch."""
    return scratch / f"epoch-{epoch}"


def choose_epoch(bench: Workbench, cell: Cell, settings: TrainingSettings, scratch: Path) -> dict[str, Any]:
    """Keep the candidate that is best on validation (of equals the earliest) and put the others beside it.

    Returns what the training's record says of it.
    """
    task = bench.task(cell.task, validated=True)
    accuracies, documents = {}, 0
    for epoch in settings.candidates:
        with bench.opened(cell, candidate_folder(scratch, epoch)) as model:
            record = bench.evaluated(model, cell.task, task, whole=True)[1]
        accuracies[epoch], documents = record["accuracy"], record["documents"]
    best = max(accuracies, key=lambda epoch: accuracies[epoch])
    layout = bench.layout
    remove(layout.cell(cell) / "epochs")
    for epoch in settings.candidates:
        # Copied: a job killed here finds everything in `scratch` again.
        place = layout.weights(cell) if epoch == best else layout.candidate(cell, epoch)
        with atomic_write(place) as temporary:
            shutil.copytree(candidate_folder(scratch, epoch), temporary)
    split = "held out of train" if task.config.dataset_kwargs["hold_out"] else "validation"
    candidates = [{"epoch": epoch, "validation_accuracy": accuracies[epoch]} for epoch in settings.candidates]
    choice = {"chosen": best, "split": split, "documents": documents, "candidates": candidates}
    return {"epoch_choice": choice, "epochs": best}


def evaluate_candidates(
    bench: Workbench, cell: Cell, choice: dict[str, Any], accuracy: float
) -> dict[str, Any]:
    """The candidates with their accuracy on the evaluation set too, and what choosing by it would give.

    `choice` is the training's `epoch_choice`, `accuracy` that of the chosen epoch on the evaluation set.
    """
    task = bench.task(cell.task)
    candidates = []
    for candidate in choice["candidates"]:
        epoch, own = candidate["epoch"], accuracy
        if epoch != choice["chosen"]:
            with bench.opened(cell, bench.layout.candidate(cell, epoch)) as model:
                own = bench.evaluated(model, cell.task, task)[1]["accuracy"]
        candidates.append(candidate | {"evaluation_accuracy": own})
    best = max(candidates, key=lambda candidate: candidate["evaluation_accuracy"])
    return {
        "candidates": candidates,
        "chosen_on_validation": {"epoch": choice["chosen"], "accuracy": accuracy},
        "chosen_on_evaluation_set": {"epoch": best["epoch"], "accuracy": best["evaluation_accuracy"]},
    }
