"""The one exception that a user is meant to read."""


class MolaError(Exception):
    """Bad input, said in one line that names the field or file and the fix.

    The command line prints the message without a traceback and exits with code 2.
    """


class OutOfTime(Exception):
    """A training was stopped before its last step, by a deadline or SIGTERM; a checkpoint was saved."""


def one_line(error: Exception) -> str:
    """Another library's error as part of a one-line message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
