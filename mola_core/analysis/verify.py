"""Compare everything of a study with its recorded hash: model, rows, examples, rates, adapters, records, samples, scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mola_core.errors import MolaError
from mola_core.files import sha256_file
from mola_core.records import read_record
from mola_core.runs.choice import TUNING, read_choices
from mola_core.runs.layout import Layout
from mola_core.runs.recovery import check_weights


def damaged(layout: Layout) -> tuple[int, list[str]]:
    """How many things are there, and one line for each that is not what was recorded of it. What is not there at all is
    not damaged."""
    lines = []
    checks = list(_checks(layout))
    for check in checks:
        try:
            check()
        except (MolaError, OSError) as error:
            lines.append(str(error))
        except (KeyError, TypeError, AttributeError) as error:
            lines.append(f"a record lacks what it should hold ({type(error).__name__}: {error})")
    return len(checks), lines


def _checks(layout: Layout) -> Iterator[Callable[[], object]]:
    from mola_core.analysis.collect import FILES, check_unaltered
    from mola_core.analysis.score_files import load_scores
    from mola_core.analysis.statistics import continual
    from mola_core.models.loading import verify_model
    from mola_core.tasks import examples
    from mola_core.tasks.rows import verify_data

    if (layout.model / "model.json").is_file():
        yield partial(verify_model, layout.model)
    for rows in layout.study.rows():
        if layout.data(rows).is_dir():
            yield partial(verify_data, layout.data(rows))
        if layout.examples(rows).is_dir():
            yield partial(examples.read_record, layout.examples(rows))
    if layout.tries is not None and (layout.folder / TUNING).is_file():
        yield partial(read_choices, layout, earlier=True)
    for part in filter(None, (layout.tries, layout)):
        for cell in part.study.all_cells():
            folder = part.cell(cell)
            if (folder / "training.json").is_file():
                yield partial(_check_training, folder, part.weights(cell))
            if (folder / "manifest.json").is_file():
                yield partial(_check_evaluation, folder)
    if (layout.folder / "scores.parquet").is_file():
        yield partial(load_scores, layout.folder / "scores.parquet")
    for name in (*FILES, continual.FILE):
        if (layout.folder / name).is_file():
            yield partial(check_unaltered, layout.folder / name)


def _check_training(folder: Path, weights: Path) -> None:
    record = read_record(folder / "training.json")
    _same(folder / "train.jsonl", record["log_sha256"])
    if weights.is_dir():
        check_weights(weights, record)


def _check_evaluation(folder: Path) -> None:
    _same(folder / "samples.parquet", read_record(folder / "manifest.json")["samples_sha256"])


def _same(file: Path, sha256: str) -> None:
    if not file.is_file() or sha256_file(file) != sha256:
        raise MolaError(
            f"{file}: missing or altered since it was made; delete the cell's folder and run again"
        )
