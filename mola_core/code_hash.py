"""Hash of the code behind a result: the definitions of this package that its entry points can reach, found by name.

From each entry point the names that its body uses are followed through the imports to their definitions, and from there
on. A method counts where its class is reached and some reached code uses its name as an attribute; all methods count
where the class has a base from elsewhere, whose framework calls them. What is handed over as data (a study, its
settings) is not reached: its values are hashed by whoever builds the key. Names are followed, not types: the hash may
cover too much, but a definition that can change the result is missed only where it is reached by a computed name.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

PACKAGE = Path(__file__).parent
NAME = PACKAGE.name
BYTES = tuple(f"{NAME}.{module}" for module in ("code_hash", "errors", "files", "records"))
"""What moves, compares and seals bytes of which the hashes are known; it computes no number."""
Place = tuple[str, str]
"""A module and the name of one of its definitions ("" for all of them); a method is `Class.name`."""


def code_hash(*entries: str, without: tuple[str, ...] = ()) -> str:
    """sha256 of the code that `entries` reach, each `package.module:function`, `...:Class.method` or a whole `package.module`.

    Modules in `without`, those below them, and single definitions `module:name` are not entered: parts that only some
    results depend on. Nor are `BYTES`.

    Comments, docstrings, annotations and layout do not count, nor does the Python version. Raises ValueError for an
    entry point that does not exist.
    """
    return _hashed(tuple(sorted(set(entries))), tuple(sorted({*without, *BYTES})))


@functools.cache
def _hashed(entries: tuple[str, ...], without: tuple[str, ...]) -> str:
    content = {
        f"{module}:{name}": _fingerprint(module, name) for module, name in sorted(reached(entries, without))
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@functools.cache
def reached(entries: tuple[str, ...], without: tuple[str, ...] = ()) -> frozenset[Place]:
    """The definitions that the entry points reach outside `without`, themselves among them."""
    found: set[Place] = set()
    attributes: set[str] = set()
    classes: set[Place] = set()
    waiting: list[Place] = []
    for entry in entries:
        module, _, name = entry.partition(":")
        if module not in modules() or (name and name not in _module(module).definitions):
            raise ValueError(f"{entry}: no such code")
        waiting += [(module, name)] if name else _everything(module)
    while waiting:
        place = waiting.pop()
        inside = any(f"{place[0]}.".startswith(f"{module}.") for module in without)
        if place in found or inside or ":".join(place) in without:
            continue
        found.add(place)
        module, name = place
        definition = _module(module).definitions[name]
        if isinstance(definition, ast.ClassDef):
            classes.add(place)
        names, used = _uses(module, name)
        new = used - attributes
        attributes |= new
        for use in names:
            waiting += _resolved(module, use)
        # A class that came now, with all attributes known; or all classes, with the attributes that came now.
        for owner in classes:
            wanted = attributes if owner == place else new
            waiting += [(owner[0], method) for method in _methods(owner, wanted)]
    return frozenset(found)


@functools.cache
def modules() -> dict[str, Path]:
    """The package's modules by their names."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = [NAME, *file.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


class _Module:
    """A module's definitions and what its names stand for."""

    def __init__(self, name: str, file: Path) -> None:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        self.name = name
        self.package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        self.definitions: dict[str, ast.AST] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._import(node)
        for statement in _unwrapped(tree.body):
            self._define(statement)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        """Imports in functions count as the module's: they are there for speed only."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                self.imports[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0],
                    "",
                )
            return
        source = node.module or ""
        if node.level:
            above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
            source = ".".join([*above, *([source] if source else [])])
        for alias in node.names:
            self.imports[alias.asname or alias.name] = (source, alias.name)

    def _define(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            self.definitions[statement.name] = statement
        elif isinstance(statement, ast.ClassDef):
            self.definitions[statement.name] = statement
            for part in statement.body:
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                    self.definitions[f"{statement.name}.{part.name}"] = part
        elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        self.definitions[name.id] = statement
        elif not isinstance(statement, ast.Import | ast.ImportFrom) and not _is_text(statement):
            # Runs on import, whatever is used: it counts with everything else of the module.
            before = sum(name.startswith("statement ") for name in self.definitions)
            self.definitions[f"statement {before}"] = statement
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    self.definitions.setdefault(node.id, statement)
                elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                    self.definitions.setdefault(node.name, statement)


def _unwrapped(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those inside `if TYPE_CHECKING` and the like left out."""
    for statement in body:
        if not (isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)):
            yield statement


