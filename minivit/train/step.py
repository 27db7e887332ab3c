"""Training steps that a device does without the host waiting for it; what they came to is heard of later, together."""

from __future__ import annotations

import time
from typing import NamedTuple

from minivit.arrays import Array
from minivit.engine import Engine
from minivit.random import Key
from minivit.train.data_loader import Feed
from minivit.train.grad_scaler import GradScaler
from minivit.train.metrics import MetricsBuffer
from minivit.train.not_finite import where_not_finite
from minivit.train.optimizers import Optimizer
from minivit.train.recipe import Recipe

_READ_EVERY = 20  # steps on a device


class Outcome(NamedTuple):
    """What a step came to."""

    number: int  # of the step, from 1
    samples: Array  # (B,) the images, on the device
    lr: float
    loss: float
    correct: int  # images
    stopped: bool  # whether a loss or gradient was not finite, in this step or before
    seconds: float


class Steps:
    """Does the steps of a run: a batch, its gradients, the update.

    Parameters
    ----------
    engine : Engine
        Of the model.
    optimizer : Optimizer
        Of the model.
    feed : Feed
        Makes the batches, on the model's device.
    recipe : Recipe
        Label smoothing and clipping.
    scaled : bool
        Whether the loss is scaled, as float16 wants it.
    at_once : bool
        Whether each step is heard of at once, as on the host; else `full` says when it is time.
    """

    def __init__(
        self, engine: Engine, optimizer: Optimizer, feed: Feed, recipe: Recipe, scaled: bool, at_once: bool
    ) -> None:
        store = engine.model.parameters.store
        self.grad_scaler = GradScaler(store.values, recipe.clip_norm, scaled)
        self._engine, self._optimizer, self._feed, self._store = engine, optimizer, feed, store
        self._smoothing = recipe.label_smoothing
        self._metrics = MetricsBuffer(store.values, 1 if at_once else _READ_EVERY)
        self._unheard: list[tuple[int, Array, float]] = []
        self._begun = 0.0  # when the first of these was

    @property
    def full(self) -> bool:
        """Whether `heard` must be called before the next step."""
        return self._metrics.full

    def do(self, number: int, samples: Array, lr: float) -> None:
        """Do step `number`, which counts from 1, on the images numbered `samples` (B,)."""
        if not self._unheard:
            self._begun = time.perf_counter()
        labels, loss, logits = self._gradients(number, samples)
        self._optimizer.lr = lr
        self._optimizer.step(self.grad_scaler.factor(loss, self._store.gradients))
        self._metrics.add(loss, logits, labels, self.grad_scaler.stopped)
        self._unheard.append((number, samples, lr))

    def _gradients(self, number: int, samples: Array) -> tuple[Array, Array, Array]:
        images, labels, key = self._feed.batch(samples, number - 1, self._engine.dtype)
        return labels, *self._engine.training_step(images, labels, key, self._smoothing, self.grad_scaler.loss_scale)

    def heard(self) -> list[Outcome]:
        """Return what the steps since the last time came to; waits for the device."""
        records, steps, self._unheard = self._metrics.read(), self._unheard, []
        seconds = time.perf_counter() - self._begun
        images = sum(len(samples) for _, samples, _ in steps)
        return [
            Outcome(*step, *record, seconds * len(step[1]) / images)
            for step, record in zip(steps, records, strict=True)
        ]

    def where_not_finite(self, step: Outcome) -> str:
        """Return where NaN or infinity shows first in a step that stopped: it changed nothing, nor did those after."""

        def piece(some: slice) -> tuple[Array, Key]:
            images, _, key = self._feed.batch(step.samples[some], step.number - 1, self._engine.dtype)
            return images, key

        def backward() -> None:
            self._gradients(step.number, step.samples)  # by now they may be those of a later step

        return where_not_finite(self._engine, len(step.samples), piece, backward)
