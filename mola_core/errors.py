"""The one exception that a user is meant to read, and what its messages are made of."""

import difflib
from collections.abc import Iterable


class MolaError(Exception):
    """Bad input, said in one line that names the field or file and the fix.

    The command line prints the message without a traceback and exits with code 2.
    """


class OutOfTime(Exception):
    """A training was stopped before its last step, by a deadline or SIGTERM; a checkpoint was saved."""


def one_line(error: Exception) -> str:
    """Another library's error as part of a one-line message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def did_you_mean(text: str, known: Iterable[str], cutoff: float = 0.7) -> str:
    """`, did you mean 'x'?` where one of the `known` names is close to `text` (difflib's ratio), else nothing."""
    names = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(text.casefold(), names, 1, cutoff)
    return f", did you mean {names[near[0]]!r}?" if near else ""
