"""Seconds of the device alone, by CUDA events, however long the host takes to ask for the work.

The device is first kept busy for as long as the host needs, so that all that is timed stands in its queue when it
begins. The queue holds about a thousand launches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

_SPIN = """
extern "C" __global__ void spin(long long nanoseconds) {
  long long begun, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begun));
  do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  while (now - begun < nanoseconds);
}
"""
_FIRST_SPIN, _LONGEST_SPIN = 2e-3, 0.5
SAMPLES = 7
_SAMPLE = 4e-3  # seconds
_MOST = 30  # calls in a sample


class Timing(NamedTuple):
    """Of some calls, behind other work."""

    seconds: float  # of the device
    host: float  # seconds that the host took to ask for it
    ahead: bool  # whether the host had asked for all of it before the device began


class DeviceClock:
    """Times what runs on the current stream of CuPy, as imported."""

    def __init__(self, cupy: Any) -> None:
        self._events = [cupy.cuda.Event() for _ in range(2)]
        self._elapsed = cupy.cuda.get_elapsed_time
        self._spin = cupy.RawKernel(_SPIN, "spin")

    def time(self, run: Callable[[], object], count: int = 1) -> Timing:
        """Return the time of `count` calls together, behind as much other work as the host needs to get ahead."""
        spin = _FIRST_SPIN
        while True:
            timing = self._behind(run, count, spin)
            if timing.ahead or spin >= _LONGEST_SPIN:
                return timing
            spin = min(_LONGEST_SPIN, 2 * max(spin, timing.host))

    def _behind(self, run: Callable[[], object], count: int, spin: float) -> Timing:
        first, last = self._events
        last.synchronize()
        self._spin((1,), (1,), (round(spin * 1e9),))
        first.record()
        begun = time.perf_counter()
        for _ in range(count):
            run()
        last.record()
        host = time.perf_counter() - begun
        ahead = not first.done
        last.synchronize()
        return Timing(1e-3 * self._elapsed(first, last), host, ahead)

    def seconds(self, *runs: Callable[[], object]) -> list[list[float]]:
        """Return the seconds of a call in several samples of each of `runs`, which take turns."""
        counts = []
        for run in runs:
            run()
            rough = self.time(run, 2).seconds / 2
            counts.append(max(1, min(_MOST, round(_SAMPLE / rough))) if rough > 0 else _MOST)
        samples: list[list[float]] = [[] for _ in runs]
        for _ in range(SAMPLES):
            for run, count, own in zip(runs, counts, samples, strict=True):
                own.append(self.time(run, count).seconds / count)
        return samples
