"""The guard of a run: clipping, the flag that stops updates, and the loss scale, all decided on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from devices import nothing_crosses

from minivit.arrays import to_backend, to_host
from minivit.train.grad_scaler import FIRST_SCALING, GROWTH_STEPS, LARGEST_SCALE, GradScaler
from minivit.train.metrics import MetricsBuffer, Record

pytestmark = pytest.mark.parametrize("backend", ["numpy", "strict"])

BIG = float("inf")


class Ward:
    """A guard and the gradients that it is shown: two numbers, of norm 5 times `size`."""

    def __init__(self, backend: str, clip_norm: float = 0.0, scaled: bool = False) -> None:
        self.backend = backend
        self.guard = GradScaler(self.there([0.0, 0.0]), clip_norm, scaled)

    def there(self, numbers: Any) -> Any:
        return to_backend(np.array(numbers, np.float32), self.backend)

    def factor(self, loss: float = 1.0, size: float = 1.0) -> float:
        given = self.there(loss), self.there([3.0 * size, 4.0 * size])
        with nothing_crosses(self.backend):
            factor = self.guard.factor(*given)
        assert factor.shape == ()
        assert factor.dtype == np.float32
        return float(to_host(factor))

    @property
    def stopped(self) -> bool:
        return bool(to_host(self.guard.stopped))


def test_gradients_are_clipped_to_the_norm(backend: str) -> None:
    assert Ward(backend).factor(size=100.0) == 1.0
    assert Ward(backend, clip_norm=10.0).factor() == 1.0
    assert Ward(backend, clip_norm=1.0).factor() == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize("bad", [{"loss": BIG}, {"loss": float("nan")}, {"size": BIG}, {"size": float("nan")}], ids=str)
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_what_is_not_finite_stops_all_later_updates(backend: str, bad: dict[str, float], clip_norm: float) -> None:
    ward = Ward(backend, clip_norm)
    assert ward.factor() > 0
    assert not ward.stopped
    for given in (bad, {}, {}):
        assert np.isnan(ward.factor(**given))
        assert ward.stopped


def test_without_float16_there_is_no_loss_scale(backend: str) -> None:
    ward = Ward(backend)
    ward.guard.go_on_with((4.0, 3))
    assert ward.guard.loss_scale is None
    assert ward.guard.scaling() is None
    assert ward.factor() == 1.0


def test_the_factor_undoes_the_loss_scale_before_it_clips(backend: str) -> None:
    ward = Ward(backend, clip_norm=1.0, scaled=True)
    ward.guard.go_on_with((64.0, 0))
    assert ward.factor(size=64.0) == pytest.approx(0.2 / 64, rel=1e-5)
    ward = Ward(backend, clip_norm=10.0, scaled=True)
    ward.guard.go_on_with((64.0, 0))
    assert ward.factor(size=64.0) == 1 / 64


def test_an_overflow_leaves_out_one_step_and_halves_the_scale(backend: str) -> None:
    ward = Ward(backend, scaled=True)
    assert ward.guard.scaling() == FIRST_SCALING
    assert ward.factor() == 1 / FIRST_SCALING[0]
    assert np.isnan(ward.factor(size=BIG))
    assert not ward.stopped
    assert ward.guard.scaling() == (FIRST_SCALING[0] / 2, 0)
    assert float(to_host(ward.guard.loss_scale)) == FIRST_SCALING[0] / 2
    assert ward.factor() == 2 / FIRST_SCALING[0]


def test_good_steps_double_the_scale_up_to_a_limit(backend: str) -> None:
    ward = Ward(backend, scaled=True)
    ward.guard.go_on_with((8.0, GROWTH_STEPS - 2))
    ward.factor()
    assert ward.guard.scaling() == (8.0, GROWTH_STEPS - 1)
    assert ward.factor() == 1 / 8
    assert ward.guard.scaling() == (16.0, 0)
    ward.guard.go_on_with((LARGEST_SCALE, GROWTH_STEPS - 1))
    ward.factor()
    assert ward.guard.scaling() == (LARGEST_SCALE, 0)


def test_an_overflow_with_a_scale_of_1_stops_the_run(backend: str) -> None:
    ward = Ward(backend, scaled=True)
    ward.guard.go_on_with((2.0, 0))
    ward.factor(size=BIG)
    assert not ward.stopped
    ward.factor(size=BIG)
    assert ward.stopped


def test_a_loss_that_is_not_finite_stops_float16_too(backend: str) -> None:
    ward = Ward(backend, scaled=True)
    assert np.isnan(ward.factor(loss=BIG, size=BIG))
    assert ward.stopped
    assert np.isnan(ward.factor())


def test_records_are_read_together(backend: str) -> None:
    def there(numbers: Any, dtype: Any = np.float32) -> Any:
        return to_backend(np.array(numbers, dtype), backend)

    tally = MetricsBuffer(there([0.0]), 3)
    logits, stopped = there([[1, 2, 0], [5, 1, 1], [0, 1, 7]]), there(0.0)
    assert tally.read() == []
    for labels in ([1, 0, 2], [1, 1, 1], [0, 0, 0]):
        assert not tally.full
        given = there(0.5), logits, there(labels, np.int64), stopped
        with nothing_crosses(backend):
            tally.add(*given)
        stopped = there(1.0)
    assert tally.full
    assert tally.read() == [Record(0.5, 3, False), Record(0.5, 1, True), Record(0.5, 1, True)]
    assert tally.read() == []
