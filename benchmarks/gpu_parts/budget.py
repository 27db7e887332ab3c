"""The time that a command may take: what no longer fits is left out, with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """Seconds that run out.

    Parameters
    ----------
    seconds : float
        From now on.
    now : callable
        A clock.

    Attributes
    ----------
    skipped : list of str
        What was left out, and why.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.skipped: list[str] = []
        self._now = now
        self._begun = now()

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return self._now() - self._begun

    @property
    def left(self) -> float:
        """Seconds that remain, at least 0."""
        return max(0.0, self.seconds - self.spent)

    def allows(self, what: str, seconds: float) -> bool:
        """Return whether `seconds` remain for `what`; else note that it was skipped."""
        if seconds <= self.left:
            return True
        self.skipped.append(
            f"{what}: skipped: {self.left:.0f} of {self.seconds:.0f} s were left, about {seconds:.0f} are needed"
        )
        return False
