"""A pack on a bare machine: unpacked in a fresh folder, run without this checkout, and its cells taken as finished at home."""

import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest
import yaml
from task_rows import ROWS, write_split

from mola_core.cli import main
from mola_core.errors import MolaError
from mola_core.files import remove
from mola_core.locations import STUDIES
from mola_core.runs.layout import Layout
from mola_core.runs.pack import all_keys
from mola_core.runs.start import bring_back, install, unpack
from mola_core.runs.state import cell_state
from mola_core.runs.wheels import _fitting, fetch_wheels, needed_packages
from mola_core.study.loading import load_study

METHODS = ["base", "mola-2468"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """(study file, results at home, pack), the study's rows in a folder that is gone afterwards."""
    home = tmp_path_factory.mktemp("home")
    content = yaml.safe_load((STUDIES / "smoke.yaml").read_text())
    content |= {"name": "carried", "tasks": ["cola"], "methods": METHODS, "seeds": [0]}
    content["training"] |= {"epochs": 1}
    study = home / "carried.yaml"
    study.write_text(yaml.safe_dump(content))
    pack(home, study)
    return study, home / "results", home / "pack"


def pack(home: Path, study: Path, *options: str) -> None:
    arguments = ["--study", str(study), "--results", str(home / "results"), "--out", str(home / "pack")]
    assert main(["pack", *arguments, "--no-wheels", "--part-mb", "0.1", *options]) == 0


UNKNOWN = """\
import importlib.metadata as metadata

known = metadata.distribution

def distribution(name):
    if name.replace("_", "-").lower() == "mola-core":
        raise metadata.PackageNotFoundError(name)
    return known(name)

metadata.distribution = distribution
"""
"""`sitecustomize`: nothing of this project is installed where a pack runs, its code is a folder."""


def start(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`start.py` in a process that finds no checkout and no installed `mola-core`: the package must be the pack's."""
    (folder.parent / "sitecustomize.py").write_text(UNKNOWN)
    environment = os.environ | {"PYTHONPATH": str(folder.parent)}
    return subprocess.run(
        [sys.executable, str(folder / "start.py"), *options],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )


def copied(pack: Path, folder: Path) -> Path:
    subprocess.run(["cp", "-r", str(pack), str(folder / "there")], check=True)
    return folder / "there"


def test_parts_keep_to_their_size_and_hold_code_model_and_rows(packed):
    pack = packed[2]
    sizes = [part.stat().st_size for part in sorted((pack / "parts").iterdir())]
    assert len(sizes) > 1 and max(sizes) <= 100_000 and set(sizes[:-1]) == {100_000}
    assert list(json.loads((pack / "pack.json").read_text())["parts"]) == sorted(
        part.name for part in (pack / "parts").iterdir()
    )


def test_a_pack_runs_and_what_it_made_is_finished_at_home(packed, tmp_path):
    study, results, pack = packed
    stated = json.loads((results / load_study(study).name / "looks.jsonl").read_text())
    assert stated["kind"] == "stated", "here, before any cell there"
    there = copied(pack, tmp_path)
    late = start(there, "--time-budget", "0")
    assert late.returncode == 143, late.stderr
    assert "unpacking" in late.stderr and "out of time" in late.stderr
    done = start(there, "--time-budget", "500", "--parallel", "1")
    assert done.returncode == 0, done.stderr
    assert "unpacking" not in done.stderr, "the same command goes on from what is there"
    assert done.stderr.count("complete ") == len(METHODS)
    layout = Layout(load_study(study), results, file=study)
    assert [cell_state(layout, cell) for cell in layout.study.cells()] == ["open", "open"]
    with tarfile.open(there / "results.tar.gz") as archive:
        names = archive.getnames()
        archive.extractall(results, filter="data")
    assert not any("adapter" in name for name in names), "small files only"
    assert [cell_state(layout, cell) for cell in layout.study.cells()] == ["complete", "complete"]
    fresh = copied(pack, tmp_path / "..")
    (there / "results.tar.gz").rename(fresh / "results.tar.gz")
    again = start(fresh, "--time-budget", "500")
    assert again.returncode == 0, again.stderr
    assert "complete " not in again.stderr, "on a fresh machine what the archive holds is not repeated"


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_part_that_is_not_whole_is_named(packed, tmp_path, damage):
    there = copied(packed[2], tmp_path)
    part = there / "parts" / "0001"
    if damage == "missing":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1] + b"!")
    done = start(there)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"start: part {part} is {damage}")
    assert not (there / "work" / "code").exists()


