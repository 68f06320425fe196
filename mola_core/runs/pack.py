"""A pack: all that a study needs on a machine without a network, in parts of a size limit, started there by one command.

`parts/` beside `start.py` is one gzipped tar archive, cut: `code/` (this package), `wheels/` (its dependencies, at the
versions of this environment), the study's file, and `results/` and `rows/` as far as they are prepared here. The keys that
the study's cells have in it are compared with those that they have here: what comes back is taken as finished.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from mola_core.errors import MolaError
from mola_core.files import atomic_write, write_text
from mola_core.locations import PACKAGE
from mola_core.runs import start
from mola_core.runs.choice import TABLE, TUNING
from mola_core.runs.key import Keys, keys
from mola_core.runs.layout import Layout
from mola_core.runs.prepare import prepare_all
from mola_core.study.loading import load_study
from mola_core.study.sections import DirectoryData, DirectoryModel
from mola_core.tasks import include, included

ROOT = "mola-core[harness]"
NOT_NEEDED = ("snakemake", "matplotlib", "shtab", "pip", "tabulate", "markdown-it-py")
"""Of what the harness itself asks for: what plans and what draws, neither of which is done there."""


def pack(
    layout: Layout,
    out: Path,
    part_megabytes: float,
    without: Collection[str] = (),
    platforms: Sequence[str] = (),
    python_version: str | None = None,
    wheels: bool = True,
) -> list[Path]:
    """Prepare what the study reads and write its pack into `out`, whole or not at all; returns the parts.

    Args:
        part_megabytes: Largest size of a part, in 10^6 bytes.
        without: Packages that are on that machine; what they alone need is left out too.
        platforms, python_version: Of that machine, as `pip download` takes them; this one's where not given.

    Raises:
        MolaError: `out` is there already, model, rows or a package cannot be had, or a cell would have another key there.
    """
    if out.exists():
        raise MolaError(f"--out {out}: is there already; name a new folder, or remove it")
    prepare_all(layout)
    with tempfile.TemporaryDirectory(dir=out.parent if out.parent.is_dir() else None) as folder:
        stage = Path(folder) / "stage"
        shutil.copytree(
            PACKAGE, stage / "code" / "mola_core", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
        study_name = _copy_inputs(layout, stage)
        task_files = _copy_task_files(layout, stage)
        _compare_keys(layout, stage, study_name, task_files)
        if wheels:
            packages = needed_packages(without, python_version)
            _fetch_wheels(packages, stage / "wheels", platforms, python_version)
        with atomic_write(out) as temporary:
            (temporary / start.PARTS).mkdir(parents=True)
            sums = _write_parts(stage, temporary / start.PARTS, int(part_megabytes * 1e6))
            python = python_version or f"{sys.version_info.major}.{sys.version_info.minor}"
            content: dict[str, object] = {"study": study_name, "name": layout.study.name, "parts": sums}
            content |= {"python": python if wheels else None}
            content |= {"include": start.TASK_FILES} if task_files else {}
            write_text(temporary / start.CONTENT, json.dumps(content, indent=2) + "\n")
            shutil.copyfile(start.__file__, temporary / "start.py")
    return sorted((out / start.PARTS).iterdir())


def _copy_inputs(layout: Layout, stage: Path) -> str:
    """Copy model, rows and examples, and write the study's file with the places that they have there; returns its name."""
    study = layout.study
    there = Layout(study, stage / "results")
    shutil.copytree(layout.model, there.model)  # of links, what they point to
    if layout.quality.is_file():
        shutil.copyfile(layout.quality, there.quality)
    for rows in study.rows():
        shutil.copytree(layout.data(rows), there.data(rows))
        shutil.copytree(layout.examples(rows), there.examples(rows))
    for name in (TUNING, TABLE):  # learning rates that were chosen here already
        if (layout.folder / name).is_file():
            shutil.copyfile(layout.folder / name, there.folder / name)
    content = study.model_dump(mode="json", exclude_none=True)
    if isinstance(study.data, DirectoryData):
        root = Path(study.data.root).expanduser()
        for file in _files_of_rows(layout, root):
            target = stage / "rows" / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        content["data"] |= {"root": "rows"}
    if isinstance(study.model, DirectoryModel):
        # Its identity is read off the files, wherever they are.
        content["model"] |= {"path": str(there.model.relative_to(stage))}
    name = layout.file.name if layout.file else f"{study.name}.yaml"
    write_text(stage / name, json.dumps(content, indent=2) + "\n")  # JSON is YAML
    return name


def _files_of_rows(layout: Layout, root: Path) -> Iterator[Path]:
    """The files below `root` from which the study's rows were made."""
    from mola_core.study.study import INSTRUCTION
    from mola_core.tasks import dataset_of

    for rows in layout.study.rows():
        folder = root / ("openorca" if rows == INSTRUCTION else dataset_of(rows))
        yield from sorted(folder.glob("*.parquet"))


