"""Signals that let the current step finish."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interrupted(Exception):  # noqa: N818 - it reports no error
    """The user stopped the run; it was saved and can be resumed."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows lacks the last two


class Interrupt:
    """While the block lasts, the first Ctrl-C or signal to end sets `requested`, and the second Ctrl-C interrupts.

    The signals are SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal was closed) and SIGUSR1 (a cluster's time is over).
    SIGHUP stays ignored where the process ignores it, as under nohup.

    Attributes
    ----------
    ends_process : bool
        A command sets it: a stopped run ends its process, so that further Ctrl-C are ignored after the block.
    """

    ends_process = False

    def __init__(self) -> None:
        self.requested = False
        self._interrupted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
                before = signal.getsignal(number)
                if before is not None and not (number == getattr(signal, "SIGHUP", None) and before is signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested = True
        elif number == signal.SIGINT and not self._interrupted:
            self._interrupted = True
            raise KeyboardInterrupt

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            quiet = self.requested and self.ends_process
            signal.signal(number, signal.SIG_IGN if quiet else handler)
