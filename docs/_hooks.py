"""MkDocs hooks: reference pages from the study's schema and the command line, figures of the published results."""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from mola_core import cli
from mola_core.study.study import Study

ROOT = Path(__file__).parent.parent
FIGURES = {
    "figures/verdict-forest.svg": ROOT / "results/published/smollm2-cpu-2/figures/verdict-forest.svg",
    "figures/reanalysis.svg": ROOT / "results/published/reanalysis.svg",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the published figures, which are kept once in the repository."""
    for name, source in FIGURES.items():
        files.append(File.generated(config, name, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put the generated parts in the place of their marks."""
    for mark, made in (("{{ study }}", study_reference), ("{{ verbs }}", verb_reference)):
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    return markdown


def study_reference() -> str:
    """A table for each section of a study file: setting, type, default, description."""
    schema = Study.model_json_schema()
    labels = _labels(schema)
    parts = ["## The study {#study}", _table(schema, labels)]
    for name in labels:
        section = schema["$defs"][name]
        parts += [
            f"## {labels[name]} {{#{name}}}",
            _cell(section.get("description", "")),
            _table(section, labels),
        ]
    return "\n\n".join(parts)


def _labels(schema: dict[str, Any]) -> dict[str, str]:
    """How each section is called where it stands: its key in the study or in the section that holds it, and its source
    where there are several."""
    found: dict[str, str] = {}

    def walk(properties: dict[str, Any], above: str) -> None:
        for key, setting in properties.items():
            for name in dict.fromkeys(_references(setting)):
                if name in found:
                    continue
                section = schema["$defs"][name].get("properties", {})
                source = section.get("source", {}).get("const")
                place = f"{above}{key}"
                found[name] = f"{place}, source: {source}" if source else place
                walk(section, f"{place}: ")

    walk(schema["properties"], "")
    return found


def _references(setting: Any) -> list[str]:
    if isinstance(setting, list):
        return [name for each in setting for name in _references(each)]
    if not isinstance(setting, dict):
        return []
    own = [setting["$ref"].rsplit("/", 1)[-1]] if "$ref" in setting else []
    return own + [
        name for key, value in setting.items() if key != "discriminator" for name in _references(value)
    ]


def _table(section: dict[str, Any], labels: dict[str, str]) -> str:
    rows = ["| setting | | type | default |", "| --- | --- | --- | --- |"]
    required = section.get("required", [])
    for name, setting in section["properties"].items():
        default = "required" if name in required else _value(setting.get("default"))
        rows.append(
            f"| `{name}` | {_cell(setting.get('description', ''))} | {_type(setting, labels)} | {default} |"
        )
    return "\n".join(rows)


def _value(value: Any) -> str:
    if value is None or isinstance(value, dict):
        return "none" if value is None else "see there"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`".replace("|", "\\|")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _type(setting: dict[str, Any], labels: dict[str, str]) -> str:
    if "$ref" in setting:
        name = setting["$ref"].rsplit("/", 1)[-1]
        return f"[{labels.get(name, name)}](#{name})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in setting:
            kinds = [_type(each, labels) for each in setting[key] if each.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "const" in setting:
        return f"`{setting['const']}`"
    if "enum" in setting:
        return ", ".join(f"`{value}`" for value in setting["enum"])
    if setting.get("type") == "array":
        inner = setting.get("items") or {}
        return f"list of {_type(inner, labels)}" if inner else "list"
    limits = [
        f"{sign} {setting[key]}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in setting
    ]
    kind = str(setting.get("type", "any"))
    return f"{kind} ({', '.join(limits)})" if limits else kind


def verb_reference() -> str:
    """Each verb's docstring and options, in the groups of `mola --help`."""
    parts = []
    for title, verbs in cli._parser().groups().items():
        parts.append(f"## {title[0].upper()}{title[1:]}")
        for name, parser in verbs.items():
            parts += [f"### {name}", *_verb(parser)]
    return "\n\n".join(parts)


def _verb(parser: argparse.ArgumentParser) -> list[str]:
    words, _, example = inspect.cleandoc(parser.description or "").partition("Example: ")
    rows = ["| option | |", "| --- | --- |"]
    for action in parser._actions:
        if action.dest == "help":
            continue
        named = (
            ", ".join(f"`{option}`" for option in action.option_strings)
            or f"`{action.metavar or action.dest}`"
        )
        told = (action.help or "") % {"default": action.default, "prog": "mola"}
        choices = f"; one of {', '.join(map(str, action.choices))}" if action.choices else ""
        rows.append(f"| {named} | {_cell(told)}{choices} |")
    table = ["\n".join(rows)] if len(rows) > 2 else []
    return [words.strip(), f"```sh\n{example.strip()}\n```", *table]