def _copy_task_files(layout: Layout, stage: Path) -> Path | None:
    """The folder with the study's own task files (`--include`) and what these need; None where it has none."""
    tasks = included()
    files = tasks.travelling(layout.study.rows()) if tasks else []
    for file in files:
        assert tasks
        target = stage / start.TASK_FILES / file.relative_to(tasks.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return stage / start.TASK_FILES if files else None


def _compare_keys(layout: Layout, stage: Path, study_name: str, task_files: Path | None) -> None:
    here, expected = included(), all_keys(layout)
    include(task_files, here is not None and here.functions)
    try:
        with contextlib.chdir(stage):
            there = Layout(load_study(study_name), Path("results"))
            found = all_keys(there)
    finally:
        include(here)
    for name, key in expected.items():
        if found.get(name) != key:
            raise MolaError(f"cell {name}: has another key in the pack; report this with the study's file")


def all_keys(layout: Layout) -> dict[str, Keys]:
    """Of the study's cells and of its tries."""
    return {
        str(part.cell(cell).relative_to(layout.root)): keys(part, cell)
        for part in filter(None, (layout.tries, layout))
        for cell in part.study.all_cells()
    }


def needed_packages(without: Collection[str], python_version: str | None = None) -> dict[str, str]:
    """What `pip` is to fetch of everything that training and evaluation need, by name, dependencies included: the version
    that is installed here, or where only that `python_version` needs a package, what asks for it allows.

    Raises `MolaError` where `without` names what is not among them, or where one is not installed.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    there = {"python_version": python_version, "python_full_version": f"{python_version}.0"}
    target: dict[str, str] = {key: str(value) for key, value in there.items() if python_version}
    left_out = {canonicalize_name(name) for name in without}
    own = canonicalize_name(Requirement(ROOT).name)
    found: dict[str, str] = {}
    met: set[str] = set()
    waiting = [(Requirement(ROOT), True)]
    while waiting:
        requirement, needed_here = waiting.pop()
        name = canonicalize_name(requirement.name)
        met.add(name)
        if name in left_out:
            continue
        known = name in found
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if needed_here:
                raise MolaError(f"package {name}: is not installed; install {ROOT} whole") from None
            found[name] = f"{name}{requirement.specifier}"
            continue
        # A version's local part (2.13.0+cpu) names a build of this machine.
        version = distribution.version.split("+")[0] if python_version else distribution.version
        found[name] = f"{name}=={version}"
        for text in distribution.requires or ():
            wanted = Requirement(text)
            if name == own and canonicalize_name(wanted.name) in NOT_NEEDED:
                continue
            if known and not requirement.extras:
                continue
            extras = requirement.extras or {""}
            marker = wanted.marker
            if marker is None or any(marker.evaluate({"extra": extra} | target) for extra in extras):
                here = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)
                waiting.append((wanted, here))
    unknown = sorted({canonicalize_name(name) for name in without} - met)
    if unknown:
        raise MolaError(f"--without {unknown[0]}: is no package that training or evaluation needs")
    del found[own]  # travels as code
    return dict(sorted(found.items()))


def _fetch_wheels(
    packages: dict[str, str], folder: Path, platforms: Sequence[str], python_version: str | None
) -> None:
    """Wheels of `packages`; of those that have none for the platform, one that is made here and fits every platform."""
    folder.mkdir(parents=True)
    target = [part for platform in platforms for part in ("--platform", platform)]
    target += ["--python-version", python_version] if python_version else []
    wanted, without = list(packages.values()), []
    if not target:
        if missing := _pip("wheel", "--wheel-dir", folder, wanted):
            raise MolaError(f"package {missing}: pip finds none; leave it out with --without if it is there")
        return
    while missing := _pip("download", "--only-binary=:all:", *target, "--dest", folder, wanted):
        wanted.remove(missing)
        without.append(missing)
    for one in without:
        with tempfile.TemporaryDirectory() as made:
            if _pip("wheel", "--wheel-dir", made, [one]) or not list(Path(made).glob("*-none-any.whl")):
                raise MolaError(
                    f"package {one}: has no wheel for {' '.join(target)}; leave it out with --without if it is there"
                )
            shutil.copytree(made, folder, dirs_exist_ok=True)


def _pip(verb: str, *options: object) -> str | None:
    """Have pip do it to packages, the list that ends `options`, and nothing to what they need; returns the one of them that
    it found nothing fitting of. Raises `MolaError` where it fails otherwise."""
    *before, packages = options
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, *map(str, before), *cast(list[str], packages)], capture_output=True, text=True
    )
    if not done.returncode:
        return None
    missing = re.search(r"No matching distribution found for (\S+)", done.stderr)
    if missing and missing[1] in cast(list[str], packages):
        return missing[1]
    reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    raise MolaError(f"wheels: {reason}; what is installed there already can be left out with --without")


class _Parts(io.RawIOBase):
    """A file that is written as several, none larger than `size` bytes."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.sums: dict[str, str] = {}
        self._file: IO[bytes] | None = None
        self._hash = hashlib.sha256()
        self._left = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(cast(bytes, data)).cast("B")
        written = len(view)
        while view:
            if not self._left:
                self._end()
                self._file = (self.folder / f"{len(self.sums):04}").open("wb")
                self._hash, self._left = hashlib.sha256(), self.size
            assert self._file
            piece, view = view[: self._left], view[self._left :]
            self._file.write(piece)
            self._hash.update(piece)
            self._left -= len(piece)
        return written

    def _end(self) -> None:
        if self._file:
            self._file.close()
            self.sums[Path(self._file.name).name] = self._hash.hexdigest()
            self._file = None

    def close(self) -> None:
        self._end()
        super().close()


def _write_parts(stage: Path, folder: Path, size: int) -> dict[str, str]:
    """Sha256 of each part, by name, in order."""
    if size < 1:
        raise MolaError("--part-mb: must hold at least one byte")
    with (
        contextlib.closing(_Parts(folder, size)) as parts,
        gzip.GzipFile("", "wb", 1, cast(IO[bytes], parts), mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", bufsize=1 << 20) as archive,
    ):
        for path in sorted(stage.iterdir()):
            archive.add(path, path.name, filter=_anonymous)
    return parts.sums


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
