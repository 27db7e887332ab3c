"""A worker pool: workers that do one job together, each on a core of its own.

The caller is worker 0. The others are forked processes, because threads of one interpreter compete for its lock between
array operations. Where the system cannot fork, they are threads. All workers read and write the same arrays
(`minivit.arrays.shared`). The caller sends each job through a pipe to every worker, and each worker sends a reply.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from multiprocessing.util import Finalize, is_exiting
from typing import Any, TypeAlias

from minivit.arrays.shared import FORKS, starting_a_worker
from minivit.engine.arrivals import Arrivals, can_poll
from minivit.errors import RunError

# ``work(number, job, barrier)`` does the share of worker `number`.
Work: TypeAlias = Callable[[int, Any, "Barrier"], None]

_ARRIVED, _DONE = b"arrived", b"done"
_ENDED = "a worker process was ended from outside; the machine may have too little memory"


def can_fork() -> bool:
    """Return whether this process may fork: on Linux, unless it is a daemon of multiprocessing or is exiting."""
    return FORKS and not multiprocessing.current_process().daemon and not is_exiting()


@contextmanager
def broken_pipe_is_an_ended_worker() -> Iterator[None]:
    """Raise RunError for the error of a pipe whose other end is gone."""
    try:
        yield
    except (EOFError, OSError) as broken:
        raise RunError(_ENDED) from broken


class Barrier:
    """A barrier of the workers of a pool. Each worker has a `Barrier` with its own connections.

    Parameters
    ----------
    connections : list of Connection
        The caller's, one to each other worker; or a worker's, to the caller alone.
    number : int
        The number of the worker; the caller's is 0.
    arrivals : Arrivals, optional
        Counters that all workers share.
    """

    def __init__(self, connections: list[Connection], number: int, arrivals: Arrivals | None) -> None:
        self.connections = connections
        self._number = number
        self._arrivals = arrivals

    def wait(self) -> None:
        """Return when all workers have called this; in the caller, raise the error of a worker that failed before."""
        if self._number:
            self.connections[0].send_bytes(_ARRIVED)
            self.connections[0].recv_bytes()
            return
        for connection in self.connections:
            with broken_pipe_is_an_ended_worker():
                message = connection.recv_bytes()
            if message != _ARRIVED:
                raise pickle.loads(message)
        with broken_pipe_is_an_ended_worker():
            for connection in self.connections:
                connection.send_bytes(_ARRIVED)

    def wait_polling(self) -> None:
        """Do what `wait` does, faster where all workers arrive within a millisecond."""
        if self._arrivals is None:
            self.wait()
        else:
            self._arrivals.wait(self._number, self._has_message, self._receive)

    def _has_message(self) -> bool:
        return any(connection.poll() for connection in self.connections)

    def _receive(self) -> None:
        """Raise the error of a worker that failed or ended, whose message is there."""
        for connection in self.connections:
            with broken_pipe_is_an_ended_worker():
                message = connection.recv_bytes() if connection.poll() else None
            if message is not None:
                raise pickle.loads(message)

    def close(self) -> None:
        """Close the connections; reads and writes at their other ends then fail."""
        for connection in self.connections:
            connection.close()


class WorkerPool:
    """`size` workers, at least 2, that call ``work(number, job, barrier)`` at the same time; worker 0 is the caller.

    An error closes the pool: it is no longer `usable`, and a new one can replace it. The pool is also closed at the end
    of the program, and at the end of a process of multiprocessing, which would otherwise wait for the workers forever.

    Parameters
    ----------
    size : int
        The number of workers, including the caller.
    work : callable
        Does a worker's share of a job. It must not refer to the pool; otherwise the pool could not be freed.
    processes : bool
        With False the workers are threads, even where the system can fork.
    """

    def __init__(self, size: int, work: Work, processes: bool = True) -> None:
        self._work = work
        self._process = os.getpid()
        pipes = [Pipe() for _ in range(1, size)]
        forks = processes and can_fork()
        arrivals = Arrivals(size) if forks and can_poll(size) else None
        self._barrier = Barrier([end for end, _ in pipes], 0, arrivals)
        self._workers: list[Any] = []
        self._end = Finalize(self, _end, args=(self._barrier, self._workers), exitpriority=0)
        _pools.add(self)
        ends = [end for pipe in pipes for end in pipe]
        for number, (_, end) in enumerate(pipes, 1):
            barrier, quiet = Barrier([end], number, arrivals), warnings.catch_warnings()
            if forks:
                others = [other for other in ends if other is not end]
                context = multiprocessing.get_context("fork")
                args = (work, number, barrier, others, quiet)
                worker: Any = context.Process(target=_forked, args=args, daemon=True)
            else:
                worker = threading.Thread(target=_serve, args=(work, number, barrier), daemon=True)
            with quiet, starting_a_worker():
                # Python 3.12 and JAX warn about a fork in a process with threads, which may hold locks that the child
                # needs. The child uses only NumPy and its pipe, and the threads of NumPy's BLAS are idle here.
                warnings.simplefilter("ignore", DeprecationWarning)
                warnings.simplefilter("ignore", RuntimeWarning)
                worker.start()
            self._workers.append(worker)
        if forks:
            for _, end in pipes:
                end.close()

    def run(self, job: Any, message: bytes | None = None) -> None:
        """Let all workers do `job`, which must be picklable, and return when all have finished.

        `message` is the result of `pickle.dumps` for it, for a caller that has it already.

        Raises
        ------
        RunError
            A worker process was ended from outside.
        Exception
            The error that `work` raised in any worker.
        """
        connections = self._barrier.connections
        try:
            message = pickle.dumps(job) if message is None else message
            with broken_pipe_is_an_ended_worker():
                for connection in connections:
                    connection.send_bytes(message)
            self._work(0, job, self._barrier)
            with broken_pipe_is_an_ended_worker():
                replies = [connection.recv_bytes() for connection in connections]
            for reply in replies:
                if reply != _DONE:
                    raise pickle.loads(reply)
        except BaseException:
            self.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether `run` may be called: the pool is not closed, and this is the process that made it."""
        return self._end.still_active() and os.getpid() == self._process

    def close(self) -> None:
        """End the other workers."""
        self._end()


