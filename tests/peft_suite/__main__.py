"""PEFT's own tests on MoLA, offline: `python -m peft_suite [arguments of pytest]`, which `make peft-suite` calls.

The source distribution of the installed PEFT, which carries its tests, is fetched from the package index; no file of it is
changed. `plugin.py` puts MoLA in, `hub.py` makes the models.
"""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "peft-suite"
MODULES = (
    "custom_models",
    "decoder_models",
    "encoder_decoder_models",
    "feature_extraction_models",
    "initialization",
    "tuners_utils",
    "config",
    "low_level_api",
)
HELPER = "parameterized==0.9.0"
"""What the tests import and nothing else here needs."""


def fetch() -> Path:
    """The unpacked distribution. Raises CalledProcessError where the index cannot be reached."""
    name = f"peft-{version('peft')}"
    folder, packages = BUILD / name, BUILD / "packages"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if not packages.is_dir():
        subprocess.run([*pip, "install", "--no-deps", "--target", packages, HELPER], check=True)
    if not (folder / "tests" / "__init__.py").is_file():
        source = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", f"peft=={version('peft')}"]
        subprocess.run([*pip, "download", "--dest", BUILD, *source], check=True)
        with tarfile.open(BUILD / f"{name}.tar.gz") as archive:
            archive.extractall(BUILD, filter="data")
        (folder / "tests" / "__init__.py").touch()  # the distribution leaves it out
    return folder


def run(folder: Path, *arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run pytest on the unpacked distribution with MoLA in the place of LoRA."""
    places = [folder, BUILD / "packages", HERE.parent]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "HF_HOME": str(BUILD / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    options = ["-c", os.devnull, "--rootdir", ".", "-p", "peft_suite.plugin", "-p", "no:cacheprovider", "-q"]
    command = [sys.executable, "-m", "pytest", *options, "-W", "ignore", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=capture, text=True)


if __name__ == "__main__":
    place = fetch()
    given = sys.argv[1:]
    modules = [] if any(".py" in argument for argument in given) else MODULES
    sys.exit(run(place, *given, *(f"tests/test_{name}.py" for name in modules)).returncode)
