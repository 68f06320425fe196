"""Start a pack (`mola pack`) on a machine without a network: unpack, install, train and evaluate, within a time budget.

    python start.py [--time-budget SECONDS] [--parallel N] [any option of `mola run`]

Nothing but Python and its pip is needed. The same command goes on from what is there. What is finished is in results.tar.gz
beside this file, at home `tar -xzf results.tar.gz -C results` makes the workflow take it as finished; on a fresh machine put
the archive there again, and the cells in it are not repeated. The exit code is 143 where the time was up before the end.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NoReturn

PARTS, CONTENT = "parts", "pack.json"
ARCHIVE = "results.tar.gz"
TASK_FILES = "task-files"


def check_python(packed_for: "str | None") -> None:
    """Exit with one line where this Python can run neither the code nor the wheels of the pack."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is started by whatever is there
        sys.exit(f"start: this is Python {own}; start it with 3.11 or newer")
    if packed_for not in (None, own):
        sys.exit(
            f"start: the pack is for Python {packed_for}, this is {own}; use that, or pack with --python-version"
        )


def verify(folder: Path, sums: dict[str, str]) -> None:
    """Exit with one line unless every part is there and whole."""
    for name, expected in sums.items():
        file = folder / name
        if not file.is_file():
            sys.exit(f"start: part {file} is missing; copy it here")
        with file.open("rb") as source:
            if hashlib.file_digest(source, "sha256").hexdigest() != expected:
                sys.exit(f"start: part {file} is damaged; copy it anew")


class Joined(io.RawIOBase):
    """Files, one after another, as one to read."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = iter(files)
        self._file: BinaryIO = io.BytesIO()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while not (block := self._file.read(size)):
            following = next(self._files, None)
            if following is None:
                return b""
            self._file.close()
            self._file = following.open("rb")
        return block


def unpack(here: Path, content: dict, work: Path) -> None:
    """The archive in `work`, unless this one is there; a folder of another pack keeps its results."""
    mark = work / "unpacked.json"
    if marked(mark) == content:
        return
    mark.unlink(missing_ok=True)
    print("start: unpacking", file=sys.stderr, flush=True)
    verify(here / PARTS, content["parts"])
    joined = Joined(here / PARTS / name for name in content["parts"])
    # Of another pack: its wheels would be installed too, its modules imported.
    for name in ("code", "wheels", "site-packages", TASK_FILES):
        shutil.rmtree(work / name, ignore_errors=True)
    (work / "installed.json").unlink(missing_ok=True)
    with tarfile.open(fileobj=joined, mode="r|gz", bufsize=1 << 20) as archive:
        archive.extractall(work, filter="data")
    mark.write_text(json.dumps(content))


def marked(mark: Path) -> object:
    """What a mark says is done; None where there is none, or a full disk cut it short."""
    try:
        return json.loads(mark.read_text())
    except (OSError, ValueError):
        return None


def install(work: Path) -> Path:
    """The folder with the pack's wheels installed, for `PYTHONPATH`."""
    # By this name dill, and so datasets, knows installed packages from a user's own modules.
    site, wheels = work / "site-packages", sorted((work / "wheels").glob("*.whl"))
    mark = work / "installed.json"
    names = [wheel.name for wheel in wheels]
    if not wheels or marked(mark) == names:
        return site
    print(f"start: installing {len(wheels)} packages", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--disable-pip-version-check", "--upgrade", "--target", str(site), *map(str, wheels)]
    if subprocess.run(command).returncode:
        sys.exit("start: the wheels could not be installed; were they packed for this Python and platform?")
    mark.write_text(json.dumps(names))
    return site


def bring_back(archive: Path, results: Path) -> None:
    """What an earlier run finished, perhaps on another machine; what is there already stays as it is.

    A file is there whole or not at all: half a file would count as there the next time, its cell as open, and the archive
    would be written anew without it.
    """
    try:
        with tarfile.open(archive, "r:gz") as earlier:
            for member in earlier:
                if not (results / member.name).exists():
                    _extract(earlier, member, results)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # gzip's own errors have none
            sys.exit(
                f"start: {archive} cannot be brought back to {results} ({error}); mend that and start again, "
                "nothing of it is lost"
            )
        sys.exit(
            f"start: {archive} is damaged ({error}); copy it anew, or remove it to begin from what is here"
        )


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    if not member.isfile():
        archive.extract(member, folder, filter="data")
        return
    place = Path(member.name)
    part = place.with_name(f".{place.name}.part")
    try:
        archive.extract(member.replace(name=str(part), deep=False), folder, filter="data")
        os.replace(folder / part, folder / place)
    finally:
        (folder / part).unlink(missing_ok=True)


def main() -> NoReturn:
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--time-budget", type=float, help="seconds for all, unpacking and installing included"
    )
    given, others = parser.parse_known_args()
    here = Path(__file__).resolve().parent
    content, work = json.loads((here / CONTENT).read_text()), here / "work"
    check_python(content["python"])
    work.mkdir(exist_ok=True)
    unpack(here, content, work)
    site = install(work)
    archive = here / ARCHIVE
    if archive.is_file():
        bring_back(archive, work / "results")
    command = [sys.executable, "-m", "mola_core.cli", "run", "--study", f"./{content['study']}"]
    command += ["--include", content["include"]] if "include" in content else []
    command += ["--archive", str(archive), *others]
    if given.time_budget is not None:
        left = given.time_budget - (time.monotonic() - began)
        command += ["--time-budget", f"{max(0.0, left):.0f}"]
    paths = [str(work / "code"), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    os.chdir(work)
    os.execve(sys.executable, command, os.environ | offline)  # signals meet what trains


if __name__ == "__main__":
    main()
