"""A pack: all that a study needs on a machine without a network, in parts of a size limit, started there by one command.

`parts/` beside `start.py` is one gzipped tar archive, cut: `code/` (this package), `wheels/` (its dependencies, at the
versions of this environment), the study's file, and `results/` and `rows/` as far as they are prepared here. The keys that
the study's cells have in it are compared with those that they have here: what comes back is taken as finished.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import shutil
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
from mola_core.runs.wheels import fetch_wheels, needed_packages
from mola_core.study.loading import load_study
from mola_core.study.sections import DirectoryData, DirectoryModel
from mola_core.tasks import include, included


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
            fetch_wheels(packages, stage / "wheels", platforms, python_version)
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
    from mola_core.study.sections import INSTRUCTION
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
