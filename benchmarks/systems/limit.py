"""The limit: the matrix products that a step or a prediction needs, and nothing else, in one of several layouts.

threaded    each product on the whole batch, shared by the threads of BLAS
micro-16    processes that take 16 images at a time through all products, with single-threaded BLAS
rows        for one image: each product's rows shared by threads, which wait for each other where they must
"""

import functools
import multiprocessing
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import threadpoolctl

from benchmarks.products import Product, Weights, products
from benchmarks.systems import Step
from benchmarks.workloads import Task, Workload

_NOTHING = np.zeros(0, dtype=np.float32)  # the result: nothing is computed that has a meaning


def layouts(workload: Workload, threads: int) -> list[str]:
    """Return the layouts to try for a workload: all that keep every thread busy."""
    if workload.batch_size == 1 and not workload.trains:
        return ["threaded", "rows"]
    share = -(-workload.batch_size // threads)
    sizes = {size for size in (8, 16, 32, workload.config.micro_batch) if size <= share} or {share}
    return ["threaded", *(f"micro-{size}" for size in sorted(sizes))]


def prepare(task: Task, variant: str) -> Step:
    """Return a step that computes all products once."""
    threadpoolctl.threadpool_limits(task.threads if variant == "threaded" else 1, user_api="blas")  # for good
    if variant == "rows":
        return _by_rows(task)
    if variant != "threaded":
        return _by_images(task, int(variant.removeprefix("micro-")))
    whole = _products(task, task.workload.batch_size)
    return Step(lambda: _run(whole))


def _run(products: Iterable[Product]) -> Any:
    for product in products:
        product.run()
    return _NOTHING


def _products(task: Task, images: int) -> list[Product]:
    config = task.workload.config
    return products(config, Weights(config), images, task.workload.trains)


def _by_images(task: Task, size: int) -> Step:
    """Share the micro-batches between this process and forked ones, which wait at a barrier before and after a step."""
    B = task.workload.batch_size
    sizes = [min(size, B - start) for start in range(0, B, size)]
    processes = min(task.threads, len(sizes))
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(processes)

    @functools.cache
    def own() -> dict[int, list[Product]]:  # made in the first step by each process, in its own memory
        return {count: _products(task, count) for count in set(sizes)}

    def take_share(number: int) -> Any:
        barrier.wait()
        for count in sizes[number::processes]:
            _run(own()[count])
        barrier.wait()
        return _NOTHING

    def serve(number: int) -> None:
        while True:
            take_share(number)

    others = [fork.Process(target=serve, args=(number,), daemon=True) for number in range(1, processes)]

    def close() -> None:
        for other in others:
            other.kill()
            other.join()

    for other in others:
        other.start()
    return Step(lambda: take_share(0), close=close)


def _by_rows(task: Task) -> Step:
    threads = task.threads
    whole = _products(task, task.workload.batch_size)
    shares = [[product.share(part, threads) for product in whole] for part in range(threads)]
    barrier = threading.Barrier(threads)

    def take_share(own: list[Product]) -> None:
        for share in own:
            if share.out.size:
                share.run()
            if share.gathers:
                barrier.wait()

    def run() -> Any:
        list(pool.map(take_share, shares))
        return _NOTHING

    pool = ThreadPoolExecutor(threads)
    return Step(run, close=pool.shutdown)
