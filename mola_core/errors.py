"""The one exception that a user is meant to read."""


class MolaError(Exception):
    """Bad input, said in one line that names the field or file and the fix.

    The command line prints the message without a traceback and exits with code 2.
    """


class OutOfTime(Exception):
    """A training was stopped before its last step, by a deadline or SIGTERM; a checkpoint was saved."""
