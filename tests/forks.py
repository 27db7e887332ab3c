"""Forked processes in tests: the marker of the tests that need them, and a fork that is safe in a test."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable

import pytest

from minivit.engine import worker_pool

needs_fork = pytest.mark.skipif(not worker_pool.can_fork(), reason="this system, or this process, cannot fork")


def forked(work: Callable[[], object]) -> int:
    """Do `work` in a forked process and return its process id.

    The process ends with status 0, or 1 after an error: it never returns into pytest, whose tests it would go on with.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: this process has threads, those of xdist
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def ended_well(child: int) -> bool:
    """Wait for a forked process, and return whether its work raised no error."""
    return os.waitpid(child, 0)[1] == 0
