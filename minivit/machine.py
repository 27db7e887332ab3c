"""What the step engine asks of the machine: cores, single-threaded BLAS, and an allocator that keeps its pages."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import threadpoolctl

from minivit.arrays import Array

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
_LARGEST = 1 << 30
_LARGEST_OF_OLD = 1 << 25  # what glibc allowed before 2.35


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def keep_freed_pages() -> bool:
    """Tell glibc to keep freed memory, since fresh pages cost faults; return whether it agreed. Elsewhere: nothing."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, _LARGEST) or mallopt(_M_MMAP_THRESHOLD, _LARGEST_OF_OLD)
    return bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST) and kept)


def forget_pages(x: Array) -> None:
    """Let this process lose what `x` holds and so its memory, but for the ends of it; other than on Linux, do nothing.

    For a forked process: of what the other one writes to, it would keep every page as it was.
    """
    if not sys.platform.startswith("linux"):
        return
    begin = -(-x.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (x.ctypes.data + x.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    controller = threadpoolctl.ThreadpoolController().select(user_api="blas")
    if not controller.lib_controllers:
        warnings.warn(
            "the threads of this NumPy's BLAS cannot be limited, so the engine's workers may crowd each other and "
            "results may depend on the number of processors; set the BLAS library's thread count to 1 before starting",
            RuntimeWarning,
            stacklevel=4,
        )
    return controller


_limit_lock = threading.Lock()
_limited = 0  # blocks that last
_limiter: Any = None


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Let every matrix product run on the thread that calls it, while the block lasts, or one in another thread."""
    global _limited, _limiter
    with _limit_lock:
        if _limited == 0:
            _limiter = _blas().limit(limits=1)
        _limited += 1
    try:
        yield
    finally:
        with _limit_lock:
            _limited -= 1
            if _limited == 0:
                _limiter.restore_original_limits()
