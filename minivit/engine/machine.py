"""The engine's settings of the machine: cores, single-threaded BLAS, and an allocator that keeps its pages."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import threadpoolctl

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
_LARGEST = 1 << 30
_LARGEST_BEFORE_2_35 = 1 << 25  # in older versions of glibc


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def keep_freed_pages() -> bool:
    """Tell glibc to keep freed memory, since new pages cost page faults; return whether it does. A no-op elsewhere."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, _LARGEST) or mallopt(_M_MMAP_THRESHOLD, _LARGEST_BEFORE_2_35)
    return bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST) and kept)


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    controller = threadpoolctl.ThreadpoolController().select(user_api="blas")
    if not controller.lib_controllers:
        warnings.warn(
            "the threads of this NumPy's BLAS cannot be limited, so the engine's workers may compete for the cores and "
            "results may depend on the number of processors; set the BLAS library's thread count to 1 before starting",
            RuntimeWarning,
            stacklevel=4,
        )
    return controller


_computing = threading.RLock()


def _new_lock() -> None:
    """Make a new lock in a forked process, since a thread that exists only in the parent may hold the old one."""
    global _computing
    _computing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def one_at_a_time() -> AbstractContextManager[Any]:
    """Return a context that one thread of the process can enter at a time; that thread may enter it again."""
    return _computing


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Run every matrix product in the block on the calling thread.

    One thread of the process can be in the block at a time, because BLAS has one thread count for the whole process.
    """
    with one_at_a_time(), _blas().limit(limits=1):
        yield
