"""Files that are either whole or not there: write to a temporary name, then rename."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mola_core.errors import MolaError

if TYPE_CHECKING:
    import pandas as pd

HASH_CACHE = Path("results/.cache/sha256")
"""Where `remembered_sha256` keeps what it computed."""
_UMASK = os.umask(0o077)
os.umask(_UMASK)  # there is no other way to read it
MODE = 0o666 & ~_UMASK
"""Of a new file, as the user's umask has it."""
MAX_JSON = 268_435_456
"""Bytes of a JSON file."""
STORAGE_ERRORS = {
    getattr(errno, name): os.strerror(getattr(errno, name))
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "EACCES", "EPERM", "EMFILE", "ENFILE", "ESTALE"),
        *("ENOTDIR", "EISDIR", "EEXIST", "ENOTEMPTY", "ENAMETOOLONG", "ELOOP"),
    )
}


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error.

    The block may create a file or a folder under the temporary name; a folder that stood at `path` is replaced.
    The data reach the disk before the rename, so a crash leaves the old content, the new or none, never a mixture.
    What a killed process left under such a name is swept away by the next write of the same path on its machine.
    Raises `MolaError` where a file would take the place of a folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    owner = f"{socket.gethostname()}-{os.getpid()}"
    temporary = path.with_name(f".{path.name}.{owner}.tmp")
    old = path.with_name(f".{path.name}.{owner}.old")
    try:
        yield temporary
        if path.is_dir() and not temporary.is_dir():
            raise MolaError(f"{path}: is a folder; name a file in it")
        for written in (temporary, *temporary.rglob("*")):
            if written.is_file() and not written.is_symlink():
                written.chmod(MODE)  # safetensors' files are their owner's alone
        _to_disk(temporary, *temporary.rglob("*"))
        if path.is_dir():
            # Moved aside, not deleted in place: deleting takes time, in which half a folder would stand there.
            os.replace(path, old)
        os.replace(temporary, path)
        _to_disk(path.parent)
    finally:
        remove(temporary)
        remove(old)


def _to_disk(*paths: Path) -> None:
    for path in paths:
        if path.is_file() or path.is_dir():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _sweep(path: Path) -> None:
    """Delete what processes of this machine that no longer live left of an `atomic_write` of `path`."""
    names = f".{path.name}.{socket.gethostname()}-"
    for leftover in path.parent.glob(f"{glob.escape(names)}*"):
        process = re.fullmatch(r"(\d+)\.(tmp|old)", leftover.name.removeprefix(names))
        if process and (int(process[1]) == os.getpid() or not _lives(int(process[1]))):
            remove(leftover)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def locked(path: str | Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path` during the block; the kernel gives it back however the process ends.

    Where another process holds it, wait, or with `wait` False raise `MolaError`. On a file system without locks
    nothing is held, and a line says so.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise MolaError(
                    f"{path}: another run works on this folder; wait for its end or stop it"
                ) from None
            print(f"waiting for another process, which holds {path}", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            print(f"{path}: no locks here ({error.strerror}); let nothing else work on it", file=sys.stderr)
        yield


def storage_problem(error: BaseException) -> str | None:
    """What the disk refused, where that is why `error` was raised; None for other errors.

    Libraries that write by themselves (safetensors, torch) hide the system's error in a text of their own.
    """
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    for code, reason in STORAGE_ERRORS.items():
        if f"(os error {code})" in str(error) or f"[Errno {code}]" in str(error):
            return reason
    if "PytorchStreamWriter failed" in str(error):
        return "writing failed, is the disk full?"
    cause = error.__cause__ or error.__context__
    return storage_problem(cause) if cause else None


def remove(path: Path) -> None:
    """Delete a file or a folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises `MolaError` where it is missing, cut short, no file or larger than any of ours."""
    try:
        state = Path(path).stat()
        if not stat.S_ISREG(state.st_mode):
            raise MolaError(f"{path}: is a folder, a pipe or a device; put a file there")
        if state.st_size > MAX_JSON:
            raise MolaError(f"{path}: has {state.st_size} bytes, more than {MAX_JSON}; is it the right file?")
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MolaError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MolaError(
            f"{path}: not valid JSON ({error}): damaged or cut short; copy it anew, or remove it where a run wrote it"
        ) from None


def read_table(path: Path, fix: str, **options: Any) -> "pd.DataFrame":
    """A CSV or Parquet file, by pandas with `options`. Raises `MolaError`, which ends with `fix`, where it is empty, cut short or
    damaged, or lacks a column of `options`."""
    import pandas as pd

    read: Callable[..., pd.DataFrame] = pd.read_csv if path.suffix == ".csv" else pd.read_parquet
    try:
        return read(path, **options)
    except Exception as error:  # a damaged file makes its reader raise anything, MemoryError included
        words = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise MolaError(f"{path}: cannot be read ({words}); {fix}") from None


def sha256_file(path: str | Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def remembered_sha256(file: Path, cache: Path = HASH_CACHE) -> str:
    """sha256 of a file, remembered under its path, size, inode and time of change, so that starts stay quick.

    The time is ctime, which no copying tool sets back. A file changed in the last two seconds is not remembered:
    the next change could carry the same time.
    """
    file = file.resolve()
    state = file.stat()
    key = f"{file}\0{state.st_size}\0{state.st_ino}\0{state.st_ctime_ns}"
    entry = cache / hashlib.sha256(key.encode()).hexdigest()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        known = entry.read_text()
        if re.fullmatch("[0-9a-f]{64}", known):
            return known
    value = sha256_file(file)
    if time.time_ns() - state.st_ctime_ns > 2_000_000_000:
        with contextlib.suppress(OSError):  # where the project is read-only, every start hashes
            write_text(entry, value)
    return value
