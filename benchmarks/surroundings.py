"""Where and with what a measurement was made: machine, commit, date."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minivit.engine.machine import cores

_ROOT = Path(__file__).parent.parent
_STEERING = ("BLIS_", "DNNL_", "GOTO_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "TORCH", "XLA_")


def surroundings(threads: int | None = None) -> dict[str, Any]:
    """Return the processor, how many cores are used, the load before, system, Python, commit, date, environment.

    Of the environment, what steers the libraries that multiply matrices: such a variable can halve or double a rate.

    Parameters
    ----------
    threads : int, optional
        How many threads the measured processes have; as many as there are cores by default.
    """
    return {
        "processor": _processor(),
        "cores": min(threads or cores(), cores()),
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_STEERING)},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = dict(line.split(":", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in found.items()}
        if "model name" in fields:
            return f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})"
    return platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit of the repository, with ``+changes`` where files differ from it; "unknown" outside of one."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
