"""The folders: imports run one way, the adapter stands alone, and what is light imports no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mola_core"
FLOORS = [
    {"errors"},
    {"paths", "module_names"},
    {"files", "section", "code_hash", "distributed", "adapter", "locations"},
    {"records", "shapes"},
    {"methods"},
    {"study"},
    {"models"},
    {"tasks"},
    {"training"},
    {"evaluation"},
    {"runs"},
    {"analysis"},
    {"benchmark"},
    {"cli"},
]
"""Each folder or module imports from floors above it in this list only; those of one floor not from each other."""
ANALYSIS = [
    {"reference", "notices", "sample_likelihoods", "score_files", "verdict_fields"},
    {"scores"},
    {"score_writer"},
    {"lm_eval_samples", "looks", "statistics"},
    {"collect"},
    {"tables", "verify"},
    {"figures"},
    {"calibration", "paper", "experts"},
    {"pages"},
    {"notebook"},
]
LIGHT = [
    "study.loading",
    "methods.registry",
    "runs.key",
    "runs.state",
    "runs.plan",
    "runs.layout",
    "analysis.collect",
]


def imports(file: Path) -> set[str]:
    """Modules of this package that a file imports when it runs, those inside functions included."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return {name.removeprefix("mola_core.") for name in found if name.startswith("mola_core.")}


def climbs(root: Path, floors: list[set[str]], prefix: str = "") -> list[str]:
    """Imports that do not come from an earlier floor."""
    height = {room: number for number, rooms in enumerate(floors) for room in rooms}
    found = []
    for file in sorted(root.rglob("*.py")):
        room = file.relative_to(root).with_suffix("").parts[0]
        if room == "__init__":
            continue
        for name in sorted(imports(file)):
            if not name.startswith(prefix):
                continue
            other = name.removeprefix(prefix).split(".")[0]
            if other != room and height[other] >= height[room]:
                found.append(f"{file.relative_to(PACKAGE)} imports {name}")
    return found


def test_every_room_has_a_floor():
    rooms = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert rooms - {"__init__"} == set().union(*FLOORS)


def test_imports_run_one_way():
    assert climbs(PACKAGE, FLOORS) == []
    assert climbs(PACKAGE / "analysis", ANALYSIS, "analysis.") == []


def test_no_two_modules_import_each_other():
    modules = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
        for file in PACKAGE.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, file in modules.items():
        if name != "__init__":
            named = imports(file)
            graph[name] = {
                other
                for other in modules
                if any(found == other or found.startswith(f"{other}.") for found in named)
            } - {name}
    # A package's __init__ is no circle: it hands on what its modules define.
    packages = {name for name, file in modules.items() if file.name == "__init__.py"}
    circles = [
        f"{one} <-> {other}"
        for one, others in graph.items()
        for other in others
        if one in graph.get(other, ()) and one < other and not {one, other} & packages
    ]
    assert circles == []


def test_the_adapter_imports_nothing_of_the_rest():
    outside = {name for file in (PACKAGE / "adapter").rglob("*.py") for name in imports(file)}
    assert {name for name in outside if not name.startswith("adapter")} == set()


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_no_torch(module):
    code = f"import sys, mola_core.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
