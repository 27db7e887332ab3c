"""Seconds by name, over all threads and forked processes that work at the same time."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import numpy as np

from minivit.arrays.shared import shared_zeros

P = ParamSpec("P")
R = TypeVar("R")

_MOST = 256  # threads and processes that may ever take part


class Clock:
    """Adds up what sections take; a section inside another is not counted twice.

    Parameters
    ----------
    names : sequence of str
        Of the sections. Processes forked later share the sums, which are kept outside of any of them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._columns = {name: i for i, name in enumerate(names)}
        self._seconds = shared_zeros((_MOST, len(names)), np.float64)
        self._calls = shared_zeros((_MOST, len(names)), np.int64)
        self._rows = multiprocessing.Value("i", 0)
        self._local = threading.local()

    def _own_row(self) -> int:
        local = self._local
        if getattr(local, "process", None) != os.getpid():  # a new thread, or a fork that inherited one
            local.process, local.inner = os.getpid(), []
            with self._rows.get_lock():
                local.row = self._rows.value
                self._rows.value += 1
        row: int = local.row
        return row

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Count the time of the block under `name`."""
        row, column = self._own_row(), self._columns[name]
        inner: list[float] = self._local.inner
        inner.append(0.0)
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begun
            self._seconds[row, column] += seconds - inner.pop()
            self._calls[row, column] += 1
            if inner:
                inner[-1] += seconds

    def timed(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """Return `function` with each call a section."""

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.section(name):
                return function(*args, **kwargs)

        return wrapper

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """Return the seconds and the calls of the sections entered since the last time, and begin anew."""
        seconds, calls = self._seconds.sum(axis=0), self._calls.sum(axis=0)
        self._seconds[...] = 0
        self._calls[...] = 0
        entered = {name: column for name, column in self._columns.items() if calls[column]}
        return (
            {name: float(seconds[column]) for name, column in entered.items()},
            {name: int(calls[column]) for name, column in entered.items()},
        )
