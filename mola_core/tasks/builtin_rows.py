"""Generated rows for CoLA and ScienceQA: a stand-in that can be learnt in minutes, and no benchmark.

Every row is labelled by construction. Half of the sentences are acceptable. Which split a row may be in is decided by
a hash of its content, so splits share no row and do not depend on each other's size. Only `Random.random` is used,
the one method whose numbers Python promises to keep.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from mola_core.errors import MolaError

Row = dict[str, Any]
T = TypeVar("T")

# Singular, plural, and the reflexive that goes with the singular.
PEOPLE = [
    ("girl", "girls", "herself"), ("boy", "boys", "himself"), ("king", "kings", "himself"),
    ("queen", "queens", "herself"), ("actress", "actresses", "herself"), ("waiter", "waiters", "himself"),
    ("nun", "nuns", "herself"), ("monk", "monks", "himself"), ("grandmother", "grandmothers", "herself"),
    ("uncle", "uncles", "himself"), ("prince", "princes", "himself"), ("bride", "brides", "herself"),
]  # fmt: skip
THINGS = [
    ("lamp", "lamps"), ("boat", "boats"), ("letter", "letters"), ("garden", "gardens"), ("piano", "pianos"),
    ("window", "windows"), ("bicycle", "bicycles"), ("carpet", "carpets"), ("basket", "baskets"),
    ("kettle", "kettles"), ("ladder", "ladders"), ("painting", "paintings"), ("tower", "towers"), ("wagon", "wagons"),
]  # fmt: skip
# Plain form, third person, participle.
VERBS = [
    ("break", "breaks", "broken"), ("steal", "steals", "stolen"), ("draw", "draws", "drawn"),
    ("choose", "chooses", "chosen"), ("hide", "hides", "hidden"), ("see", "sees", "seen"), ("take", "takes", "taken"),
    ("forget", "forgets", "forgotten"), ("know", "knows", "known"), ("give", "gives", "given"),
]  # fmt: skip
REFLEXIVE_VERBS = ["admired", "blamed", "praised", "taught", "washed", "described"]
ADJECTIVES = ["old", "green", "heavy", "small", "quiet", "famous", "broken", "strange", "clean", "bright"]
PLACES = [
    "near the river",
    "in the attic",
    "behind the school",
    "on Sunday",
    "after the storm",
    "at the station",
]

# From light to heavy.
WEIGHTS = [
    "feather", "paper clip", "pencil", "apple", "cat", "bicycle", "washing machine", "horse", "car", "elephant", "bus",
    "blue whale", "ocean liner",
]  # fmt: skip
# From early to late.
AGES = [
    "the forming of the Earth", "the first bacteria", "the first fish", "the first reptiles", "the first dinosaurs",
    "the first birds", "the first flowers", "the end of the dinosaurs", "the first humans", "the last ice age",
    "the building of the pyramids", "the fall of Rome", "the first steam trains", "the first airplanes",
    "the first moon landing",
]  # fmt: skip
GOODS = [
    "scarf",
    "kite",
    "drum",
    "clock",
    "mirror",
    "chair",
    "teapot",
    "rug",
    "globe",
    "flute",
    "tent",
    "violin",
]
KINDS = {
    "mammal": ["dog", "horse", "cow", "lion", "rabbit", "mouse", "sheep", "bear", "wolf", "goat"],
    "bird": ["eagle", "robin", "owl", "parrot", "penguin", "swan", "sparrow", "crow", "pigeon", "duck"],
    "insect": ["ant", "bee", "beetle", "butterfly", "mosquito", "wasp", "moth", "cricket", "termite", "fly"],
    "tree": ["oak", "pine", "maple", "willow", "birch", "elm", "cedar", "palm", "spruce", "beech"],
}
SUBSTANCES = {
    "metal": ["iron", "copper", "gold", "silver", "tin", "zinc", "lead", "nickel", "aluminum", "titanium"],
    "gas": ["oxygen", "nitrogen", "helium", "neon", "argon", "hydrogen", "methane", "carbon dioxide"],
    "liquid": ["milk", "tea", "coffee", "lemonade", "orange juice", "hot chocolate", "vinegar", "rain water"],
}


class _Stream:
    """Random choices of one split."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.random() * len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items in random order."""
        return sorted(items, key=lambda _: self.random())[:count]


