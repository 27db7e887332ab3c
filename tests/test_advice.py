"""A run in which nothing is learnt is told from one that learns, whatever the shares of the classes and the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_run import RECIPE

from minivit import ops
from minivit.train.advice import STEPS_TO_LEARN, loss_of_guessing, nothing_learnt

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
