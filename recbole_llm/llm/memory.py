"""Memory of the process on the CPU."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from glibc's malloc.h
_KEPT = 2**30  # bytes


def keep_freed_memory() -> bool:
    """Let this process keep what tensors on the CPU free, for the tensors that come next.

    By default the GNU C library gives every large block back to the system, which hands it out again page by page: a
    forward and backward pass frees and asks for the same hundreds of blocks, and the page faults take as long as the
    arithmetic on what is in them. Results do not change; the process stays as large as it has been.

    Returns:
        Whether it does now; False where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT) and mallopt(_TRIM_THRESHOLD, _KEPT))
