"""The grad scaler and the metrics buffer of a step: clipping, the flag that stops updates, the loss scale, metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from devices import nothing_crosses

from minivit.arrays import to_backend, to_host
from minivit.ops.grad_scaler import FIRST_SCALE, GROWTH_STEPS, LARGEST_SCALE
from minivit.random import Key
from minivit.train.step import GradScaler, MetricsBuffer

pytestmark = pytest.mark.parametrize("backend", ["numpy", "strict"])

BIG = float("inf")


class Steps:
    """A grad scaler and its input: gradients of two elements with the norm ``5 * size``."""

    def __init__(self, backend: str, clip_norm: float = 0.0, scaled: bool = False) -> None:
        self.backend = backend
        self.scaler = GradScaler(self.there([0.0, 0.0]), clip_norm, scaled)

    def there(self, numbers: Any) -> Any:
        return to_backend(np.array(numbers, np.float32), self.backend)

    def factor(self, loss: float = 1.0, size: float = 1.0) -> float:
        given = self.there(loss), self.there([3.0 * size, 4.0 * size])
        with nothing_crosses(self.backend):
            factor = self.scaler.factor(*given)
        assert factor.shape == ()
        assert factor.dtype == np.float32
        return float(to_host(factor))

    @property
    def stopped(self) -> bool:
        return bool(to_host(self.scaler.stopped))


def test_gradients_are_clipped_to_the_norm(backend: str) -> None:
    assert Steps(backend).factor(size=100.0) == 1.0
    assert Steps(backend, clip_norm=10.0).factor() == 1.0
    assert Steps(backend, clip_norm=1.0).factor() == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize("bad", [{"loss": BIG}, {"loss": float("nan")}, {"size": BIG}, {"size": float("nan")}], ids=str)
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_what_is_not_finite_stops_all_later_updates(backend: str, bad: dict[str, float], clip_norm: float) -> None:
    steps = Steps(backend, clip_norm)
    assert steps.factor() > 0
    assert not steps.stopped
    for given in (bad, {}, {}):
        assert np.isnan(steps.factor(**given))
        assert steps.stopped


def test_without_float16_there_is_no_loss_scale(backend: str) -> None:
    steps = Steps(backend)
    steps.scaler.load_state((4.0, 3))
    assert steps.scaler.loss_scale is None
    assert steps.scaler.state() is None
    assert steps.factor() == 1.0


def test_the_factor_undoes_the_loss_scale_before_it_clips(backend: str) -> None:
    steps = Steps(backend, clip_norm=1.0, scaled=True)
    steps.scaler.load_state((64.0, 0))
    assert steps.factor(size=64.0) == pytest.approx(0.2 / 64, rel=1e-5)
    steps = Steps(backend, clip_norm=10.0, scaled=True)
    steps.scaler.load_state((64.0, 0))
    assert steps.factor(size=64.0) == 1 / 64


def test_an_overflow_leaves_out_one_step_and_halves_the_scale(backend: str) -> None:
    steps = Steps(backend, scaled=True)
    assert steps.scaler.state() == (FIRST_SCALE, 0)
    assert steps.factor() == 1 / FIRST_SCALE
    assert np.isnan(steps.factor(size=BIG))
    assert not steps.stopped
    assert steps.scaler.state() == (FIRST_SCALE / 2, 0)
    assert float(to_host(steps.scaler.loss_scale)) == FIRST_SCALE / 2
    assert steps.factor() == 2 / FIRST_SCALE


def test_good_steps_double_the_scale_up_to_a_limit(backend: str) -> None:
    steps = Steps(backend, scaled=True)
    steps.scaler.load_state((8.0, GROWTH_STEPS - 2))
    steps.factor()
    assert steps.scaler.state() == (8.0, GROWTH_STEPS - 1)
    assert steps.factor() == 1 / 8
    assert steps.scaler.state() == (16.0, 0)
    steps.scaler.load_state((LARGEST_SCALE, GROWTH_STEPS - 1))
    steps.factor()
    assert steps.scaler.state() == (LARGEST_SCALE, 0)


def test_an_overflow_with_a_scale_of_1_stops_the_run(backend: str) -> None:
    steps = Steps(backend, scaled=True)
    steps.scaler.load_state((2.0, 0))
    steps.factor(size=BIG)
    assert not steps.stopped
    steps.factor(size=BIG)
    assert steps.stopped


def test_a_loss_that_is_not_finite_stops_float16_too(backend: str) -> None:
    steps = Steps(backend, scaled=True)
    assert np.isnan(steps.factor(loss=BIG, size=BIG))
    assert steps.stopped
    assert np.isnan(steps.factor())


def test_records_are_read_together(backend: str) -> None:
    def there(numbers: Any, dtype: Any = np.float32) -> Any:
        return to_backend(np.array(numbers, dtype), backend)

    buffer = MetricsBuffer(there([0.0]), 3)
    logits, stopped = there([[1, 2, 0], [5, 1, 1], [0, 1, 7]]), there(0.0)
    assert buffer.read() == []
    samples = [there([7 + step, 1, 4], np.int64) for step in range(3)]
    for step, labels in enumerate(([1, 0, 2], [1, 1, 1], [0, 0, 0])):
        assert not buffer.full
        given = there(0.5), logits, there(labels, np.int64), stopped
        with nothing_crosses(backend):
            buffer.start_clock()
            buffer.record(Key(0, step, samples[step]), 0.1 * step, *given)
        stopped = there(1.0)
    assert buffer.full
    metrics = buffer.read()
    assert [(step.loss, step.correct, step.stopped) for step in metrics] == [
        (0.5, 3, False),
        (0.5, 1, True),
        (0.5, 1, True),
    ]
    assert [(step.number, step.lr) for step in metrics] == [(1, 0.0), (2, 0.1), (3, 0.2)]
    assert all(step.samples is given for step, given in zip(metrics, samples, strict=True))
    assert buffer.read() == []


def test_the_time_of_steps_begins_with_the_first_that_is_not_read(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is divided among them by their numbers of images."""
    now = iter([10.0, 16.0, 100.0, 101.0])
    monkeypatch.setattr("minivit.train.step.time.perf_counter", lambda: next(now))
    zero = to_backend(np.float32(0.0), backend)
    buffer = MetricsBuffer(to_backend(np.zeros(1, np.float32), backend), 3)

    def take(count: int) -> None:
        buffer.start_clock()
        logits, labels = np.zeros((count, 2), np.float32), np.zeros(count, np.int64)
        there = to_backend(logits, backend), to_backend(labels, backend)
        buffer.record(Key(0, 0, there[1]), 0.1, zero, *there, zero)

    take(2)
    take(1)
    assert [step.seconds for step in buffer.read()] == [4.0, 2.0]
    take(5)
    assert [step.seconds for step in buffer.read()] == [1.0]
