"""Scores from lm-evaluation-harness's own `samples_<task>_<time>.jsonl` (`lm_eval --log_samples`): one score matrix of many runs.

A line of such a file is a document: what was asked, the log-likelihood of each option (`filtered_resps`), what each metric
says, and `doc_hash`, by which documents are paired. Method and seed are not in it: a pattern of file names or a table of
files says them.
"""

import contextlib
import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mola_core.analysis.sample_likelihoods import right_likelihoods
from mola_core.analysis.score_writer import SCHEMA, repeat, write_scores
from mola_core.errors import MolaError, one_line
from mola_core.files import atomic_write, read_json

FIELDS = ("study", "model", "task", "method", "seed")
"""What a pattern or a table can say of a file."""
SAMPLES = re.compile(r"samples_(?P<task>.+?)(_\d{4}-\d\d-\d\dT[\d.:-]+)?\.jsonl")
"""lm-eval's names of files."""
MAX_LINE = 50_000_000
"""Characters of a line: a document and its answers."""


@dataclass(frozen=True)
class Run:
    """One file of samples and what it is of."""

    file: Path
    study: str
    model: str
    task: str
    method: str
    seed: int


def sample_files(places: Sequence[str | Path]) -> list[Path]:
    """The samples files named, and those anywhere in the folders named. Raises `MolaError` where a place has none."""
    found: list[Path] = []
    for place in map(Path, places):
        files = sorted(place.rglob("samples_*.jsonl")) if place.is_dir() else [place]
        if not files or not all(file.is_file() for file in files):
            kind = "no samples_*.jsonl in this folder" if place.is_dir() else "no such file or folder"
            raise MolaError(f"{place}: {kind}; run lm_eval with --log_samples --output_path")
        found += files
    return list(dict.fromkeys(found))


def runs_by_pattern(files: Sequence[Path], pattern: str) -> list[Run]:
    """What each file is of by its path: `pattern` is the path's end with fields in braces, as `{method}/s{seed}/{file}`.

    `{file}` is lm-eval's own name, which tells the task; `*` stands for anything within a name. Raises `MolaError` where a
    path does not match, or the pattern lacks method or seed.
    """
    named = re.findall(r"{(\w+)}", pattern)
    unknown = [name for name in named if name not in (*FIELDS, "file")]
    if unknown or len(set(named)) < len(named):
        raise MolaError(f"--pattern {pattern}: each of {{{'}, {'.join((*FIELDS, 'file'))}}} at most once")
    for name in ("method", "seed"):
        if name not in named:
            raise MolaError(f"--pattern {pattern}: lacks {{{name}}}, as in {{method}}/seed{{seed}}/{{file}}")
    if re.search(r"[}*][{*]", pattern):
        raise MolaError(
            f"--pattern {pattern}: two fields, or a field and *, with nothing between: where one ends is a guess"
        )
    forms = {"seed": r"(?P<seed>\d+)"}
    parts = re.split(r"({\w+}|\*)", pattern)
    form = "".join(
        "[^/]*"
        if part == "*"
        else forms.get(part[1:-1], f"(?P<{part[1:-1]}>[^/]+)")
        if part[:1] == "{"
        else re.escape(part)
        for part in parts
    )
    runs = []
    for file in files:
        match = re.search(rf"(?:^|/){form}$", file.as_posix())
        if match is None:
            raise MolaError(
                f"{file}: does not end as --pattern {pattern}; write it as the paths are, or name other files"
            )
        runs.append(_run(file, {name: text for name, text in match.groupdict().items() if name != "file"}))
    return runs


