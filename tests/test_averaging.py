"""Averages of the parameters: the formulas, runs that use them, and runs that are resumed with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import assert_same_bits, normal
from small_run import RECIPE, Killed, Listener, bits, kill, make_dataset, run_at, train

from minivit import UserError, load_model
from minivit.arrays import Array
from minivit.nn.store import FlatStore
from minivit.ops import update_rules
from minivit.train.averaging import Averaging
from minivit.train.recipe import Recipe
from minivit.train.run_folder import RunFolder
from minivit.train.trainer import Trainer
from minivit.weights import read_tensors, write_tensors

POLYAK = replace(RECIPE, ema_decay=0.5)
STOCHASTIC = replace(RECIPE, epochs=4, swa_start=0.5, swa_lr=1e-3)
BOTH = pytest.mark.parametrize("recipe", [POLYAK, STOCHASTIC], ids=["Polyak", "stochastic"])


class EveryEpoch(Listener):
    """Keeps the parameters of the model after every epoch; `averaged` are those of `last/`."""

    trainer: Trainer

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Array] = []
        self.averaged: list[dict[str, Array]] = []

    def epoch_ended(self, metrics: dict[str, Any]) -> None:
        super().epoch_ended(metrics)
        self.values.append(self.trainer.model.parameters.store.values.copy())
        self.averaged.append(load_model(self.trainer.run.path / "last").state_dict())


def trained(path: Path, recipe: Recipe) -> EveryEpoch:
    listener = EveryEpoch()
    listener.trainer = Trainer(run_at(path, recipe), make_dataset(), 1)
    listener.trainer.fit(listener)
    return listener


@pytest.mark.parametrize("chunk", [3, 1 << 14])
def test_an_average_moves_towards_the_values_by_its_weight(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_rules, "_CHUNK", chunk)
    average, values = normal(np.zeros(11), 1), normal(np.zeros(11), 2)
    before, kept = average.copy(), values.copy()
    update_rules.average_step(average, values, weight=0.25)
    np.testing.assert_allclose(average, 0.75 * before + 0.25 * values, rtol=1e-15, atol=1e-15)
    assert_same_bits([values], [kept])


def test_polyak_averaging_begins_with_the_initial_parameters() -> None:
    store = FlatStore(np.zeros(2))
    averaging = Averaging(store, POLYAK)
    averaging.begin()
    for value in (8.0, 16.0):
        store.values[:] = value
        averaging.after_step()
    with averaging.applied():
        assert store.values.tolist() == [10.0, 10.0]
    assert store.values.tolist() == [16.0, 16.0]


def test_after_stochastic_weight_averaging_the_model_is_the_mean_of_the_last_epochs(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", STOCHASTIC)
    means = [run.values[0], run.values[1], run.values[2], (run.values[2] + run.values[3]) / 2]
    spans = {name: parameter.span for name, parameter in run.trainer.model.parameters.items()}
    for mean, averaged in zip(means, run.averaged, strict=True):
        for name, span in spans.items():
            np.testing.assert_allclose(averaged[name].ravel(), mean[span], rtol=1e-6, atol=1e-7)


def test_the_best_epoch_is_chosen_among_the_averages(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", replace(STOCHASTIC, lr=1e-30, swa_lr=1e-30))  # all epochs are alike
    assert run.trainer.state.best_epoch == 4
    chosen = trained(tmp_path / "worse", replace(STOCHASTIC, swa_lr=10.0))  # worse than the epochs before
    assert chosen.trainer.state.best_epoch >= 3


@BOTH
def test_what_is_evaluated_is_what_is_saved(recipe: Recipe, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", recipe)
    trainer, validation = run.trainer, run.trainer.validation_index
    dataset = trainer.dataset
    for metrics, averaged in zip(run.epochs, run.averaged, strict=True):
        trainer.model.load_state_dict(averaged)
        images, labels = dataset.train_images[validation], dataset.train_labels[validation]
        assert metrics["val_loss"] == trainer._evaluate(trainer.engine, images, labels, "validation").loss
    best = load_model(trainer.run.path / "best").state_dict()
    expected = run.averaged[trainer.state.best_epoch - 1]
    assert_same_bits(list(best.values()), [expected[name] for name in best])


@BOTH
@pytest.mark.parametrize("at", [3, 9, 11])
def test_a_resumed_average_has_the_same_bits(recipe: Recipe, at: int, tmp_path: Path) -> None:
    whole = run_at(tmp_path / "whole", recipe)
    train(whole, make_dataset(), Listener(), threads=1)
    stopped = run_at(tmp_path / "stopped", recipe)
    with pytest.raises(Killed):
        train(stopped, make_dataset(), Listener(at, kill), threads=1, checkpoint_seconds=0.0)
    train(RunFolder.open(stopped.path), make_dataset(), Listener(), threads=1, resume=True)
    assert bits(stopped) == bits(whole)
    assert "/last/training.safetensors/average" in bits(whole)[0]


def test_a_longer_run_averages_its_own_last_epochs(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", STOCHASTIC)
    train(run, make_dataset(), Listener(), threads=1)
    listener = EveryEpoch()
    listener.trainer = Trainer(RunFolder.open(run.path).replaced(epochs=8), make_dataset(), 1)
    listener.trainer.fit(listener, resume=True)
    assert listener.trainer.averaging.count == 4
    span = listener.trainer.model.parameters["head.weight"].span
    first = listener.averaged[0]["head.weight"].ravel()  # of epoch 5, which is not averaged any more
    assert_same_bits([first], [listener.values[0][span]])


def lengthened(path: Path, epochs: int) -> tuple[EveryEpoch, RunFolder]:
    """Return what a run of 5 epochs, of which the last 2 are averaged, does in further epochs."""
    run = run_at(path, replace(STOCHASTIC, epochs=5, swa_start=0.6))
    train(run, make_dataset(), Listener(), threads=1)
    listener = EveryEpoch()
    listener.trainer = Trainer(RunFolder.open(run.path).replaced(epochs=epochs), make_dataset(), 1)
    listener.trainer.fit(listener, resume=True)
    return listener, run


def test_the_average_of_a_slightly_longer_run_has_no_epoch_before_its_own(tmp_path: Path) -> None:
    """Of 7 epochs the first averaged is the 5th; the average so far is one of the 4th and the 5th."""
    listener, run = lengthened(tmp_path / "run", 7)
    assert listener.trainer.averaging.count == 2
    span = listener.trainer.model.parameters["head.weight"].span
    mean = (listener.values[0][span] + listener.values[1][span]) / 2
    np.testing.assert_allclose(listener.averaged[1]["head.weight"].ravel(), mean, rtol=1e-6, atol=1e-7)
    assert listener.trainer.state.best_epoch in (6, 7)
    again = run_at(tmp_path / "again", replace(STOCHASTIC, epochs=5, swa_start=0.6))
    train(again, make_dataset(), Listener(), threads=1)
    for at in (23, 26):  # before and after the end of the 6th epoch
        longer = RunFolder.open(again.path).replaced(epochs=7)
        with pytest.raises(Killed):
            train(longer, make_dataset(), Listener(at, kill), threads=1, resume=True, checkpoint_seconds=0.0)
    train(RunFolder.open(again.path), make_dataset(), Listener(), threads=1, resume=True)
    assert bits(again) == bits(run)


def test_an_average_of_the_last_epochs_of_a_longer_run_goes_on(tmp_path: Path) -> None:
    listener, _ = lengthened(tmp_path / "run", 6)  # int(6 * 0.6) is 3, as for 5 epochs
    assert listener.trainer.averaging.count == 3


def test_the_epochs_before_an_average_are_counted_without_the_error_of_the_product() -> None:
    assert replace(STOCHASTIC, epochs=100, swa_start=0.29).swa_epochs_before == 29
    assert replace(STOCHASTIC, epochs=7, swa_start=0.5).swa_epochs_before == 3


def test_a_checkpoint_without_its_average_is_refused(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", POLYAK)
    with pytest.raises(Killed):
        train(run, make_dataset(), Listener(2, kill))
    path = run.path / "last" / "training.safetensors"
    tensors, about = read_tensors(path)
    del tensors["average"]
    write_tensors(path, tensors, about)
    with pytest.raises(UserError, match="the average of the parameters is missing"):
        train(run, make_dataset(), Listener(), resume=True)


def test_a_run_has_one_average() -> None:
    with pytest.raises(UserError, match="ema_decay and swa_start are two averages"):
        replace(POLYAK, swa_start=0.5)


def test_a_slow_average_of_a_short_run_is_said(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1, warmup_epochs=0.0, ema_decay=0.9999)
    with pytest.warns(UserWarning, match="the initial weights make up 100% of the Polyak average after the 4 steps"):
        train(run_at(tmp_path / "run", recipe), make_dataset(), Listener())


def test_an_average_of_one_epoch_is_said(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=2, warmup_epochs=0.0, swa_start=0.9)
    with pytest.warns(UserWarning, match="stochastic weight averaging has one epoch, the last"):
        train(run_at(tmp_path / "run", recipe), make_dataset(), Listener())
