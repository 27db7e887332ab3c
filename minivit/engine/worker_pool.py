"""A team: workers that do the parts of one job at the same time, each on a core of its own.

The caller is the first member. The others are forked processes, since threads of one interpreter wait for its lock
between any two array operations; where the system cannot fork they are threads. Both read the same arrays, those of
`shared_zeros`, and speak through pipes. A job goes to each member through its door and a reply comes back; a baton
goes round for what must happen in order.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from multiprocessing.util import Finalize, is_exiting
from typing import Any, TypeAlias

from minivit.arrays.shared import FORKS
from minivit.errors import RunError

# ``work(number, job, together)`` does a member's share of a job.
Work: TypeAlias = Callable[[int, Any, "Together"], None]

_GO, _STOP = b"go", b"stop"
_ENDED = "a worker process was ended from outside; was memory short?"


def can_fork() -> bool:
    """Return whether this process may fork: on Linux, unless it is itself a daemon of multiprocessing, or ends."""
    return FORKS and not multiprocessing.current_process().daemon and not is_exiting()


class StoppedError(Exception):
    """Another member failed, so this one cannot go on."""


@contextmanager
def _broken_pipe_raises(error: Exception | type[Exception]) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as broken:
        raise error from broken


class Together:
    """How a member keeps step with the others.

    Parameters
    ----------
    doors : list of Connection
        Of the first member: to each other one; of another: to the first.
    previous, following : Connection
        Where the baton comes from, and where it goes.
    first : bool
        Whether the member is the caller.
    """

    def __init__(self, doors: list[Connection], previous: Connection, following: Connection, first: bool) -> None:
        self.doors = doors
        self._previous = previous
        self._following = following
        self._first = first

    @contextmanager
    def turn(self, index: int, count: int) -> Iterator[None]:
        """Let the block run after that of part ``index - 1`` of `count`; the parts go round the members."""
        with _broken_pipe_raises(StoppedError):
            if index > 0 and self._previous.recv_bytes() == _STOP:
                raise StoppedError
        yield
        with _broken_pipe_raises(StoppedError):
            if index + 1 < count:
                self._following.send_bytes(_GO)

    def meet(self) -> None:
        """Wait until all members are here."""
        if not self._first:
            self.doors[0].send_bytes(_GO)
            self.doors[0].recv_bytes()
            return
        for door in self.doors:
            with _broken_pipe_raises(RunError(_ENDED)):
                message = door.recv_bytes()
            if message != _GO:
                raise pickle.loads(message)
        with _broken_pipe_raises(RunError(_ENDED)):
            for door in self.doors:
                door.send_bytes(_GO)

    def close(self) -> None:
        """Close this member's ends of the pipes, which the others notice."""
        for end in (*self.doors, self._previous, self._following):
            end.close()

    def stop(self) -> None:
        """Tell the member whose turn would come next that it never will."""
        with suppress(OSError):
            self._following.send_bytes(_STOP)


