"""All cells of a study into three files, checked: `scores.parquet`, the cells' table and the training curves.

Every table, figure and test reads these files, none reads the cells again.
"""

import json
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mola_core.analysis.score_writer import CLUSTERED, clusters, likelihood_columns, repeat, write_scores
from mola_core.analysis.statistics import continual
from mola_core.errors import MolaError
from mola_core.files import atomic_write, read_json, read_table, sha256_file, write_json
from mola_core.locations import STUDIES
from mola_core.records import read_record
from mola_core.runs.layout import Layout
from mola_core.runs.plan import COLLECTED, scores_key
from mola_core.runs.recorded import check_recorded, made_otherwise
from mola_core.runs.state import evaluation_state
from mola_core.study.study import Cell
from mola_core.tasks.examples import remarks

FILES = ("scores.parquet", "cells.parquet", "cells.csv", "curves.parquet")
"""What `write` writes, in the study's folder; with continual learning also `continual.FILE`."""

NAMED_CELLS = 20
"""Incomplete cells that an error names."""
COUNTS = ("base_parameters", "train_documents", "steps", "tokens", "peak_memory_bytes")
"""Whole numbers that the base model does not have."""
CURVE = {"step": "int64", "epoch": "float64", "loss": "float64", "tokens": "int64", "seconds": "float64"}


def check_collected(layout: Layout) -> None:
    """Raise `MolaError` where what was collected is of another model or of other settings or rows than the study has now
    (code aside), or of cells that were run again since."""
    known = set(layout.study.cells())
    found = []
    table = read_cells(layout.folder)
    for row in table.itertuples():
        cell = Cell(row.task, row.method, row.seed)
        record = layout.cell(cell) / "manifest.json"
        made = read_record(record).get("evaluation_key") if record.is_file() else None
        if row.model != layout.study.model.name:
            found.append(f"{cell.path}: model: {row.model} -> {layout.study.model.name}")
        elif cell not in known:
            found.append(f"{cell.path}: is no cell of the study")
        elif made and made != getattr(row, "evaluation_key", made):  # the first versions recorded none
            found.append(f"{cell.path}: was run again")
        else:
            found += [f"{cell.path}: {line}" for line in made_otherwise(layout, cell)[:1]]
    if found:
        raise MolaError(
            f"study {layout.study.name}: what was collected is not what the study says now in {len(found)} of {len(table)} cells, "
            f"the first is {found[0]}; run `mola collect` again"
        )


def write(layout: Layout, partial: bool = False, as_recorded: bool = False) -> pd.DataFrame:
    """Check every cell and write `FILES` into the study's folder.

    Rows of the scores come cell by cell in the study's order, documents in the order of their names. Returns the
    cells' table. With `partial` the cells that are missing or out of date are left out instead of refused;
    with `as_recorded` those of an earlier version of the code are taken, where the study says what their records say.
    Raises `MolaError` for such a cell, an altered file, an accuracy that is not k/n on its documents, and a
    cell that was evaluated on other documents than the rest of its task.
    """
    out = layout.folder
    taken = ("complete", "out of date") if as_recorded else ("complete",)
    cells = _usable_cells(layout, partial, taken)
    chains = _complete_chains(layout, taken)
    version = check_recorded(layout, [*cells, *chain.from_iterable(chains)]) if as_recorded else None
    curves = [_curve(layout, cell) for cell in cells if not cell.is_base]
    empty = pd.DataFrame(columns=["task", "method", "seed", *CURVE])
    in_chains = continual_rows(layout, chains)
    records: list[dict[str, Any]] = []
    # Until it is written again, at the end, the files may be of two times.
    (out / COLLECTED).unlink(missing_ok=True)
    with atomic_write(out / "scores.parquet") as temporary:
        write_scores(temporary, _checked(layout, cells, records), CLUSTERED)
    table = pd.DataFrame(records).astype(dict.fromkeys(COUNTS, "Int64"))
    for name, frame in [
        ("cells", table),
        ("curves", pd.concat(curves, ignore_index=True) if curves else empty),
    ]:
        with atomic_write(out / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False, compression="zstd")
    with atomic_write(out / "cells.csv") as temporary:
        table.to_csv(temporary, index=False)
    if len(in_chains):
        with atomic_write(out / continual.FILE) as temporary:
            in_chains.to_parquet(temporary, index=False, compression="zstd")
    else:
        (out / continual.FILE).unlink(missing_ok=True)
    # Last: what is recorded as collected is there.
    write_json(
        out / COLLECTED,
        {
            "key": None if partial or as_recorded else scores_key(layout),
            **({"as_recorded": version} if version else {}),
            "sha256": {
                name: sha256_file(out / name) for name in (*FILES, continual.FILE) if (out / name).is_file()
            },
        },
    )
    return table


