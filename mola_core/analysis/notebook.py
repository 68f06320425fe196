"""The verdict in a notebook: from a pandas DataFrame of scores to answers, without a file.

import mola_core
answers = mola_core.verdict(frame)
answers.table
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pydantic import ValidationError

from mola_core.analysis.score_files import frame_scores
from mola_core.analysis.scores import require_methods, score_matrix
from mola_core.analysis.statistics.decide import decide
from mola_core.analysis.statistics.records import Verdict
from mola_core.errors import MolaError
from mola_core.study.verdict import VerdictSettings

SHOWN = ("id", "status", "answer", "estimate", "low", "high", "p_adjusted", "p_equivalence_adjusted")


@dataclass(frozen=True)
class Answers:
    """The questions that the scores allow and their answers; in a notebook it shows its table."""

    verdict: Verdict
    """Everything, as `verdict.json` of `mola verdict` has it (`statistics.records`)."""

    @property
    def answer(self) -> str | None:
        """The answer to the headline: supported, contradicted, equivalent or undecided; None without a headline."""
        headline = self.verdict["headline"]
        return None if headline is None else str(self.table.set_index("id").loc[headline, "answer"])

    @property
    def table(self) -> pd.DataFrame:
        """One row a question: differences and intervals in points, p-values after correction within its family."""
        rows = [{name: question[name] for name in SHOWN} for question in self.verdict["questions"]]
        return pd.DataFrame(rows, columns=list(SHOWN))

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format="{:.3f}".format)


def verdict(
    frame: pd.DataFrame, *, shapes: Mapping[str, Sequence[int] | None] | None = None, **stated: Any
) -> Answers:
    """Answer the standard questions, and any `pairs`, from one row per cell and document.

    `frame` has the columns method, seed, document and correct (0 or 1), and may have study, model, task, likelihood
    (of the right option, 0 to 1) and cluster. `stated` are fields of a study's `verdict` section: margin, level, pairs
    (`pairs=[("mine", "theirs")]`), hypotheses, endpoint, looks. `shapes` gives experts per layer of methods whose
    name does not tell. Raises `MolaError` for scores that cannot be used and settings that do not exist.
    """
    if shapes is not None and not isinstance(shapes, Mapping):
        raise MolaError(
            "verdict shapes: must be a mapping of methods to experts per layer, as {'mine': [2, 2, 4, 4]}"
        )
    try:
        settings = VerdictSettings.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        raise MolaError(f"verdict {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    matrix = score_matrix(frame_scores(frame))
    require_methods(matrix, settings.pairs)
    found = decide(matrix, settings, shapes=shapes)
    if settings.hypotheses and found["headline"] is None:
        reasons = "; ".join(f"{each['id']} {each['reason']}" for each in found["unanswered"])
        raise MolaError(f"verdict hypotheses: none can be asked of these scores ({reasons})")
    return Answers(found)
