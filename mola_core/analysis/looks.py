"""The record of looks: an append-only file beside a verdict that says what was stated and what was seen, and when.

A verdict that is read after every new seed and stops when it pleases finds effects that are not there. Each line
is a statement of the settings (before there are results) or a look at the stated hypotheses. The same data
seen twice are one look: what counts is whether the estimates of the stated hypotheses changed.
"""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mola_core.errors import MolaError
from mola_core.records import digest
from mola_core.study.verdict import VerdictSettings

FILE = "looks.jsonl"
FIELDS = {"stated": {"time", "settings"}, "look": {"time", "data", "p"}}
STATED = ("hypotheses", "pairs", "endpoint", "margin", "level", "looks", "least_gain")
"""Settings that decide what is tested and how; the rest moves no p-value."""


class Record:
    """`looks.jsonl` in a folder: one JSON object a line, in the order of time. Lines are added, never changed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.lines: list[dict[str, Any]] = []
        if self.path.is_file():
            try:
                self.lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
                if any(not FIELDS[line["kind"]] <= set(line) for line in self.lines):
                    raise ValueError("a line lacks a field")
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise MolaError(
                    f"{self.path}: not a record of looks ({str(error)[:100]}); restore it, it is only ever added to"
                ) from None

    def state(self, settings: VerdictSettings) -> None:
        """Add a statement of the settings, unless it is the last one made."""
        made = [line for line in self.lines if line["kind"] == "stated"]
        content = settings.model_dump(mode="json", include=set(STATED))
        if not made or made[-1]["settings"] != content:
            self._append({"kind": "stated", "settings": content})

    def stated_beforehand(self, settings: VerdictSettings, first_cell: str | None) -> bool:
        """Whether these settings were stated before the first look and before the first cell was finished."""
        if first_cell is None:
            return False
        stated = settings.model_dump(mode="json", include=set(STATED))
        for line in self.lines:
            if line["kind"] == "look":
                return False
            if line["settings"] == stated and _when(line["time"]) < _when(first_cell):
                return True
        return False

    def count(self, verdict: Mapping[str, Any]) -> int:
        """Number of the look that a verdict is: that of the line with its data, or one more than there are of its questions."""
        asked = {question["id"] for question in _stated(verdict)}
        looks = [line for line in self.lines if line["kind"] == "look" and set(line["p"]) == asked]
        seen = list(dict.fromkeys(line["data"] for line in looks))
        data = _data(verdict)
        return seen.index(data) + 1 if data in seen else len(seen) + 1

    def add_look(self, verdict: Mapping[str, Any]) -> None:
        """Add a look, unless these data have been looked at or nothing that is stated could be asked of them."""
        data = _data(verdict)
        if not _stated(verdict) or any(
            line["kind"] == "look" and line["data"] == data for line in self.lines
        ):
            return
        self._append(
            {
                "kind": "look",
                "data": data,
                "scores_sha256": verdict["scores_sha256"],
                "settings_sha256": verdict["settings_sha256"],
                "seeds": {name: task["seeds"] for name, task in verdict["data"]["tasks"].items()},
                "p": {question["id"]: question["p"] for question in _stated(verdict)},
                "answers": {question["id"]: question["answer"] for question in _stated(verdict)},
            }
        )

    def _append(self, line: dict[str, Any]) -> None:
        line = {"kind": line["kind"], "time": datetime.now(UTC).isoformat(timespec="seconds")} | line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, (json.dumps(line) + "\n").encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        self.lines.append(line)


def _when(text: str) -> datetime:
    when = datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _stated(verdict: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tests of the stated hypotheses, or the headline where none could be asked."""
    found = [q for q in verdict["questions"] if q["status"] == "stated" and q["same_test_as"] is None]
    return found or [question for question in verdict["questions"] if question["id"] == verdict["headline"]]


def _data(verdict: Mapping[str, Any]) -> str:
    return digest(
        [
            [question[key] for key in ("id", "estimate", "standard_error", "seeds", "tasks")]
            for question in _stated(verdict)
        ]
    )
