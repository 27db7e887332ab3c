"""Independent jobs on worker processes: a worker that is free takes the next one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Pipe
from typing import TypeVar

from minivit.engine.machine import cores
from minivit.engine.worker_pool import Barrier, WorkerPool, broken_pipe_is_an_ended_worker, can_fork, portable

T = TypeVar("T")


def done_by_workers(
    do: Callable[[int], T], count: int, meanwhile: Callable[[], object] = lambda: None, workers: int | None = None
) -> list[T]:
    """Return ``[do(0), ..., do(count - 1)]``, computed by as many processes as there are cores.

    The jobs are taken in their order. The processes are forked from this one, so that `do` may use all that is here;
    what it changes elsewhere is lost, and its result is pickled. Where the system cannot fork, this process does all.

    Parameters
    ----------
    do : callable
        Does a job.
    count : int
        The number of jobs.
    meanwhile : callable
        Is called once in this process, before it takes jobs.
    workers : int, optional
        The number of processes; by default the machine's cores.

    Raises
    ------
    RunError
        A worker process was ended from outside.
    Exception
        The first error of a job.
    """
    size = min(workers or cores(), count + 1)
    if size < 2 or not can_fork():
        meanwhile()
        return [do(i) for i in range(count)]
    taken = multiprocessing.get_context("fork").Value("i", 0)
    pipes = [Pipe(duplex=False) for _ in range(1, size)]
    results: dict[int, T] = {}

    def work(number: int, job: None, barrier: Barrier) -> None:
        if number:
            _, own = pipes[number - 1]
            for receiver, sender in pipes:  # of other processes: the end of one is noticed when all have closed its own
                receiver.close()
                if sender is not own:
                    sender.close()
            try:
                own.send(share())
            except BaseException as error:  # of a job, or of a result that cannot be sent
                own.send(portable(error))
            return
        meanwhile()
        results.update(share())
        for receiver, _ in pipes:
            with broken_pipe_is_an_ended_worker():
                of_worker = receiver.recv()
            if isinstance(of_worker, BaseException):
                raise of_worker
            results.update(of_worker)

    def share() -> dict[int, T]:
        own: dict[int, T] = {}
        while True:
            with taken.get_lock():
                i = taken.value
                taken.value = i + 1
            if i >= count:
                return own
            own[i] = do(i)

    pool = WorkerPool(size, work)
    try:
        for _, sender in pipes:
            sender.close()  # so that the end of a worker is noticed
        pool.run(None)
    finally:
        pool.close()
        for receiver, sender in pipes:
            with suppress(OSError):
                receiver.close()
                sender.close()
    return [results[i] for i in range(count)]
