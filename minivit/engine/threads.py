"""Work on threads that end with the call: all at the same time, or one at a time on one core.

A process that forks has to be without other threads, and the engine may fork its workers at any time, so that no thread
outlives a call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context


def on_threads(work: Callable[[int], None], count: int) -> None:
    """Call ``work(number)`` for `count` numbers at the same time, number 0 in the thread of the caller.

    Every thread has the context variables of the caller. The first error is raised when all threads have ended.
    """
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # raised below, in the thread of the caller
            errors.append(error)

    threads = [threading.Thread(target=copy_context().run, args=(run, number)) for number in range(1, count)]
    started: list[threading.Thread] = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
        run(0)
    finally:
        for thread in started:
            thread.join()
    if errors:
        raise errors[0]


def take_turns(work: Callable[[int, Callable[[], None]], None], count: int) -> None:
    """Call ``work(number, wait)`` for `count` numbers on threads of which one runs at a time.

    Another thread runs when one waits for the others, so that one core does the work of several workers.
    """
    running, barrier = threading.Lock(), threading.Barrier(count)

    def wait() -> None:
        running.release()
        try:
            barrier.wait()
        finally:
            running.acquire()

    def run(number: int) -> None:
        with running:
            try:
                work(number, wait)
            except threading.BrokenBarrierError:  # the error of another thread says why
                pass
            except BaseException:
                barrier.abort()
                raise

    on_threads(run, count)
