"""One process of a measurement: python -m benchmarks.worker SYSTEM WORKLOAD [--threads N]

WORKLOAD is the JSON of a `Workload`. The process prepares its step and says so in a line of JSON. Each line of standard
input, a number of seconds, is then answered by a line with the times of steps; the end of the input ends it. An error
is a line too, with the key "error".
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.systems import Step

STEPS = 6  # that are timed at least on a CPU, unless they are slow
_LONG = 14.0  # seconds of steps that are enough, however few they are
_SAMPLE = 0.1  # seconds between two waits for a GPU
FEWEST_SAMPLES = 3


def time_steps(step: Callable[[], object], seconds: float) -> list[float]:
    """Return the seconds of each call of `step`, after one that does not count unless it is slow.

    There are at least `STEPS` calls, and at least `seconds` in all; where calls are slow, fewer: 2 at least. Their
    number is even, so that the median of calls that are slow and fast by turns is the mean of both kinds.
    """

    def timed() -> float:
        begun = time.perf_counter()
        step()
        return time.perf_counter() - begun

    first = timed()
    times = [first] if first >= _LONG / 2 else []
    while len(times) < 2 or (sum(times) < _LONG and (len(times) < STEPS or sum(times) < seconds)):
        times += [timed() for _ in range(2 - len(times) % 2)]
    return times


def time_sample(step: Step, count: int) -> float:
    """Return the seconds of one of `count` steps, from an idle device to an idle device."""
    step.wait()
    begun = time.perf_counter()
    for _ in range(count):
        step.run()
    step.wait()
    return (time.perf_counter() - begun) / count


def time_samples(step: Step, seconds: float) -> list[float]:
    """Return the seconds of a step in samples of `_SAMPLE` seconds that last `seconds` together, after a warm-up."""
    time_sample(step, 3)
    count = max(1, math.ceil(_SAMPLE / time_sample(step, 1)))
    samples: list[float] = []
    while len(samples) < FEWEST_SAMPLES or count * sum(samples) < seconds:
        samples.append(time_sample(step, count))
    return samples


def answered(figures: Callable[[], Any]) -> Any:
    """Return what a call returns, or the kind and the text of its error as an ``error``, so that others go on."""
    try:
        return figures()
    except Exception as error:  # of any library
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}


def own_output() -> Callable[[Callable[[], Any]], bool]:
    """Return a function that prints `answered` of a call as a line of JSON, and returns whether it was no error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error

    def reply(figures: Callable[[], Any]) -> bool:
        said = answered(figures)
        print(json.dumps(said), file=replies, flush=True)
        return "error" not in said

    return reply


def use_threads(threads: int) -> None:
    """Keep this process to `threads` processors, or ask the libraries to, before any of them has counted them."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def prepare(system: str, workload: dict[str, Any]) -> tuple[Step, dict[str, Any]]:
    """Return a system's step after its first run, and what is reported of that.

    Systems are compared by the answer: the loss, or the root mean square of the logits.
    """
    import numpy as np  # after the processors were chosen, as all below

    from benchmarks import systems
    from benchmarks.workloads import Workload, make_task
    from minivit.engine.machine import cores

    task = make_task(Workload(**workload), cores())
    begun = time.perf_counter()
    step = systems.prepare(system, task)
    result = np.asarray(step.to_host(step.run()), np.float64)
    seconds = time.perf_counter() - begun
    if step.on_gpu:
        time_sample(step, 2)
        step.release()  # other processes use the same device
    answer = float(np.sqrt((result * result).mean())) if result.size else None
    about = {"threads": task.threads, "versions": systems.versions()}
    return step, {"answer": answer, "seconds_to_first": seconds, **about}


def main() -> None:
    """Answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", help="module or module:variant, such as minivit or pytorch:timm")
    parser.add_argument("workload", type=json.loads, help="a workload as JSON")
    parser.add_argument("--threads", type=int, help="the processors that this process may use")
    options = parser.parse_args()
    if options.threads is not None:
        use_threads(options.threads)
    reply = own_output()
    steps: list[Step] = []

    def begin() -> dict[str, Any]:
        step, said = prepare(options.system, options.workload)
        steps.append(step)
        return said

    def measure(seconds: float) -> dict[str, Any]:
        times = time_samples(steps[0], seconds) if steps[0].on_gpu else time_steps(steps[0].run, seconds)
        return {"seconds": times, **steps[0].memory()}

    if reply(begin):
        for line in sys.stdin:
            reply(partial(measure, float(line)))


if __name__ == "__main__":
    main()
