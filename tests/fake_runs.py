"""Stand-ins for the processes of a measurement."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import WorkerError


def fake_run(milliseconds: dict[str, list[float]], peaks: dict[str, float] | None = None) -> Any:
    """Return a stand-in for `run_worker` with the times of each system's rounds; without any left it fails."""
    left = {system: list(times) for system, times in milliseconds.items()}

    def run(system: str, **options: Any) -> dict[str, Any]:
        if not left[system]:
            raise WorkerError("RuntimeError: no more")
        seconds = [1e-3 * left[system].pop(0)] * 3
        return {"seconds": seconds, "peak_bytes": (peaks or {}).get(system, 1e8), "versions": {system: "1.0"}}

    return run
