"""The memory allocator of this process."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_NEVER, _LARGEST = -1, 2**31 - 1
_SETTINGS = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TOP_PAD_",
    "GLIBC_TUNABLES",
)


def keep_freed_memory() -> bool:
    """Keep the memory of freed tensors for the next ones, as PyTorch does on GPUs, instead of returning it at once.

    glibc maps every large block anew and hands it back when it is freed, so the kernel clears the pages of every
    activation of every minibatch: half the time of an IMPALA network's update on the CPU (benchmarks/RESULTS.md). After
    this the process holds on to the most memory that it ever used. The command line does so; in a program of your own,
    call it once, before training.

    Returns:
        Whether it was done: not where the C library is another than glibc, and not where the environment has settings
        of its own (``MALLOC_TRIM_THRESHOLD_`` and the like).
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl has none; macOS and Windows have other allocators
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST))
