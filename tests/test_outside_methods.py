"""Methods of another package: found by an entry point, compared like any other, and its code is in the cell's key."""

import sys

import pytest
from smoke_study import smoke

from mola_core.methods import registry
from mola_core.methods.family import Family
from mola_core.runs.key import training_parts

MODULE = '''
"""An allocation of one's own: experts rise by one from half of the depth on."""

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


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package with one family, as pip would leave it; gives the file of its code."""
    site = tmp_path / "site"
    info = site / "stepped_experts-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stepped-experts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nstepped = stepped_experts:FAMILIES\n")
    (site / "stepped_experts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(site))

    def forget():
        sys.modules.pop("stepped_experts", None)
        registry.all_families.cache_clear()
        registry._outside.cache_clear()

    forget()
    yield site / "stepped_experts.py", forget
    monkeypatch.undo()
    forget()


def test_another_packages_method_is_trained_and_keyed_by_its_code(package, bench):
    file, forget = package
    runner = bench(tasks=["cola"], methods=["base", "stepped"], seeds=[0])
    cell = runner.study.cell("cola", "stepped", 0)
    parts = training_parts(runner.layout, cell)
    assert parts["adapter"]["num_experts"] == [2, 2, 3, 3]
    runner.run(cell)
    assert (runner.layout.cell(cell) / "manifest.json").is_file()
    file.write_text(MODULE + "\n# changed\n")
    forget()
    assert training_parts(runner.layout, cell)["method code"] != parts["method code"]


def test_own_methods_have_no_foreign_code():
    assert all(registry.outside_code(family) is None for family in registry.all_families().values())


@pytest.mark.parametrize("code", ["raise ImportError('gone')", "FAMILIES = ('mola',)", "OTHER = ()"])
def test_a_broken_package_is_told_and_left_out(package, code, capsys):
    file, forget = package
    file.write_text(code)
    forget()
    with pytest.raises(ValueError, match="unknown method 'stepped'"):
        smoke(methods=["stepped"])
    assert "stepped: left out" in capsys.readouterr().err
    assert all(isinstance(family, Family) for family in registry.all_families().values())
