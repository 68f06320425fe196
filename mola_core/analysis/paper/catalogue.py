"""The paper's tables 1-9: what each prints, and which of them a study has something to put in."""

import dataclasses

from mola_core.analysis.reference import numbers as reference
from mola_core.analysis.statistics.continual import topic
from mola_core.study.study import Study


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables of accuracies: which rows of the reference file it prints, and what stands beside."""

    number: int
    title: str
    base_models: tuple[str, ...]
    setting: str
    parameters: bool = False
    mean: bool = False
    intervals: bool = False

    @property
    def stem(self) -> str:
        return f"paper-{self.number}"

    @property
    def key(self) -> str:
        """Its name in the reference file."""
        return f"naacl-{self.number}"

    def rows(self, base_model: str) -> list[str]:
        frame = reference.results()
        own = frame[(frame["table"] == self.key) & (frame["base_model"] == base_model)]
        return list(dict.fromkeys(own["method"]))


ACCURACY_TABLES = (
    PaperTable(1, "direct fine-tuning, LLaMA-2-7B", ("Llama-2-7b",), "direct", parameters=True),
    PaperTable(2, "direct fine-tuning, Mistral-7B", ("Mistral-7B",), "direct"),
    PaperTable(3, "extreme shapes", ("Llama-2-7b", "Mistral-7B"), "direct", mean=True),
    PaperTable(4, "instruction tuning, then fine-tuning, LLaMA-2-7B", ("Llama-2-7b",), "instruction-tuned"),
    PaperTable(7, "direct fine-tuning, Gemma", ("Gemma-7b",), "direct"),
    PaperTable(8, "95 % intervals over seeds, LLaMA-2-7B", ("Llama-2-7b",), "direct", intervals=True),
    PaperTable(9, "PiSSA initialisation, LLaMA-2-7B", ("Llama-2-7b",), "direct-pissa"),
)
REANALYSIS = tuple(
    [f"{name}.{kind}" for name in ("reanalysis", "training-losses") for kind in ("svg", "png")]
    + ["reanalysis.csv", "combined.csv"]
)
"""What the re-analysis of the published numbers writes beside its page."""
CONTINUAL_TABLES = {5: "continual learning, LLaMA-2-7B", 6: "continual learning in detail, LLaMA-2-7B"}
ALL_PAPER_TABLES = tuple(f"paper-{number}" for number in range(1, 10))
"""Stems of every table that `write` may write, `tables/<stem>.{csv,md,tex}`."""


def tables_of(study: Study) -> tuple[str, ...]:
    """Stems of the paper's tables in which the study has anything to put, by the study's file alone.

    The workflow plans by it, before a cell is there. A table is filled where a task of the study is the paper's and a
    method of it is a row of the table after the same kind of tuning; Table 8 needs two seeds; Tables 5 and 6 continual learning.
    """
    stems = []
    tasks = set(reference.TASKS) & set(study.tasks)
    for table in ACCURACY_TABLES:
        rows = {
            name
            for base in table.base_models
            if study_labels(table, study, base)
            for name in table.rows(base)
        }
        labels = {name for base in table.base_models for name in study_labels(table, study, base)}
        seeds = not table.intervals or len(study.seeds) > 1
        if tasks and labels & rows and seeds:
            stems.append(table.stem)
    names = reference.paper_names(study)
    chained = {names[cell.method] for cell in study.continual_cells() if cell.method in names}
    if continues_as_the_paper(study) and chained & set(reference.continual()["method"]):
        stems += [f"paper-{number}" for number in CONTINUAL_TABLES]
    return tuple(sorted(stems))


def continues_as_the_paper(study: Study) -> bool:
    """Whether the study learns the paper's topics in the paper's order, on the base model whose Tables 5 and 6 print it."""
    topics = list(dict.fromkeys(topic(study.trained_on(cell)) for cell in study.continual_cells()))
    return topics == list(reference.TOPIC_DOCUMENTS) and stands_for(study) == "Llama-2-7b"


def stands_for(study: Study) -> str:
    """The paper's base model whose tables the study fills; models that it does not have fill those of LLaMA-2."""
    return study.model.paper or "Llama-2-7b"


def study_labels(table: PaperTable, study: Study, base_model: str) -> dict[str, str]:
    """The paper's row -> method of the study, for one of the paper's tables."""
    if base_model != stands_for(study):
        return {}
    return {
        name: label
        for label, name in reference.paper_names(study).items()
        if reference.setting(study, label) == table.setting
    }
