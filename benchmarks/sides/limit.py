"""The limit: the matrix products that a step or a prediction needs, and nothing else, in one of several layouts.

threaded    each product on the whole batch, shared by the threads of BLAS
micro-16    processes of a team that take 16 images at a time through all products, with single-threaded BLAS
rows        for one image: each product's rows shared by threads of ours, which wait for each other where they must
"""

from __future__ import annotations

import functools
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import threadpoolctl

from benchmarks.products import Product, Weights, products
from benchmarks.sides import minivit
from benchmarks.task import Task
from benchmarks.works import Work
from minivit.arrays import Array
from minivit.engine.worker_pool import Barrier, WorkerPool

_LOGITS = np.zeros(0, dtype=np.float32)  # nothing is computed that has a meaning


def layouts(work: Work, threads: int) -> list[str]:
    """Return the layouts to try for a work: all that keep every thread busy."""
    if work.batch_size == 1 and not work.trains:
        return ["threaded", "rows"]
    share = -(-work.batch_size // threads)
    sizes = {size for size in (8, 16, 32, work.config.micro_batch) if size <= share} or {share}
    return ["threaded", *(f"micro-{size}" for size in sorted(sizes))]


def prepare(task: Task, variant: str) -> Callable[[], Array]:
    """Return a function that computes all products once.

    Raises
    ------
    ValueError
        Operands near are asked for in a prediction.
    """
    layout = variant.removesuffix("-near")
    near = variant != layout
    if near and not task.work.trains:
        raise ValueError("the operands of a prediction are near in any case, since its blocks keep none")
    threadpoolctl.threadpool_limits(task.threads if layout == "threaded" else 1, user_api="blas")  # for good
    if layout == "threaded":
        return _whole(task, near)
    return _by_rows(task) if layout == "rows" else _by_images(task, int(layout.removeprefix("micro-")), near)


def _whole(task: Task, near: bool) -> Callable[[], Array]:
    config = task.work.config
    whole = products(config, Weights(config), task.work.batch_size, task.work.trains, near)

    def step() -> Array:
        for product in whole:
            product.run()
        return _LOGITS

    return step


def _by_images(task: Task, size: int, near: bool) -> Callable[[], Array]:
    B, config = task.work.batch_size, task.work.config
    sizes = [min(size, B - start) for start in range(0, B, size)]
    members = min(task.threads, len(sizes))
    weights = Weights(config)
    begun = multiprocessing.Value("q", 0)

    @functools.cache
    def own(number: int) -> dict[int, list[Product]]:  # which a member makes in the first step, in its own memory
        return {n: products(config, weights, n, task.work.trains, near) for n in set(sizes)}

    def work(number: int, job: None, barrier: Barrier | None) -> None:
        mine = own(number)
        while True:
            with begun.get_lock():
                turn = begun.value
                begun.value += 1
            if turn >= len(sizes):
                return
            for product in mine[sizes[turn]]:
                product.run()

    def step() -> Array:
        begun.value = 0
        if pool is None:
            work(0, None, None)
        else:
            pool.run(None)
        return _LOGITS

    pool = WorkerPool(members, work) if members > 1 else None
    return step


def _by_rows(task: Task) -> Callable[[], Array]:
    threads = task.threads
    whole = products(task.work.config, Weights(task.work.config), task.work.batch_size, task.work.trains)
    shares = [[product.share(part, threads) for product in whole] for part in range(threads)]
    barrier = threading.Barrier(threads)

    def work(own: list[Product]) -> None:
        for share in own:
            if share.out.size:
                share.run()
            if share.gathers:
                barrier.wait()

    def step() -> Array:
        list(pool.map(work, shares))
        return _LOGITS

    pool = ThreadPoolExecutor(threads)
    return step


versions = minivit.versions
