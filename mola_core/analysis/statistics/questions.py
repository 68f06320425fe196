"""The questions that a set of methods allows, each as weights on methods."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mola_core.analysis.statistics.estimates import slope_weights
from mola_core.errors import MolaError
from mola_core.shapes import SHAPE_PATTERN, centre_of_depth, experts_per_layer, quarters, spread
from mola_core.study.verdict import MAIN_BUDGET, compared

NOMINAL_DEPTH = 32
PAIRS = (("2468", "8642"), ("2468", "5555"), ("2882", "5555"))
FAMILIES = {
    "depth": "Do higher layers need more experts?",
    "spread": "Both ends, or the middle?",
    "shapes": "One shape against another at equal budget",
    "lora": "MoLA against plain LoRA",
    "parts": "Routing and placement told apart",
    "asked": "Asked by the study",
}
KINDS = re.compile(r"mola(?=-)|lora-matched(?=-)|lora(?=-r\d)")


def answer_id(question: str, endpoint: str) -> str:
    """The id of a question's answer by one endpoint; that by accuracy has the question's own."""
    return question if endpoint == "accuracy" else f"{question}:{endpoint}"


def method_kind(method: str) -> str:
    """What kind of method a name stands for: `mola`, `lora-matched`, `lora`, or the name itself."""
    match = KINDS.match(method)
    return match[0] if match else method


@dataclass(frozen=True)
class Shape:
    """A method's place among the shapes: its budget and where in depth its experts are."""

    method: str
    budget: int
    centre: float
    spread: float
    experts: float
    """Experts a layer, the mean: at a depth that four does not divide, shapes of one budget differ a little."""


@dataclass(frozen=True)
class Question:
    """A claim that a weighted sum of the methods' accuracies (or likelihoods) is above zero.

    `reach` turns the estimate's unit into accuracy points: 1 for a difference; for a slope, the range of the
    shapes' centres (or spreads), so that slope · reach is the difference between the outermost shapes.
    """

    id: str
    family: str
    claim: str
    weights: Mapping[str, float]
    reach: float = 1.0
    places: Mapping[str, float] = field(default_factory=dict)
    """Of a slope: each shape's centre of depth, or spread."""

    @property
    def is_pair(self) -> bool:
        return sorted(self.weights.values()) == [-1.0, 1.0]

    @property
    def moved(self) -> list[str]:
        """The methods that the estimate depends on; a slope gives those in the middle no weight."""
        return [method for method, weight in self.weights.items() if abs(weight) > 1e-9]

    def same_methods(self, other: "Question") -> bool:
        """Whether both compare the same two methods, whichever is said to be ahead."""
        return self.is_pair and other.is_pair and set(self.weights) == set(other.weights)

    def twin(self, questions: Iterable["Question"]) -> "Question | None":
        """The pair among `questions` that a slope over many shapes comes down to: the same test, in another unit."""
        pairs = () if self.is_pair else (other for other in questions if other.is_pair)
        return next((pair for pair in pairs if set(pair.weights) == set(self.moved)), None)


def find_shapes(
    methods: Iterable[str], experts: Mapping[str, Sequence[int] | None] | None = None
) -> list[Shape]:
    """The MoLA shapes among the methods: from `experts` (method -> experts per layer) or else from names.

    None in `experts` keeps a method out: a variant of a shape (another rank, say) differs in more than its shape.

    A name gives quarters of the depth; they are laid out over 32 layers, which moves the centre by less than
    0.01 against any other depth of 24 layers or more.
    """
    shapes = []
    for method in methods:
        match = re.fullmatch(rf"mola-({SHAPE_PATTERN})", method) if len(method) < 80 else None
        named = experts_per_layer(match[1], NOMINAL_DEPTH) if match else None
        layers = (experts or {}).get(method, named)
        if layers is None or method.startswith("lora-"):
            continue
        if (
            isinstance(layers, str)
            or not layers
            or not all(math.isfinite(n) and n >= 0 for n in layers)
            or not any(layers)
        ):
            raise MolaError(
                f"shapes: {method}: give the experts of each layer, numbers from 0, not {layers!r:.60}"
            )
        mean = sum(layers) / len(layers)
        shapes.append(Shape(method, _budget(layers), centre_of_depth(layers), spread(layers), mean))
    return sorted(shapes, key=lambda shape: (shape.centre, shape.spread, shape.method))


