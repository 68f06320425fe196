"""Writing `scores.parquet`: its columns, the likelihoods of a cell's answers, checksums of pages and of the content."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mola_core.analysis.score_files import COLUMNS, CONTENT_KEY, OPTIONAL, Content
from mola_core.errors import MolaError
from mola_core.evaluation.likelihoods import of_samples

ROWS_PER_GROUP = 250_000
_NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("study", _NAME),
        ("model", _NAME),
        ("task", _NAME),
        ("method", _NAME),
        ("seed", pa.int64()),
        ("document", _NAME),
        ("correct", pa.uint8()),
        ("likelihood", pa.float32()),
        ("log_likelihood", pa.float32()),
    ]
)
"""`likelihood` is the probability of the right option among a document's options, `log_likelihood` the nats of its
tokens; where text is generated, the mean probability of the right answer's tokens, and their nats."""

CLUSTERED = SCHEMA.append(pa.field("cluster", _NAME))
"""With what documents belong together, by the examples that were asked (`clusters`)."""


def write_scores(path: Path, cells: Iterator[pa.Table], schema: pa.Schema = SCHEMA) -> None:
    """Tables of `schema`, in row groups of a bounded size, so that ten million rows never meet in memory; pages and content with checksums."""
    content = Content([name for name in schema.names if name in (*COLUMNS, *OPTIONAL)])

    def flush(tables: list[pa.Table]) -> None:
        joined = pa.concat_tables(tables).unify_dictionaries()
        writer.write_table(joined)
        for name in content.sums():
            for chunk in joined[name].chunks:
                content.add(name, chunk, path)

    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=True, write_page_checksum=True
    ) as writer:
        waiting: list[pa.Table] = []
        for table in cells:
            waiting.append(table)
            if sum(map(len, waiting)) >= ROWS_PER_GROUP:
                flush(waiting)
                waiting = []
        if waiting:
            flush(waiting)
        writer.add_key_value_metadata({CONTENT_KEY: json.dumps(content.sums()).encode()})


def likelihood_columns(samples: pa.Table) -> dict[str, pa.Array]:
    """likelihood and log_likelihood of a cell's samples, empty where they do not say them."""
    found = of_samples(samples.to_pydict())
    empty = pa.nulls(len(samples), pa.float32())
    columns = (empty, empty) if found is None else (pa.array(part, pa.float32()) for part in found)
    return dict(zip(("likelihood", "log_likelihood"), columns, strict=True))


def clusters(examples: Path, task: str, samples: pa.Table) -> pa.Array:
    """The cluster of each document of a cell's samples, by the evaluation examples that were asked.

    Tasks name what belongs together (a premise, a skill); a document of which they say nothing stands for itself. Names
    begin with the task's, since a cluster may not cross tasks. Raises `MolaError` where the examples are others.
    """
    file = examples / "evaluation.parquet"
    try:
        rows = pq.read_table(file, columns=["document", "cluster"]).take(samples["position"])
    except (OSError, pa.ArrowException) as error:
        raise MolaError(
            f"{file}: not the examples of these cells ({str(error)[:100]}); run `mola examples` again"
        ) from None
    names = []
    for document, asked, cluster in zip(
        samples["document"].to_pylist(),
        rows["document"].to_pylist(),
        rows["cluster"].to_pylist(),
        strict=True,
    ):
        # A document that stands twice in a benchmark has a number behind its name.
        if document != asked and not document.startswith(f"{asked}-"):
            raise MolaError(
                f"{file}: holds {asked} where the cells answered {document}; run `mola examples` again"
            )
        names.append(f"{task}/{cluster or document}")
    return pa.array(names).dictionary_encode()


def repeat(value: str, rows: int) -> pa.DictionaryArray:
    """One name for every row of a cell."""
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), pa.array([value]))
