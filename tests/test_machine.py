"""What is asked of the machine is given back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import threadpoolctl
from forks import needs_fork

from minivit.engine.machine import forget_pages, single_threaded_blas


def blas_threads() -> set[int]:
    return {info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"}


def test_blas_has_its_threads_again_when_blocks_in_several_threads_have_ended() -> None:
    """Each of them has one in between, whoever came before."""
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
    """The lock that the thread holds is not held by anybody in the child."""
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


@needs_fork
def test_forgotten_pages_are_those_of_one_process_alone() -> None:
    x = np.ones(100_000)
    gappy = np.ones((100_000, 2))[:, 0]
    here, there = multiprocessing.Pipe()
    if (child := os.fork()) == 0:
        forget_pages(x)
        forget_pages(gappy)
        there.send((x.sum(), x[0], x[-1], gappy.sum()))
        os._exit(0)
    os.waitpid(child, 0)
    total, *rest = here.recv()
    assert total < 2 * 4096 / 8 + 2
    assert rest == [1.0, 1.0, 100_000.0]
    assert x.sum() == 100_000
