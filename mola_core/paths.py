"""Paths as people write them: `~` written out, and what no file system takes refused."""

import os
from pathlib import Path

from mola_core.errors import MolaError


def usable_path(path: str) -> str:
    """Refuse what the operating system would: Linux takes 4,096 bytes, 255 a name; some are for the files below."""
    try:
        whole = Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path[:60]!r} names a user whose home folder is unknown; write it out") from None
    if len(os.fsencode(whole)) > 3500 or any(len(os.fsencode(part)) > 255 for part in whole.parts):
        raise ValueError(
            "too long for a path: at most 3,500 bytes, 255 for each name in it; use a shorter one"
        )
    if "\0" in path:
        raise ValueError("has a NUL character; remove it")
    return path


def typed_path(text: str) -> Path:
    """A path as it was typed at the command line. Raises ValueError also for an empty one, and for one that begins with a
    dash, which other programs would take for an option."""
    if not text.strip():
        raise ValueError("is empty; name a path")
    if text.startswith("-"):
        raise ValueError(f"{text!r} looks like an option; write ./{text}")
    return Path(usable_path(text)).expanduser()


def given_path(option: str, text: str) -> Path:
    """`typed_path`, which raises `MolaError` with the option's name."""
    try:
        return typed_path(text)
    except ValueError as error:
        raise MolaError(f"{option}: {error}") from None