def _end(barrier: Barrier, workers: list[Any]) -> None:
    """Close the caller's connections, which ends the workers; kill processes that do not end in 0.2 seconds."""
    barrier.close()
    until = time.monotonic() + 0.2
    for worker in workers:
        worker.join(timeout=max(0.0, until - time.monotonic()))
        if worker.is_alive() and hasattr(worker, "kill"):
            worker.kill()
            worker.join()


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def _leave_pools() -> None:
    """Close the inherited connections in a forked process: workers end when every process has closed them."""
    for pool in list(_pools):
        pool._barrier.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_pools)


def _forked(
    work: Work, number: int, barrier: Barrier, others: list[Connection], quiet: warnings.catch_warnings[None]
) -> None:
    """Run a worker in this forked process, after closing the connections of the others."""
    # A terminal sends Ctrl-C to all processes, and `timeout` sends SIGTERM. The caller handles both; when it ends, its
    # end of the pipe closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    quiet.__exit__(None, None, None)  # the fork is over
    gc.freeze()  # a collection would write to inherited objects and so copy their pages
    for connection in others:
        connection.close()
    _serve(work, number, barrier)


def _serve(work: Work, number: int, barrier: Barrier) -> None:
    """Do job after job until the caller closes its end of the pipe."""
    (caller,) = barrier.connections
    try:
        with suppress(EOFError, OSError):
            while True:
                job = caller.recv()
                try:
                    work(number, job, barrier)
                except BaseException as error:
                    caller.send(portable(error))
                else:
                    caller.send_bytes(_DONE)
    finally:
        barrier.close()


def portable(error: BaseException) -> BaseException:
    """Return `error`, or a RunError with its message if it cannot be pickled; its traceback is added as a note."""
    note = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RunError(f"a worker failed: {type(error).__name__}: {error}")
    error.add_note(note)
    return error