def runs_by_table(table: Path) -> list[Run]:
    """What each file is of by a CSV file with the columns file, method, seed and, where wanted, task, model, study.

    Paths are from the table's folder. Raises `MolaError` where a column or a file is missing.
    """
    try:
        if not table.is_file():
            raise OSError("no such file")
        with open(table, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, skipinitialspace=True)
            rows = list(reader)
            columns = [str(name).strip() for name in reader.fieldnames or []]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MolaError(f"--runs {table}: cannot be read ({error})") from None
    for column in ("file", "method", "seed"):
        if column not in columns:
            raise MolaError(
                f"--runs {table}: no column {column!r}; it has {', '.join(columns)[:100] or 'none'}"
            )
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise MolaError(f"--runs {table}: two columns {twice[0]!r}; remove one")
    runs = []
    for number, values in enumerate(rows, 2):
        row = dict(zip(columns, (str(value or "").strip() for value in values.values()), strict=False))
        file = table.parent / str(row["file"])
        if not file.is_file():
            raise MolaError(f"--runs {table}: line {number}: {file}: no such file")
        runs.append(_run(file, {name: row[name] for name in FIELDS if row.get(name)}))
    if not runs:
        raise MolaError(f"--runs {table}: no rows; write one a samples file")
    return runs


def _run(file: Path, known: dict[str, str]) -> Run:
    own = SAMPLES.fullmatch(file.name)
    task = known.get("task") or (own and own["task"])
    if not task:
        raise MolaError(f"{file}: not lm-eval's name (samples_<task>_<time>.jsonl), so say its {{task}}")
    for name in ("method", "seed"):
        if not known.get(name):
            raise MolaError(f"{file}: its {name} is not said")
    if not re.fullmatch(r"\d{1,10}", known["seed"]):
        raise MolaError(f"{file}: seed {known['seed']!r} is no whole number")
    return Run(
        file,
        known.get("study", "imported"),
        known.get("model", "model"),
        task,
        known["method"],
        int(known["seed"]),
    )


def import_samples(
    runs: Sequence[Run], out: Path, metric: str = "acc", chosen: str | None = None
) -> list[str]:
    """Write the runs' scores to the Parquet file `out`; returns what a reader must know of them, a line each.

    `metric` is the one that says whether an answer is right, `chosen` the filter whose answers count where a file has
    several. Likelihoods are written where the file has the options' and the right one is known in every document. Raises
    `MolaError` for a file that is damaged or not lm-eval's, a metric that is not 0 or 1, a cell that stands twice, and
    cells of a task that answered other documents.
    """
    if out.suffix != ".parquet":
        raise MolaError(f"--out {out}: name a .parquet file")
    cells: dict[tuple[str, ...], Path] = {}
    files: dict[Path, Run] = {}
    for run in runs:
        same = files.setdefault(run.file.resolve(), run)
        if same is not run:
            raise MolaError(
                f"{run.file}: named twice, as {same.method}, seed {same.seed} and as {run.method}, seed {run.seed}; one file is one run"
            )
        cell = (run.study, run.model, run.task, run.method, str(run.seed))
        if cell in cells:
            raise MolaError(
                f"{run.file}: task {run.task}, method {run.method}, seed {run.seed} is that of {cells[cell]} too; name "
                "one of them, or tell them apart"
            )
        cells[cell] = run.file
    remarks: list[str] = []
    with atomic_write(out) as temporary:
        write_scores(temporary, _tables(runs, metric, chosen, remarks))
    return list(dict.fromkeys(remarks))


def _tables(runs: Sequence[Run], metric: str, chosen: str | None, remarks: list[str]) -> Iterator[pa.Table]:
    first: dict[str, tuple[Run, list[str], list[Any]]] = {}
    for run in runs:
        samples = _read(run.file, chosen)
        documents = _names(samples)
        order = sorted(range(len(samples)), key=documents.__getitem__)
        samples, documents = [samples[place] for place in order], [documents[place] for place in order]
        prompts = [sample.get("prompt_hash") for sample in samples]
        other, expected, asked = first.setdefault(run.task, (run, documents, prompts))
        if documents != expected:
            shared = len(set(documents) & set(expected))
            raise MolaError(
                f"{run.file}: task {run.task}: {len(documents)} documents, of which {shared} are among the "
                f"{len(expected)} of {other.file}; evaluate both on the same"
            )
        differing = sum(one != two for one, two in zip(prompts, asked, strict=True))
        if differing:
            remarks.append(
                f"task {run.task}: {run.method} was asked in other words than {other.method} in {differing} of "
                f"{len(prompts)} documents"
            )
        correct = np.array([_correct(run.file, sample, metric) for sample in samples], np.uint8)
        found = right_likelihoods(samples, correct if metric == "acc" else None)
        if found is None:
            remarks.append(
                f"task {run.task}: no likelihoods, since its files do not tell the right option of each document"
            )
        empty = pa.nulls(len(samples), pa.float32())
        likelihood, log_likelihood = (
            (empty, empty) if found is None else (pa.array(values, pa.float32()) for values in found)
        )
        yield pa.table(
            {
                **{
                    name: repeat(str(getattr(run, name)), len(samples))
                    for name in ("study", "model", "task", "method")
                },
                "seed": pa.repeat(pa.scalar(run.seed, pa.int64()), len(samples)),
                "document": pa.array(documents).dictionary_encode(),
                "correct": pa.array(correct),
                "likelihood": likelihood,
                "log_likelihood": log_likelihood,
            },
            schema=SCHEMA,
        )


