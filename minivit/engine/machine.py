"""The engine's settings of the machine: cores, an allocator that keeps its pages, and single-threaded BLAS."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import threadpoolctl


def cores() -> int:
    """Return how many threads this process should compute with.

    This is the least of three numbers: the processors of its affinity; the CPU quota of its cgroups, rounded up, which
    limits a container; and the environment variable OMP_NUM_THREADS.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([processors, *_quotas(), *_openmp_threads()]))


_CGROUPS = PurePosixPath("/sys/fs/cgroup")


def _quotas() -> Iterator[int]:
    """Yield the CPU quotas of this process's cgroups and of those around them, in processors, rounded up.

    In a container the path of the cgroup may be that of the host, and only the root of the mount exists.
    """
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "none", "")
        if not controllers:  # version 2
            files, mounts = ["cpu.max"], {"."}
        elif "cpu" in controllers.split(","):  # version 1
            files, mounts = ["cpu.cfs_quota_us", "cpu.cfs_period_us"], {controllers, "cpu"}
        else:
            continue
        own = PurePosixPath(path.strip().strip("/"))
        for mount in mounts:
            for group in (own, *own.parents):
                words = " ".join(_read(_CGROUPS / mount / group / name) for name in files).split()
                # A quota of "max", or -1 in version 1, is no limit.
                if len(words) == 2 and all(word.isdecimal() and int(word) > 0 for word in words):
                    yield -(-int(words[0]) // int(words[1]))


def _read(path: str | PurePosixPath) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def _openmp_threads() -> Iterator[int]:
    """Yield OMP_NUM_THREADS, of a list for nested levels the first number, or nothing if it is not set or invalid."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isascii() and first.isdecimal() and int(first) > 0:
        yield int(first)


class _MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2; the last field is the number of free bytes at the end of the heap."""

    _fields_ = [(f"other{i}", ctypes.c_size_t) for i in range(9)] + [("keepcost", ctypes.c_size_t)]


class _Allocator:
    """The memory allocator of glibc, which is told to keep freed pages while an engine computes.

    New pages cost page faults. Outside of the engine's calls, the caller's large arrays go back to the system when they
    are deleted, and the engine's pages stay for its next call, until `give_back`. With another allocator nothing
    happens.
    """

    _MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
    _LARGEST = 1 << 30
    _LARGEST_BEFORE_2_35 = 1 << 25  # in older versions of glibc
    _OWN_MAPPING = 1 << 22  # bytes from which an array of the caller goes back on its own
    _SLACK = 1 << 26  # bytes that the caller may free before freed memory goes back

    def __init__(self, library: Any) -> None:
        self._mallopt, self._trim = library.mallopt, library.malloc_trim
        self._mallinfo = getattr(library, "mallinfo2", None)  # from glibc 2.33 on
        if self._mallinfo is not None:
            self._mallinfo.restype = _MallInfo
        self.depth = 0  # of the calls of `keep` without a `leave`
        self._kept = False

    def keep(self) -> None:
        """Keep all freed pages."""
        self.depth += 1
        self._kept = True
        if not self._mallopt(self._MMAP_THRESHOLD, self._LARGEST):
            self._mallopt(self._MMAP_THRESHOLD, self._LARGEST_BEFORE_2_35)
        self._mallopt(self._TRIM_THRESHOLD, self._LARGEST)

    def leave(self) -> None:
        """Keep the pages that are free now, and give back those that are freed from now on."""
        self.depth -= 1
        if self.depth > 0:
            return
        free = self._LARGEST if self._mallinfo is None else self._mallinfo().keepcost
        self._mallopt(self._MMAP_THRESHOLD, self._OWN_MAPPING)
        self._mallopt(self._TRIM_THRESHOLD, min(self._LARGEST, free + self._SLACK))

    def give_back(self) -> None:
        """Give all free pages back, unless an engine computes now or none did since the last time."""
        if self._kept and self.depth == 0:
            self._kept = False
            self._mallopt(self._TRIM_THRESHOLD, 2 * self._OWN_MAPPING)
            self._trim(0)


@functools.cache
def _allocator() -> _Allocator | None:
    """Return the allocator, or None if it is not that of glibc."""
    try:
        return _Allocator(ctypes.CDLL(None)) if sys.platform.startswith("linux") else None
    except (OSError, AttributeError):
        return None


@contextmanager
def keeping_freed_pages() -> Iterator[None]:
    """Keep freed memory for the next array in the block, and what is free at its end for the next block."""
    allocator = _allocator()
    if allocator is None:
        yield
        return
    allocator.keep()
    try:
        yield
    finally:
        allocator.leave()


def give_freed_pages_back() -> None:
    """Give the memory that `keeping_freed_pages` kept back to the system."""
    allocator = _allocator()
    if allocator is not None:
        allocator.give_back()


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


def _after_fork() -> None:
    """Make a new lock in a forked process, since a thread that exists only in the parent may hold the old one."""
    global _computing
    _computing = threading.RLock()
    if (allocator := _allocator()) is not None:
        allocator.depth = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


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
