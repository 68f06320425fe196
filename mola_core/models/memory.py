"""Memory: how much was used, whether it did not suffice, and giving back what a failed step had taken."""

import gc
import resource

import torch


def free_memory() -> None:
    """Give back what a step that ran out of memory had taken."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, the GPU's or the machine's, did not suffice: torch has no common type for both."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def peak_memory() -> int:
    """Bytes: allocated on the GPU where there is one, resident in this process otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
