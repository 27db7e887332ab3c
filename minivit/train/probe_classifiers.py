"""Classifiers of features: least squares in closed form, nearest neighbours, and a linear layer that is trained.

Each takes the features x (n, D) and labels (n,) of some images, and predicts labels for the features of others.
`standardized` prepares both.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minivit import ops
from minivit.data.batches import epoch_order
from minivit.nn.initializers import zeros
from minivit.nn.linear import Linear
from minivit.train.optimizers import AdamW
from minivit.train.schedules import learning_rate

PENALTIES = tuple(2.0**k for k in range(-10, 21))
NEIGHBOURS, TEMPERATURE = 20, 0.07  # of Caron et al. 2021
_EPS = 1e-5  # added to the deviation of a feature
_NUMBERS = 2**24  # similarities that are in memory at a time


def standardized(x: NDArray[np.float32], *others: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """Return features with the mean and deviation of each column of `x` taken out, in float64."""
    mean = x.mean(axis=0, dtype=np.float64)
    std = x.std(axis=0, dtype=np.float64) + _EPS
    return [(some - mean) / std for some in (x, *others)]


class LeastSquares(NamedTuple):
    """The solution of `least_squares`: ``x @ weight + bias`` is near 1 for the class of an image and -1 for others."""

    weight: NDArray[np.float64]  # (D, K)
    bias: NDArray[np.float64]  # (K,)
    l2: float

    def predict(self, x: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the label of each row."""
        return (x @ self.weight + self.bias).argmax(axis=1)


def least_squares(
    x: NDArray[np.float64], labels: NDArray[np.int64], classes: int, l2: float | None = None
) -> LeastSquares:
    """Return the linear map to targets in {-1, 1} with the least squared error and penalty, in closed form.

    The few-shot classifier of Dosovitskiy et al. 2020, section 4.1. The minimum of

        |x @ weight + bias - targets|**2 + l2 * |weight|**2

    follows from the singular values of `x` without its mean. The bias has no penalty.

    Parameters
    ----------
    x : NDArray[np.float64]
        (n, D).
    labels : NDArray[np.int64]
        (n,), below `classes`.
    classes : int
        K.
    l2 : float, optional
        The penalty. By default that of `PENALTIES` with the least squared error of each image by the solution for all
        others, which has a closed form too (leave-one-out).
    """
    targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    mean, mean_target = x.mean(axis=0), targets.mean(axis=0)
    u, s, vt = np.linalg.svd(x - mean, full_matrices=False)
    projected = u.T @ targets
    if l2 is None:
        errors = [_left_out_error(u, s, projected, targets - mean_target, penalty) for penalty in PENALTIES]
        l2 = PENALTIES[int(np.argmin(errors))]
    weight = vt.T @ (_filter(s, l2)[:, None] * projected)
    return LeastSquares(weight, mean_target - mean @ weight, l2)


def _filter(s: NDArray[np.float64], l2: float) -> NDArray[np.float64]:
    """Return ``s / (s**2 + l2)``, 0 where both are 0."""
    return np.divide(s, s * s + l2, out=np.zeros_like(s), where=s > 0)


def _left_out_error(
    u: NDArray[np.float64], s: NDArray[np.float64], projected: NDArray[np.float64], y: NDArray[np.float64], l2: float
) -> float:
    """Return the sum of squared errors of each image by the solution without it: error / (1 - leverage)."""
    shrink = s * _filter(s, l2)
    leverage = (u * u) @ shrink + 1 / len(u)
    error = (y - u @ (shrink[:, None] * projected)) / np.maximum(1 - leverage, 1e-9)[:, None]
    return float((error * error).sum())


def nearest_neighbours(
    x: NDArray[np.float64],
    labels: NDArray[np.int64],
    test: NDArray[np.float64],
    classes: int,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> NDArray[np.int64]:
    """Return the labels of `test` (m, D) by a vote of the `k` rows of `x` with the largest cosine, at most all.

    A vote has the weight ``exp(cosine / temperature)`` (Caron et al. 2021, "Emerging Properties in Self-Supervised
    Vision Transformers").
    """
    x, test = (some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-12) for some in (x, test))
    k = min(k, len(x))
    found = np.empty(len(test), np.int64)
    rows = max(1, _NUMBERS // len(x))
    for start in range(0, len(test), rows):
        cosines = test[start : start + rows] @ x.T
        nearest = np.argpartition(cosines, len(x) - k, axis=1)[:, -k:]
        weights = np.exp(np.take_along_axis(cosines, nearest, axis=1) / temperature)
        votes = np.zeros((len(cosines), classes))
        np.add.at(votes, (np.arange(len(cosines))[:, None], labels[nearest]), weights)
        found[start : start + rows] = votes.argmax(axis=1)
    return found


def trained_linear(
    x: NDArray[np.float64],
    labels: NDArray[np.int64],
    test: NDArray[np.float64],
    classes: int,
    seed: int = 0,
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    batch_size: int = 256,
    epochs: int = 20,
    least_steps: int = 300,
) -> NDArray[np.int64]:
    """Return the labels of `test` by a linear layer that AdamW has trained on cross-entropy, without augmentation.

    The layer begins at zero; the learning rate falls by a cosine. There are `epochs`, or more where these are less than
    `least_steps` steps.
    """
    rows, test_rows = x.astype(np.float32), test.astype(np.float32)
    layer = Linear(x.shape[1], classes, zeros, zeros).initialize(seed, dtype="float32")
    optimizer = AdamW(layer, lr, weight_decay=weight_decay)
    steps_per_epoch = math.ceil(len(x) / batch_size)
    total = max(epochs * steps_per_epoch, least_steps)
    order = np.arange(len(x))
    for step in range(total):
        epoch, place = divmod(step, steps_per_epoch)
        if place == 0:
            order = epoch_order(len(x), seed, epoch)
        samples = order[place * batch_size : (place + 1) * batch_size]
        logits, cache = layer.forward(rows[samples])
        _, loss_cache = ops.cross_entropy(logits, labels[samples])
        layer.zero_grad()
        layer.backward(ops.cross_entropy_backward(1.0, loss_cache), cache)
        optimizer.lr = learning_rate(step, total, lr, 0, "cosine")
        optimizer.step()
    return np.asarray(layer(test_rows).argmax(axis=1), np.int64)
