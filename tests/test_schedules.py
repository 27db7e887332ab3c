"""Schedules of the learning rate: warm-up by a line, then a fall towards zero."""

from __future__ import annotations

import itertools
import math

import pytest

from minivit import UserError
from minivit.train import learning_rate


def test_warmup_is_a_line_up_to_the_rate() -> None:
    rates = [learning_rate(step, 100, 0.4, warmup_steps=4) for step in range(5)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [1.0, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(math.pi / 4)) / 2]),
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules_fall_from_the_rate_towards_zero(schedule: str, expected: list[float]) -> None:
    rates = [learning_rate(step, 6, 2.0, warmup_steps=2, schedule=schedule) for step in range(2, 6)]
    assert rates == pytest.approx([2 * rate for rate in expected])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_ends_just_above_zero(schedule: str) -> None:
    rates = [learning_rate(step, 1000, 1.0, 10, schedule) for step in range(1000)]
    assert 0 < rates[-1] < 2e-3
    assert all(one > other for one, other in itertools.pairwise(rates[10:]))


def test_a_run_that_is_all_warmup_has_rates() -> None:
    assert learning_rate(2, 3, 1.0, warmup_steps=3) == pytest.approx(1.0)
    assert learning_rate(0, 1, 1.0) == 1.0


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UserError, match="schedule is 'step'; expected one of cosine, linear, constant"):
        learning_rate(0, 10, 1.0, schedule="step")