def _sentence(stream: _Stream) -> Row:
    """One sentence; an unacceptable one breaks exactly one rule of English, which the acceptable one keeps.

    Half of them break the order of words, which a small model learns to see within two hundred sentences.
    """
    acceptable = stream.random() < 0.5
    rule = stream.pick(
        ["order", "order", "order", "order", "agreement", "determiner", "participle", "reflexive"]
    )
    broken = None if acceptable else rule
    singular, plural, reflexive = stream.pick(PEOPLE)
    plain, third, participle = stream.pick(VERBS)
    one = stream.random() < 0.5
    subject = singular if one else plural
    determiner = stream.pick(["this", "that"] if one else ["these", "those"])
    if broken == "determiner":
        determiner = {"this": "these", "that": "those", "these": "this", "those": "that"}[determiner]
    adjective = stream.pick(ADJECTIVES)
    start = f"{determiner} {adjective} {subject}"
    target = f"the {stream.pick(ADJECTIVES)} {stream.pick(stream.pick(THINGS))}"
    if rule == "reflexive":
        verb = stream.pick(REFLEXIVE_VERBS)
        target = reflexive if one != (broken == "reflexive") else "themselves"
    elif rule == "participle":
        verb = f"{'has' if one else 'have'} {plain if broken else participle}"
    else:
        verb = third if one != (broken == "agreement") else plain
    words = f"{start} {verb} {target} {stream.pick(PLACES)}".split()
    sentence = " ".join(reversed(words) if broken == "order" else words) + "."
    return {"sentence": sentence[0].upper() + sentence[1:], "label": int(acceptable)}


def _ordered(stream: _Stream, items: Sequence[str], hint: str, questions: tuple[str, str]) -> Row:
    """Options in a known order, which the hint states; the question asks for the first or the last of them."""
    count = stream.pick([2, 3, 4])
    choices = sorted(stream.sample(items, count), key=list(items).index)
    last = int(stream.random() < 0.5)
    return {"question": questions[last], "choices": choices, "answer": (count - 1) * last, "hint": hint}


def _member(stream: _Stream, kinds: dict[str, list[str]]) -> Row:
    """One option belongs to the kind that is asked for, the others to another kind."""
    asked, other = stream.sample(list(kinds), 2)
    right = stream.pick(kinds[asked])
    choices = stream.sample([right, *stream.sample(kinds[other], stream.pick([1, 2, 3]))], 4)
    article = "an" if asked[0] in "aeiou" else "a"
    return {
        "question": f"Which is {article} {asked}?",
        "choices": choices,
        "answer": choices.index(right),
        "hint": "",
    }


def _prices(stream: _Stream) -> Row:
    items = stream.sample(GOODS, len(GOODS))
    hint = "The goods are listed from the cheapest to the dearest."
    return _ordered(stream, items, hint, ("Which costs the least?", "Which costs the most?"))


TOPIC_ROWS: dict[str, Callable[[_Stream], Row]] = {
    "biology": lambda stream: _member(stream, KINDS),
    "physics": lambda stream: _ordered(
        stream,
        WEIGHTS,
        "The things are listed from the lightest to the heaviest.",
        ("Which is the lightest?", "Which is the heaviest?"),
    ),
    "chemistry": lambda stream: _member(stream, SUBSTANCES),
    "economics": _prices,
    "earth-science": lambda stream: _ordered(
        stream,
        AGES,
        "The events are listed from the earliest to the latest.",
        ("Which was the earliest?", "Which was the latest?"),
    ),
}


def _content(row: Row) -> str:
    """What makes two rows the same: the order of options does not."""
    return repr(sorted((key, sorted(value) if key == "choices" else value) for key, value in row.items()))


SPLIT_SHARES = {"train": (0, 1), "validation": (2,), "test": (3,)}
"""A row whose content's hash is k modulo 4 may be in the split that lists k."""


def _rows(make: Callable[[_Stream], Row], split: str, seed: int) -> Iterator[Row]:
    """Different rows of one split; ends when hardly any new one comes."""
    stream = _Stream(seed)
    seen: set[str] = set()
    misses = 0
    while misses < 10_000:
        row = make(stream)
        content = _content({key: value for key, value in row.items() if key not in ("label", "answer")})
        if content in seen or zlib.crc32(content.encode()) % 4 not in SPLIT_SHARES[split]:
            misses += 1
            continue
        seen.add(content)
        misses = 0
        yield row


def builtin_rows(task: str, split: str, count: int) -> list[Row]:
    """`count` generated rows with the hub's column names. Raises `MolaError` for other tasks, or where the generator
    has fewer different rows."""
    seed = ("train", "validation", "test").index(split)
    if task == "cola":
        make = _sentence
    elif task == "scienceqa":
        makers = list(TOPIC_ROWS.values())
        make = lambda stream: stream.pick(makers)(stream)  # noqa: E731
    elif task.removeprefix("scienceqa-") in TOPIC_ROWS:
        make = TOPIC_ROWS[task.removeprefix("scienceqa-")]
    else:
        raise MolaError(
            f"task {task}: no built-in rows; use cola or scienceqa, or set data.source to hub or directory"
        )
    rows = [row for row, _ in zip(_rows(make, split, seed), range(count), strict=False)]
    if len(rows) < count:
        field = "train_documents" if split == "train" else "test_documents"
        raise MolaError(
            f"data.{field}: {count}, but {task} has only {len(rows)} built-in rows of {split}; lower it"
        )
    return [row | {"idx": index} for index, row in enumerate(rows)] if task == "cola" else rows
