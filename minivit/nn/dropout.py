"""Dropout of elements, and stochastic depth: dropout of whole samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.nn.cost import Cost
from minivit.nn.layer import Layer
from minivit.random import RngLike, as_key, expect_rate


class Dropout(Layer):
    """Dropout of elements, or with ``per_sample`` of whole samples; nothing in evaluation or at rate 0."""

    def __init__(self, rate: float, per_sample: bool = False) -> None:
        expect_rate(rate)
        self.rate = rate
        self.per_sample = per_sample

    def mask(self, shape: tuple[int, ...], rng: RngLike, dtype: Any, library: Any = np) -> Array | None:
        """Return factors for an array of `shape`, or None where nothing is dropped.

        A seed or a NumPy generator takes the place of a key of all samples, for arrays of `library`.
        """
        rng = as_key(rng, shape[0] if shape else 0, library)
        if rng is None or self.rate == 0.0:
            return None
        if self.per_sample:
            shape = (shape[0], *(1 for _ in shape[1:]))
        return ops.keep_mask(rng, shape, self.rate, dtype)

    def forward(self, x: Array, rng: RngLike = None, keep: bool = True) -> tuple[Array, Any]:
        """Drop elements of `x` (B, ...) and scale the others up."""
        mask = self.mask(x.shape, rng, x.dtype, namespace(x))
        if mask is None:
            return x, () if keep else None
        return ops.dropout(x, mask, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        return dy if cache == () else ops.dropout_backward(dy, cache)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image's array of `shape`: a mask is kept where something is dropped."""
        return Cost(0, (1 if self.per_sample else math.prod(shape)) if self.rate else 0)


class DropPath(Dropout):
    """Stochastic depth: dropout of a residual branch for whole samples."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate, per_sample=True)
