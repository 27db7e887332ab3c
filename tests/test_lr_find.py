"""The learning-rate finder: the rates it tries, what it suggests, where it stops, and its command."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY, Minivit, assert_refused
from small_run import RECIPE, make_dataset

from minivit import UserError
from minivit.arrays import Array
from minivit.cli import lr_find
from minivit.train.lr_find import LearningRateSearch, find_learning_rate, plot_learning_rates
from minivit.train.recipe import Recipe
from minivit.train.run_folder import RunFolder
from minivit.train.trainer import Trainer

RATES = [1e-6 * 10 ** (6 * i / 99) for i in range(100)]


def trainer(path: Path, recipe: Recipe = RECIPE) -> Trainer:
    return Trainer(RunFolder(path / "none", recipe), make_dataset(), threads=1)


def valley(rate: float) -> float:
    """Return a loss that falls fastest at 1e-3, is smallest at 1e-2 and rises from there."""
    x = math.log10(rate)
    return 2.0 - 1 / (1 + math.exp(-6 * (x + 3))) + max(0.0, x + 2) ** 2


def test_the_rate_rises_by_one_factor_and_the_model_is_that_of_as_many_plain_steps(tmp_path: Path) -> None:
    one, other = trainer(tmp_path), trainer(tmp_path)
    calls: list[tuple[int, float, float]] = []
    found = find_learning_rate(one, 12, 1e-5, 1e-2, lambda *call: calls.append(call))
    assert found.rates == pytest.approx(np.geomspace(1e-5, 1e-2, 12))
    assert calls == list(zip(range(1, 13), found.rates, found.losses, strict=True))
    assert found.diverged is None
    order = np.concatenate([other.data_loader.order(epoch) for epoch in range(3)])
    batches = [order[28 * epoch : 28 * epoch + 28][8 * i : 8 * i + 8] for epoch in range(3) for i in range(4)]
    with other.engine:
        for step, (lr, samples) in enumerate(zip(found.rates, batches, strict=True)):
            other.train_step.run(step, samples, lr)
            assert other.train_step.metrics.read()[0].loss == found.losses[step]
    values: list[Array] = [each.model.parameters.store.values for each in (one, other)]
    assert values[0].tobytes() == values[1].tobytes()
    assert not (tmp_path / "none").exists()


def test_the_suggestions_are_the_steepest_descent_and_a_tenth_of_the_minimum() -> None:
    noise = np.random.default_rng(0).normal(scale=0.01, size=100)
    found = LearningRateSearch(RATES, [valley(rate) + e for rate, e in zip(RATES, noise, strict=True)], None)
    assert found.steepest is not None
    assert found.tenth is not None
    assert found.steepest == pytest.approx(1e-3, rel=0.4)
    assert found.tenth == pytest.approx(1e-3, rel=0.5)


def test_smoothing_keeps_a_constant_and_does_not_shift_a_peak() -> None:
    assert LearningRateSearch(RATES, [3.0] * 100, None).smoothed == pytest.approx([3.0] * 100)
    peak = [float(i == 40) for i in range(100)]
    smoothed = LearningRateSearch(RATES, peak, None).smoothed
    assert int(np.argmax(smoothed)) == 40
    assert smoothed[35:40] == pytest.approx(smoothed[45:40:-1])
    assert sum(smoothed) == pytest.approx(1.0)


def test_a_loss_that_only_rises_suggests_nothing() -> None:
    found = LearningRateSearch(RATES, [float(i) for i in range(100)], 1.0)
    assert found.steepest is None
    assert found.tenth is None
    plot_learning_rates(found)


def test_the_search_stops_where_the_loss_diverges(tmp_path: Path) -> None:
    recipe = replace(RECIPE, optimizer="sgd", clip_norm=0.0)
    found = find_learning_rate(trainer(tmp_path, recipe), 60, 1e-3, 1e6)
    assert found.diverged is not None
    assert len(found.losses) < 60
    assert all(map(math.isfinite, found.losses))
    assert len(found.rates) == len(found.losses)
    assert found.diverged <= found.rates[-1] * (1e9 ** (1 / 59)) * 1.001


@pytest.mark.parametrize(
    ("steps", "first", "last", "words"),
    [
        (9, 1e-6, 1.0, "9 steps are too few for a search; expected at least 10"),
        (20, 0.0, 1.0, "cannot rise from 0 to 1; expected 0 < first < last"),
        (20, 1.0, 1.0, "cannot rise from 1 to 1"),
        (20, 1.0, math.inf, "cannot rise from 1 to inf"),
        (20, math.nan, 1.0, "cannot rise from nan to 1"),
    ],
)
def test_numbers_out_of_range_are_refused(steps: int, first: float, last: float, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        find_learning_rate(trainer(tmp_path), steps, first, last)


def test_a_loss_that_is_not_finite_at_once_is_an_error(tmp_path: Path) -> None:
    broken = trainer(tmp_path)
    broken.model.parameters.store.values[...] = np.nan
    with pytest.raises(UserError, match="the loss is not finite after 0 steps, at a learning rate of 1e-06"):
        find_learning_rate(broken)


def test_the_command_prints_the_suggestions_and_leaves_the_figure_alone(cli: Minivit, squares: Path) -> None:
    said = cli("lr-find", squares, *TINY, "--out", "lr.png")
    assert (said.status, said.err) == (0, "")
    assert "steepest descent" in said.out
    assert "minivit train" in said.out
    assert [path.name for path in Path().iterdir()] == ["lr.png"]
    assert Path("lr.png").read_bytes().startswith(b"\x89PNG")


def test_the_next_command_is_one_of_a_shell(cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lr_find, "program", lambda: "python -m minivit")
    assert "next: python -m minivit train " in cli("lr-find", squares, *TINY).out


def test_the_next_command_of_a_recipe_of_pretraining_is_pretrain(cli: Minivit, squares: Path) -> None:
    Path("mine.toml").write_text('model = "vit_micro_patch4_8"\ntask = "simmim"\nepochs = 1\n')
    said = cli("lr-find", squares, *TINY, "--recipe", "mine.toml", "--steps", 15, "--min-lr", 1e-4)
    assert "next: minivit pretrain " in said.out


def test_the_images_are_augmented_as_the_options_say(cli: Minivit, squares: Path) -> None:
    options = (*TINY, "--steps", 15, "--json")
    losses = cli("lr-find", squares, *options).json()["losses"]
    assert cli("lr-find", squares, *options, "--cutmix-alpha", 1).json()["losses"] != losses


def test_the_object_of_the_command_has_the_curve(cli: Minivit, squares: Path) -> None:
    options = ("--steps", 15, "--min-lr", 1e-4, "--max-lr", 0.1, "--optimizer", "adam", "--threads", 1)
    said = cli("lr-find", squares, *TINY, *options, "--json")
    values = said.json()
    assert values.keys() == {
        "steepest", "tenth_of_minimum", "diverged", "rates", "losses", "smoothed", "figure",
    }  # fmt: skip
    assert values["rates"] == pytest.approx(np.geomspace(1e-4, 0.1, 15))
    assert values["losses"] == cli("lr-find", squares, *TINY, *options[:-1], 2, "--json").json()["losses"]
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--out", "lr.pdf"), "--out is lr.pdf; expected a file .png or .svg"),
        (("--steps", 3), "3 steps are too few"),
        (("--lr", 0.1), "unknown arguments: --lr"),
        (("--augment-ramp", 2), "unknown arguments: --augment-ramp"),
        (("--augment-off-epochs", 2), "unknown arguments: --augment-off-epochs"),
        (("--min-lr", 2.0), "cannot rise from 2 to 1"),
    ],
)
def test_bad_options_are_refused(cli: Minivit, squares: Path, options: tuple[object, ...], words: str) -> None:
    assert_refused(cli("lr-find", squares, *TINY, *options), 2, words)


def test_a_field_of_the_schedule_has_no_effect(cli: Minivit, squares: Path) -> None:
    said = cli("lr-find", squares, *TINY, "--steps", 10, "--set", "schedule=constant", "--set", "lr=0.5")
    assert "schedule, lr have no effect on a search for a learning rate" in said.err


def test_a_loss_that_grows_at_once_is_not_called_infinite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = trainer(tmp_path)
    losses = iter([2.0, 7.0, 17.0, 50.0])
    read = searched.train_step.metrics.read
    monkeypatch.setattr(searched.train_step.metrics, "read", lambda: [read()[0]._replace(loss=next(losses))])
    with pytest.raises(
        UserError, match=r"the loss has grown 4-fold after 3 steps, at a learning rate of .*smaller one$"
    ):
        find_learning_rate(searched)
