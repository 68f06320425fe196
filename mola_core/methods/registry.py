"""Method names of a study file: which family each belongs to, and what it becomes on a model.

Every module in `families/` lists entries. `pissa-<name>` in a study file is a LoRA or MoLA that starts at the leading
singular directions of the base weights.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mola_core.errors import MolaError, did_you_mean, one_line
from mola_core.files import sha256_file
from mola_core.methods import families
from mola_core.methods.family import (
    IN_BASE,
    NEEDS_DATA,
    RANKS_BY_DATA,
    Family,
    LayerNumbers,
    LayerSizes,
    Method,
    Request,
    of_layers,
)
from mola_core.records import digest
from mola_core.shapes import experts_per_layer, parse_shape

if TYPE_CHECKING:
    from mola_core.methods.settings import AdapterSettings, MethodSettings

LISTED = ("mola", "lora-matched")
"""Methods without a shape in their name, which list their experts."""
GROUP = "mola_core.methods"
"""Entry points of installed packages, each a tuple of `Family`: someone's own methods and allocations, without a fork."""


@functools.cache
def all_families() -> dict[str, Family]:
    """Every family by its kind: those here and those of installed packages (`GROUP`). Raises ValueError where two have the
    same."""
    found: dict[str, Family] = {}
    for module in sorted(each.name for each in pkgutil.iter_modules(families.__path__)):
        for family in importlib.import_module(f"{families.__name__}.{module}").FAMILIES:
            if family.kind in found:
                raise ValueError(f"methods/families/{module}.py: there is a family {family.kind!r} already")
            found[family.kind] = family
    for family in _outside():
        if family.kind in found:
            raise ValueError(f"entry points {GROUP}: there is a family {family.kind!r} already")
        found[family.kind] = family
    return found


@functools.cache
def _outside() -> dict[Family, str]:
    """Families of other packages, each with the sha256 of the package's code. A package that cannot be imported is told
    and left out: its methods are then unknown."""
    found = {}
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            module = importlib.import_module(entry.module)
            families_of = entry.load()
            code = _code_of(module)
            if not all(isinstance(family, Family) for family in families_of):
                raise TypeError("it holds something else than Family")
            found.update(dict.fromkeys(families_of, code))
        except Exception as error:  # another's code raises what it likes
            print(f"entry point {GROUP}, {entry.name}: left out ({one_line(error)})", file=sys.stderr)
    return found


def _code_of(module: ModuleType) -> str:
    """sha256 of a module's file, or of every Python file of the package that it is part of."""
    package = sys.modules[module.__name__.split(".")[0]]
    folders = [Path(folder) for folder in getattr(package, "__path__", [])]
    if not folders:
        return sha256_file(str(module.__file__))
    files = {file.relative_to(folder): file for folder in folders for file in folder.rglob("*.py")}
    return digest({path.as_posix(): sha256_file(file) for path, file in files.items()})


def outside_code(family: Family) -> str | None:
    """sha256 of the code of a family of another package, which a cell's key holds; None for a family of this one."""
    return _outside().get(family)


def name_pattern() -> str:
    """A regular expression of every whole method name, for the JSON schema: without Python's named groups."""
    forms = [form for family in all_families().values() for form in family.forms]
    return f"(?:{'|'.join(re.sub(r'[(][?]P<[a-z]+>', '(?:', form) for form in forms)})"


def parse_method(settings: MethodSettings) -> Method:
    """Take a method's name apart. Raises ValueError (pydantic adds the field) for one that does not exist."""
    name = settings.method
    matches = _matches(name)
    if not matches:
        if re.match(r"(mola|lora-matched)-", name):
            try:
                parse_shape(name.removeprefix("mola-").removeprefix("lora-matched-"))
            except MolaError as error:
                raise ValueError(str(error)) from None
        usages = [family.usage for family in all_families().values()]
        plain = re.sub("[_ ]", "-", name.casefold())
        meant = f", did you mean {plain!r}?" if _matches(plain) else did_you_mean(name, usages, 0.6)
        raise ValueError(f"unknown method {name!r}{meant}; use {', '.join(usages[:-1])} or {usages[-1]}")
    if len(matches) > 1:
        raise ValueError(f"method {name!r}: is a name of {' and of '.join(kind for kind, _ in matches)}")
    if name in LISTED and settings.experts is None:
        raise ValueError(
            f"method {name!r}: needs `experts`, one count for each layer; or name a shape: {name}-2468"
        )
    if name not in LISTED and settings.experts is not None:
        raise ValueError(f"method {name!r}: `experts` goes with methods {' and '.join(LISTED)}")
    if (name == "peft") != (settings.config is not None):
        raise ValueError(
            f"method {name!r}: `config` goes with method `peft`, PEFT's own config of the method"
        )
    kind, match = matches[0]
    groups: dict[str, Any] = match.groupdict()
    for number in {"rank", "budget", "draw"} & groups.keys():
        groups[number] = groups[number] and int(groups[number])
    return Method(kind, **groups)


