"""One process of a measurement: python -m benchmarks.worker SYSTEM WORK [--set FIELD=VALUE ...] [--threads N]

Builds the model, does the first steps, which do not count, times steps, and prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

_LONG = 14.0  # seconds of steps that do, however few they are


def timed(step: Callable[[], object], seconds: float, steps: int) -> list[float]:
    """Return the seconds of each call of `step`: at least `steps` calls, and at least `seconds` in all."""
    times: list[float] = []
    while len(times) < steps or sum(times) < seconds:
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return times


def measured(step: Callable[[], object], seconds: float, steps: int) -> list[float]:
    """Return the seconds of each call of `step`, after one that does not count unless it is slow.

    There are at least `steps` calls, and at least `seconds` in all; where calls are slow, fewer: 2 at least. Their
    number is even, so that the median of calls that are slow and fast by turns is the mean of both kinds.
    """
    times = timed(step, 0, 1)
    if times[0] < _LONG / 2:
        times = []
    while len(times) < 2 or (sum(times) < _LONG and (len(times) < steps or sum(times) < seconds)):
        times += timed(step, 0, 2 - len(times) % 2)
    return times


def peak_bytes() -> int:
    """Return the largest resident memory so far of this process and of those that it has started and that still run.

    On Linux that is the sum of each one's own peak (VmHWM), with three corrections, so that what they share counts
    once. Of the anonymous and of the shared memory that a process holds now, the part is taken off that others hold
    with it: the kernel counts a page that n hold as one nth for each. The files that a started process maps, its
    libraries, are left out; those of this process count whole. Memory that was freed counts for each that had it.
    Elsewhere it is the peak of this process alone. On Linux ru_maxrss would begin with what the parent held when it
    started this process.
    """
    if Path("/proc/self/smaps_rollup").exists():
        started = [pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
        return _own_peak("self") + sum(map(_own_peak, started))
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _own_peak(process: str) -> int:
    try:
        status, maps = (_kilobytes(Path("/proc", process, name)) for name in ("status", "smaps_rollup"))
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0
    # Each difference of two figures that change together comes from one reading: a process may free gigabytes between
    # two. Only of shared memory there is none with both, but that of this process and its workers stays as it is.
    others = maps["Anonymous"] - maps["Pss_Anon"] + status["RssShmem"] - maps["Pss_Shmem"]
    files = 0 if process == "self" else status["RssFile"]
    return 1024 * (status["VmHWM"] - others - files)


def _kilobytes(file: Path) -> dict[str, int]:
    """Return the figures of a file of the kernel's with lines such as ``VmHWM:  1024 kB``."""
    lines = [line.split() for line in file.read_text().splitlines()]
    return {words[0].removesuffix(":"): int(words[1]) for words in lines if words[2:] == ["kB"]}


def use_threads(threads: int) -> None:
    """Keep this process to `threads` processors, before any library has counted them.

    Where it cannot be kept to some, environment variables ask the libraries.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def main() -> None:
    """Measure one system on one work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", help="side or side:variant, such as minivit or pytorch:timm")
    parser.add_argument("work", help="its name, such as train-tiny")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change the work")
    parser.add_argument("--threads", type=int, help="the processors that this process may use by default")
    parser.add_argument("--seconds", type=float, default=2.5, help="how long to measure, at least")
    parser.add_argument("--steps", type=int, default=6, help="how many at least, unless they are slow")
    options = parser.parse_args()
    if options.threads is not None:
        use_threads(options.threads)

    from benchmarks.sides import find_side  # after the processors are chosen
    from benchmarks.task import make_task
    from benchmarks.works import get_work
    from minivit.engine.machine import cores

    work = get_work(options.work, options.set)
    threads = options.threads or cores()
    side, variant = find_side(options.system)
    begun = time.perf_counter()
    step = side.prepare(make_task(work, threads), variant)
    step()
    first = time.perf_counter() - begun
    result = {
        "system": options.system,
        "work": work.name,
        "batch_size": work.batch_size,
        "threads": threads,
        "seconds": measured(step, options.seconds, options.steps),
        "seconds_to_first": first,
        "peak_bytes": peak_bytes(),
        "versions": dict(side.versions()),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
