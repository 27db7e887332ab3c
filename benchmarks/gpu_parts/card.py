"""The card that is measured, as the driver's own tool describes it."""

from __future__ import annotations

import subprocess

from minivit.errors import UserError

_FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "memory": "memory.total",
    "power_limit": "power.limit",
    "clock_at_most": "clocks.max.sm",
}
_COMMAND = ("nvidia-smi", f"--query-gpu={','.join(_FIELDS.values())}", "--format=csv,noheader")
_WAY_OUT = "benchmarks.gpu needs an NVIDIA GPU; with --rehearse it goes through its motions on the CPU"


def card(command: tuple[str, ...] = _COMMAND) -> dict[str, str]:
    """Return name, driver and limits of the first GPU.

    Raises
    ------
    UserError
        There is none, or no driver.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        raise UserError(f"there is no NVIDIA driver here (no nvidia-smi): {_WAY_OUT}") from None
    except (OSError, subprocess.SubprocessError) as error:
        said = " ".join(str(getattr(error, "stdout", "") or error).split())
        raise UserError(f"nvidia-smi does not answer ({said}): {_WAY_OUT}") from None
    lines = done.stdout.strip().splitlines()
    if not lines:
        raise UserError(f"nvidia-smi lists no GPU: {_WAY_OUT}")
    return dict(zip(_FIELDS, (field.strip() for field in lines[0].split(",")), strict=False))