def needs_layer_quality(method: MethodSettings) -> bool:
    """Whether the scores of the base model's layers decide where its experts are (AlphaLoRA)."""
    return parse_method(method).allocation == "alphalora"


def is_method(name: str) -> bool:
    """Whether a text has the form of some method's name."""
    return bool(_matches(name))


def _matches(name: str) -> list[tuple[str, re.Match[str]]]:
    return [
        (family.kind, match)
        for family in all_families().values()
        for form in family.forms
        if (match := re.fullmatch(form, name))
    ]


def family_of(settings: MethodSettings) -> Family:
    """The entry of a method's family."""
    return all_families()[parse_method(settings).kind]


def layer_experts(settings: MethodSettings, depth: int) -> LayerNumbers | None:
    """Experts of each layer (rank of a matched LoRA divided by the expert rank), None for methods without.

    An allocation's experts are not in its name but in the cell's record: None too. Raises ValueError where listed
    experts do not fit the depth.
    """
    method, given = parse_method(settings), settings.experts
    what = f"method {settings.label!r}: experts"
    if isinstance(given, dict):
        return {name: of_layers(counts, depth, f"{what} of {name}") for name, counts in given.items()}
    if given is not None:
        return of_layers(given, depth, what)
    return experts_per_layer(method.shape, depth) if method.shape else None


def adapter_config(
    settings: MethodSettings, adapter: AdapterSettings, depth: int, experts: list[int] | None = None
) -> dict[str, Any] | None:
    """The PEFT config of a method on a model `depth` layers deep, as JSON; None where no adapter is trained.

    `experts` are those of each layer where data have chosen them. MoLA adds the weighted mean of its chosen experts, each
    at the scale alpha / rank, a matched LoRA the plain mean of as many; plain LoRA adds all of its ranks at the scale
    alpha / rank, so its first steps are larger. Raises ValueError where the settings do not fit together.
    """
    return family_of(settings).config(_request(settings, adapter, depth, experts))


def adapter_config_without_model(settings: MethodSettings, adapter: AdapterSettings) -> dict[str, Any]:
    """The config but for what depends on the model's depth; empty where no adapter is trained. `adapter` is the study's."""
    return adapter_config(settings, settings.adapter(adapter), settings.listed_layers() or 4) or {}


def closed_form(settings: MethodSettings, adapter: AdapterSettings, sizes: LayerSizes) -> int | None:
    """Trainable parameters of a method from the sizes of the matrices that it adapts; None where they must be counted."""
    return family_of(settings).parameters(_request(settings, adapter, len(sizes), None), sizes)


def _request(
    settings: MethodSettings, adapter: AdapterSettings, depth: int, experts: list[int] | None
) -> Request:
    known = experts or layer_experts(settings, depth)
    return Request(parse_method(settings), settings, adapter, depth, known)


def takes_start_from_base(config: dict[str, Any] | None) -> bool:
    """Whether a config's LoRA starts from the base weights, which are then changed while it is trained (PiSSA, OLoRA,
    LoRA-GA)."""
    start = str((config or {}).get("init_lora_weights")).lower()
    return (config or {}).get("peft_type") == "LORA" and start.startswith(IN_BASE)


def saves_its_prompts_only(config: Mapping[str, Any]) -> bool:
    """Whether an encoder makes the config's virtual tokens, of which PEFT saves these and not the encoder (P-tuning, a prefix
    with projection)."""
    return config.get("peft_type") == "P_TUNING" or bool(config.get("prefix_projection"))


def is_resumable(config: Mapping[str, Any]) -> bool:
    """Whether checkpoints hold all that a training goes on from: not AdaLoRA's importances, MonteCLoRA's noise, nor the
    encoder of virtual tokens."""
    anew = config.get("peft_type") == "ADALORA" or config.get("monteclora_config") is not None
    return not anew and not saves_its_prompts_only(config)


def needs_data(settings: MethodSettings, adapter: AdapterSettings) -> bool:
    """Whether the method's start looks at batches of the training first (EVA, LoRA-GA)."""
    config = adapter_config_without_model(settings, adapter)
    return config.get("peft_type") == "LORA" and config.get("init_lora_weights") in NEEDS_DATA


def size_hangs_on_data(settings: MethodSettings, adapter: AdapterSettings) -> bool:
    """Whether a cell's data decide how many parameters the method trains: where they choose ranks (EVA), or experts of
    layers that are not alike."""
    config = adapter_config_without_model(settings, adapter)
    ranks = config.get("peft_type") == "LORA" and config.get("init_lora_weights") in RANKS_BY_DATA
    return ranks or parse_method(settings).allocation is not None
