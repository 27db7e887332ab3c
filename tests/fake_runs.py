"""Stand-ins for the processes of a measurement and for what they measure."""

from __future__ import annotations

import re
import sys
from typing import Any

from benchmarks import scaling, startup
from benchmarks.harness import WorkerError
from benchmarks.scaling import AXES, Point


def fake_run(milliseconds: dict[str, list[float]], peaks: dict[str, float] | None = None) -> Any:
    """Return a stand-in for `run_worker` with the times of each system's rounds; without any left it fails."""
    left = {system: list(times) for system, times in milliseconds.items()}

    def run(system: str, **options: Any) -> dict[str, Any]:
        if not left[system]:
            raise WorkerError("RuntimeError: no more")
        seconds = [1e-3 * left[system].pop(0)] * 3
        return {"seconds": seconds, "peak_bytes": (peaks or {}).get(system, 1e8), "versions": {system: "1.0"}}

    return run


def squeezed(text: str) -> str:
    """Return `text` with one space in the place of several."""
    return re.sub(" +", " ", text)


def made_up(kinds: tuple[str, ...] = ("training", "prediction")) -> list[Point]:
    """Return points of all axes."""
    return [
        Point(axis, kind, system, value, (900.0 * k / value, 1000.0 * k / value), 10**8 + value * 10**5, value**2)
        for axis, of in AXES.items()
        for kind in kinds
        for system, k in ((scaling.OURS, 2), (scaling.THEIRS, 1))
        for value in of.values
    ]


def scripted(answers: dict[str, str]) -> dict[str, list[str]]:
    """Return commands that print an answer each, and fail where it is empty."""
    code = "import sys; sys.exit('broken') if not sys.argv[1] else print(sys.argv[1])"
    systems = [system for group in startup.GROUPS.values() for system in group]
    return {system: [sys.executable, "-c", code, answers.get(system, "50.0 %  class1")] for system in systems}
