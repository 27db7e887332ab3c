"""One process of a measurement: python -m benchmarks.worker SYSTEM WORK [--set FIELD=VALUE ...] [--threads N]

Builds the model, warms up, times steps, and prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


def timed(step: Callable[[], object], seconds: float, steps: int) -> list[float]:
    """Return the seconds of each call of `step`: at least `steps` calls, and at least `seconds` in all."""
    times: list[float] = []
    while len(times) < steps or sum(times) < seconds:
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return times


def peak_bytes() -> int:
    """Return the largest resident memory so far of this process and of those that it has started and that still run.

    What they share is counted once, as far as they share it now. Linux's ru_maxrss begins with what the parent held
    when it started this process; VmHWM does not.
    """
    if Path("/proc/self/status").exists():
        family = [
            "self",
            *(pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()),
        ]
        return sum(_own_peak(Path("/proc", member)) for member in family)
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _own_peak(process: Path) -> int:
    """Return the peak of a process less the others' part of what it shares: the kernel counts that as Rss - Pss."""
    peak = _kilobytes(process / "status", "VmHWM")
    resident, proportional = (_kilobytes(process / "smaps_rollup", name) for name in ("Rss", "Pss"))
    return 1024 * (peak - resident + proportional)


def _kilobytes(file: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(f"{name}:"))


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
    parser.add_argument("--steps", type=int, default=3, help="how many steps to measure, at least")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the first that is measured")
    options = parser.parse_args()
    if options.threads is not None:
        use_threads(options.threads)

    from benchmarks.sides import find_side  # after the processors are chosen
    from benchmarks.task import make_task
    from benchmarks.works import get_work
    from minivit.machine import cores

    work = get_work(options.work, options.set)
    threads = options.threads or cores()
    side, variant = find_side(options.system)
    begun = time.perf_counter()
    step = side.prepare(make_task(work, threads), variant)
    step()
    first = time.perf_counter() - begun
    for _ in range(options.warm_up - 1):
        step()
    result = {
        "system": options.system,
        "work": work.name,
        "batch_size": work.batch_size,
        "threads": threads,
        "seconds": timed(step, options.seconds, options.steps),
        "seconds_to_first": first,
        "peak_bytes": peak_bytes(),
        "versions": dict(side.versions()),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
