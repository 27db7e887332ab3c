"""Schedules of the learning rate: warm-up by a line, then a fall towards zero."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from minivit import UserError
from minivit.train import learning_rate
from minivit.train.recipe import Recipe


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
    with pytest.raises(UserError, match="schedule is 'step'; expected one of cosine, linear, constant, onecycle, wsd"):
        learning_rate(0, 10, 1.0, schedule="step")


@pytest.mark.parametrize(
    ("shape", "decay"),
    [("linear", [1.0, 0.75, 0.5, 0.25]), ("1-sqrt", [1.0, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)])],
)
def test_wsd_is_stable_between_the_warmup_and_the_decay(shape: str, decay: list[float]) -> None:
    rates = [learning_rate(step, 10, 2.0, 2, "wsd", decay_steps=4, decay_shape=shape) for step in range(10)]
    assert rates == pytest.approx([1.0, 2.0, *[2.0] * 4, *(2 * rate for rate in decay)])


def test_a_decay_that_is_longer_than_the_rest_of_the_run_begins_after_the_warmup() -> None:
    rates = [learning_rate(step, 6, 1.0, 2, "wsd", decay_steps=100) for step in range(6)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(UserError, match="decay_shape is 'root'; expected one of linear, 1-sqrt"):
        learning_rate(0, 10, 1.0, schedule="wsd", decay_shape="root")
    with pytest.raises(UserError, match="decay_shape is 'sqrt'; expected one of linear, 1-sqrt; did you mean '1-sqrt'"):
        Recipe("digits", "vit_nano_patch4_8", decay_shape="sqrt")


def test_the_decay_of_a_recipe_is_a_fifth_of_the_epochs_or_as_many_as_it_says() -> None:
    recipe = Recipe("digits", "vit_nano_patch4_8", epochs=10, lr=1.0, warmup_epochs=0.0, schedule="wsd")
    rates = [recipe.learning_rate(step, steps_per_epoch=2) for step in range(20)]
    assert rates == pytest.approx([1.0] * 17 + [0.75, 0.5, 0.25])
    rates = [replace(recipe, decay_epochs=0.5).learning_rate(step, steps_per_epoch=4) for step in range(40)]
    assert rates == pytest.approx([1.0] * 39 + [0.5])


def test_a_wsd_run_that_is_longer_has_the_same_rates_until_the_decay() -> None:
    recipe = Recipe("digits", "vit_nano_patch4_8", epochs=5, schedule="wsd", decay_epochs=1.0)
    longer = replace(recipe, epochs=50)
    assert [recipe.learning_rate(step, 7) for step in range(28)] == [
        longer.learning_rate(step, 7) for step in range(28)
    ]


def test_one_cycle_rises_to_the_rate_and_falls_almost_to_zero() -> None:
    rates = [learning_rate(step, 11, 1.0, warmup_steps=3, schedule="onecycle") for step in range(11)]
    assert rates[:3] == pytest.approx([1 / 25, (1 + 1 / 25) / 2, 1.0])
    assert rates[6] == pytest.approx((1 + 1 / 25e4) / 2)
    assert rates[-1] == pytest.approx(1 / 25e4)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (5, 5), (5, 9)])
def test_one_cycle_has_rates_for_runs_of_any_length(steps: int, warmup: int) -> None:
    rates = [learning_rate(step, steps, 1.0, warmup, "onecycle") for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)


def test_warmup_steps_take_the_place_of_warmup_epochs() -> None:
    recipe = Recipe("digits", "vit_nano_patch4_8", epochs=4, lr=1.0, warmup_epochs=2.0, warmup_steps=5)
    rates = [recipe.learning_rate(step, steps_per_epoch=10) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_during_weight_averaging_the_rate_of_an_epoch_goes_to_its_own_by_half_a_cosine() -> None:
    recipe = Recipe(
        "digits", "vit_nano_patch4_8", epochs=10, lr=1.0, warmup_epochs=0.0, schedule="constant",
        swa_start=0.5, swa_lr=0.2, swa_anneal_epochs=2,
    )  # fmt: skip
    rates = [recipe.learning_rate(step, steps_per_epoch=2) for step in range(20)]
    assert rates == pytest.approx([1.0] * 12 + [0.6] * 2 + [0.2] * 6)


def test_an_average_that_begins_within_the_warmup_has_the_rates_of_the_warmup_first() -> None:
    recipe = Recipe(
        "digits", "vit_nano_patch4_8", epochs=10, lr=1.0, warmup_epochs=2.5, schedule="constant",
        swa_start=0.1, swa_lr=0.2, swa_anneal_epochs=2,
    )  # fmt: skip
    rates = [recipe.learning_rate(step, steps_per_epoch=2) for step in range(20)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0] + [1.0] * 2 + [0.6] * 2 + [0.2] * 10)


def test_without_a_rate_of_its_own_weight_averaging_leaves_the_schedule_as_it_is() -> None:
    recipe = Recipe("digits", "vit_nano_patch4_8", epochs=4, swa_start=0.5)
    plain = Recipe("digits", "vit_nano_patch4_8", epochs=4)
    assert [recipe.learning_rate(step, 3) for step in range(12)] == [plain.learning_rate(step, 3) for step in range(12)]