class Team:
    """`size` members, at least 2, that call ``work(number, job, together)`` at the same time; number 0 is the caller.

    With ``processes=False`` the others are threads in any case.

    An error ends the team: it is not `usable` then, and a new one may take its place. So do the end of the program, and
    that of a process of multiprocessing, which would otherwise wait for the members for ever.
    """

    def __init__(self, size: int, work: Work, processes: bool = True) -> None:
        self._work = work
        self._process = os.getpid()
        doors = [Pipe() for _ in range(1, size)]
        batons = [Pipe(duplex=False) for _ in range(size)]  # the k-th leads to member k
        mine = [[near for near, _ in doors], *([far] for _, far in doors)]
        members = [Together(mine[k], batons[k][0], batons[(k + 1) % size][1], k == 0) for k in range(size)]
        kept = [[*mine[k], batons[k][0], batons[(k + 1) % size][1]] for k in range(size)]
        ends = [end for pair in (*doors, *batons) for end in pair]
        self._together = members[0]
        forks = processes and can_fork()
        self._others: list[Any] = []
        self._end = Finalize(self, _end, args=(self._together, self._others), exitpriority=0)
        _teams.add(self)
        for k in range(1, size):
            quiet = warnings.catch_warnings()
            if forks:
                foreign = [end for end in ends if end not in kept[k]]
                fork = multiprocessing.get_context("fork")
                args = (work, k, members[k], foreign, quiet)
                other: Any = fork.Process(target=_forked, args=args, daemon=True)
            else:
                other = threading.Thread(target=_serve, args=(work, k, members[k]), daemon=True)
            with quiet:
                # Python 3.12 and JAX warn of a fork beside threads, which may hold locks that the child waits for. The
                # child uses NumPy and its pipes alone, and here the threads of NumPy's BLAS are at rest.
                warnings.simplefilter("ignore", DeprecationWarning)
                warnings.simplefilter("ignore", RuntimeWarning)
                other.start()
            self._others.append(other)
        if forks:
            for end in ends:
                if end not in kept[0]:
                    end.close()

    def run(self, job: Any) -> None:
        """Let all members work on `job`, which can be pickled, and return when all have finished.

        Raises
        ------
        RunError
            A process of the team was ended from outside.
        Exception
            What `work` raised, in any member.
        """
        stopped: StoppedError | None = None
        try:
            with _broken_pipe_raises(RunError(_ENDED)):
                for door in self._together.doors:
                    door.send(job)
            try:
                self._work(0, job, self._together)
            except StoppedError as error:  # the reply of another says why
                stopped = error
                self._together.stop()
            with _broken_pipe_raises(RunError(_ENDED)):
                errors = [reply for door in self._together.doors if (reply := door.recv()) is not None]
        except BaseException:
            self.close()
            raise
        if errors or stopped:
            self.close()
            raise next((error for error in errors if not isinstance(error, StoppedError)), stopped or errors[0])

    @property
    def usable(self) -> bool:
        """Whether `run` may be called: the team has not ended, and this is the process that made it."""
        return self._end.still_active() and os.getpid() == self._process

    def close(self) -> None:
        """End the other members."""
        self._end()


def _end(caller: Together, others: list[Any]) -> None:
    """End `others`, which notice that the caller's pipes are closed, or by force."""
    caller.close()
    for other in others:
        other.join(timeout=0.2)
        if other.is_alive() and hasattr(other, "kill"):
            other.kill()
            other.join()


_teams: weakref.WeakSet[Team] = weakref.WeakSet()


def _leave_teams() -> None:
    """Close, in a forked process, the callers' ends of all pipes: others wait for their last holder to be gone."""
    for team in list(_teams):
        team._together.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_teams)


def _forked(
    work: Work,
    number: int,
    together: Together,
    foreign: list[Connection],
    quiet: warnings.catch_warnings[None],
) -> None:
    """Be a member in a process of its own, without the ends of the pipes that belong to others."""
    # Ctrl-C and a polite kill, which a terminal or `timeout` sends to all processes, are the caller's; when it ends,
    # so does its end of the door.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    quiet.__exit__(None, None, None)  # the fork is over
    gc.freeze()  # looking through the caller's objects for garbage would copy their pages
    for end in foreign:
        end.close()
    _serve(work, number, together)


def _serve(work: Work, number: int, together: Together) -> None:
    """Do job after job until the caller closes its end of the pipe."""
    (door,) = together.doors
    try:
        with suppress(EOFError, OSError):
            while True:
                job = door.recv()
                try:
                    work(number, job, together)
                except BaseException as error:
                    together.stop()
                    door.send(_portable(error))
                else:
                    door.send(None)
    finally:
        together.close()


def _portable(error: BaseException) -> BaseException:
    """Return `error` with its traceback as a note, or where it cannot be pickled a RunError that tells of it."""
    note = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RunError(f"a worker failed: {type(error).__name__}: {error}")
    error.add_note(note)
    return error