def test_a_pack_takes_the_place_of_an_earlier_one(packed, tmp_path):
    """Else its wheels would be installed together with the earlier ones, and modules that it has no more be imported."""
    content, work = json.loads((packed[2] / "pack.json").read_text()), tmp_path / "work"
    for name in ("code/mola_core/old.py", "wheels/old.whl", "site-packages/old.py", "results/kept"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("")
    (work / "installed.json").write_text('["old.whl"]')
    (work / "unpacked.json").write_text('{"cut sho')
    unpack(packed[2], content, work)
    assert {path.name for path in work.rglob("*")} >= {"kept", "records.py"}
    assert not list(work.rglob("*old*")) and not (work / "installed.json").exists()
    (work / "code" / "mine").write_text("")
    unpack(packed[2], content, work)
    assert (work / "code" / "mine").exists(), "it was unpacked already"


def test_a_damaged_archive_of_results_is_one_line(packed, tmp_path):
    there = copied(packed[2], tmp_path)
    (there / "results.tar.gz").write_bytes(b"\x1f\x8b cut short")
    done = start(there, "--time-budget", "0")
    assert done.returncode == 1
    assert "results.tar.gz is damaged" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_loses_no_finished_cell(tmp_path):
    """Half a manifest would count as there the next time, and the archive be written anew without its cell."""
    home, there, archive = tmp_path / "home", tmp_path / "there", tmp_path / "results.tar.gz"
    for name, content in (("a/manifest.json", "whole"), ("b/manifest.json", "x" * 5000)):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text(content)
    with tarfile.open(archive, "w:gz") as packed:
        for name in ("a", "b"):
            packed.add(home / name / "manifest.json", f"{name}/manifest.json")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        with pytest.raises(SystemExit, match="File too large.*start again") as error:
            bring_back(archive, there)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "damaged" not in str(error.value) and "\n" not in str(error.value)
    assert [file for file in there.rglob("*") if file.is_file()] == [there / "a" / "manifest.json"]
    bring_back(archive, there)
    assert (there / "b" / "manifest.json").read_text() == "x" * 5000
    content = archive.read_bytes()
    archive.write_bytes(content[:60] + b"!!!!" + content[64:])
    with pytest.raises(SystemExit, match="is damaged .*copy it anew") as error:
        bring_back(archive, tmp_path / "fresh")
    assert "\n" not in str(error.value)


def test_rows_and_model_of_folders_travel(packed, tmp_path, monkeypatch):
    """Their places are this machine's; the keys are read off the files."""
    for split in ("train", "validation"):
        rows = [
            dict(ROWS["cola"], sentence=f"Sentence {i} of {split}.", label=i % 2, idx=i) for i in range(16)
        ]
        write_split(tmp_path / "rows", "glue/cola", split, rows)
    given = Layout(load_study(packed[0]), packed[1]).model
    subprocess.run(["cp", "-r", str(given), str(tmp_path / "base")], check=True)
    content = yaml.safe_load(packed[0].read_text())
    content["model"] = {"name": "mine", "source": "directory", "path": str(tmp_path / "base")}
    content["data"] = {"source": "directory", "root": str(tmp_path / "rows")}
    content["tuning"] = {"learning_rates": [1e-2, 2e-2, 4e-2], "steps": 2}
    study = tmp_path / "mine.yaml"
    study.write_text(yaml.safe_dump(content))
    pack(tmp_path, study)
    layout = Layout(load_study(study), tmp_path / "results", file=study)
    before = all_keys(layout)
    assert sum(key.training is not None for key in before.values()) == 3, (
        "the three tries; their cell waits for them"
    )
    for folder in ("rows", "base", "results"):
        remove(tmp_path / folder)
    work = tmp_path / "work"
    work.mkdir()
    unpack(tmp_path / "pack", json.loads((tmp_path / "pack" / "pack.json").read_text()), work)
    monkeypatch.chdir(work)
    there = Layout(load_study("./mine.yaml"), Path("results"))
    assert all_keys(there) == before


def test_packages_are_those_of_training_and_evaluation():
    found = needed_packages([])
    assert {"torch", "transformers", "peft", "lm-eval", "pyarrow"} <= found.keys()
    assert not {"snakemake", "pytest", "mola-core"} & found.keys()
    assert "tabulate" in found, "of the harness for its tables only, but a dependency of lm-eval needs it too"
    without = needed_packages(["torch"])
    assert "torch" not in without and without.keys() < found.keys()
    with pytest.raises(MolaError, match="--without pytorch"):
        needed_packages(["pytorch"])


def test_packages_that_only_another_python_needs(monkeypatch):
    wanted = [
        "pyarrow>=20",
        "later-only>=2; python_version >= '3.99'",
        "older-only; python_version < '3.12'",
        "tool; extra == 'no'",
    ]
    real = importlib.metadata.distribution

    class Distribution:
        version, requires = "0+cpu", wanted

    monkeypatch.setattr(
        importlib.metadata,
        "distribution",
        lambda name: Distribution if name == "mola-core" else real(name),
    )
    there = needed_packages([], "3.99")
    assert there == {"later-only": "later-only>=2", "pyarrow": f"pyarrow=={real('pyarrow').version}"}
    assert needed_packages(["later-only"], "3.99").keys() == {"pyarrow"}
    real_version = real("pyarrow").version
    monkeypatch.setattr(real("pyarrow").__class__, "version", f"{real_version}+cpu")
    assert needed_packages(["pyarrow"], "3.99").keys() == {"later-only"}
    with pytest.raises(
        MolaError, match=r"package pyarrow: the build \+cpu .* --without pyarrow and install it there"
    ):
        needed_packages([], "3.99")
    if sys.version_info < (3, 12):
        with pytest.raises(MolaError, match="package older-only: is not installed"):
            needed_packages([])


@pytest.mark.parametrize("tag", ["py3-none-any", "cp311-cp311-linux_x86_64"])
def test_a_package_without_a_wheel_for_the_platform_is_made_here_if_it_fits(tmp_path, monkeypatch, tag):
    """With a stand-in for pip, which has a wheel of a, none of b."""
    calls = []

    def run(command, **more):
        verb = command[command.index("pip") + 1]
        folder = Path(command[command.index("--dest" if verb == "download" else "--wheel-dir") + 1])
        calls.append((verb, [word for word in command if "==" in word]))
        if verb == "download" and "b==2" in command:
            error = "ERROR: No matching distribution found for b==2\n"
            return subprocess.CompletedProcess(command, 1, "", error)
        (folder / ("a-1-cp312.whl" if verb == "download" else f"b-2-{tag}.whl")).touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("mola_core.runs.wheels.subprocess.run", run)
    fetch = partial(fetch_wheels, {"a": "a==1", "b": "b==2"}, tmp_path / "wheels", ["linux"], "3.12")
    if tag == "py3-none-any":
        fetch()
        assert sorted(file.name for file in (tmp_path / "wheels").iterdir()) == [
            "a-1-cp312.whl",
            f"b-2-{tag}.whl",
        ]
    else:
        with pytest.raises(MolaError, match="package b==2: has no wheel for linux 3.12; leave"):
            fetch()
    assert calls == [("download", ["a==1", "b==2"]), ("download", ["a==1"]), ("wheel", ["b==2"])]


def test_a_platform_takes_wheels_for_an_older_glibc():
    assert _fitting("manylinux_2_17_x86_64")[:2] == ["manylinux_2_17_x86_64", "manylinux_2_16_x86_64"]
    names = ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    assert _fitting("manylinux_2_28_x86_64")[-3:] == names
    assert _fitting("manylinux_2_12_aarch64")[-2:] == ["manylinux2010_aarch64", "manylinux1_aarch64"]
    assert _fitting("macosx_11_0_arm64") == ["macosx_11_0_arm64"]


def test_pip_s_reason_is_told(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "noise\nERROR: no network\n")
    monkeypatch.setattr("mola_core.runs.wheels.subprocess.run", lambda *command, **more: failed)
    with pytest.raises(MolaError, match="wheels: ERROR: no network; what is installed there"):
        fetch_wheels({"a": "a==1"}, tmp_path / "wheels", [], None)


def test_another_python_than_packed_for_is_told_before_anything_is_unpacked(packed, tmp_path):
    there = copied(packed[2], tmp_path)
    content = json.loads((there / "pack.json").read_text())
    assert content["python"] is None, "no wheels: any Python will do"
    (there / "pack.json").write_text(json.dumps(content | {"python": "3.2"}))
    done = start(there)
    assert done.returncode == 1
    assert done.stderr.startswith("start: the pack is for Python 3.2, this is 3.")
    assert not (there / "work").exists()


def test_a_folder_that_is_there_is_left_alone(packed, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    arguments = ["pack", "--study", str(packed[0]), "--results", str(packed[1]), "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "is there already; name a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_wheels_are_installed_where_dill_takes_them_for_packages(tmp_path):
    """It pickles what a user's own modules hold, and datasets then fails on pyarrow's; it goes by the folder's name."""
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "carried_one-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_one.py", "")
        wheel.writestr(
            "carried_one-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried-one\nVersion: 1.0\n"
        )
        wheel.writestr(
            "carried_one-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("carried_one-1.0.dist-info/RECORD", "")
    site = install(tmp_path)
    code = "import carried_one; from dill._dill import _is_builtin_module; print(_is_builtin_module(carried_one))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "True", done.stderr
