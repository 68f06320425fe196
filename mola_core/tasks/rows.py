"""Rows of a task: fetched from their source once, checked, and written as parquet with a fingerprint.

Nothing falls back from one source to another. `data_identity` is cheap and imports neither torch nor datasets: the
workflow asks for it whenever the Snakefile is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mola_core.code_hash import code_hash
from mola_core.errors import MolaError
from mola_core.files import atomic_write, read_json, remembered_sha256, write_json
from mola_core.study.sections import (
    CLOZE,
    SCIENCEQA_TOPICS,
    BuiltinData,
    DataSource,
    DirectoryData,
    HubData,
    pinned_by,
)
from mola_core.tasks import (
    FOLDER,
    SPLITS,
    cluster_of,
    dataset_of,
    evaluation_split,
    is_own,
    load_task,
    render,
    splits_of,
    task_config,
)
from mola_core.tasks.builtin_rows import builtin_rows

if TYPE_CHECKING:
    import pyarrow

KNOWN_ROWS = FOLDER / "known_rows.json"
"""Content hashes of the published benchmarks' rows: {task: {split: hash}}."""
MAX_UNFOLDED = 2_147_483_648
"""Bytes of a split's rows in memory."""
FINGERPRINT = "fingerprint.json"
CLUSTER = "cluster of the document"
"""Name of the column while rows are prepared; no task has one of it."""
CLUSTER_FILE = "{}.cluster.parquet"
"""Beside a split's rows, row by row, where the source has the column."""


def data_identity(task: str, source: DataSource) -> dict[str, Any]:
    """What decides a task's rows, without reading them. Raises `MolaError` where files of a directory are missing, or
    where a task has no built-in rows."""
    code = code_hash("mola_core.tasks.rows:prepare_task")
    identity: dict[str, Any] = {"task": task, "source": source.source, "code": code}
    if isinstance(source, BuiltinData):
        builtin_rows(task, "train", 0)  # Refuses tasks that have none.
        return identity | {
            "train_documents": source.train_documents,
            "test_documents": source.test_documents,
        }
    identity |= {"dataset": dataset_of(task), "columns": _wanted(task), "splits": splits_of(task)}
    if not is_own(task) and cluster_of(task):
        identity["cluster"] = cluster_of(task)
    if isinstance(source, DirectoryData):
        files = _files(task, source)
        return identity | {"files": {split: remembered_sha256(file) for split, file in files.items()}}
    options = task_config(task).get("dataset_kwargs")
    return identity | {
        "id": task_config(task)["dataset_path"],
        "revision": _revision(task, source),
        "options": options,
    }


