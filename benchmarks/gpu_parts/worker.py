"""A side that waits for its turns to be measured: python -m benchmarks.gpu_parts.worker SYSTEM WORK PRECISION

It prepares its step at once and says so in a line of JSON. Each line of standard input, a number of seconds, is then
answered by a line with the times of steps; the end of the input ends it. What fails is answered by a line too.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu_parts.errors import answered
from benchmarks.gpu_parts.step import Step, step_times
from benchmarks.gpu_parts.works import PRECISIONS, WORKS
from benchmarks.task import make_task
from minivit.engine.machine import cores

# The module, and what its prepare is told beside the task and the precision.
SYSTEMS: dict[str, tuple[str, dict[str, str]]] = {
    "minivit": ("minivit", {}),
    "eager": ("pytorch", {}),
    "compile": ("pytorch", {"mode": "default"}),
    "rehearsed-minivit": ("minivit", {"backend": "numpy"}),
    "rehearsed-eager": ("pytorch", {"device": "cpu"}),
    "rehearsed-compile": ("pytorch", {"device": "cpu", "mode": "default"}),
}


class Side:
    """A system at a work."""

    def __init__(self, system: str, work: str, precision: str) -> None:
        module, told = SYSTEMS[system]
        self._module: Any = importlib.import_module(f"benchmarks.gpu_parts.{module}")
        self._task = make_task(WORKS[work], cores())
        self._precision, self._told = precision, told
        self._step: Step | None = None

    def prepare(self) -> dict[str, Any]:
        """Do the first steps, and return what the first came to, how long it took, and the versions."""
        begun = time.perf_counter()
        self._step = self._module.prepare(self._task, self._precision, **self._told)
        answer = self._step.number(self._step.run())
        seconds = time.perf_counter() - begun
        for _ in range(2):
            self._step.run()
        self._step.wait()
        self._step.rest()  # the sides of other works stand beside this one
        return {"answer": answer, "seconds_to_first": seconds, "versions": dict(self._module.versions())}

    def measure(self, seconds: float) -> dict[str, Any]:
        """Return the seconds of steps, and the memory so far."""
        assert self._step is not None
        return {"seconds": step_times(self._step, seconds), **self._step.memory()}


def main() -> None:
    """Answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("precision", choices=PRECISIONS)
    options = parser.parse_args()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply

    def reply(what: Callable[[], dict[str, Any]]) -> bool:
        said = answered(what)
        print(json.dumps(said), file=replies, flush=True)
        return "error" not in said

    sides: list[Side] = []

    def begin() -> dict[str, Any]:
        sides.append(Side(options.system, options.work, options.precision))
        return sides[0].prepare()

    if reply(begin):
        for line in sys.stdin:
            reply(functools.partial(sides[0].measure, float(line)))


if __name__ == "__main__":
    main()
