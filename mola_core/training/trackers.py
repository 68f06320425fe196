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
from mola_core.files import locked

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
    """Give the trackers the place of the cell's run, their files below `study`, the study's folder of results, and as
    W&B's project and MLflow's experiment its name, unless the environment names others; TensorBoard's files are always there.
    The run ends with the block."""
    check_trackers(trackers)
    if not trackers:
        yield
        return
    study.mkdir(parents=True, exist_ok=True)
    own = {
        "WANDB_PROJECT": study.name,
        "WANDB_DIR": str(study.resolve()),
        "WANDB_SILENT": "true",
        "MLFLOW_EXPERIMENT_NAME": study.name,
        "MLFLOW_TRACKING_URI": f"sqlite:///{study.resolve()}/mlflow.db",
    }
    before = {name: os.environ.get(name) for name in (*own, "TENSORBOARD_LOGGING_DIR")}
    os.environ.update({name: value for name, value in own.items() if before[name] is None})
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(study / "tensorboard" / cell)
    try:
        if "mlflow" in trackers:
            import mlflow

            # Two processes that make the same database or experiment at once fail.
            with locked(study / ".mlflow.lock"):
                mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
                mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        # Else the next cell of this process would go on in a run that an error left open.
        if "wandb" in trackers and "wandb" in sys.modules:
            sys.modules["wandb"].finish()
        if "mlflow" in trackers and "mlflow" in sys.modules and sys.modules["mlflow"].active_run():
            sys.modules["mlflow"].end_run("FAILED")
