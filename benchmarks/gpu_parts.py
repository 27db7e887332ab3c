"""A part of the GPU benchmark in a process of its own: python -m benchmarks.gpu_parts PART PRECISION

claims      launches, allocations and waiting in a training step, host and device apart
kernels     the bandwidth of each kernel of a step, beside a copy on the device that moves as many bytes
products    the rate of each matrix product of a step, beside a large square one
profile     what the device does in a step, as PyTorch's profiler sees it

Kernels and products are recorded in a real step and then repeated alone. Prints one line of JSON.
"""

import importlib
import statistics
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

import minivit
from benchmarks.systems import Step, versions
from benchmarks.systems import minivit as minivit_system
from benchmarks.worker import answered, own_output, time_sample
from benchmarks.workloads import GPU_WORKLOADS, make_task
from minivit import Key, ops
from minivit.arrays import backend, dtype_named
from minivit.arrays.precision import tf32
from minivit.engine.machine import cores
from minivit.kernels.cuda import runtime
from minivit.kernels.cuda.products import product

WORKLOADS = "gpu-train-tiny", "gpu-train-base"
SQUARE = 8192  # rows and columns of the large product
_STEPS = 5
_SMALL = 1 << 20  # bytes: kernels of fewer have no bandwidth to speak of
_BAR = 0.70  # of a copy's bandwidth: for a kernel
_MOVED_TWICE = {"adam": 7 / 4}  # parameters and moments are read and written, gradients are read
_FIRST_SPIN, _LONGEST_SPIN = 2e-3, 0.5  # seconds
_SAMPLES, _SAMPLE, _MOST_CALLS = 7, 4e-3, 30
_SPIN = """
extern "C" __global__ void spin(long long nanoseconds) {
  long long begun, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begun));
  do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  while (now - begun < nanoseconds);
}
"""


class Timing(NamedTuple):
    """The time of some calls on the device."""

    seconds: float  # of the device
    host: float  # seconds in which the host queued them
    ahead: bool  # whether the host had queued all of them before the device began


class DeviceClock:
    """Times the device alone by CUDA events, however long the host takes to queue the work.

    The device is first kept busy for as long as the host needs, so that all that is timed stands in its queue when it
    begins. The queue holds about a thousand launches.
    """

    def __init__(self, cupy: Any) -> None:
        self._events = [cupy.cuda.Event() for _ in range(2)]
        self._elapsed = cupy.cuda.get_elapsed_time
        self._spin = cupy.RawKernel(_SPIN, "spin")

    def time(self, run: Callable[[], object], count: int = 1) -> Timing:
        """Return the time of `count` calls together."""
        first, last = self._events
        spin = _FIRST_SPIN
        while True:
            last.synchronize()
            self._spin((1,), (1,), (round(spin * 1e9),))
            first.record()
            begun = time.perf_counter()
            for _ in range(count):
                run()
            last.record()
            host, ahead = time.perf_counter() - begun, not first.done
            last.synchronize()
            if ahead or spin >= _LONGEST_SPIN:
                return Timing(1e-3 * self._elapsed(first, last), host, ahead)
            spin = min(_LONGEST_SPIN, 2 * max(spin, host))

    def seconds(self, *runs: Callable[[], object]) -> list[float]:
        """Return the median seconds of a call of each of `runs`, from samples that take turns."""
        counts = []
        for run in runs:
            run()
            rough = self.time(run, 2).seconds / 2
            counts.append(max(1, min(_MOST_CALLS, round(_SAMPLE / rough))) if rough > 0 else _MOST_CALLS)
        both = list(zip(runs, counts, strict=True))
        samples = [[self.time(run, count).seconds / count for run, count in both] for _ in range(_SAMPLES)]
        return [statistics.median(own) for own in zip(*samples, strict=True)]


class Call(NamedTuple):
    """A call of a kernel or of cuBLAS in a step."""

    name: str
    size: str  # of the first array of a kernel, or of a product
    run: Callable[[], object]
    bytes: int = 0  # of a kernel's arrays, each as often as it is moved
    flops: int = 0  # of a product


