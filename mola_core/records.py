"""Records: JSON files sealed with their own hash, and the versions and commit that a result was made with."""

import functools
import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mola_core
from mola_core.errors import MolaError
from mola_core.files import read_json, write_json

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "lm_eval",
    "datasets",
    "accelerate",
    "tokenizers",
    "numpy",
)


def digest(content: Any) -> str:
    """sha256 of any JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON with the sha256 of its content, which `read_record` compares."""
    write_json(path, {**record, "sha256": _sealed(record)})


def read_record(path: str | Path, fix: str = "delete its folder and run again") -> dict[str, Any]:
    """A record that `write_record` wrote. Raises `MolaError`, which ends with `fix`, where it is missing, cut short or altered."""
    record = read_json(path)
    if not isinstance(record, dict) or record.pop("sha256", None) != _sealed(record):
        raise MolaError(f"{path}: altered since it was written; {fix}")
    return record


def _sealed(record: Mapping[str, Any]) -> str:
    # As it is read back: JSON knows no tuples and no keys that are numbers.
    return digest(json.loads(json.dumps({key: value for key, value in record.items() if key != "sha256"})))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version(), "mola-core": mola_core.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit of the project and whether files of it differ from that, as of the first call; empty where it is installed
    from a wheel, also into an environment that lies in the checkout of another project."""
    project = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(project), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != project:
            return {}
        # A new file of the package counts, whatever else lies in the checkout does not.
        changed = git("status", "--porcelain", "-uno") or git("status", "--porcelain", "--", "mola_core")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {}