def _complete_chains(layout: Layout, taken: Collection[str]) -> list[list[Cell]]:
    """Of continual learning, the chains of which every stage is there."""
    chains: dict[tuple[str, int], list[Cell]] = {}
    for cell in layout.study.continual_cells():
        chains.setdefault((cell.method, cell.seed), []).append(cell)
    return [
        cells for cells in chains.values() if all(evaluation_state(layout, cell) in taken for cell in cells)
    ]


def continual_rows(layout: Layout, chains: list[list[Cell]]) -> pd.DataFrame:
    """The tidy frame of continual learning (`continual.COLUMNS`)."""
    rows = []
    for cells in chains:
        for cell in cells:
            path = layout.cell(cell) / "samples.parquet"
            _verify(path, read_record(path.with_name("manifest.json")))
            scores = (
                pd.read_parquet(path, columns=["task", "correct"])
                .groupby("task", sort=False)["correct"]
                .mean()
            )
            trained = continual.topic(layout.study.trained_on(cell))
            rows += [
                (cell.method, cell.seed, trained, continual.topic(task), value)
                for task, value in scores.items()
            ]
    return pd.DataFrame(rows, columns=list(continual.COLUMNS))


def read_cells(folder: Path) -> pd.DataFrame:
    """The cells' table of a collected study, one row a cell (see `_record` for its columns)."""
    return _read(folder / "cells.parquet")


def chance_levels(cells: pd.DataFrame) -> pd.Series:
    """Accuracy (0 to 1) of who knows nothing of a document, by task: see `mola_core.tasks.check.chance`.

    Of cells that were collected before it was recorded, the share of the most frequent target.
    """
    first = cells.groupby("task", sort=False).first()
    counted = first["majority"] / first["documents"]
    return first["chance"].fillna(counted).astype(float) if "chance" in first else counted


def chance_label(cells: pd.DataFrame) -> str:
    """`majority class` where every task's options are classes, else `chance`."""
    options = "chance_of" in cells and (cells["chance_of"] == "options").any()
    return "chance" if options else "majority class"


def recorded_experts(cells: pd.DataFrame) -> dict[str, list[float]]:
    """Experts of each layer that each method was trained with: the mean over its cells, which differ only where data
    of the cell chose them (`sensitivity-<budget>`). A method whose modules differ is not among them."""
    lists = cells[[str(experts).startswith("[") for experts in cells["experts"]]]
    return {
        method: np.mean([json.loads(experts) for experts in of_method], axis=0).tolist()
        for method, of_method in lists.groupby("method", sort=False)["experts"]
    }


def read_curves(folder: Path) -> pd.DataFrame:
    """The training curves: task, method, seed, step, epoch, loss, tokens, seconds; one row a logged step."""
    return _read(folder / "curves.parquet")


def check_unaltered(path: Path) -> None:
    """Raise `MolaError` where a file that `write` wrote is not as it was written; nothing where its hash is not known."""
    record = path.with_name(COLLECTED)
    known = (read_json(record).get("sha256") or {}) if record.is_file() else {}
    if path.is_file() and path.name in known and sha256_file(path) != known[path.name]:
        raise MolaError(f"{path}: altered since it was collected; run `mola collect` again")