def _budget(layers: Sequence[int]) -> int:
    """Sum over the quarters where each is level, as a named shape's are; else the mean, four times, rounded.

    On 30 layers 8228 has 156 experts and 2882 has 144: both have budget 20.
    """
    if len(layers) >= 4:
        outer, inner, _, _ = quarters(len(layers))
        parts = (
            layers[:outer],
            layers[outer : outer + inner],
            layers[-outer - inner : -outer],
            layers[-outer:],
        )
        if all(len(set(part)) == 1 for part in parts):
            return round(sum(part[0] for part in parts))  # means over cells are floats
    return round(4 * sum(layers) / len(layers))


def possible_questions(methods: Sequence[str], shapes: Sequence[Shape]) -> list[Question]:
    """Every standing question that the methods allow, in the order of a page."""
    return [*_slopes(shapes), *_pairs(methods)]


def _slopes(shapes: Sequence[Shape]) -> list[Question]:
    found = []
    for budget in sorted({shape.budget for shape in shapes}, key=lambda b: (b != MAIN_BUDGET, b)):
        group = [shape for shape in shapes if shape.budget == budget]
        centres, spreads = [s.centre for s in group], [s.spread for s in group]
        rows = slope_weights(centres, spreads)
        if rows is None:
            continue
        suffix = "" if budget == MAIN_BUDGET else f"-{budget}"
        names = [shape.method for shape in group]
        claims = (
            ("depth-slope", "depth", "accuracy rises as the experts move to higher layers", centres),
            (
                "spread",
                "spread",
                "accuracy rises as the experts move to both ends, away from the middle",
                spreads,
            ),
        )
        for row, (name, family, claim, values) in zip(rows, claims, strict=True):
            if row.any():
                weights = dict(zip(names, row.tolist(), strict=True))
                reach, places = max(values) - min(values), dict(zip(names, values, strict=True))
                found.append(
                    Question(name + suffix, family, f"{claim} (budget {budget})", weights, reach, places)
                )
    return found


def _pairs(methods: Sequence[str]) -> list[Question]:
    candidates = [named_pair(f"{a}-vs-{b}", methods) for a, b in PAIRS]
    loras = [method for method in methods if re.fullmatch(r"lora-r\d+", method)]
    molas = [method for method in methods if re.fullmatch(r"mola-.+", method)]
    candidates += [named_pair(f"{mola}-vs-{lora}", methods) for mola in molas for lora in loras]
    candidates += [named_pair(f"routing-{mola.removeprefix('mola-')}", methods) for mola in molas]
    candidates.append(named_pair("placement-2468-vs-8642", methods))
    return [question for question in candidates if question]


def free_pair(first: str, second: str, methods: Sequence[str]) -> Question | None:
    """A comparison of any two methods, None where one is not there."""
    if first not in methods or second not in methods:
        return None
    return Question(f"{first}-vs-{second}", "asked", f"{first} beats {second}", {first: 1.0, second: -1.0})


def named_pair(name: str, methods: Sequence[str]) -> Question | None:
    """The pair that a question id names, None where a method of it is not there."""
    found = compared(name)
    if found is None or found[0] == found[1] or not {*found} <= {*methods}:
        return None
    first, second = found
    one, _, other = name.removeprefix("placement-").partition("-vs-")
    claim = f"{one} beats {other}"
    if name.startswith("routing-"):
        family, shape = "parts", name.removeprefix("routing-")
        claim = f"at {shape}, routing beats a plain LoRA with the same ranks in the same layers"
    elif name.startswith("placement-"):
        family, claim = "parts", f"without routing, {one} beats {other}"
    elif first.startswith("mola-") and re.fullmatch(r"lora-r\d+", second):
        family = "lora"
    else:
        family = "shapes" if (one, other) in PAIRS else "asked"
    return Question(name, family, claim, {first: 1.0, second: -1.0})
