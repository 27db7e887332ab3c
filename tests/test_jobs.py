"""Independent jobs on worker processes."""

from __future__ import annotations

import os
import signal
import time

import pytest
from forks import needs_fork

from minivit import RunError
from minivit.engine import jobs
from minivit.engine.jobs import done_by_workers


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_results_are_in_the_order_of_the_jobs(workers: int, count: int) -> None:
    calls: list[str] = []
    assert done_by_workers(lambda i: i * i, count, lambda: calls.append("x"), workers) == [i * i for i in range(count)]
    assert calls == ["x"]


@needs_fork
def test_other_processes_work_while_this_one_does_something_else() -> None:
    found = done_by_workers(lambda i: os.getpid(), 3, lambda: time.sleep(1.0), 2)
    assert os.getpid() not in found


@needs_fork
def test_large_results_arrive_whole() -> None:
    found = done_by_workers(lambda i: b"x" * (i << 20), 3, workers=2)
    assert [len(result) for result in found] == [0, 1 << 20, 2 << 20]


def test_without_forks_this_process_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "can_fork", lambda: False)
    assert done_by_workers(lambda i: os.getpid(), 3, workers=2) == [os.getpid()] * 3


@pytest.mark.parametrize("workers", [1, 2])
def test_the_error_of_a_job_is_raised(workers: int) -> None:
    def do(i: int) -> int:
        if i == 1:
            raise ValueError(f"job {i}")
        return i

    with pytest.raises(ValueError, match="job 1"):
        done_by_workers(do, 3, lambda: time.sleep(0.3 * (workers > 1)), workers)


@needs_fork
@pytest.mark.parametrize("workers", [2, 3])
def test_the_end_of_a_worker_is_noticed(workers: int) -> None:
    own = os.getpid()

    def do(i: int) -> int:
        if i == 0:
            assert os.getpid() != own
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    def too_late(*_: object) -> None:
        raise AssertionError("the end was not noticed")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(20)
    try:
        with pytest.raises(RunError, match="a worker process was ended"):
            done_by_workers(do, 4, lambda: time.sleep(0.5), workers)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@needs_fork
def test_an_error_that_cannot_be_sent_is_raised_too() -> None:
    class LocalError(Exception):
        pass

    def do(i: int) -> int:
        time.sleep(0.01)
        if os.getpid() != caller:
            raise LocalError("of a job")
        return i

    caller = os.getpid()
    with pytest.raises(RunError, match="LocalError: of a job"):
        done_by_workers(do, 20, workers=2)
