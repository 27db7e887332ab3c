"""Softmax cross-entropy, the mean over a batch, with label smoothing (Szegedy et al. 2016) or soft targets.

    log_p = logits - log(sum(exp(logits)))
    targets = (1 - label_smoothing) * one_hot(labels) + label_smoothing / C
    loss = -sum(targets * log_p) / B

    dlogits = dloss * (p * sum(targets) - targets) / B

where sum(targets) runs over the classes: it is 1 for labels, and can have another value for soft targets. The steps
are in docs/derivations/softmax_cross_entropy.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minivit.arrays import Array, namespace, real_dtype
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype


class CrossEntropyCache(NamedTuple):
    """What the backward pass of `cross_entropy` reads."""

    p: Array  # (B, C)
    targets: Array  # (B, C)


def check_cross_entropy(logits: Array, labels: Array, label_smoothing: float, soft: tuple[Any, ...]) -> Any:
    """Return the array library of the arguments of `cross_entropy`, or raise if they are invalid.

    Soft targets must have one of the dtypes `soft`.
    """
    xp = namespace(logits, labels)
    expect("cross_entropy", "logits", logits, ("B", "C"))
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}; expected at least 0 and below 1")
    same_dtype("cross_entropy", logits=logits)
    B, C = logits.shape
    if labels.dtype.kind in "iu":
        expect("cross_entropy", "labels", labels, (B,))
    else:
        expect("cross_entropy", "labels", labels, (B, C))
        if labels.dtype not in soft:
            raise TypeError(f"cross_entropy: labels have dtype {labels.dtype}; expected integers or {soft[0]}")
    return xp


@op
def cross_entropy(
    logits: Array, labels: Array, label_smoothing: float = 0.0, *, keep: bool = True
) -> tuple[Array, CrossEntropyCache | None]:
    """Return the mean cross-entropy of `logits` against `labels`.

    Parameters
    ----------
    logits : Array
        (B, C), floating.
    labels : Array
        (B,) integers below C, or (B, C) soft targets, real, of the precision of `logits`. The values are not checked.
    label_smoothing : float
        The fraction of the target that is distributed over all classes, in [0, 1).
    keep : bool
        Whether to return the cache that `cross_entropy_backward` reads.

    Returns
    -------
    loss : Array
        0-d, of the dtype of `logits`.
    cache : CrossEntropyCache or None
    """
    dtype = real_dtype(logits.dtype)
    xp = check_cross_entropy(logits, labels, label_smoothing, (dtype,))
    B, C = logits.shape
    targets = (labels[:, None] == xp.arange(C)).astype(dtype) if labels.dtype.kind in "iu" else labels
    if label_smoothing:
        targets = targets * (1.0 - label_smoothing) + label_smoothing / C
    shifted = logits - logits.real.max(axis=-1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
    loss = xp.asarray((targets * log_p).sum() / -B)
    return loss, CrossEntropyCache(xp.exp(log_p), targets) if keep else None


@op_backward
def cross_entropy_backward(dloss: Array | float, cache: CrossEntropyCache) -> Array:
    """Return ``dlogits`` (B, C) for the gradient `dloss`, a number or a 0-d array, of the loss."""
    p, targets = cache
    if isinstance(dloss, int | float):
        dloss = float(dloss)  # NumPy's float64 is a float too, and would turn float32 into float64
    else:
        expect_gradient("cross_entropy", dloss, (), p.dtype)
    dlogits = p * targets.sum(axis=-1, keepdims=True) - targets
    return dlogits * (dloss / p.shape[0])
