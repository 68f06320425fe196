"""The published tables as sources of questions: the paper's own, and reruns by others whose numbers by task are known."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mola_core.analysis.reference import numbers as reference
from mola_core.analysis.statistics.questions import find_shapes

PRINTED_SEEDS = 3
PRINTED_Z = 1.96
"""Table 8 prints mean ± z · sd / √3 over seeds 0, 1 and 2."""
LLAMA, MISTRAL, GEMMA = "Llama-2-7b", "Mistral-7B", "Gemma-7b"
DOUBTFUL = {
    (
        "LayerIF",
        "openbookqa",
    ): "2468 has 64.00 and 8642 82.20 where LayerIF's own logs give both the same training loss "
    "(1.154 and 1.166)",
    (
        "LayerIF",
        "scienceqa",
    ): "2468 has 64.65 and 8642 76.39 where 2468 has the lower training loss (0.666 and 0.690)",
}
"""Accuracies that their authors' own training logs make doubtful: (start of the source's name, task) -> why."""
SECOND_HAND = ("LD-MoLE",)
"""Reruns whose numbers were not read from the paper itself."""


@dataclass(frozen=True)
class Source:
    """One published table: `accuracy` is tasks x methods, in percent."""

    name: str
    model: str
    accuracy: pd.DataFrame
    ours: bool
    """True for the paper's own tables, false for reruns by others."""
    runs: int = 1
    slopes_only: bool = False
    """True for tables put together for their slopes, whose pairs are asked about where they are printed."""

    @property
    def mark(self) -> str:
        """`‡` where a number in it is doubtful, `†` where it is second-hand."""
        if any(self.name.startswith(name) for name, _ in DOUBTFUL):
            return "‡"
        return "†" if self.name.startswith(SECOND_HAND) else ""


def sources() -> list[Source]:
    """The tables, each complete in its tasks; the extreme shapes of Table 3 also beside the other shapes of
    budget 16.

    Names of PiSSA-initialised methods lose their prefix: within Table 9 all methods have it.
    """
    paper = reference.results()
    paper = paper.assign(method=paper["method"].str.removeprefix("pissa-"))

    def table(name: str, model: str, *numbers: int) -> Source:
        rows = paper[paper["table"].isin([f"naacl-{n}" for n in numbers]) & (paper["base_model"] == model)]
        return Source(name, model, _pivot(rows), ours=True, runs=PRINTED_SEEDS if numbers == (8,) else 1)

    found = [
        table("Table 1", LLAMA, 1),
        table("Table 8 (three seeds)", LLAMA, 8),
        table("Table 4 (after instruction tuning)", LLAMA, 4),
        table("Table 9 (PiSSA)", LLAMA, 9),
        table("Table 2", MISTRAL, 2),
        table("Table 7", GEMMA, 7),
        table("Table 3", LLAMA, 3),
        _smaller(table("Tables 1 and 3", LLAMA, 1, 3)),
        table("Table 3", MISTRAL, 3),
        _smaller(table("Tables 2 and 3", MISTRAL, 2, 3)),
    ]
    reruns = pd.read_csv(reference.FOLDER / "reruns.csv").replace(
        {"task": {"commonsense_qa": "commonsenseqa"}}
    )
    for (name, model), rows in reruns.groupby(["source", "base_model"], sort=False):
        setting = rows["setting"].iloc[0].split(",")[0]
        short = str(name).split(" (")[0].removesuffix(" plotting script")
        found.append(Source(f"{short} ({setting})", str(model), _pivot(rows), ours=False))
    return found


def _smaller(source: Source) -> Source:
    """The shapes of budget 16 alone; those of budget 20 are asked about where they are printed."""
    shapes = [shape.method for shape in find_shapes(source.accuracy.columns) if shape.budget == 16]
    return replace(source, accuracy=source.accuracy[shapes], slopes_only=True)


def _pivot(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.pivot(index="task", columns="method", values="accuracy").dropna(axis=1)


def seed_noise() -> pd.DataFrame:
    """Standard deviation between seeds in points, tasks x methods, from the intervals printed in Table 8."""
    rows = reference.results().query("table == 'naacl-8'")
    half = (rows["ci_high"] - rows["ci_low"]) / 2
    rows = rows.assign(deviation=half * np.sqrt(PRINTED_SEEDS) / PRINTED_Z)
    return rows.pivot(index="task", columns="method", values="deviation")
