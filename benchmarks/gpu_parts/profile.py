"""What the device does in a step, as PyTorch's profiler sees it: every kernel and copy, whoever asked for it."""

from __future__ import annotations

import importlib
from collections import Counter, defaultdict
from typing import Any

from benchmarks.gpu_parts.step import Step

_WARM = 3


def device_work(step: Step) -> dict[str, Any]:
    """Return the kernels and copies of a step by name, with their number and their seconds, longest first."""
    torch: Any = importlib.import_module("torch")
    for _ in range(_WARM):
        step.run()
    step.wait()
    with torch.profiler.profile() as profiler:
        step.run()
        step.wait()
    return summed(
        [
            (event.name, 1e-6 * event.time_range.elapsed_us())
            for event in profiler.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        ]
    )


def summed(work: list[tuple[str, float]]) -> dict[str, Any]:
    """Return the number of launches, their seconds, and both for each name of `work`: names and seconds."""
    seconds: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for name, elapsed in work:
        seconds[name] += elapsed
        calls[name] += 1
    longest = sorted(seconds, key=lambda name: -seconds[name])
    kernels = [{"name": name, "calls": calls[name], "seconds": seconds[name]} for name in longest]
    return {"launches": len(work), "busy_seconds": sum(seconds.values()), "kernels": kernels}
