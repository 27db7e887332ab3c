"""What minivit claims of a step on a GPU: no waiting, no memory from the driver, and how far the host is ahead."""

from __future__ import annotations

import importlib
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import minivit
from benchmarks.gpu_parts.clock import DeviceClock
from benchmarks.gpu_parts.errors import answered
from benchmarks.gpu_parts.memory import watched_memory
from benchmarks.gpu_parts.step import Step, sample
from minivit.kernels.cuda import runtime

_STEPS = 5
_PACKAGE = Path(minivit.__file__).parent


def check_claims(step: Step, cupy: Any) -> dict[str, Any]:
    """Return the claims' figures for a step of minivit on CuPy, as imported; what fails has its error in its place."""
    for _ in range(_STEPS):
        step.run()
    step.wait()
    found: dict[str, Any] = {}
    for name, measure in (
        ("launches", lambda: dict(counted_launches(step.run))),
        ("memory", lambda: memory_traffic(step, cupy)),
        ("reads", lambda: reads_of_device(step.run)),
        ("times", lambda: times(step, DeviceClock(cupy))),
    ):
        found[name] = answered(measure)
        step.wait()
    return found


def counted_launches(run: Callable[[], object]) -> Counter[str]:
    """Return how often a call launches each of minivit's kernels, and asks cuBLAS for a product."""
    counts: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    kernels = _changed(runtime._functions, lambda key, kernel: counted(key[-1], kernel))
    products = _changed(runtime._blas, lambda _, blas: blas._replace(bindings=_Counted(blas.bindings, counted)))
    with kernels, products:
        run()
    return counts


class _Counted:
    """cuBLAS whose products are counted."""

    def __init__(self, bindings: Any, counted: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        self._bindings = bindings
        self.gemmStridedBatchedEx = counted("products", bindings.gemmStridedBatchedEx)
        self.gemmEx = counted("products", bindings.gemmEx)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bindings, name)


@contextmanager
def _changed(known: dict[Any, Any], change: Callable[[Any, Any], Any]) -> Iterator[None]:
    """Change the values of a dict, which are put back at the end."""
    before = dict(known)
    known.update({key: change(key, value) for key, value in before.items()})
    try:
        yield
    finally:
        known.update(before)


def memory_traffic(step: Step, cupy: Any) -> dict[str, Any]:
    """Return the allocations of a few steps, and how many of them went to the driver, of which none should."""
    pool = cupy.get_default_memory_pool()
    before = pool.total_bytes()
    with watched_memory(cupy) as traffic:
        for _ in range(_STEPS):
            step.run()
    step.wait()
    return {
        "steps": _STEPS,
        "allocations": traffic.allocations,
        "driver_allocations": traffic.driver_allocations,
        "pool_growth_bytes": pool.total_bytes() - before,
        "peak_used_bytes": traffic.peak,
    }


def reads_of_device(run: Callable[[], object]) -> dict[str, Any]:
    """Return whether a call reads from the device, as CuPy notices it, and where."""
    cupyx: Any = importlib.import_module("cupyx")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot notice all
        with cupyx.allow_synchronize(False):
            try:
                run()
            except cupyx.DeviceSynchronized as error:
                return {"found": True, "where": _innermost(error)}
    return {"found": False, "where": ""}


def _innermost(error: BaseException) -> str:
    """Return the line of minivit that an error came out of, the innermost one."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.is_relative_to(_PACKAGE):
            place = f"{file.relative_to(_PACKAGE.parent)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def times(step: Step, clock: DeviceClock) -> dict[str, Any]:
    """Return the seconds that the host needs to ask for a step, those of the device for it, and those of both together.

    Where the host had asked for the whole step before the device began with it (`ahead`), nothing in the step waits for
    the device. A step of more launches than the queue holds, about a thousand, waits for a place in it.
    """
    behind = [clock.time(step.run) for _ in range(_STEPS)]
    host = statistics.median(timing.host for timing in behind)
    together = statistics.median(sample(step, 10) for _ in range(3))
    return {
        "host_seconds": host,
        "device_seconds": statistics.median(timing.seconds for timing in behind),
        "ahead": all(timing.ahead for timing in behind),
        "seconds": together,
        "bound_by_launches": host > 0.9 * together,
    }
