"""Trials of mutants: each runs the tests in a process of its own, with the mutant installed.

With fork, pytest collects once and each child starts with the collected tests. Without fork, each child collects the
tests before its clock starts. In both cases the time of a trial is that of the tests alone.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest

from . import cuda_trial, python_trial
from .verdicts import ROOT, Trial, Verdict


def run_trials(trials: Sequence[Trial], workers: int, report: Callable[[Trial, Verdict], None]) -> None:
    """Run the trials, `workers` at a time, and report each verdict as it becomes known.

    Raises
    ------
    RuntimeError
        The tests cannot be collected, an op has no tests, or a process ends without a verdict.
    """
    if "fork" in multiprocessing.get_all_start_methods():
        _collect(lambda session: _run_forked(session, trials, workers, report))
    else:
        _run_processes(multiprocessing.get_context("spawn"), None, trials, workers, report)


def _run_forked(
    session: pytest.Session, trials: Sequence[Trial], workers: int, report: Callable[[Trial, Verdict], None]
) -> None:
    of_cuda = [trial.mutant for trial in trials if trial.is_of_cuda and trial.mutant]
    tests = cuda_trial.tests_of(of_cuda, session) if of_cuda else {}
    kills = cuda_trial.KillsOf()

    def note(trial: Trial, verdict: Verdict) -> None:
        if trial.is_of_cuda and trial.mutant and verdict.killer and verdict.compiles:
            kills[trial.mutant.path, trial.mutant.function, verdict.killer] += 1
        report(trial, verdict)

    with tempfile.TemporaryDirectory() as scratch:

        def verdict_of(trial: Trial) -> Verdict:
            if trial.is_of_cuda:
                return cuda_trial.verdict_of(trial, session, tests, kills, scratch)
            return python_trial.verdict_of(trial, session)

        _run_processes(multiprocessing.get_context("fork"), verdict_of, trials, workers, note)


def _run_processes(
    context: Any,
    verdict_of: Callable[[Trial], Verdict] | None,
    trials: Sequence[Trial],
    workers: int,
    report: Callable[[Trial, Verdict], None],
) -> None:
    waiting, running = list(reversed(trials)), dict[Connection, tuple[Trial, Any, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                trial = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_run_trial, args=(trial, verdict_of, theirs))
                process.start()
                theirs.close()
                running[ours] = trial, process, time.perf_counter()
            ready: list[Any] = wait(list(running))
            for connection in ready:
                trial, process, start = running.pop(connection)
                report(trial, _received(connection, trial, process, start))
    finally:
        for _, process, _ in running.values():
            process.terminate()


def _received(connection: Connection, trial: Trial, process: Any, start: float) -> Verdict:
    try:
        answer: Verdict | RuntimeError = connection.recv()
    except EOFError:
        answer = Verdict(None, time.perf_counter() - start, late=True)
    process.join()
    if trial.is_of_cuda and isinstance(answer, Verdict) and answer.late:
        return cuda_trial.verdict_on_death(process.exitcode, answer.seconds)
    if isinstance(answer, RuntimeError):
        raise answer
    if answer.late and answer.seconds < trial.limit:
        raise RuntimeError(f"the process of a trial died with exit status {process.exitcode}: {trial}")
    return answer


def _run_trial(trial: Trial, verdict_of: Callable[[Trial], Verdict] | None, answer: Connection) -> None:
    """Run a trial in a child process; with `verdict_of`, the tests are collected already."""
    try:
        if verdict_of is None:
            _collect(lambda session: answer.send(python_trial.verdict_of(trial, session)))
        else:
            answer.send(verdict_of(trial))
    except Exception as error:
        answer.send(error if isinstance(error, RuntimeError) else RuntimeError(f"{trial} cannot be judged: {error!r}"))


class _Collected:
    """A pytest plugin that calls a function with the collected tests instead of running them all."""

    error: Exception | None = None

    def __init__(self, then: Callable[[pytest.Session], None]) -> None:
        self.then = then

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        import hypothesis  # imported here, after pytest has set up the rewriting of its assertions

        # The examples are the same for every mutant, and the first failing one is not shrunk.
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile(
            "mutants", hypothesis.settings.default, phases=phases, derandomize=True, database=None, deadline=None
        )
        hypothesis.settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed:
            return None
        try:
            self.then(session)
        except Exception as error:
            self.error = error
        return True


def _collect(then: Callable[[pytest.Session], None]) -> None:
    plugin, output = _Collected(then), io.StringIO()
    files = [str(ROOT / "tests" / name) for name in (*python_trial.TESTS, *cuda_trial.TESTS)]
    options = ["-n", "0", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-s", "--tb=native", f"--rootdir={ROOT}"]
    with contextlib.redirect_stdout(output):
        status = pytest.main([*options, *files], plugins=[plugin])
    if plugin.error:
        raise plugin.error
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest cannot collect the tests\n{output.getvalue()}")