def _read(file: Path, chosen: str | None) -> list[dict[str, Any]]:
    """The documents of a file, those of one filter. Raises `MolaError` for what lm-eval did not write."""
    samples = []
    try:
        with open(file, encoding="utf-8-sig") as handle:
            for number, line in enumerate(iter(lambda: handle.readline(MAX_LINE), ""), 1):
                sample = json.loads(line) if line.strip() else None
                if sample is not None and not _is_sample(sample):
                    raise _unread(file, f"line {number} is no sample of lm-eval (no number doc_id)")
                samples += [sample] if sample is not None else []
    except (OSError, ValueError, RecursionError) as error:
        raise _unread(file, f"not whole lines of JSON ({one_line(error)})") from None
    if not samples:
        raise MolaError(f"{file}: no documents in it")
    filters = list(dict.fromkeys(str(sample.get("filter", "none")) for sample in samples))
    if chosen is None and len(filters) > 1:
        raise MolaError(
            f"{file}: answers by {len(filters)} filters ({', '.join(filters)}); choose one with --filter"
        )
    kept = [sample for sample in samples if str(sample.get("filter", "none")) == (chosen or filters[0])]
    if not kept:
        raise MolaError(f"{file}: no answers by filter {chosen!r}; it has {', '.join(filters)}")
    twice = [name for name, count in Counter(str(sample["doc_id"]) for sample in kept).items() if count > 1]
    if twice:
        raise MolaError(
            f"{file}: doc_id {twice[0]} stands twice: two runs were written into one file; name one of them"
        )
    return kept


def _is_sample(line: Any) -> bool:
    return isinstance(line, dict) and isinstance(line.get("doc_id"), int)


def _unread(file: Path, reason: str) -> MolaError:
    with contextlib.suppress(MolaError, OSError):
        content = read_json(file)
        if isinstance(content, dict) and {"run_info", "train_info"} <= content.keys():
            return MolaError(
                f"{file}: a result of PEFT's method_comparison: it has one accuracy a run and no documents to compare; run "
                "lm_eval --log_samples on its adapter"
            )
    return MolaError(f"{file}: {reason}; name a whole samples_*.jsonl")


def _names(samples: Sequence[dict[str, Any]]) -> list[str]:
    """lm-eval's hash of each document, or one of its content; the second one of equal content is `<hash>-1`, as in a study's
    own scores."""
    seen: Counter[str] = Counter()
    names = []
    for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        content = json.dumps(sample["doc"], sort_keys=True) if "doc" in sample else f"doc {sample['doc_id']}"
        name = str(sample.get("doc_hash") or hashlib.sha256(content.encode()).hexdigest())
        names.append((sample["doc_id"], f"{name}-{seen[name]}" if seen[name] else name))
        seen[name] += 1
    by_id = dict(names)
    return [by_id[sample["doc_id"]] for sample in samples]


def _correct(file: Path, sample: dict[str, Any], metric: str) -> int:
    value = sample.get(metric)
    if value not in (0, 1):
        metrics = sample.get("metrics")
        known = [
            name for name in (metrics if isinstance(metrics, list) else sample) if sample.get(name) in (0, 1)
        ]
        said = "has no such metric" if metric not in sample else f"is {str(value)[:40]}, not 0 or 1"
        raise MolaError(
            f"{file}: doc_id {sample['doc_id']}: {metric} {said}; choose one with --metric: {', '.join(known) or 'none'}"
        )
    return int(value)
