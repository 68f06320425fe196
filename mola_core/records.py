"""What a result came from: digests that name exactly what decides it, and the versions it was made with."""

import ast
import functools
import hashlib
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mola_core.errors import MolaError
from mola_core.files import read_json, write_json

PACKAGE = Path(__file__).parent
TRAINING_CODE = ("adapter", "training", "tasks", "methods", "models", "shapes.py")
EVALUATION_CODE = (*TRAINING_CODE, "evaluation/harness.py")
EPOCH_CODE = ("runs/selection.py",)
ALLOCATION_CODE = ("methods/allocation.py", "models/layer_quality.py")
PACKAGES = ("torch", "transformers", "peft", "lm_eval", "datasets", "accelerate", "tokenizers", "numpy")


def digest(content: Any) -> str:
    """sha256 of any JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_record(path: str | Path, record: dict[str, Any]) -> None:
    """Write a record as JSON with the sha256 of its content, which `read_record` compares."""
    write_json(path, record | {"sha256": _sealed(record)})


def read_record(path: str | Path) -> dict[str, Any]:
    """A record that `write_record` wrote. Raises `MolaError` where it is missing, cut short or altered."""
    record = read_json(path)
    if not isinstance(record, dict) or record.pop("sha256", None) != _sealed(record):
        raise MolaError(f"{path}: altered since it was written; delete its folder and run again")
    return record


def _sealed(record: dict[str, Any]) -> str:
    # As it is read back: JSON knows no tuples and no keys that are numbers.
    return digest(json.loads(json.dumps({key: value for key, value in record.items() if key != "sha256"})))


@functools.cache
def code_digest(parts: tuple[str, ...]) -> str:
    """sha256 of the meaning of modules of `mola_core`: comments, docstrings and layout do not count.

    A change of code that could change a result reruns the cells; a better comment does not.
    """
    summary = hashlib.sha256()
    for part in parts:
        path = PACKAGE / part
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix == ".py":
                summary.update(_meaning(file).encode())
            elif file.suffix in {".yaml", ".json"}:
                summary.update(file.read_bytes())
    return summary.hexdigest()


@functools.cache
def _meaning(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                statement
                for statement in node.body
                if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
            ]
    return ast.dump(tree)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit of the project and whether tracked files differ from it; empty outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {}
