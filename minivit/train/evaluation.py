"""Evaluation: accuracy, loss and confusion matrix of a model on labelled images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from minivit import ops
from minivit.arrays import Array, namespace, on_device_of, to_backend, to_host
from minivit.data.batches import batches
from minivit.data.on_demand import read_ahead
from minivit.engine import AnyEngine, Engine
from minivit.ops.augment import channel_scale, normalized

EVALUATION_BATCH = 1024
_MOST_NUMBERS = 1 << 24  # of a batch, which is smaller if images are larger than 73 x 73 pixels


class Evaluation(NamedTuple):
    """The result of an evaluation, in which every image counts once."""

    accuracy: float
    loss: float
    images: int
    confusion: Array  # (classes, classes): how many images of a label (row) were predicted as a class (column)


class Score(NamedTuple):
    """How well a model does on images: its mean loss, and its accuracy if it predicts classes."""

    loss: float
    accuracy: float | None
    images: int


def score(engine: AnyEngine, images: Array, labels: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Score:
    """Return the score of the engine's model on uint8 `images`; one that gives losses does not read `labels`."""
    if isinstance(engine, Engine) and engine.model.gives_losses:
        losses = [float(losses.sum(dtype=np.float64)) for _, losses in predictions(engine, images, mean, std)]
        return Score(math.fsum(losses) / len(images), None, len(images))
    found = evaluate(engine, images, labels, mean, std)
    return Score(found.loss, found.accuracy, found.images)


def evaluate(
    engine: AnyEngine, images: Array, labels: Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> Evaluation:
    """Evaluate the engine's model on uint8 `images` (n, height, width, C) on the host.

    The images are copied to the model's device in batches, and the logits of each batch are copied back at once.
    """
    total_loss = 0.0
    confusion = np.zeros((engine.num_outputs,) * 2, np.int64)
    for part, logits in predictions(engine, images, mean, std):
        total_loss += float(ops.cross_entropy(logits, labels[part], keep=False)[0]) * len(part)
        np.add.at(confusion, (labels[part], logits.argmax(axis=1)), 1)
    return Evaluation(int(confusion.trace()) / len(images), total_loss / len(images), len(images), confusion)


def predictions(
    engine: AnyEngine, images: Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> Iterator[tuple[Array, Array]]:
    """Yield the numbers of some of the uint8 `images`, and their logits or losses on the host, in their order."""
    transform = image_transform(engine, mean, std)
    fitting = max(1, _MOST_NUMBERS // math.prod(images.shape[1:]))
    parts = list(batches(np.arange(len(images)), min(EVALUATION_BATCH, fitting)))
    for part, some in zip(parts, read_ahead(images, parts), strict=True):
        yield part, to_host(engine.predict(transform(some)))


def image_transform(engine: AnyEngine, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Array], Array]:
    """Return the function that turns uint8 images on the host into the engine's input: on its device, normalised."""
    values = engine.model.parameters.store.values
    library = namespace(values)
    with on_device_of(values):
        scale, shift = channel_scale(mean, std, values.dtype, library)

    def transform(images: Array) -> Array:
        with on_device_of(values):
            return normalized(to_backend(np.asarray(images), library), scale, shift, engine.dtype)

    return transform
