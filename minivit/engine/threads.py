"""Work on threads that end with the call: all at the same time, or one at a time on one core.

A process that forks has to be without other threads, and the engine may fork its workers at any time, so that no thread
outlives a call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context


def on_threads(work: Callable[[int], None], count: int, abort: Callable[[], None] = lambda: None) -> None:
    """Call ``work(number)`` for `count` numbers at the same time, number 0 in the thread of the caller.

    Every thread has the context variables of the caller. The first error is raised when all threads have ended.

    Parameters
    ----------
    work : callable
        The work of one thread.
    count : int
        Number of threads.
    abort : callable
        Ends the wait of every thread for another. It is called when the caller is interrupted, or its own work fails.
    """
    errors: list[BaseException] = []

    def run(number: int) -> None:
        if errors:  # the caller, or another thread, failed before this thread began
            return
        try:
            work(number)
        except BaseException as error:  # raised below, in the thread of the caller
            errors.append(error)

    threads = [threading.Thread(target=copy_context().run, args=(run, number)) for number in range(1, count)]
    try:
        for thread in threads:
            thread.start()
        work(0)
        _join(threads)
    except BaseException as error:  # Ctrl-C too, at any of these lines
        errors.append(error)
        abort()
        _join(threads)
    if errors:
        raise errors[0]


def _join(threads: list[threading.Thread]) -> None:
    """Wait for the end of the threads that have begun."""
    for thread in threads:
        if thread.is_alive():
            thread.join()


def take_turns(work: Callable[[int, Callable[[], None]], None], count: int) -> None:
    """Call ``work(number, wait)`` for `count` numbers on threads of which one runs at a time.

    Another thread runs when one waits for the others, so that one core does the work of several workers.
    """
    # An RLock knows which thread holds it: an interrupt may come while a thread waits for it.
    running, barrier = threading.RLock(), threading.Barrier(count)

    def wait() -> None:
        running.release()
        barrier.wait()
        running.acquire()

    def run(number: int) -> None:
        try:
            running.acquire()
            work(number, wait)
        except threading.BrokenBarrierError:  # the error of another thread says why
            pass
        except BaseException:
            barrier.abort()
            raise
        finally:
            with suppress(RuntimeError):  # this thread does not hold it
                running.release()

    on_threads(run, count, barrier.abort)
