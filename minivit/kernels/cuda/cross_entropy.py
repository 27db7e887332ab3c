"""Softmax cross-entropy in one pass forward and one backward. Kernel of `ops.cross_entropy`.

For 16-bit logits the loss and the softmax are float32; soft targets may be float32 or of the dtype of the logits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.runtime import WARP, acc_dtype, aligned, blocks, covers_dtype, launch
from minivit.ops.cross_entropy import check_cross_entropy
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient

_TALL = 4  # images in a block


class CudaCrossEntropyCache(NamedTuple):
    """What the backward pass reads."""

    p: Array  # (B, C)
    labels: Array | None  # (B,)
    targets: Array | None  # (B, C), if there are no labels
    label_smoothing: float
    like: Array  # an array of the logits' dtype


def _covers(logits: Array, labels: Array, label_smoothing: float = 0.0, *, keep: bool = True) -> bool:
    return covers_dtype(logits)


def _forward(
    logits: Array, labels: Array, label_smoothing: float = 0.0, *, keep: bool = True
) -> tuple[Array, CudaCrossEntropyCache | None]:
    dtype = acc_dtype(logits.dtype)
    xp = check_cross_entropy(logits, labels, label_smoothing, (dtype, logits.dtype))
    B, C = logits.shape
    hard = soft = None
    if labels.dtype.kind in "iu":
        hard = aligned(labels.astype(np.int64, copy=False))
    else:
        soft = aligned(labels.astype(dtype, copy=False))
    p = xp.empty((B, C), dtype=dtype) if keep else None
    losses, loss = xp.empty(B, dtype=dtype), xp.empty((), dtype=dtype)
    launch("cross_entropy", "cross_entropy", logits, (blocks(B, _TALL),), (WARP, _TALL), aligned(logits), hard, soft,
           float(label_smoothing), p, losses, B, C)  # fmt: skip
    launch("cross_entropy", "cross_entropy_total", logits, (1,), (WARP,), losses, loss, B)
    return loss, None if p is None else CudaCrossEntropyCache(p, hard, soft, label_smoothing, logits)


def _backward(dloss: Array | float, cache: CudaCrossEntropyCache) -> Array:
    p, hard, soft, label_smoothing, like = cache
    B, C = p.shape
    factor, given = 1.0, None
    if isinstance(dloss, int | float):
        factor = float(dloss)
    else:
        namespace(dloss, p)
        expect_gradient("cross_entropy", dloss, (), p.dtype)
        given = dloss
    dlogits = namespace(p).empty((B, C), dtype=like.dtype)
    launch("cross_entropy", "cross_entropy_backward", dlogits, (blocks(B, _TALL),), (WARP, _TALL), p, hard, soft,
           float(label_smoothing), factor, given, dlogits, B, C)  # fmt: skip
    return dlogits


def register(library: str) -> None:
    """Register the kernels for the array library called `library`."""
    register_kernel("cross_entropy", Kernel(library, _covers, _forward, _backward, CudaCrossEntropyCache))
