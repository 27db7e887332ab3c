"""A step on a device, ready to be timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.worker import peak_bytes

SAMPLE = 0.1  # seconds between two waits for the device
FEWEST_SAMPLES = 3
_WARM = 3


@dataclass(frozen=True)
class Step:
    """What a side offers.

    Parameters
    ----------
    run : callable
        Does a training step or a prediction, without waiting for the device; returns the loss before it, or the logits.
    wait : callable
        Waits for the device.
    number : callable
        Makes a number of what `run` returned: the loss, or the root mean square of the logits.
    memory : callable
        Returns `peak_bytes`, the most that was taken from the driver, and `peak_used_bytes`, the most that arrays took.
    rest : callable
        Gives memory back to the driver that nothing uses.
    """

    run: Callable[[], Any]
    wait: Callable[[], None]
    number: Callable[[Any], float]
    memory: Callable[[], dict[str, int]]
    rest: Callable[[], None]


def on_host() -> dict[str, int]:
    """Return what `Step.memory` says in a rehearsal: the memory of this process."""
    peak = peak_bytes()
    return {"peak_bytes": peak, "peak_used_bytes": peak}


def step_times(step: Step, seconds: float) -> list[float]:
    """Return the seconds of a step in each of several samples that last `seconds` together, after steps to warm up.

    A sample is as many steps as take `SAMPLE` seconds, from an idle device to an idle device.
    """
    sample(step, _WARM)
    count = max(1, math.ceil(SAMPLE / sample(step, 1)))
    samples: list[float] = []
    while len(samples) < FEWEST_SAMPLES or count * sum(samples) < seconds:
        samples.append(sample(step, count))
    return samples


def sample(step: Step, count: int) -> float:
    """Return the seconds of one of `count` steps."""
    step.wait()
    begun = time.perf_counter()
    for _ in range(count):
        step.run()
    step.wait()
    return (time.perf_counter() - begun) / count
