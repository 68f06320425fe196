"""One card for each cell on a machine with several: nothing else assigns them where no cluster does."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

DECIDED = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")
"""Where one of these is set, someone else has chosen the card."""


def cards() -> list[str]:
    """UUIDs of this machine's NVIDIA cards, without importing torch, which would fix the choice."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return listed.stdout.split() if listed.returncode == 0 else []


@contextlib.contextmanager
def gpu_slot(
    cells_per_gpu: int, names: Sequence[str] | None = None, folder: Path | None = None
) -> Iterator[str]:
    """Set CUDA_VISIBLE_DEVICES to a card on which fewer than `cells_per_gpu` cells run; wait until there is one.

    Yields the card, "" where there is none or someone else has chosen. `names` are the cards (by default this
    machine's), `folder` is where the locks are: one file a slot, given back by the kernel however the process ends.
    Call it before anything initialises CUDA.
    """
    if names is None:
        names = [] if any(os.environ.get(name) for name in DECIDED) else cards()
    if not names:
        yield ""
        return
    folder = folder or Path(tempfile.gettempdir()) / f"mola-gpu-slots-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as stack:
        card = _take(stack, cells_per_gpu, names, folder)
        os.environ["CUDA_VISIBLE_DEVICES"] = card
        try:
            yield card
        finally:
            del os.environ["CUDA_VISIBLE_DEVICES"]


def _take(stack: contextlib.ExitStack, cells_per_gpu: int, names: Sequence[str], folder: Path) -> str:
    waiting = False
    while True:
        # Every card's first slot before any card's second.
        for slot in range(cells_per_gpu):
            for card in names:
                handle = open(folder / f"{card}-{slot}.lock", "a")  # noqa: SIM115 - kept as long as the slot
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    handle.close()
                    continue
                stack.enter_context(handle)
                return card
        if not waiting:
            print(
                f"waiting for one of {len(names)} cards, {cells_per_gpu} cells each",
                file=sys.stderr,
                flush=True,
            )
            waiting = True
        time.sleep(1)
