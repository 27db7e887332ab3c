"""What is asked of the machine is given back."""

from __future__ import annotations

import threadpoolctl

from minivit.machine import single_threaded_blas


def blas_threads() -> set[int]:
    return {info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"}


def test_blas_has_its_threads_again_when_the_last_block_ends() -> None:
    """As when two threads are in blocks of their own, of which the first to begin ends first."""
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        first, second = single_threaded_blas(), single_threaded_blas()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert blas_threads() == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == before != {1}
