"""Experiment trackers through the Trainer's own callbacks: one run a cell, named by the cell, in the study's project.

Light: no tracker and no torch is imported here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mola_core.errors import MolaError

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",)}
"""What the Trainer needs for each tracker: any one of these."""


def check_trackers(trackers: Sequence[str]) -> None:
    """Raise `MolaError` where a tracker's package is not installed."""
    for tracker in trackers:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[tracker]):
            package = PACKAGES[tracker][0]
            raise MolaError(
                f"training.report_to: {package} is not installed; pip install {package}, or leave {tracker} out"
            )


@contextlib.contextmanager
def tracked(trackers: Sequence[str], study: Path, cell: str) -> Iterator[None]:
    """Give the trackers the place of the cell's run: TensorBoard's files below `study`, its folder of results, and W&B's
    project and MLflow's experiment its name, unless the environment names others. The run ends with the block."""
    check_trackers(trackers)
    own = {
        "TENSORBOARD_LOGGING_DIR": str(study / "tensorboard" / cell),
        "WANDB_PROJECT": os.environ.get("WANDB_PROJECT", study.name),
        "MLFLOW_EXPERIMENT_NAME": os.environ.get("MLFLOW_EXPERIMENT_NAME", study.name),
    }
    if not trackers:
        yield
        return
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if "wandb" in trackers and "wandb" in sys.modules:
            sys.modules["wandb"].finish()  # else the next cell of this process goes on in this run
