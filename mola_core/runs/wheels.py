"""The wheels of a pack: what training and evaluation need, dependencies included, for this machine or for another."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import cast

from mola_core.errors import MolaError

ROOT = "mola-core[harness]"
NOT_NEEDED = ("snakemake", "matplotlib", "shtab", "pip", "tabulate", "markdown-it-py")
"""Of what the harness itself asks for: what plans and what draws, neither of which is done there."""


def needed_packages(without: Collection[str], python_version: str | None = None) -> dict[str, str]:
    """What `pip` is to fetch of everything that training and evaluation need, by name, dependencies included: the version
    that is installed here, or where only that `python_version` needs a package, what asks for it allows.

    Raises `MolaError` where `without` names what is not among them, where one is not installed, and for another Python where
    what is installed is a build of its own (2.13.0+cpu).
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
        version, _, build = distribution.version.partition("+")
        if build and python_version and name != own:
            # Of the build that an index has (of PyTorch: for CUDA) what it needs would be missing there.
            raise MolaError(
                f"package {name}: the build +{build} that is installed is for this machine; leave it out with --without {name}"
                " and install it there"
            )
        found[name] = f"{name}=={distribution.version}"
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


def fetch_wheels(
    packages: dict[str, str], folder: Path, platforms: Sequence[str], python_version: str | None
) -> None:
    """Wheels of `packages`; of those that have none for the platform, one that is made here and fits every platform."""
    folder.mkdir(parents=True)
    target = [part for platform in platforms for tag in _fitting(platform) for part in ("--platform", tag)]
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
                    f"package {one}: has no wheel for {' '.join([*platforms, python_version or ''])}; leave it out with --without if it is there"
                )
            shutil.copytree(made, folder, dirs_exist_ok=True)


def _fitting(platform: str) -> list[str]:
    """The platform's tags: pip takes one as it is written, though wheels for an older glibc (PEP 600) run there too."""
    found = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", platform)
    if not found:
        return [platform]
    newest, machine = int(found[1]), found[2]
    older = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 4, -1)]
    return tags + [f"{name}_{machine}" for minor, name in older.items() if minor <= newest]


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
