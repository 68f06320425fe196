"""What a cell's records hold: training.json, and manifest.json, which is written last and means that the cell is complete."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class Environment(TypedDict):
    """What a measurement was taken with and on."""

    versions: dict[str, str]
    """Of Python and the packages that results depend on: recorded and shown where they differ, not part of a key."""
    git: dict[str, Any]
    """Commit of the project, and whether tracked files differed from it; empty outside a checkout."""
    device: str
    threads: int
    kernels: dict[str, Any]
    """What computed float32 products: CPU, capability, kernel, and the times and errors that it was chosen by."""
    platform: str


class ParentRecord(TypedDict):
    """The training that this one goes on from."""

    cell: str
    key: str
    adapter_sha256: str


class TrainingRecord(Environment):
    """training.json."""

    key: str
    parts: dict[str, Any]
    """What the key is the hash of."""
    settings: dict[str, Any]
    """The effective training settings, the method's own rate and the micro-batch that memory sufficed for in them."""
    trainable_parameters: int
    base_parameters: int
    experts: list[int] | None
    """Of each layer; None for methods without experts."""
    allocation: NotRequired[dict[str, Any]]
    parent: NotRequired[ParentRecord]
    epoch_choice: NotRequired[dict[str, Any]]
    tuning: NotRequired[dict[str, Any]]
    """What tuning had chosen when the cell was trained: rate, alpha, score, whose tries decided."""
    documents: int
    steps: int
    epochs: float
    tokens: int
    """Of prompts and answers, padding not counted."""
    processes: int
    seconds: float
    tokens_per_second: float
    final_loss: float | None
    """Of the last logged step; None where it was not finite."""
    diverged: NotRequired[dict[str, Any]]
    """Step and reason, where loss or weights were no longer finite: there is no adapter then, unless one of an earlier epoch was kept."""
    update_size: NotRequired[dict[str, list[float | None]]]
    """After the `first` step whose learning rate is not 0 and the `last`, by layer: RMS of the adapter's output over that of the base module."""
    peak_memory_bytes: int
    resumed: bool
    log_sha256: str
    adapter_sha256: str
    adapter_config_sha256: str


class Manifest(TypedDict):
    """manifest.json."""

    study: str
    model: str
    task: str
    method: str
    seed: int
    training_key: str | None
    """None for the untrained model."""
    evaluation_key: str
    parts: dict[str, Any]
    """What the evaluation's key is the hash of."""
    parent: str | None
    stand_in: bool
    model_files: dict[str, Any]
    data_files: dict[str, Any]
    """Fingerprints of the rows, by task."""
    examples: dict[str, Any]
    """Records of the rendered examples, by task: how many, how many cut, how many shared between splits."""
    training: TrainingRecord | None
    evaluation: dict[str, Any]
    samples_sha256: str
    finished: str