def prepare_task(task: str, source: DataSource, folder: str | Path) -> None:
    """Write `{train,validation,test}.parquet`, as far as the source has them, and `fingerprint.json` into `folder`.

    The folder is written whole or not at all. Raises `MolaError` where the source cannot be reached or lacks a
    split or a column, or where a document to train or evaluate on has no answer.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(source, BuiltinData):
        sizes = {split: source.test_documents for split in SPLITS} | {"train": source.train_documents}
        tables = {
            split: pa.Table.from_pylist(builtin_rows(task, split, size)) for split, size in sizes.items()
        }
        origin: dict[str, Any] = {}
    elif isinstance(source, DirectoryData):
        tables = {}
        for split, file in _files(task, source).items():
            where = f"{file} (split {split})"
            with _told(task, where):
                tables[split] = _checked(task, _used(task, _read_parquet(task, split, file), where), where)
        origin = {"dataset": dataset_of(task)}
    else:
        tables, origin = _from_hub(task, source)
    # Kept beside the rows: lm-eval's ids of documents cover all columns of these.
    clusters = {
        split: table[CLUSTER].cast(pa.string())
        for split, table in tables.items()
        if CLUSTER in table.column_names
    }
    tables = {
        split: table.drop_columns([CLUSTER]) if split in clusters else table
        for split, table in tables.items()
    }
    known = read_json(KNOWN_ROWS).get(task.removesuffix(CLOZE), {})
    fingerprint = {"task": task, "source": source.source, **origin, "stand_in": source.source == "builtin"}
    fingerprint["splits"] = {
        split: {
            "rows": table.num_rows,
            "sha256": rows_sha256(table),
            "known": content_sha256(table) == known.get(split),
        }
        for split, table in tables.items()
    }
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        for split, table in tables.items():
            pq.write_table(table, temporary / f"{split}.parquet", compression="zstd")
        for split, column in clusters.items():
            pq.write_table(
                pa.table({"cluster": column}), temporary / CLUSTER_FILE.format(split), compression="zstd"
            )
        write_json(temporary / FINGERPRINT, fingerprint)
        _check_answers(task, temporary)


def verify_data(folder: str | Path) -> dict[str, Any]:
    """The fingerprint of a prepared folder, after its files were read and hashed again.

    Raises `MolaError` where a file is missing, cannot be read or has other rows than were prepared.
    """
    folder = Path(folder)
    fingerprint = read_json(folder / FINGERPRINT)
    if not isinstance(fingerprint, dict) or "splits" not in fingerprint:
        raise MolaError(f"{folder / FINGERPRINT}: no record of rows; delete {folder} and run again")
    for split, expected in fingerprint["splits"].items():
        file = folder / f"{split}.parquet"
        table = _read_parquet(fingerprint["task"], split, file)
        if table.num_rows != expected["rows"] or rows_sha256(table) != expected["sha256"]:
            raise MolaError(
                f"{file}: its rows are not those that were prepared; delete {folder} and run again"
            )
    return fingerprint


def rows_sha256(table: pyarrow.Table) -> str:
    """sha256 of the rows in their order, whatever the parquet file's encoding or types' widths."""
    digest = hashlib.sha256()
    for line in _lines(table):
        digest.update(line)
    return digest.hexdigest()


def content_sha256(table: pyarrow.Table) -> str:
    """sha256 of the rows as a set: copies of ScienceQA differ in their order."""
    digest = hashlib.sha256()
    for line in sorted(_lines(table)):
        digest.update(line)
    return digest.hexdigest()


def _lines(table: pyarrow.Table) -> list[bytes]:
    return [
        json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n"
        for row in table.to_pylist()
    ]


def _files(task: str, source: DirectoryData) -> dict[str, Path]:
    """The source's file of each split that is there; the training and the evaluation split must be."""
    folder = Path(source.root).expanduser() / dataset_of(task)
    files = {}
    for split, name in splits_of(task).items():
        file = folder / f"{name}.parquet"
        if file.is_file():
            files[split] = file
        elif split in ("train", evaluation_split(task)):
            raise MolaError(
                f"task {task}: {file} is missing (split {split}); put it there or correct data_root"
            )
    return files


def _read_parquet(task: str, split: str, file: Path) -> pyarrow.Table:
    import pyarrow as pa

    from mola_core.tasks.parquet import TooLarge, read_bounded

    try:
        return read_bounded(file, MAX_UNFOLDED)
    except TooLarge:
        reason = f"unfolds to more than {MAX_UNFOLDED} bytes"
    except (pa.ArrowException, OSError) as error:
        reason = f"is no whole parquet file ({str(error).splitlines()[0]})"
    raise MolaError(f"task {task}: {file} (split {split}) {reason}; replace it")


def _wanted(task: str) -> list[str] | None:
    """The columns that a task of ours uses, as its YAML file says; None for all."""
    return (task_config(task).get("metadata") or {}).get("columns") if is_own(task) else None


def _used(task: str, table: pyarrow.Table, where: str) -> pyarrow.Table:
    """The rows and columns of a source that the task uses; other tasks' tables stay as they are.

    Only these columns are kept, so that a document's id is the same whichever source it came from.
    """
    import pyarrow.compute as pc

    cluster = cluster_of(task)
    if not is_own(task):
        if cluster is None:
            return table
        if cluster not in table.column_names:
            raise MolaError(
                f"task {task}: metadata.cluster: {where} has no column {cluster!r}; it has {', '.join(table.column_names)[:100]}"
            )
        return table.append_column(CLUSTER, pc.fill_null(table[cluster].cast("string"), ""))
    config = task_config(task)
    wanted = _wanted(task) or table.column_names
    topic = SCIENCEQA_TOPICS.get(task)
    for column in [*wanted, *(["topic"] if topic else [])]:
        if column not in table.column_names:
            raise MolaError(
                f"task {task}: {where} has no column {column!r}; "
                f"name its columns as the hub does ({', '.join(wanted)}), not {', '.join(table.column_names)[:100]}"
            )
    if config.get("process_docs") == "answers.text_only":
        if "has_image" in table.column_names:
            table = table.filter(pc.invert(table["has_image"]))
        elif "image" in table.column_names:
            table = table.filter(pc.is_null(table["image"]))
        else:
            raise MolaError(
                f"task {task}: {where} has neither 'image' nor 'has_image'; add a boolean has_image"
            )
    if topic:
        table = table.filter(pc.equal(table["topic"], topic))
    if cluster not in table.column_names:
        return table.select(wanted)
    values = pc.fill_null(table[cluster].cast("string"), "")
    return table.select(wanted).append_column(CLUSTER, values)


