"""Read a YAML file that a stranger may have written: YAML 1.2 values, no merges or repeated keys, bounded in size."""

import re
import stat
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 262_144
"""Of a file."""
MAX_VALUES = 100_000
"""Values that a file may hold, aliases written out."""

_CORE = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
"""Plain scalars of YAML 1.2's core schema (section 10.3.2) by their first characters. PyYAML reads YAML 1.1, in which
1e-3 is text, 010 is eight, 1:30 is ninety and a date is no text."""


class BoundedLoader(yaml.SafeLoader):
    """YAML of bounded size. A key stands once; `<<`, which can stand for more than memory holds, is not read."""

    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes += 1
        if self.nodes > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values; write fewer")
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == "<<" and key.style is None:
                raise yaml.constructor.ConstructorError(
                    None, None, "<< is not read; write it out", key.start_mark
                )

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is there twice", node.start_mark)
        return mapping


class _Loader(BoundedLoader):
    """YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 16 if "0x" in text else 8 if "0o" in text else 10)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        return float(re.sub(r"\.(?=inf|nan)", "", str(self.construct_scalar(node)).lower()))


for _kind, (_form, _first) in _CORE.items():
    for _character in _first:
        _Loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_form})\Z"), [_character.replace("\0", "")]
        )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def read_text(path: Path) -> str:
    """The text of a small regular file. Raises ValueError for a folder, a device or a pipe, and above `MAX_BYTES`."""
    state = path.stat()
    if stat.S_ISDIR(state.st_mode):
        raise ValueError("is a folder; name a file in it")
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("is a pipe or a device; name a file")
    if state.st_size > MAX_BYTES:
        raise ValueError(f"has {state.st_size} bytes, more than {MAX_BYTES}; write less")
    return path.read_text(encoding="utf-8-sig")


def read_yaml(path: Path, loader: type[BoundedLoader] = _Loader) -> Any:
    """The content of a YAML file. Raises OSError, ValueError, OverflowError, RecursionError or `yaml.YAMLError`."""
    content = yaml.load(read_text(path), loader)
    _check_size(content)
    return content


def _check_size(content: Any) -> None:
    """Raise ValueError where a few lines of aliases stand for more than anyone would write, or for themselves."""
    waiting, seen = [content], 0
    while waiting:
        entry = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values; write fewer, or fewer aliases (&, *)")
        if isinstance(entry, dict):
            waiting += [*entry.keys(), *entry.values()]
        elif isinstance(entry, list | tuple | set):
            waiting += entry
