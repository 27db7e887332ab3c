"""Sides that are measured in turn on a GPU, here fakes, or minivit on the CPU."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from benchmarks.gpu_parts import step
from benchmarks.gpu_parts.budget import Budget
from benchmarks.gpu_parts.compare import compare_all
from benchmarks.gpu_parts.process import Worker
from benchmarks.gpu_parts.works import WORKS, Job
from benchmarks.rounds import WorkerError

TRAINING = Job(WORKS["gpu-train-tiny"], "bfloat16")


class FakeWorker:
    """A side with a time of its own, or with an error."""

    def __init__(self, milliseconds: float | str, answer: float = 2.3) -> None:
        self._milliseconds, self._answer = milliseconds, answer
        self.closed = False

    def reply(self, seconds: float) -> dict[str, Any]:
        if isinstance(self._milliseconds, str):
            raise WorkerError(self._milliseconds)
        return {"answer": self._answer, "seconds_to_first": 1.0, "versions": {"PyTorch": "2"}}

    def measure(self, duration: float, seconds: float) -> dict[str, Any]:
        assert isinstance(self._milliseconds, float)
        return {"seconds": [1e-3 * self._milliseconds] * 3, "peak_bytes": 1e9, "peak_used_bytes": 9e8}

    def close(self) -> None:
        self.closed = True


def compared(budget: Budget | None = None, **workers: FakeWorker) -> Any:
    everyone = compare_all(
        [TRAINING],
        {name: name for name in workers},
        0.1,
        budget or Budget(1000),
        lambda line: None,
        lambda system, work, precision: workers[system],
    )
    found = list(everyone)
    assert budget or all(worker.closed for worker in workers.values())
    return found


def test_sides_are_compared_and_bars_judged() -> None:
    (found,) = compared(minivit=FakeWorker(10.0), eager=FakeWorker(12.0), compile=FakeWorker(8.5))
    ours, eager, compiled = found.rows
    assert (ours.title, ours.images_per_second) == ("minivit", pytest.approx(102_400))
    assert eager.ratio.interval == pytest.approx((1.2, 1.2))
    assert [str(verdict) for verdict in eager.verdicts] == ["1 (1.6): reached"]
    assert [str(verdict) for verdict in compiled.verdicts] == ["0.9 (1.2): missed"]
    assert (found.notes, found.failed) == ([], [])
    json.dumps(found.to_dict())


def test_a_side_that_fails_is_named_and_the_others_are_measured() -> None:
    broken = FakeWorker("OutOfMemoryError: CUDA out of memory")
    (found,) = compared(minivit=FakeWorker(10.0), eager=FakeWorker(11.0), compile=broken)
    assert [row.title for row in found.rows] == ["minivit", "PyTorch eager"]
    assert found.failed == ["compile"]
    assert "compile: failed: OutOfMemoryError: CUDA out of memory" in found.notes


@pytest.mark.parametrize("answer", [2.5, math.nan])
def test_sides_that_compute_something_else_are_no_comparison(answer: float) -> None:
    (found,) = compared(minivit=FakeWorker(10.0), eager=FakeWorker(11.0, answer))
    assert found.failed == ["eager computes something else"]
    assert found.notes == [f"eager: its first loss is {answer}, ours 2.3: not the same model"]


def test_a_comparison_for_which_no_time_is_left_is_not_begun() -> None:
    budget = Budget(10)
    assert compared(budget, minivit=FakeWorker(10.0)) == []
    (line,) = budget.skipped
    assert line.startswith(f"{TRAINING.title}: skipped: 10 of 10 s were left")


def test_a_process_answers_until_it_is_closed() -> None:
    worker = Worker("rehearsed-minivit", "rehearsed-predict", "float32")
    try:
        assert {"answer", "seconds_to_first", "versions"} == set(worker.reply(60))
        said = worker.measure(0.0, 60)
        assert len(said["seconds"]) == step.FEWEST_SAMPLES
        assert min(said["seconds"]) > 0
    finally:
        worker.close()


def test_a_process_that_ends_unasked_leaves_its_last_words() -> None:
    worker = Worker("nobody", "rehearsed-predict", "float32")
    with pytest.raises(WorkerError, match=r"it ended with status 2: .*invalid choice: 'nobody'"):
        worker.reply(60)
    with pytest.raises(WorkerError, match="it ended with status 2"):
        worker.measure(0.0, 60)
    worker.close()


def test_a_process_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    worker = Worker("minivit", "rehearsed-train", "float32")
    with pytest.raises(WorkerError, match="UserError: backend 'cupy'"):
        worker.reply(60)
    worker.close()


def test_a_process_that_takes_too_long_is_ended() -> None:
    worker = Worker("rehearsed-minivit", "rehearsed-train", "float32")
    with pytest.raises(WorkerError, match="longer than 0 s"):
        worker.reply(0.0)
    worker.close()
