"""Counters in shared memory, by which worker processes that arrive within microseconds wait for each other.

A message through a pipe and the wake-up of its reader take 20 to 60 us, and a counter that both poll, 1 us. Workers
that share the tokens of one image wait for each other in each block, every 700 us: polling saves 7 % of the time of a
prediction at 197 tokens and width 192, and 29 % at 64 tokens and width 96.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import numpy as np

from minivit.arrays.shared import shared_zeros
from minivit.engine.machine import cores

_STEP = 8  # counters of 8 bytes, of which a cache line holds 8
_POLLS = 2_000  # some 100 us, before a worker lets others run between two polls
_YIELDS = 2_000  # some 1 ms more, before it sleeps between them
_SLEEP = 1e-4  # seconds


def can_poll(workers: int) -> bool:
    """Return whether each worker has a processor, and all see the writes of another in the order in which it wrote."""
    ordered = platform.machine() in ("x86_64", "AMD64")
    return ordered and hasattr(os, "sched_yield") and cores() >= workers


class Arrivals:
    """How often each of `workers` workers, forked later, has arrived at a barrier."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._counters = shared_zeros((workers * _STEP,), np.int64).data

    def wait(self, number: int, has_message: Callable[[], bool], receive: Callable[[], None]) -> None:
        """Count worker `number`, and return when all have arrived as often.

        While it waits long, ``has_message()`` says whether there is a message, which is then that of a failure;
        ``receive()`` raises it.
        """
        counters = self._counters
        count = counters[number * _STEP] = counters[number * _STEP] + 1
        for place in range(0, self._workers * _STEP, _STEP):
            polls = 0
            while counters[place] < count:
                polls += 1
                if polls <= _POLLS:
                    continue
                if polls <= _POLLS + _YIELDS:
                    os.sched_yield()
                    continue
                time.sleep(_SLEEP)
                # A worker that arrives and replies to the job counts before it replies: hence the second look.
                if has_message() and counters[place] < count:
                    receive()