def _read(path: Path) -> pd.DataFrame:
    check_unaltered(path)
    if not path.is_file():
        raise MolaError(f"{path}: no such file; collect the study's cells first with `mola collect`")
    return read_table(path, "run `mola collect` again")


def _usable_cells(layout: Layout, partial: bool, taken: Collection[str]) -> list[Cell]:
    """The complete cells of the score matrix. Raises `MolaError` where one of them, or of continual learning, is not."""
    own = layout.study.cells()
    states = {cell: evaluation_state(layout, cell) for cell in [*own, *layout.study.continual_cells()]}
    usable = [cell for cell in own if states[cell] in taken]
    rest = [f"{cell.path} ({state})" for cell, state in states.items() if state not in taken]
    shipped = layout.file is None or layout.file.parent == STUDIES
    command = f"`snakemake --cores all --config study={layout.study.name if shipped else layout.file}`"
    if rest and not partial:
        for cell, state in states.items():
            if state == "damaged":
                read_record(layout.cell(cell) / "manifest.json")  # raises, and says what is wrong with it
        named = ", ".join(rest[:NAMED_CELLS])
        if len(rest) > NAMED_CELLS:
            named += (
                f" and {len(rest) - NAMED_CELLS} more, which `mola cells --study {layout.study.name}` lists"
            )
        earlier = (
            " or, of an earlier version of the code, --as-recorded"
            if any("(out of date)" in line for line in rest)
            else ""
        )
        raise MolaError(
            f"study {layout.study.name}: {len(rest)} of {len(states)} cells are not complete; run them with "
            f"{command}, or take what is there with --partial{earlier}: {named}"
        )
    if not usable:
        raise MolaError(f"study {layout.study.name}: no cell is complete; run them with {command}")
    return usable


def _checked(layout: Layout, cells: list[Cell], records: list[dict[str, Any]]) -> Iterator[pa.Table]:
    """The score rows of each cell after its checks; appends the cell's record to `records`."""
    documents: dict[str, tuple[Cell, pa.Array, pa.Array]] = {}
    for cell in cells:
        folder = layout.cell(cell)
        manifest = read_record(folder / "manifest.json")
        samples = _samples(folder / "samples.parquet", manifest)
        records.append(_record(layout, cell, manifest, samples))
        answered = samples["document"].combine_chunks()
        if cell.task not in documents:
            documents[cell.task] = (cell, answered, clusters(layout.examples(cell.task), cell.task, samples))
        first, expected, together = documents[cell.task]
        if not answered.equals(expected):
            raise MolaError(
                f"cell {cell.path}: evaluated on other documents than {first.path}; delete the wrong one and run it again"
            )
        constants = {"study": layout.study.name, "model": layout.study.model.name, "task": cell.task}
        columns = {
            name: repeat(value, len(samples)) for name, value in (constants | {"method": cell.method}).items()
        }
        yield pa.table(
            {
                **columns,
                "seed": pa.repeat(pa.scalar(cell.seed, pa.int64()), len(samples)),
                "document": answered.dictionary_encode(),
                "correct": samples["correct"].cast(pa.uint8()),
                **likelihood_columns(samples),
                "cluster": together,
            },
            schema=CLUSTERED,
        )


def _verify(path: Path, manifest: dict[str, Any]) -> None:
    if not path.is_file() or sha256_file(path) != manifest["samples_sha256"]:
        raise MolaError(
            f"{path}: missing or altered since the cell was evaluated; delete the cell's folder and run again"
        )


def _samples(path: Path, manifest: dict[str, Any]) -> pa.Table:
    """document, position, target, correct and log-likelihoods of a cell, sorted by document, after the file's hash was
    compared."""
    _verify(path, manifest)
    columns = ["document", "position", "target", "correct"]
    there = pq.read_schema(path).names
    columns += [name for name in ("loglikelihoods", "answer_tokens") if name in there]
    samples = pq.read_table(path, columns=columns).sort_by("document")
    return samples.set_column(0, "document", samples["document"].cast(pa.string()))