@contextlib.contextmanager
def _told(task: str, where: str) -> Iterator[None]:
    """What pyarrow says of columns of another type, and Python of text that is no UTF-8, as a `MolaError`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise MolaError(
            f"task {task}: {where} has a column of a wrong type or text that is not UTF-8 "
            f"({str(error).splitlines()[0][:200]}); write its columns as the hub does"
        ) from None


def _checked(task: str, table: pyarrow.Table, where: str) -> pyarrow.Table:
    """The table as it is written. Raises `MolaError` where it is empty, or a cell of our tasks is or holds what is
    neither text nor a whole number nor a list of texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not table.num_rows:
        raise MolaError(f"task {task}: {where} has no row for this task; replace it")
    if not is_own(task):
        return table
    flat = table.flatten()
    for column in flat.column_names:
        values = flat[column]
        listed = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
        parts = pc.list_flatten(values) if listed else values
        if values.null_count or parts.null_count:
            raise MolaError(f"task {task}: {where} has empty cells in column {column!r}; fill them")
        kind = parts.type.value_type if pa.types.is_dictionary(parts.type) else parts.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not text and (listed or not (pa.types.is_integer(kind) or pa.types.is_boolean(kind))):
            raise MolaError(
                f"task {task}: {where} has {values.type} in column {column!r}; write text, whole numbers or lists of text"
            )
    # Through Python values: sources differ in the width of integers and in string types.
    return pa.Table.from_pylist(table.to_pylist())


def _revision(task: str, source: HubData) -> str | None:
    return next((source.revisions[name] for name in pinned_by(task) if name in source.revisions), None)


def _from_hub(task: str, source: HubData) -> tuple[dict[str, pyarrow.Table], dict[str, Any]]:
    """The hub's rows and where they came from."""
    import pyarrow as pa

    config = task_config(task)
    path, name = config["dataset_path"], config.get("dataset_name")
    options = {
        key: value
        for key, value in (config.get("dataset_kwargs") or {}).items()
        if key != "trust_remote_code"
    }
    loaded, revision = fetch_dataset(task, path, name, options, _revision(task, source))
    tables = {}
    for split, own_name in splits_of(task).items():
        if own_name in loaded:
            where = f"{path} (split {own_name})"
            # In parts: ScienceQA's images need not all be in memory at once.
            with _told(task, where):
                parts = [
                    _used(task, part, where) for part in loaded[own_name].with_format("arrow").iter(1000)
                ]
                tables[split] = _checked(task, pa.concat_tables(parts), where)
        elif split in ("train", evaluation_split(task)):
            raise MolaError(
                f"task {task}: {path} has no split {own_name!r}; name another commit in data.revisions"
            )
    return tables, {"dataset": "/".join(filter(None, [path, name])), "revision": revision}


def fetch_dataset(
    task: str, path: str, name: str | None, options: dict[str, Any], revision: str | None
) -> tuple[Any, str]:
    """A dataset of the hub, without remote code, and its commit: the newest one where no `revision` is given.

    Raises `MolaError` where it cannot be fetched.
    """
    import datasets
    from huggingface_hub import HfApi

    try:
        revision = revision or HfApi().dataset_info(path, timeout=30).sha
        return datasets.load_dataset(path, name, revision=revision, **options), revision
    except Exception as error:  # Each version of the hub's clients has its own exceptions.
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise MolaError(
            f"task {task}: {path} cannot be fetched from the Hugging Face hub ({reason}); "
            "connect to the network, or read the rows from a folder with `--config data_root=DIR`"
        ) from None


def _check_answers(task: str, folder: Path) -> None:
    """Raise `MolaError` where a document of any split that is used has no answer or gives no prompt."""
    try:
        loaded = load_task(task, "choice", folder)
        for split in dict.fromkeys(["train", evaluation_split(task)]):
            render(loaded, split)
        if evaluation_split(task) != "validation" and (folder / "validation.parquet").is_file():
            render(load_task(task, "choice", folder, validated=True), "validation")
    except MolaError:
        raise
    except (
        Exception
    ) as error:  # Whatever a template or another task's own code raises on rows it does not fit.
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise MolaError(
            f"task {task}: its rows give no prompt ({reason}); check the source's columns"
        ) from None
