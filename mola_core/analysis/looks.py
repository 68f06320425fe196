"""The record of looks: an append-only file beside a verdict that says what was stated and what was seen, and when.

A verdict that is read after every new seed and stops when it pleases finds effects that are not there. Each line
is a statement of the settings (before there are results) or a look at the stated hypotheses. The same data
seen twice are one look: what counts is whether the estimates of the stated hypotheses changed. Looks are counted for each
hypothesis, whatever is asked beside it and by whichever endpoint.
"""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mola_core.errors import MolaError
from mola_core.records import digest
from mola_core.study.verdict import VerdictSettings, compared

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

    def state(self, settings: VerdictSettings, tasks: Sequence[str], seeds: Sequence[int]) -> None:
        """Add a statement of the settings and what they are asked of, unless it is the last one made."""
        made = [line for line in self.lines if line["kind"] == "stated"]
        content = {"settings": _stating(settings), "tasks": sorted(tasks), "seeds": sorted(seeds)}
        if not made or any(made[-1].get(name, value) != value for name, value in content.items()):
            self._append({"kind": "stated"} | content)

    def stated_beforehand(
        self, settings: VerdictSettings, first_cell: str | None, tasks: Sequence[str], seeds: Sequence[int]
    ) -> bool:
        """Whether the last statement before the first look and before the first cell was finished says these settings and
        tasks, and no seeds but these: seeds may be added, tasks not. `first_cell` is None where nobody knows when that was."""
        made = []
        for line in self.lines:
            if first_cell is None or line["kind"] == "look" or _when(line["time"]) >= _when(first_cell):
                break
            made.append(line)
        if not made:
            return False
        last = made[-1]
        return bool(
            last["settings"] == _stating(settings)
            and sorted(tasks) == last.get("tasks", sorted(tasks))  # earlier versions did not record them
            and {*last.get("seeds", [])} <= {*seeds}
        )

    def count(self, verdict: Mapping[str, Any]) -> int:
        """Number of the look that a verdict is: of its stated hypotheses, the one that was looked at most often decides."""
        return max([self._number(verdict, question) for question in _stated(verdict)], default=1)

    def _number(self, verdict: Mapping[str, Any], question: Mapping[str, Any]) -> int:
        """The look at this hypothesis that has its data, or one more than there are."""
        seen: list[str] = []
        for line in self.lines:
            if line["kind"] == "look" and line.get("decidable", True):
                found = [name for name in line["p"] if _asked(name) == _asked(question["id"])]
                seen += [_identity(line, name) for name in found]
        seen = list(dict.fromkeys(seen))
        for own in (_data_of(question), _digest(_stated(verdict))):
            if own in seen:
                return seen.index(own) + 1
        return len(seen) + 1

    def add_look(self, verdict: Mapping[str, Any]) -> None:
        """Add a look, unless these data have been looked at or nothing that is stated could be asked of them.

        A look of which no answer could be decided (one seed) is noted and not counted: nothing can come of it.
        """
        questions = [question for question in _stated(verdict) if question["estimate"] is not None]
        data = _digest(_stated(verdict))
        if not questions or any(line["kind"] == "look" and line["data"] == data for line in self.lines):
            return
        decidable = any(question["covers"] == "seeds and documents" for question in questions)
        self._append(
            {
                "kind": "look",
                "data": data,
                "scores_sha256": verdict["scores_sha256"],
                "settings_sha256": verdict["settings_sha256"],
                "seeds": {name: task["seeds"] for name, task in verdict["data"]["tasks"].items()},
                "p": {question["id"]: question["p"] for question in questions},
                "answers": {question["id"]: question["answer"] for question in questions},
                "data_of": {question["id"]: _data_of(question) for question in questions},
            }
            | ({} if decidable else {"decidable": False})
        )

    def _append(self, line: dict[str, Any]) -> None:
        line = {"kind": line["kind"], "time": datetime.now(UTC).isoformat(timespec="seconds")} | line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer, which would write what is left of a failed line when it is closed.
        with open(self.path, "ab", buffering=0) as file:
            size, rest = file.tell(), (json.dumps(line) + "\n").encode()
            try:
                while rest:  # a disk that is nearly full takes a part and says so by its length only
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(size)
                raise OSError(error.errno, error.strerror, str(self.path)) from None
        self.lines.append(line)


def _stating(settings: VerdictSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(STATED))


def _when(text: str) -> datetime:
    when = datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _stated(verdict: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tests of the stated hypotheses, or the headline where none could be asked."""
    found = [q for q in verdict["questions"] if q["status"] == "stated" and q["same_test_as"] is None]
    return found or [question for question in verdict["questions"] if question["id"] == verdict["headline"]]


def _asked(name: str) -> tuple[str, ...]:
    """What a question is about, whatever it is called, by whichever endpoint and whichever of two methods is claimed to be
    ahead."""
    bare = name.removesuffix(":likelihood")
    methods = compared(bare)
    # A method's own name may hold a `-vs-`: which side it stands on is no matter here.
    return (bare,) if methods is None else tuple(sorted("-vs-".join(methods).split("-vs-")))


def _identity(line: Mapping[str, Any], name: str) -> str:
    """The data of a question in a look; earlier versions recorded those of all its questions together."""
    return str(line.get("data_of", {}).get(name, line["data"]))


def _data_of(question: Mapping[str, Any]) -> str:
    """Of the data that a question was answered with, however its error is computed."""
    return digest([question[key] for key in ("id", "estimate", "seeds", "tasks")])


def _digest(questions: Sequence[Mapping[str, Any]]) -> str:
    """Of the data that questions were answered with."""
    return digest(
        [
            [question[key] for key in ("id", "estimate", "standard_error", "seeds", "tasks")]
            for question in questions
        ]
    )