def _record(layout: Layout, cell: Cell, manifest: dict[str, Any], samples: pa.Table) -> dict[str, Any]:
    """One row of the cells' table.

    `accuracy` is correct / documents; `majority` counts the documents of the most frequent target, which is what
    always giving the same answer would score where the
    options are classes; `chance` (0 to 1) is what knowing nothing of a document scores, by what its options are. Seconds, tokens and bytes are those of the training unless named
    otherwise; the base model has none.
    """
    evaluation, training = manifest["evaluation"], manifest["training"] or {}
    documents, correct = len(samples), pc.sum(samples["correct"]).as_py()
    if documents != evaluation["documents"] or abs(correct / documents - evaluation["accuracy"]) > 1e-9:
        raise MolaError(
            f"cell {cell.path}: the manifest says accuracy {evaluation['accuracy']} on {evaluation['documents']} documents, "
            f"the samples {correct}/{documents}; delete the cell's folder and run again"
        )
    metrics = {
        f"metric_{name}": value for name, value in sorted(evaluation["metrics"].items()) if name != "acc"
    }
    return {
        "study": layout.study.name,
        "model": layout.study.model.name,
        "task": cell.task,
        "method": cell.method,
        "seed": cell.seed,
        "documents": documents,
        "correct": correct,
        "accuracy": correct / documents,
        "majority": max(pc.value_counts(samples["target"]).field("counts").to_pylist()),
        "chance": evaluation.get("chance", {}).get("level"),
        "chance_of": evaluation.get("chance", {}).get("of"),
        "remarks": "; ".join(remarks(manifest["examples"][cell.task])) if "examples" in manifest else None,
        **metrics,
        "trainable_parameters": 0 if cell.is_base else training["trainable_parameters"],
        "base_parameters": training.get("base_parameters"),
        "experts": json.dumps(training["experts"]) if training.get("experts") else None,
        "train_documents": training.get("documents"),
        "steps": training.get("steps"),
        "epochs": training.get("epochs"),
        "tokens": training.get("tokens"),
        "learning_rate": training.get("settings", {}).get("learning_rate"),
        "final_loss": training.get("final_loss"),
        "diverged": training.get("diverged", {}).get("step"),
        **{f"update_{when}": _update(training, when) for when in ("first", "last")},
        "train_seconds": training.get("seconds"),
        "tokens_per_second": training.get("tokens_per_second"),
        "peak_memory_bytes": training.get("peak_memory_bytes"),
        "device": training.get("device"),
        "evaluation_seconds": evaluation["seconds"],
        "documents_per_second": evaluation["documents_per_second"],
        "evaluation_device": evaluation["device"],
        "training_key": manifest["training_key"],
        "evaluation_key": manifest["evaluation_key"],
        "samples_sha256": manifest["samples_sha256"],
        "commit": evaluation["git"].get("commit"),
        "dirty": evaluation["git"].get("dirty"),
        "stand_in": manifest["stand_in"],
        "finished": manifest["finished"],
    }


def _update(training: dict[str, Any], when: str) -> float | None:
    """Mean over the layers of the adapter's update size after the first or last step."""
    sizes = training.get("update_size", {}).get(when)
    return None if not sizes or None in sizes else float(np.mean(sizes))


def _curve(layout: Layout, cell: Cell) -> pd.DataFrame:
    path = layout.cell(cell) / "train.jsonl"
    training = read_record(path.with_name("manifest.json"))["training"]
    if not path.is_file() or sha256_file(path) != training["log_sha256"]:
        raise MolaError(
            f"{path}: missing or altered since the cell was trained; delete the cell's folder and run again"
        )
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        frame = pd.DataFrame([{name: line[name] for name in CURVE} for line in lines], columns=list(CURVE))
    except (FileNotFoundError, json.JSONDecodeError, KeyError) as error:
        raise MolaError(
            f"{path}: no training log ({error}); delete the cell's folder and run again"
        ) from None
    frame = frame.astype(CURVE)
    for position, (name, value) in enumerate(
        [("task", cell.task), ("method", cell.method), ("seed", cell.seed)]
    ):
        frame.insert(position, name, value)
    return frame
