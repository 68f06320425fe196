"""Cards for each cell on a machine with several: nothing else assigns them where no cluster does."""

import contextlib
import fcntl
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from mola_core.errors import MolaError

DECIDED = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")
"""Where one of these is set, someone else has chosen the card."""


def cards() -> list[str]:
    """UUIDs of this machine's NVIDIA cards, without importing torch, which would fix the choice."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return listed.stdout.split() if listed.returncode == 0 else []


def check_cards(count: int) -> None:
    """Raise `MolaError` where `count` cards are to train a cell of this machine together and it has fewer.

    Where someone else chooses the cards, or they are not NVIDIA's, nothing is known. One card need not be there: a cell
    is then trained on the CPU.
    """
    if count < 2 or any(os.environ.get(name) for name in DECIDED) or Path("/dev/kfd").exists():
        return
    have = len(cards())
    if have < count:
        raise MolaError(f"compute.gpus: {count} cards for a cell, but this machine has {have}; lower it")


@contextlib.contextmanager
def gpu_slot(
    cells_per_gpu: int, count: int = 1, names: Sequence[str] | None = None, folder: Path | None = None
) -> Iterator[str]:
    """Set CUDA_VISIBLE_DEVICES to `count` cards on which fewer than `cells_per_gpu` cells run; wait until there are.

    Yields the cards, "" where there are none or someone else has chosen. `names` are the cards (by default this
    machine's), `folder` is where the locks are: one file a slot, given back by the kernel however the process ends,
    kept by a program that takes its place. Call it before anything initialises CUDA. Raises `MolaError` where the
    machine has fewer cards.
    """
    if names is None:
        # An empty CUDA_VISIBLE_DEVICES is a choice too: no card.
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES") is not None or any(map(os.environ.get, DECIDED))
        names = [] if chosen else cards()
    if not names:
        yield ""
        return
    if len(names) < count:
        raise MolaError(
            f"compute.gpus: {count} cards for a cell, but this machine has {len(names)}; lower it"
        )
    folder = folder or Path(tempfile.gettempdir()) / f"mola-gpu-slots-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as stack:
        taken = _take(stack, cells_per_gpu, count, names, folder)
        os.environ["CUDA_VISIBLE_DEVICES"] = taken
        try:
            yield taken
        finally:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)


def _take(
    stack: contextlib.ExitStack, cells_per_gpu: int, count: int, names: Sequence[str], folder: Path
) -> str:
    waiting = False
    while True:
        held: dict[str, IO[str]] = {}
        # Every card's first slot before any card's second.
        for slot in range(cells_per_gpu):
            for card in names:
                if len(held) == count or card in held:
                    continue
                handle: IO[str] = open(folder / f"{card}-{slot}.lock", "a")  # noqa: SIM115 - kept as long as the slot
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    handle.close()
                    continue
                held[card] = handle
        if len(held) == count:
            for handle in held.values():
                os.set_inheritable(handle.fileno(), True)
                stack.enter_context(handle)
            return ",".join(held)
        # All or none: two cells that each hold a part of what they need would wait for ever.
        for handle in held.values():
            handle.close()
        if not waiting:
            print(
                f"waiting for {count} of {len(names)} cards, {cells_per_gpu} cells each",
                file=sys.stderr,
                flush=True,
            )
            waiting = True
        time.sleep(random.uniform(0.5, 1.5))
