"""Where the time of a step goes, op by op: python -m benchmarks.breakdown [WORKLOAD] [--json FILE]

The processor time of the ops while the engine runs, with one worker and with one for each core, added up over the
workers. Beside each op stands the time of the matrix products that its mathematics needs, alone and in as many
processes at once. An op near that is bound by products, the others by memory and by calls. The kernel of a whole block
is off, so that the ops are called one by one; with it, the step is shorter. "waiting" is the time that the workers did
not have a processor, where Linux counts that; "everything else" is the rest: layers and the sums of gradients.
"""

import functools
import multiprocessing
import statistics
import sys
import time
import timeit
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import threadpoolctl

from benchmarks.command import at_least_one, check_writable, ended, parser_of, write_json
from benchmarks.memory import processor_seconds
from benchmarks.products import Weights, products
from benchmarks.report import heading, percent, records_table, surroundings
from benchmarks.systems import minivit as minivit_system
from benchmarks.systems import versions
from benchmarks.workloads import Task, Workload, make_task, workload_named
from minivit import AdamW, ops
from minivit.engine.machine import cores

OPTIMIZER, ELSE, WAITING = "optimiser", "everything else", "waiting"
OPS = [name for name in ops.__all__ if name.endswith("_backward") or f"{name}_backward" in ops.__all__]


class Clock:
    """Adds up the processor seconds and the calls of functions, over threads and processes that are forked later."""

    def __init__(self, names: Sequence[str]) -> None:
        self._columns = {name: i for i, name in enumerate(names)}
        self._sums = np.frombuffer(multiprocessing.RawArray("d", 2 * len(names))).reshape(2, -1)
        self._lock = multiprocessing.Lock()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with its calls timed under `name`."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            begun = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.thread_time() - begun
                with self._lock:
                    self._sums[:, self._columns[name]] += seconds, 1

        return wrapper

    def take(self) -> dict[str, tuple[float, int]]:
        """Return the seconds and the calls by name since the last time, of what was called, and begin anew."""
        found = {name: (float(self._sums[0, i]), int(self._sums[1, i])) for name, i in self._columns.items()}
        self._sums[...] = 0
        return {name: own for name, own in found.items() if own[1]}


@contextmanager
def timing(clock: Clock) -> Iterator[None]:
    """Let `clock` time the ops and the optimiser, in processes forked from now on too."""
    with ExitStack() as stack:
        stack.enter_context(ops.reference_only("EncoderBlock"))
        for name in OPS:
            stack.enter_context(mock.patch.object(ops, name, clock.timed(name, getattr(ops, name))))
        stack.enter_context(mock.patch.object(AdamW, "step", clock.timed(OPTIMIZER, AdamW.step)))
        yield


def timed_steps(task: Task, steps: int) -> tuple[dict[str, float], dict[str, int]]:
    """Return the median seconds of a step by name, which sum to its time on all workers, and the calls."""
    clock = Clock([*OPS, OPTIMIZER])
    found: defaultdict[str, list[float]] = defaultdict(list)
    taken: dict[str, tuple[float, int]] = {}
    with timing(clock), closing(minivit_system.prepare(task, "")) as step:
        step.run()  # the first one starts the workers and allocates
        clock.take()
        for _ in range(steps):
            busy, begun = processor_seconds(), time.perf_counter()
            step.run()
            total = task.threads * (time.perf_counter() - begun)
            taken = clock.take()
            now = processor_seconds()
            waiting = max(0.0, total - (now - busy)) if busy and now else 0.0
            for name, (seconds, _) in taken.items():
                found[name].append(seconds)
            found[WAITING].append(waiting)
            found[ELSE].append(total - waiting - sum(seconds for seconds, _ in taken.values()))
    calls = {name: count for name, (_, count) in taken.items()}
    return {name: statistics.median(seconds) for name, seconds in found.items()}, calls


_start: Any = None  # a barrier, in processes that measure the products at once


def _share(barrier: Any) -> None:
    global _start
    _start = barrier


def product_times(workload: Workload) -> dict[str, tuple[float, int]]:
    """Return the seconds and the operations of one micro-batch's products by op, with single-threaded BLAS."""
    if _start:
        _start.wait()
    images = min(workload.batch_size, workload.config.micro_batch)
    found: defaultdict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        for product in products(workload.config, Weights(workload.config), images, workload.trains):
            repeats = max(5, min(50, int(1e8 / product.flops)))
            own = statistics.median(timeit.repeat(product.run, number=1, repeat=repeats))
            seconds, flops = found[product.op]
            found[product.op] = seconds + own, flops + product.flops
    return dict(found)


def breakdown(task: Task, steps: int) -> list[dict[str, Any]]:
    """Return the rows of a task, the longest first and then the sum, from the medians of several steps."""
    workload = task.workload
    images, micro_batch = workload.batch_size, min(workload.batch_size, workload.config.micro_batch)
    context = multiprocessing.get_context("spawn")
    with context.Pool(task.threads, _share, (context.Barrier(task.threads),)) as pool:
        times = pool.map(product_times, [workload] * task.threads, chunksize=1)
    flops = {name: count for name, (_, count) in times[0].items()}
    alone = {name: statistics.mean(own[name][0] for own in times) / micro_batch for name in flops}
    seconds, calls = timed_steps(task, steps)
    total = sum(seconds.values())
    seconds = {**dict(sorted(seconds.items(), key=lambda item: -item[1])), "all": total}
    alone["all"] = sum(alone.values())
    rows = []
    for name, own in seconds.items():
        row: dict[str, Any] = {f"{task.threads} thread{'s' * (task.threads > 1)}": name}
        row["calls"] = calls.get(name) if name in OPS else None
        row |= {"ms an image": 1e3 * own / images, "share": percent(own / total)}
        if name in alone:
            row |= {"products alone, ms": 1e3 * alone[name], "part of the op": percent(alone[name] * images / own)}
            row["GFLOP/s"] = f"{flops[name] / micro_batch / alone[name] / 1e9:.0f}" if name in flops else ""
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for one thread and one for all, and write all numbers where --json says."""
    parser = parser_of(__doc__)
    parser.add_argument("workload", nargs="?", default="train-tiny", type=workload_named, help="default: train-tiny")
    parser.add_argument("--threads", type=at_least_one, nargs="+", default=sorted({1, cores()}), help="default: 1, all")
    parser.add_argument("--steps", type=at_least_one, default=5, help="how many are measured (default: 5)")
    options = parser.parse_args(arguments)
    check_writable(options.json)
    where, used = surroundings(max(options.threads)), versions()
    about = {"surroundings": where, "versions": used, "workload": options.workload.name}
    print(f"{options.workload.title}; processor time of all threads, medians of {options.steps} steps\n")
    found = []
    for threads in options.threads:
        found.append(breakdown(make_task(options.workload, threads), options.steps))
        print(records_table(found[-1]) + "\n", flush=True)
        write_json(options.json, about | {"breakdowns": found})
    print(heading(where, used, 1))


if __name__ == "__main__":
    sys.exit(ended(main))
