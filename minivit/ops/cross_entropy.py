"""Softmax cross-entropy, the mean over a batch, with label smoothing (Szegedy et al. 2016) or soft targets.

    log_p = logits - log(sum(exp(logits)))
    targets = (1 - label_smoothing) * one_hot(labels) + label_smoothing / C
    loss = -sum(targets * log_p) / B

    p = exp(log_p)
    dlogits = dloss * (p * sum(targets) - targets) / B

Soft targets take the place of one_hot(labels). The sum of the loss runs over the images and the classes, the other sums
over the classes. sum(targets) is 1 for labels, and can have another value for soft targets. A term of target 0 counts
as 0 even if log_p is -infinity, so a logit of -infinity masks a class. The steps are in
docs/derivations/softmax_cross_entropy.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array, namespace, real_dtype
from minivit.errors import UserError
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
    if 0 in logits.shape:
        raise ValueError(f"cross_entropy: logits has shape {logits.shape}; expected at least one image and one class")
    B, C = logits.shape
    check_labels(labels, B, C, soft)
    return xp


def check_labels(labels: Array, B: int, C: int, soft: tuple[Any, ...]) -> None:
    """Raise UserError unless `labels` are B integers below C, or (B, C) finite soft targets of a dtype in `soft`.

    The values are checked on the host alone, because on a device the host would have to wait; there the loss is NaN.
    """
    hard = labels.dtype.kind in "iu"
    if labels.shape != ((B,) if hard else (B, C)) or not (hard or labels.dtype in soft):
        raise UserError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; expected ({B},) integers or "
            f"({B}, {C}) soft targets of {soft[0]}{_conversion(labels, B, C, soft[0])}"
        )
    if namespace(labels) is not np:
        return
    if hard and not (labels.min() >= 0 and labels.max() < C):
        at = int(np.argmax((labels < 0) | (labels >= C)))
        from_one = labels.min() == 1 and labels.max() == C
        raise UserError(
            f"label {labels[at]} of image {at} is out of range; {C} classes have the labels 0 to {C - 1}"
            + (" (do the labels start at 1?)" if from_one else "")
        )
    if not hard and not (labels.min() >= 0.0 and labels.max() < np.inf):  # a comparison with NaN is false
        image, of = np.argwhere(~((labels >= 0.0) & (labels < np.inf)))[0]
        raise UserError(
            f"the soft target of image {image} for class {of} is {labels[image, of]}; expected a finite number that is "
            "not negative"
        )


def _conversion(labels: Array, B: int, C: int, soft: Any) -> str:
    """Return the conversion of `labels` of a wrong shape or dtype that was probably meant, or ""."""
    meant = {(B, 1): "labels[:, 0]", (B, C): f"labels.astype('{soft}')", (B,): "labels.astype(int)"}
    return f": use {meant[labels.shape]}" if labels.shape in meant else ""


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
        (B,) integers below C, or (B, C) soft targets, real, of the precision of `logits`, that are finite and not
        negative.
    label_smoothing : float
        The fraction of the target that is distributed over all classes, in [0, 1).
    keep : bool
        Whether to return the cache that `cross_entropy_backward` reads.

    Returns
    -------
    loss : Array
        0-d, of the dtype of `logits`. On a device it is NaN if a label or a soft target is invalid.
    cache : CrossEntropyCache or None

    Raises
    ------
    UserError
        On the host, a label is out of range, or a soft target is negative, infinite or NaN.
    """
    namespace(logits)
    same_dtype("cross_entropy", logits=logits)
    dtype = real_dtype(logits.dtype)
    xp = check_cross_entropy(logits, labels, label_smoothing, (dtype,))
    B, C = logits.shape
    hard = labels.dtype.kind in "iu"
    targets = (labels[:, None] == xp.arange(C)).astype(dtype) if hard else labels
    if xp is not np:
        valid = (labels[:, None] >= 0) & (labels[:, None] < C) if hard else (labels >= 0.0) & (labels < np.inf)
        targets = xp.where(valid, targets, xp.nan)
    if label_smoothing:
        smoothing = float(label_smoothing)  # a NumPy number would change the dtype
        targets = targets * (1.0 - smoothing) + smoothing / C
    shifted = logits - logits.real.max(axis=-1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
    terms = targets * xp.where(targets != 0, log_p, 0)
    loss = xp.asarray(terms.sum() / -B)
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
