"""What a study states about its verdict before it is run. Light: nothing but pydantic is imported here."""

import re
from typing import Annotated, Any

from pydantic import Field, field_validator

from mola_core.section import Closed, Seed

NAME = r"[A-Za-z0-9_.+-]+"
QUESTION = re.compile(rf"(?:depth-slope|spread)(?:-\d+)?|routing-{NAME}|(?:placement-)?{NAME}-vs-{NAME}")

QuestionId = Annotated[str, Field(min_length=1)]


class VerdictSettings(Closed):
    """The hypotheses, the level and the bootstrap of a verdict; all of it is hashed into the result."""

    hypotheses: tuple[QuestionId, ...] = Field(("depth-slope", "2468-vs-8642"), min_length=1)
    """Questions whose answer is the study's headline, the first one that the methods allow. Each claims that
    its estimate is above zero: `depth-slope` that accuracy rises with the experts' centre of depth."""

    questions: tuple[QuestionId, ...] | None = None
    """Questions to answer, the hypotheses always among them; by default all that the methods allow."""

    level: float = Field(0.05, ge=1e-6, lt=0.5)
    """Significance level, two-sided, after Holm's correction within each family of questions."""

    power: float = Field(0.8, gt=0.5, le=0.999)
    """Power that the minimum detectable effect and the planner aim at."""

    differences: tuple[Annotated[float, Field(ge=0.001, le=100)], ...] = Field((0.5, 1.0, 2.0), max_length=20)
    """Differences, in accuracy points, for which the planner says how many seeds decide them."""

    resamples: int = Field(2000, ge=100, le=1_000_000)
    """Bootstrap resamples, for ranks and the probability of improvement."""

    seed: Seed = 0
    """Seed of the bootstrap's random generator."""

    @field_validator("hypotheses", "questions", "differences", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value  # YAML and JSON know lists only

    @field_validator("hypotheses", "questions")
    @classmethod
    def _known(cls, ids: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in ids or ():
            if not QUESTION.fullmatch(name):
                raise ValueError(
                    f"{name!r} is not a question; write depth-slope, spread (with -BUDGET unless it is 20), "
                    "routing-SHAPE, placement-SHAPE-vs-SHAPE or METHOD-vs-METHOD"
                )
        if ids is not None and len(set(ids)) < len(ids):
            raise ValueError("a question is named twice; name each once")
        return ids
