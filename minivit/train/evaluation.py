"""Evaluation: accuracy, loss and confusion matrix of a model on labelled images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minivit import ops
from minivit.arrays import Array, namespace, on_device_of, to_backend, to_host
from minivit.data.batches import batches
from minivit.engine import Engine
from minivit.ops.augment import channel_scale, normalized

EVALUATION_BATCH = 1024


class Evaluation(NamedTuple):
    """The result of an evaluation, in which every image counts once."""

    accuracy: float
    loss: float
    images: int
    confusion: Array  # (classes, classes): how many images of a label (row) were predicted as a class (column)


def evaluate(
    engine: Engine, images: Array, labels: Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> Evaluation:
    """Evaluate the engine's model on uint8 `images` (n, height, width, C) on the host.

    The images are copied to the model's device in batches, and the logits of each batch are copied back at once.
    """
    transform = image_transform(engine, mean, std)
    total_loss = 0.0
    confusion = np.zeros((engine.model.config.num_classes,) * 2, np.int64)
    for part in batches(np.arange(len(images)), EVALUATION_BATCH):
        logits = to_host(engine.predict(transform(images[part])))
        total_loss += float(ops.cross_entropy(logits, labels[part], keep=False)[0]) * len(part)
        np.add.at(confusion, (labels[part], logits.argmax(axis=1)), 1)
    return Evaluation(int(confusion.trace()) / len(images), total_loss / len(images), len(images), confusion)


def image_transform(engine: Engine, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Array], Array]:
    """Return the function that turns uint8 images on the host into the engine's input: on its device, normalised."""
    values = engine.model.parameters.store.values
    library = namespace(values)
    with on_device_of(values):
        scale, shift = channel_scale(mean, std, values.dtype, library)

    def transform(images: Array) -> Array:
        with on_device_of(values):
            return normalized(to_backend(images, library), scale, shift, engine.dtype)

    return transform
