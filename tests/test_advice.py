"""A run in which nothing is learnt is told from one that learns, whatever the shares of the classes and the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, Minivit
from small_run import RECIPE

from minivit import ops
from minivit.train.advice import STEPS_TO_LEARN, loss_of_guessing, nothing_learnt, without_effect

SMOOTHED = replace(RECIPE, epochs=20, warmup_epochs=0.0, label_smoothing=0.1)
RARE = np.repeat([0, 1], [950, 50])
EVEN = np.repeat([0, 1], [500, 500])


def words_of(labels: np.ndarray, **metrics: float) -> str | None:
    """Return what is said of epochs with these metrics, and of 100 validation images."""
    lines = [{"epoch": epoch, **metrics} for epoch in range(1, 11)]
    decided, words = nothing_learnt(SMOOTHED, STEPS_TO_LEARN, lines, labels, labels[::10], 2)
    assert decided
    return words


def test_a_smoothed_loss_of_a_rare_class_is_compared_with_that_of_guessing() -> None:
    assert -0.95 * np.log(0.95) - 0.05 * np.log(0.05) == pytest.approx(0.1985, abs=1e-4)  # also of the perfect answer
    assert words_of(RARE, train_loss=0.21, train_accuracy=0.95) is None
    assert "the loss stays at that of guessing (0.31)" in str(words_of(RARE, train_loss=0.314, train_accuracy=0.95))


def test_a_loss_above_that_of_guessing_is_said_to_be_above() -> None:
    words = str(words_of(RARE, train_loss=18.273, train_accuracy=0.5))
    assert "nothing has been learnt in 10 epochs: the loss is 18.27, above that of guessing (0.31)" in words


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_prediction_that_is_the_same_for_all_images_has_a_smaller_loss_than_that_of_guessing(
    smoothing: float,
) -> None:
    labels = np.array([0, 0, 0, 2, 2, 3])  # none is of class 1
    smallest = loss_of_guessing(labels, 4, smoothing)
    shares = (1 - smoothing) * np.bincount(labels, minlength=4) / 6 + smoothing / 4
    best = np.log(np.maximum(shares, 1e-300))

    def loss(logits: np.ndarray) -> float:
        return float(ops.cross_entropy(np.tile(logits, (6, 1)), labels, smoothing)[0])

    assert loss(best) == pytest.approx(smallest, rel=1e-12)
    generator = np.random.default_rng(0)
    assert min(loss(best + 0.1 * generator.standard_normal(4)) for _ in range(20)) > smallest


@pytest.mark.parametrize("metrics", [{"train_accuracy": 0.6}, {"train_accuracy": 0.5, "val_accuracy": 0.8}])
def test_an_accuracy_above_that_of_guessing_is_learning(metrics: dict[str, float]) -> None:
    """The loss of mixed images can stay near that of guessing."""
    assert words_of(EVEN, train_loss=0.69, **metrics) is None


def test_an_accuracy_that_guessing_reaches_by_chance_is_no_learning() -> None:
    assert words_of(EVEN, train_loss=0.69, train_accuracy=0.54, val_accuracy=0.62)
    assert words_of(RARE, train_loss=0.31, train_accuracy=0.95, val_accuracy=0.97)


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("decay_epochs", {"schedule": "wsd"}),
        ("decay_shape", {"schedule": "wsd"}),
        ("betas", {"optimizer": "muon"}),
        ("momentum", {"optimizer": "sgd"}),
        ("muon_momentum", {"optimizer": "muon"}),
        ("swa_lr", {"swa_start": 0.5}),
        ("swa_anneal_epochs", {"swa_start": 0.5, "swa_lr": 1e-3}),
        ("rand_ops", {"auto_augment": "rand"}),
        ("rand_magnitude", {"auto_augment": "rand"}),
        ("mix_prob", {"cutmix_alpha": 1.0}),
        ("augment_ramp", {"erase_prob": 0.5}),
        ("augment_off_epochs", {"color_jitter": 0.5}),
        ("warmup_epochs", {"warmup_steps": 0}),
    ],
)
def test_a_field_without_an_effect_is_named_with_what_it_needs(name: str, needs: dict[str, Any]) -> None:
    idle = replace(RECIPE, optimizer="sgd" if name == "betas" else "adamw", warmup_steps=5)
    words = without_effect(idle, ["lr", name])
    assert words is not None
    assert words.startswith(f"without an effect in this recipe: {name} (needs ")
    assert all(field in words for field in needs)
    assert without_effect(replace(idle, **needs), ["lr", name]) is None


def test_options_without_an_effect_are_said(cli: Minivit, squares: Path) -> None:
    idle = ("--decay-epochs", 1, "--momentum", 0.5, "--set", "swa_anneal_epochs=2")
    said = cli("train", squares, *TINY, "--epochs", 1, *idle, "--run", "here", "--threads", 1)
    for words in ("decay_epochs (needs schedule wsd)", "momentum (needs optimizer sgd)", "swa_anneal_epochs"):
        assert words in said.err
    said = cli("augment", "digits", "--rand-magnitude", 3, "--rows", 1, "--columns", 1)
    assert "without an effect in this recipe: rand_magnitude (needs auto_augment rand)" in said.err
