"""Softmax cross-entropy of the tokens of each image: its mean over an image's predictions.

    log_p = logits - log(sum(exp(logits)))
    loss[b] = -sum over n of log_p[b, n, labels[b, n]] / N

    p = exp(log_p)
    dlogits[b, n] = dloss[b] * (p[b, n] - one_hot(labels[b, n])) / N

`cross_entropy` is the mean over a batch of images with one prediction each. The steps are in
docs/derivations/masking.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype


class TokenCrossEntropyCache(NamedTuple):
    """What the backward pass of `token_cross_entropy` reads."""

    slope: Array  # (B, N, K), the derivative of the loss of each image


@op
def token_cross_entropy(
    logits: Array, labels: Array, *, keep: bool = True
) -> tuple[Array, TokenCrossEntropyCache | None]:
    """Return the mean cross-entropy of each image's tokens.

    Parameters
    ----------
    logits : Array
        (B, N, K), floating, with at least one token and one class.
    labels : Array
        (B, N) integers below K.
    keep : bool
        Whether to return the cache that `token_cross_entropy_backward` reads.

    Returns
    -------
    loss : Array
        (B,), of the dtype of `logits`. On a device, that of an image is NaN if one of its labels is out of range.
    cache : TokenCrossEntropyCache or None
    """
    xp = namespace(logits, labels)
    same_dtype("token_cross_entropy", logits=logits)
    expect("token_cross_entropy", "logits", logits, ("B", "N", "K"))
    expect("token_cross_entropy", "labels", labels, logits.shape[:2])
    _, N, K = logits.shape
    if 0 in (N, K):
        raise ValueError(f"token_cross_entropy: logits has shape {logits.shape}; expected a token and a class at least")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"token_cross_entropy: labels has dtype {labels.dtype}; expected integers")
    if xp is np and labels.size and not (labels.min() >= 0 and labels.max() < K):
        raise ValueError(f"token_cross_entropy: labels are {labels.min()} to {labels.max()}; expected 0 to {K - 1}")
    hot = (labels[..., None] == xp.arange(K)).astype(logits.dtype)
    if xp is not np:
        hot = xp.where(((labels >= 0) & (labels < K))[..., None], hot, xp.nan)
    shifted = logits - logits.real.max(axis=-1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
    loss = (hot * xp.where(hot != 0, log_p, 0)).sum(axis=(1, 2)) / -N
    return loss, TokenCrossEntropyCache((xp.exp(log_p) - hot) / N) if keep else None


@op_backward
def token_cross_entropy_backward(dloss: Array, cache: TokenCrossEntropyCache) -> Array:
    """Return ``dlogits`` (B, N, K) for the gradient `dloss` (B,) of the losses."""
    (slope,) = cache
    expect_gradient("token_cross_entropy", dloss, slope.shape[:1], slope.dtype)
    return slope * dloss[:, None, None]
