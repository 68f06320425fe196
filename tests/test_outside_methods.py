"""Methods and allocations of another package: found by an entry point, trained, compared, and its code is in the cell's key."""

import re
import sys
from pathlib import Path

import pytest
from smoke_study import smoke

from mola_core.errors import MolaError
from mola_core.files import read_json
from mola_core.methods import registry
from mola_core.methods.family import Family
from mola_core.runs.key import training_parts

MODULE = '''
"""A method of one's own: experts rise by one from half of the depth on."""

from mola_core.methods.families.mola import FAMILIES as MOLA

import dataclasses


def experts(request):
    return [request.adapter.top_k + (layer >= request.depth // 2) for layer in range(request.depth)]


def config(request):
    return MOLA[0].config(dataclasses.replace(request, experts=experts(request)))


def parameters(request, sizes):
    return MOLA[0].parameters(dataclasses.replace(request, experts=experts(request)), sizes)


FAMILIES = (
    dataclasses.replace(MOLA[0], kind="stepped", forms=("stepped",), usage="stepped", config=config, parameters=parameters),
)
'''
DOCUMENTED = (Path(__file__).parent.parent / "docs" / "howto" / "extend.md").read_text()
ALLOCATION = re.search(r"```python\n(# weight_norms.*?)```", DOCUMENTED, re.DOTALL)[1]
"""The documentation's example."""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package's files as pip would leave them, each time anew; `named` is its entry point."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    names = set()

    def installed(named: str, **files: str) -> None:
        info = site / "others-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\ntheirs = {named}\n")
        for file, text in files.items():
            path = site / f"{file.replace('__in__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        names.add(named.split(":")[0].split(".")[0])
        forget()

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] in names]:
            del sys.modules[name]
        registry.all_families.cache_clear()
        registry._outside.cache_clear()

    yield installed
    monkeypatch.undo()
    forget()


@pytest.fixture
def package(install):
    """Installs a package with one family of that code."""

    def installed(code: str = MODULE) -> None:
        install("stepped_experts:FAMILIES", stepped_experts=code)

    installed()
    return installed


def test_another_packages_method_is_trained_and_keyed_by_its_code(package, bench):
    runner = bench(tasks=["cola"], methods=["base", "stepped"], seeds=[0])
    cell = runner.study.cell("cola", "stepped", 0)
    parts = training_parts(runner.layout, cell)
    assert parts["adapter"]["num_experts"] == [2, 2, 3, 3]
    runner.run(cell)
    assert (runner.layout.cell(cell) / "manifest.json").is_file()
    package(MODULE + "\n# changed\n")
    assert training_parts(runner.layout, cell)["method code"] != parts["method code"]


def test_another_packages_allocation_is_compared_without_a_fork(install, bench):
    """The example of the documentation, each layer weighed by its place, from the base model to a trained cell."""
    weighed = ALLOCATION.replace(
        "apportion(norms,", "apportion([norm * place for place, norm in enumerate(norms, 1)],"
    )
    files = {"weight_norms__in____init__": "", "weight_norms__in__families": weighed}
    install("weight_norms.families:FAMILIES", **files)
    runner = bench(tasks=["cola"], methods=["base", "mola-2468", "weight-norms-20"], seeds=[0])
    cell = runner.study.cell("cola", "weight-norms-20", 0)
    key = training_parts(runner.layout, cell)
    runner.run(cell)
    folder = runner.layout.cell(cell)
    training = read_json(folder / "manifest.json")["training"]
    assert training["experts"] == [2, 4, 6, 8], "random layers have the same norm"
    assert read_json(folder / "adapter" / "adapter_config.json")["num_experts"] == training["experts"]
    assert training["allocation"]["score"] == "weight-norms, another package's"
    # Any file of the package counts, and nothing else of the cell changes.
    install("weight_norms.families:FAMILIES", weight_norms__in__measure="SCALE = 2\n")
    changed = training_parts(runner.layout, cell)
    assert {part for part in key if key[part] != changed[part]} == {"method code"}


@pytest.mark.parametrize("experts", ["[5, 5, 5, 4]", "[1, 5, 7, 7]", "[10, 10]", "[2.5, 2.5, 7.5, 7.5]"])
def test_an_allocation_that_is_not_the_budget_is_one_line(install, bench, experts):
    code = "from mola_core.methods.families.mola import allocated\n"
    code += f"FAMILIES = (allocated('odd', '#000000', 'o', lambda given: {experts}),)\n"
    install("odd_experts:FAMILIES", odd_experts=code)
    runner = bench(tasks=["cola"], methods=["base", "odd-20"], seeds=[0])
    with pytest.raises(
        MolaError, match="method odd-20: its allocation gave .* 4 whole numbers of at least 2 that sum to 20"
    ):
        runner.train(runner.study.cell("cola", "odd-20", 0))


def test_own_methods_have_no_foreign_code():
    assert all(registry.outside_code(family) is None for family in registry.all_families().values())


@pytest.mark.parametrize("code", ["raise ImportError('gone')", "FAMILIES = ('mola',)", "OTHER = ()"])
def test_a_broken_package_is_told_and_left_out(package, code, capsys):
    package(code)
    with pytest.raises(ValueError, match="unknown method 'stepped'"):
        smoke(methods=["stepped"])
    assert "theirs: left out" in capsys.readouterr().err
    assert all(isinstance(family, Family) for family in registry.all_families().values())
