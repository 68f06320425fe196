"""One cell on several cards: torchrun starts a process for each, and the first one decides and writes for all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

Value = TypeVar("Value")


def world_size() -> int:
    """Number of processes that train this cell together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes the cell's files."""
    return os.environ.get("RANK", "0") == "0"


def join() -> None:
    """Make the processes known to each other, each with a card of its own; nothing where there is only one."""
    if world_size() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def from_main(compute: Callable[[], Value]) -> Value:
    """What `compute` gives in the main process, in every process: clocks and files decide the same for all."""
    if world_size() == 1:
        return compute()
    import torch.distributed

    box: list[Any] = [compute() if is_main() else None]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        import torch.distributed

        torch.distributed.barrier()


def become_torchrun(processes: int, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by torchrun with `processes` processes that do `mola <arguments>`.

    Replaced, not a child: a signal reaches torchrun, which passes it on, and locks on cards stay with it.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [*command, "-m", "mola_core.cli", *arguments])