def recorded(run: Callable[[], object]) -> list[Call]:
    """Return the calls in a run, of kernels that are compiled already and of cuBLAS.

    The arrays of the first kernel of each size are kept; of products only the addresses, which stay in CuPy's pool.
    """
    calls: list[Call] = []
    first: dict[tuple[str, int], Call] = {}

    def kernel(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(grid: Any, block: Any, args: tuple[Any, ...], **options: Any) -> None:
            arrays = [x for x in args if hasattr(x, "strides")]
            moved = round(_MOVED_TWICE.get(name, 1) * sum(x.nbytes for x in arrays))
            made = Call(name, str(arrays[0].shape), partial(function, grid, block, args, **options), moved)
            calls.append(first.setdefault((name, moved), made))
            function(grid, block, args, **options)

        return call

    def gemm(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> None:
            n, m, k = args[3:6]  # cuBLAS counts columns first
            count = args[20] if len(args) > 20 else 1  # the batch
            size = f"{count} x ({m}, {k}) @ ({k}, {n})"
            calls.append(Call("product", size, partial(function, *args), flops=2 * count * m * n * k))
            function(*args)

        return call

    def counted(blas: runtime.Blas) -> runtime.Blas:
        gemms = {name: gemm(getattr(blas.bindings, name)) for name in ("gemmEx", "gemmStridedBatchedEx")}
        return blas._replace(bindings=SimpleNamespace(**gemms))

    kernels = {key: kernel(key[-1], function) for key, function in runtime._functions.items()}
    products = {library: counted(blas) for library, blas in runtime._blas.items()}
    with mock.patch.dict(runtime._functions, kernels), mock.patch.dict(runtime._blas, products):
        run()
    return calls


def measure_kernels(calls: list[Call], seconds: Callable[..., list[float]], cupy: Any) -> list[dict[str, Any]]:
    """Return a row for each distinct large kernel among `calls`; one that fails has an ``error`` in it."""

    def row(call: Call) -> dict[str, Any]:
        half = call.bytes // 2
        source, target = (cupy.zeros(half, dtype=np.uint8) for _ in range(2))
        own, copy = seconds(call.run, lambda: target.data.copy_from_device_async(source.data, half))
        rates = {"bytes_a_second": call.bytes / own, "of_copy": copy / own}
        return {"bytes": call.bytes, "seconds": own, **rates, "bar": "below" if copy / own < _BAR else "reached"}

    distinct = {(call.name, call.bytes): call for call in calls if call.bytes >= _SMALL}
    return [{"name": f"{call.name} {call.size}", **answered(partial(row, call))} for call in distinct.values()]


def measure_products(calls: list[Call], seconds: Callable[..., list[float]], best: float) -> dict[str, Any]:
    """Return a row for each distinct product among `calls`, and their sum; `best` is the rate of the square one."""
    times = Counter(call.size for call in calls if call.flops)

    def row(call: Call) -> dict[str, Any]:
        (own,) = seconds(call.run)
        rates = {"flops_a_second": call.flops / own, "of_square": call.flops / own / best}
        return {"times": times[call.size], "flops": call.flops, "seconds": own, **rates}

    found = {call.size: call for call in calls if call.flops}
    rows = [{"name": size, **answered(partial(row, call))} for size, call in found.items()]
    done = [row for row in rows if "error" not in row]
    total = sum(row["times"] * row["seconds"] for row in done)
    of_square = sum(row["times"] * row["flops"] for row in done) / total / best if total else None
    return {"square_flops_a_second": best, "seconds_a_step": total, "of_square": of_square, "rows": rows}


def other_calls(xp: Any, dtype: Any, count: int = 8192) -> None:
    """Run the kernels that a step of the workloads does not have: dropout, augmentation, gradient norm."""
    key = Key(0, 0, xp.arange(count, dtype=np.int64))
    images, x = xp.zeros((count, 32, 32, 3), dtype=np.uint8), xp.ones((count, 32, 192), dtype=dtype)
    scale, shift = ops.augment.channel_scale((0.5,) * 3, (0.25,) * 3, runtime.acc_dtype(dtype), xp)
    ops.dropout(x, ops.keep_mask(key, x.shape, 0.1, x.dtype))
    ops.augment.training_images(images, key, crop_padding=4, flip=True, scale=scale, shift=shift, dtype=dtype)
    ops.update_rules.gradient_norm(xp.ones(count * 1024, dtype=np.float32))


def kernels(step: Step, cupy: Any, precision: str) -> Any:
    """Return the bandwidths of the kernels of a step, and of a few others."""
    others = partial(other_calls, cupy, _dtype(precision))
    others()  # compiles them
    return measure_kernels(recorded(step.run) + recorded(others), DeviceClock(cupy).seconds, cupy)


def products(step: Step, cupy: Any, precision: str) -> Any:
    """Return the rates of the products of a step, and of a square one."""
    clock = DeviceClock(cupy)
    # Of random numbers: a card computes faster with constants, which take less power.
    numbers = (cupy.random.standard_normal((SQUARE, SQUARE), dtype=np.float32) for _ in range(2))
    a, b = (x.astype(_dtype(precision)) for x in numbers)
    out = cupy.empty_like(a)
    with tf32(precision == "tf32"):
        best = 2 * SQUARE**3 / clock.seconds(lambda: product(a, b, out))[0]
    return measure_products(recorded(step.run), clock.seconds, best)


def _dtype(precision: str) -> Any:
    return dtype_named("float32" if precision == "tf32" else precision)


def claims(step: Step, cupy: Any, precision: str) -> dict[str, Any]:
    """Return the figures of what minivit claims of a step on CuPy, as imported; what fails has its error instead."""
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "launches": lambda: dict(Counter(call.name for call in recorded(step.run))),
        "memory": lambda: memory_traffic(step, cupy),
        "reads": lambda: reads_of_device(step.run),
        "times": lambda: times(step, DeviceClock(cupy)),
    }
    found = {}
    for name, measure in measures.items():
        found[name] = answered(measure)
        step.wait()
    return found


def memory_traffic(step: Step, cupy: Any) -> dict[str, Any]:
    """Return the allocations of a few steps, and how many of them went to the driver: the claim is none."""
    pool = cupy.get_default_memory_pool()
    before, used, counts = pool.total_bytes(), [pool.used_bytes()], Counter[str]()

    class Hook(cupy.cuda.MemoryHook):
        name = "memory_traffic"

        def alloc_preprocess(self, **_: Any) -> None:
            counts["driver_allocations"] += 1

        def malloc_postprocess(self, *, mem_size: int, **_: Any) -> None:
            counts["allocations"] += 1
            used.append(used[-1] + mem_size)

        def free_postprocess(self, *, mem_size: int, **_: Any) -> None:
            used.append(used[-1] - mem_size)

    with Hook():
        for _ in range(_STEPS):
            step.run()
    step.wait()
    found = {name: counts[name] for name in ("allocations", "driver_allocations")}
    growth = pool.total_bytes() - before
    return {"steps": _STEPS, **found, "pool_growth_bytes": growth, "peak_used_bytes": max(used)}


def reads_of_device(run: Callable[[], object]) -> dict[str, Any]:
    """Return whether a call reads from the device, as CuPy notices it, and the innermost line of minivit that does."""
    cupyx: Any = importlib.import_module("cupyx")
    with warnings.catch_warnings(action="ignore"), cupyx.allow_synchronize(False):  # CuPy warns that it misses some
        try:
            run()
        except cupyx.DeviceSynchronized as error:
            frames, package = traceback.extract_tb(error.__traceback__), Path(minivit.__file__).parent
            places = [f"{f.filename}:{f.lineno}" for f in frames if Path(f.filename).is_relative_to(package)]
            return {"found": True, "where": places[-1] if places else ""}
    return {"found": False, "where": ""}


def times(step: Step, clock: DeviceClock) -> dict[str, Any]:
    """Return the seconds in which the host queues a step, those of the device for it, and those of both together.

    Where the host had queued the whole step before the device began with it (`ahead`), nothing in the step waits for
    the device. A step of more launches than the queue holds, about a thousand, waits for a place in it.
    """
    behind = [clock.time(step.run) for _ in range(_STEPS)]
    device, host = (statistics.median(own) for own in zip(*(timing[:2] for timing in behind), strict=True))
    together = statistics.median(time_sample(step, 10) for _ in range(3))
    figures = {"host_seconds": host, "device_seconds": device, "seconds": together}
    return figures | {"ahead": all(timing.ahead for timing in behind), "bound_by_launches": host > 0.9 * together}


def profile(step: Step, cupy: Any, precision: str) -> dict[str, Any]:
    """Return the kernels and copies of a step, of any library, as PyTorch's profiler sees them."""
    torch: Any = importlib.import_module("torch")
    with torch.profiler.profile() as profiler:
        step.run()
        step.wait()
    on_device = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return summed([(event.name, 1e-6 * event.time_range.elapsed_us()) for event in on_device])


def summed(events: list[tuple[str, float]]) -> dict[str, Any]:
    """Return the number of launches, their seconds, and both by name, the longest first, of names and seconds."""
    seconds = {name: sum(own for other, own in events if other == name) for name, _ in events}
    calls = Counter(name for name, _ in events)
    longest = sorted(seconds, key=lambda name: -seconds[name])
    found = [{"name": name, "calls": calls[name], "seconds": seconds[name]} for name in longest]
    return {"launches": len(events), "busy_seconds": sum(seconds.values()), "kernels": found}


PARTS = {"claims": claims, "kernels": kernels, "products": products, "profile": profile}


def measure_part(part: str, precision: str) -> dict[str, Any]:
    """Return the figures of a part by workload; one that fails has an ``error`` instead."""

    def figures(name: str) -> Any:
        step = minivit_system.prepare(make_task(replace(GPU_WORKLOADS[name], precision=precision), cores()), "")
        time_sample(step, _STEPS)  # compiles all that it needs
        found = PARTS[part](step, cupy, precision)
        step.release()
        return found

    if part == "profile":
        importlib.import_module("torch")  # before CuPy, so that both use the libraries of CUDA that it brings
    cupy = backend("cupy")
    return {name: answered(partial(figures, name)) for name in WORKLOADS}


if __name__ == "__main__":
    reply = own_output()
    reply(lambda: {"figures": measure_part(*sys.argv[1:]), "versions": versions()})
