"""What a study states about its verdict before it is run. Light: of libraries only pydantic is imported here."""

import hashlib
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from mola_core.section import Closed, Seed
from mola_core.shapes import SHAPE_PATTERN

NAME = r"[A-Za-z0-9_.+-]+"
QUESTION = re.compile(rf"(?:depth-slope|spread)(?:-\d+)?|routing-{NAME}|(?:placement-)?{NAME}-vs-{NAME}")
MAIN_BUDGET = 20
"""Of the paper's shapes: the budget of a slope that names none."""
CLAIM = ("2468-vs-8642",)
"""The claim that is stated where a study states none."""

QuestionId = Annotated[str, Field(min_length=1)]
MethodName = Annotated[str, Field(min_length=1, max_length=200)]
Endpoint = Literal["accuracy", "likelihood"]


def compared(question: str) -> tuple[str, str] | None:
    """The methods that a question id puts ahead and behind; None for a slope or spread."""
    if question.startswith("routing-"):
        shape = question.removeprefix("routing-")
        return f"mola-{shape}", f"lora-matched-{shape}"
    first, vs, second = question.removeprefix("placement-").partition("-vs-")
    if not vs:
        return None
    if question.startswith("placement-"):
        return f"lora-matched-{first}", f"lora-matched-{second}"
    one, other = (f"mola-{part}" if re.fullmatch(SHAPE_PATTERN, part) else part for part in (first, second))
    return one, other


class VerdictSettings(Closed):
    """The hypotheses, the level, the margin and the bootstrap of a verdict; all of it is hashed into the result."""

    hypotheses: tuple[QuestionId, ...] | None = Field(None, min_length=1)
    """Questions whose answer is the study's headline, the first one that the methods allow. Each claims that
    its estimate is above zero: `depth-slope` that accuracy rises with the experts' centre of depth. They are
    corrected for one another only; every other question is exploratory. By default the pairs, or else the one claim 2468-vs-8642."""

    questions: tuple[QuestionId, ...] | None = None
    """Questions to answer, the hypotheses always among them; by default all that the methods allow."""

    pairs: tuple[tuple[MethodName, MethodName], ...] = Field((), max_length=100)
    """Any two methods to compare, by their names in the scores: each claims that the first beats the second. They are what is
    stated where there are no hypotheses."""

    endpoint: Endpoint = "accuracy"
    """What the hypotheses are about, the primary endpoint: accuracy, or the probability that the model gives the right
    option among a document's options. The other one is exploratory."""

    margin: float = Field(1.0, gt=0, le=100)
    """Largest difference that makes no practical difference, in points of the endpoint (for a slope: between the
    outermost shapes). A question whose difference is shown to be smaller is answered with `equivalent`."""

    level: float = Field(0.05, ge=1e-6, lt=0.5)
    """Significance level, two-sided, after Holm's correction: of the hypotheses, and of all other questions together."""

    looks: int = Field(1, ge=1, le=100)
    """How many times the verdict is to be looked at as seeds are added; each look has its share of the level."""

    least_gain: float | None = Field(None, ge=0, le=100)
    """Points of accuracy by which the trained methods, on average, must exceed knowing nothing in a task for it to be in the
    questions: the base model or, if that is higher, always giving the most frequent answer (where options differ between documents,
    one in their number). By default every task is in them."""

    power: float = Field(0.8, gt=0.5, le=0.999)
    """Power that the minimum detectable effect and the planner aim at."""

    differences: tuple[Annotated[float, Field(ge=0.001, le=100)], ...] = Field((0.5, 1.0, 2.0), max_length=20)
    """Differences, in points, for which the planner says how many seeds decide them."""

    resamples: int = Field(2000, ge=100, le=1_000_000)
    """Bootstrap resamples, for ranks and the probability of improvement."""

    seed: Seed = 0
    """Seed of the bootstrap's random generator."""

    @field_validator("hypotheses", "questions", "differences", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, str | int | float):
            raise ValueError(f"must be a list; write [{str(value)[:60]}]")
        return tuple(value) if isinstance(value, list) else value  # YAML and JSON know lists only

    @field_validator("pairs", mode="before")
    @classmethod
    def _listed_pairs(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or any(
            not isinstance(pair, list | tuple) or len(pair) != 2 for pair in value
        ):
            raise ValueError("must be a list of pairs; write [[method, other], ...]")
        return tuple(tuple(pair) for pair in value)

    @field_validator("pairs")
    @classmethod
    def _different(cls, pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for first, second in pairs:
            if first == second:
                raise ValueError(f"{first!r} is compared with itself; name two methods")
        if len({frozenset(pair) for pair in pairs}) < len(pairs):
            raise ValueError("a pair is named twice, whichever is first; name each once")
        return pairs

    @field_validator("hypotheses", "questions")
    @classmethod
    def _known(cls, ids: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in ids or ():
            if not QUESTION.fullmatch(name):
                raise ValueError(
                    f"{name!r} is not a question; write depth-slope, spread (with -BUDGET unless it is 20), "
                    "routing-SHAPE, placement-SHAPE-vs-SHAPE or METHOD-vs-METHOD"
                )
            pair = compared(name)
            if pair and pair[0] == pair[1]:
                raise ValueError(f"{name!r} compares a method with itself; name two")
        if ids is not None and len(set(ids)) < len(ids):
            raise ValueError("a question is named twice; name each once")
        return ids

    @field_validator("hypotheses")
    @classmethod
    def _each_once(cls, ids: tuple[str, ...] | None) -> tuple[str, ...] | None:
        asked = [frozenset(pair) for pair in map(compared, ids or ()) if pair]
        if len(set(asked)) < len(asked):
            raise ValueError("two of them compare the same methods, and would be corrected as two; name one")
        return ids

    @property
    def sha256(self) -> str:
        """Of all of them, by which a verdict says what it was asked."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
