"""What a study states about its verdict before it is run. Light: nothing but pydantic is imported here."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

NAME = r"[A-Za-z0-9_.+-]+"
QUESTION = re.compile(rf"(?:depth-slope|spread)(?:-\d+)?|routing-{NAME}|(?:placement-)?{NAME}-vs-{NAME}")

QuestionId = Annotated[str, Field(min_length=1)]


class VerdictSettings(BaseModel):
    """The hypotheses, the level and the bootstrap of a verdict; all of it is hashed into the result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hypotheses: tuple[QuestionId, ...] = Field(("depth-slope", "2468-vs-8642"), min_length=1)
    """Questions whose answer is the study's headline, the first one that the methods allow. Each claims that
    its estimate is above zero: `depth-slope` that accuracy rises with the experts' centre of depth."""

    questions: tuple[QuestionId, ...] | None = None
    """Questions to answer, the hypotheses always among them; by default all that the methods allow."""

    level: float = Field(0.05, gt=0, lt=0.5)
    """Significance level, two-sided, after Holm's correction within each family of questions."""

    power: float = Field(0.8, gt=0.5, lt=1)
    """Power that the minimum detectable effect and the planner aim at."""

    differences: tuple[Annotated[float, Field(gt=0)], ...] = (0.5, 1.0, 2.0)
    """Differences, in accuracy points, for which the planner says how many seeds decide them."""

    resamples: int = Field(2000, ge=100, le=1_000_000)
    """Bootstrap resamples, for ranks and the probability of improvement."""

    seed: int = Field(0, ge=0)
    """Seed of the bootstrap's random generator."""

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
