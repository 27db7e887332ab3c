"""The BLAS thread count is restored, and the lock of the engine after a fork is free."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import threadpoolctl
from forks import needs_fork

from minivit.engine.machine import single_threaded_blas


def blas_threads() -> set[int]:
    return {info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"}


def test_blas_has_its_threads_again_when_blocks_in_several_threads_have_ended() -> None:
    """BLAS has one thread inside each block, in any order of the blocks."""
    seen: list[set[int]] = []

    def compute(_: int) -> None:
        with single_threaded_blas():
            seen.append(blas_threads())
            time.sleep(0.002)
            with single_threaded_blas():
                seen.append(blas_threads())
            seen.append(blas_threads())

    before = blas_threads()
    compute(0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compute, range(20)))
    assert blas_threads() == before
    assert seen == [{1}] * 63


@needs_fork
def test_a_fork_while_another_thread_computes_does_not_wait_for_it() -> None:
    """The lock that the thread holds in the parent is free in the child."""
    here, there = multiprocessing.Pipe()

    def fork() -> int:
        if (child := os.fork()) == 0:
            with single_threaded_blas():
                there.send_bytes(b"entered")
            os._exit(0)
        return child

    with single_threaded_blas(), ThreadPoolExecutor(1) as pool:
        child = pool.submit(fork).result()
    try:
        assert here.poll(10)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
