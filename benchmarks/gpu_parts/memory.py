"""What is asked of CuPy's memory pool, and what the pool asks of the driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Traffic:
    """Requests while `watched_memory` looked on.

    Parameters
    ----------
    allocations, driver_allocations : int
        Arrays that were made, and blocks that the driver was asked for.
    used, peak : int
        Bytes in use now, and at most.
    """

    allocations: int = 0
    driver_allocations: int = 0
    used: int = 0
    peak: int = 0


@contextmanager
def watched_memory(cupy: Any) -> Iterator[Traffic]:
    """Yield the counts of what CuPy, as imported, does with memory in the block, on this thread."""
    traffic = Traffic(used=cupy.get_default_memory_pool().used_bytes())
    traffic.peak = traffic.used

    class Hook(cupy.cuda.MemoryHook):  # type: ignore[misc]  # of a class that is not there until CuPy is
        name = "watched_memory"

        def alloc_preprocess(self, **_: Any) -> None:
            traffic.driver_allocations += 1

        def malloc_postprocess(self, *, mem_size: int, **_: Any) -> None:
            traffic.allocations += 1
            traffic.used += mem_size
            traffic.peak = max(traffic.peak, traffic.used)

        def free_postprocess(self, *, mem_size: int, **_: Any) -> None:
            traffic.used -= mem_size

    with Hook():
        yield traffic
