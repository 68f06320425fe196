"""Timing of variants in turn, and the rows of the benchmark's table."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import torch


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, the number and the goal it is held against."""

    group: str
    what: str
    value: float
    goal: float | None
    at_most: bool = True
    """Whether the goal is an upper bound."""
    unit: str = "ratio"
    note: str = ""

    @property
    def reached(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal


def in_turn(
    variants: Mapping[str, Callable[[], object]], repeats: int, warmups: int = 1
) -> dict[str, list[float]]:
    """Seconds of each variant's calls, the variants in turn, so that a drift of the machine meets them all.

    With one thread on a CPU these are seconds of the processor, which other work on the machine hardly changes.
    """
    alone = device().type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmups + repeats):
        for name, call in variants.items():
            _wait()
            started = clock()
            call()
            _wait()
            if turn >= warmups:
                seconds[name].append(clock() - started)
    return seconds


def ratio(seconds: Mapping[str, list[float]], one: str, other: str) -> float:
    """Ratio of the medians."""
    return statistics.median(seconds[one]) / statistics.median(seconds[other])


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