@functools.cache
def _module(name: str) -> _Module:
    return _Module(name, modules()[name])


def _everything(module: str) -> list[Place]:
    """All definitions of a module, or of all modules of a package."""
    inside = [name for name in modules() if name == module or name.startswith(f"{module}.")]
    return [(name, definition) for name in inside for definition in _module(name).definitions]


@functools.cache
def _uses(module: str, name: str) -> tuple[frozenset[str], frozenset[str]]:
    """Names that a definition uses (dotted where it begins with an imported module), and attributes."""
    definition = _module(module).definitions[name]
    names, attributes = set(), set()
    for node in _parts(definition):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            attributes.add(node.attr)
            with_module = _dotted(node)
            if with_module:
                names.add(with_module)
    # What runs when the module is imported runs before any of its definitions is used.
    names |= {other for other in _module(module).definitions if other.startswith("statement ")}
    if "." in name:
        names.add(name.partition(".")[0])
    return frozenset(names), frozenset(attributes)


def _dotted(node: ast.Attribute) -> str | None:
    parts: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    return ".".join([inner.id, *reversed(parts)]) if isinstance(inner, ast.Name) else None


def _parts(definition: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a definition that run: no annotations; of a class all but the bodies of its methods."""
    waiting = [definition]
    while waiting:
        node = waiting.pop()
        yield node
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST):
                    continue
                method = isinstance(definition, ast.ClassDef) and node is definition and field == "body"
                if method and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                    waiting += child.decorator_list
                else:
                    waiting.append(child)


def _resolved(module: str, use: str) -> list[Place]:
    """Where a name that `module` uses is defined; nothing for names of other packages and local ones."""
    found = _module(module)
    first, _, rest = use.partition(".")
    if first in found.definitions:
        return [(module, first)]
    if use in found.definitions:  # a statement
        return [(module, use)]
    if first not in found.imports:
        return []
    source, name = found.imports[first]
    return _imported(source, name, rest)


def _imported(source: str, name: str, rest: str) -> list[Place]:
    if name and f"{source}.{name}" in modules():
        source, name = f"{source}.{name}", ""
    while not name and rest:
        name, _, rest = rest.partition(".")
        if f"{source}.{name}" in modules():
            source, name = f"{source}.{name}", ""
    if source not in modules() or not name:
        return []
    if name in _module(source).definitions:
        return [(source, name)]
    return _resolved(source, name)  # handed on by a package's __init__


@functools.cache
def _foreign(owner: Place) -> bool:
    """Whether some base of a class is none of this package's."""
    definition = _module(owner[0]).definitions[owner[1]]
    assert isinstance(definition, ast.ClassDef)
    for base in definition.bases:
        while isinstance(base, ast.Subscript):
            base = base.value
        name = (
            base.id
            if isinstance(base, ast.Name)
            else _dotted(base)
            if isinstance(base, ast.Attribute)
            else None
        )
        places = _resolved(owner[0], name) if name else []
        if not places or any(_foreign(place) for place in places):
            return True
    return False


def _methods(owner: Place, wanted: Set[str]) -> list[str]:
    prefix = f"{owner[1]}."
    methods = [name for name in _module(owner[0]).definitions if name.startswith(prefix)]
    if _foreign(owner):
        return methods
    return [
        name
        for name in methods
        if name.removeprefix(prefix) in wanted or name.removeprefix(prefix).startswith("__")
    ]


@functools.cache
def _fingerprint(module: str, name: str) -> str:
    """sha256 of the meaning of a definition, by syntax alone and in words that no Python version changes."""
    return hashlib.sha256(_meaning(_module(module).definitions[name]).encode()).hexdigest()


def _meaning(node: object) -> str:
    if isinstance(node, list):
        kept = [entry for entry in node if not _is_text(entry)]
        return "[" + ",".join(_meaning(entry) for entry in kept) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for field, value in ast.iter_fields(node):
        # Annotations do not run; `kind`, `type_comment` and `type_params` differ between versions of Python.
        if field in ("annotation", "returns", "kind", "type_comment", "type_params", "ctx") or value in (
            None,
            [],
        ):
            continue
        if field == "body" and isinstance(node, ast.ClassDef):
            methods = (ast.FunctionDef, ast.AsyncFunctionDef)
            # Methods are definitions of their own; of fields the annotation is the meaning.
            value = [part for part in value if not isinstance(part, methods)]
            fields += [_meaning(part.annotation) for part in value if isinstance(part, ast.AnnAssign)]
        fields.append(f"{field}={_meaning(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _is_text(statement: object) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
