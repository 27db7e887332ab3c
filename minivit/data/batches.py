"""The order of the images in an epoch, and its division into batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.random import Key


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a permutation of 0 ... count - 1 that depends on (count, seed, epoch) only."""
    scores = Key(seed, epoch, np.arange(count)).fold("epoch_order").bits((count,))
    return np.argsort(scores, kind="stable")


def batches(order: Array, batch_size: int) -> Iterator[Array]:
    """Return an iterator over slices of `order`, an array on any device, of `batch_size`; the last may be shorter.

    Raises
    ------
    UserError
        `batch_size` is less than 1.
    """
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; expected at least 1")
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))
