"""The verdict as typed dictionaries: what `decide` returns and `verdict.json` holds.

Differences are in points (100 x a fraction) of the endpoint; those of a slope are per unit of depth or spread, and
times `reach` they are the difference between the outermost shapes.
"""

from typing import Any, Literal, TypedDict

from mola_core.study.verdict import Endpoint

Word = Literal["supported", "contradicted", "equivalent", "undecided"]


class Drawn(TypedDict):
    """The same difference for tasks like these: Student's t over the tasks' own differences."""

    low: float
    high: float
    p: float
    p_equivalence: float


class Inner(TypedDict):
    """The interval of confidence 1 - 2 level, which decides whether a difference is within the margin."""

    low: float
    high: float


class Exchange(TypedDict):
    """Points of accuracy per point of probability, over runs within tasks."""

    rate: float
    r: float
    runs: int


class Answer(TypedDict):
    """One question on one endpoint."""

    id: str
    """For accuracy the question's name; for likelihood with `:likelihood` after it."""
    endpoint: Endpoint
    status: Literal["stated", "exploratory"]
    family: str
    claim: str
    answer: Word
    within_margin: bool
    """Shown to be smaller than the margin, after correction; beside `supported` a real but negligible difference."""
    margin: float
    """Points, for a slope between the outermost shapes."""
    estimate: float | None
    low: float | None
    high: float | None
    inner: Inner | None
    median: float | None
    """Median over seeds, then the mean over tasks: one collapsed run does not move it."""
    worth: float | None
    """A difference of likelihood in the points of accuracy that it goes with (`Exchange`), whose own error is in no interval."""
    p: float | None
    p_adjusted: float | None
    """After Holm's correction over `family_size` tests: of the stated hypotheses, or of all exploratory questions."""
    p_equivalence: float | None
    p_equivalence_adjusted: float | None
    drawn: Drawn | None
    covers: Literal["seeds and documents", "documents"] | None
    standard_error: float | None
    degrees_of_freedom: float | None
    family_size: int
    same_test_as: str | None
    minimum_detectable_effect: float | None
    seeds_needed: dict[str, int | None]
    power: dict[str, float | None]
    seeds_equivalent: int | None
    """Seeds a task that show a true zero to be within the margin, as `seeds_needed` at the level of the next look."""
    power_equivalent: float | None
    noise_from: list[str]
    """Methods that the plan's noise between runs is taken from."""
    bootstrap: dict[str, float] | None
    probability_of_improvement: dict[str, float] | None
    reach: float
    weights: dict[str, float]
    places: dict[str, float]
    """Of a slope: each shape's centre of depth, or spread."""
    tasks: dict[str, float]
    seeds: list[int]
    dropped_tasks: list[str]
    reasons: list[str]


class Looks(TypedDict):
    """How often the stated hypotheses were looked at, by the record beside the verdict."""

    planned: int
    taken: int
    level: float
    """The level of this look."""
    stated_beforehand: bool
    """Whether the record holds a statement of these settings from before the first look and the first cell."""


class Verdict(TypedDict, total=False):
    """Everything that a page or figure shows."""

    level: float
    primary_endpoint: Endpoint
    estimand: Literal["these tasks"]
    """What `answer`, `low`, `high` and `p` are about; `drawn` is about tasks like these."""
    headline: str | None
    looks: Looks
    questions: list[Answer]
    unanswered: list[dict[str, str]]
    exchange: Exchange | None
    left_out_tasks: dict[str, float]
    """Tasks in which nothing was learnt, with the points gained over knowing nothing."""
    collapsed: list[dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    seeds_shared: bool
    """Whether intervals allow for one training that answered several tasks."""
    lines: dict[str, dict[str, Any]]
    mcnemar: list[dict[str, Any]]
    notes: list[str]
    data: dict[str, Any]
    settings: dict[str, Any]
    settings_sha256: str
    stand_in: bool
    scores_sha256: str
