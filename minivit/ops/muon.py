"""Muon (Jordan et al. 2024): momentum, brought near the closest matrix with orthonormal rows or columns.

With g the gradient of a matrix p of `rows` x `columns`, lr the learning rate and wd the weight decay:

    b = momentum * b + g                                  b = 0 before the first step
    u = g + momentum * b                                  Nesterov's momentum
    X = u / (norm(u) + 1e-7)                              norm: root of the sum of squares; X = X^T if rows > columns
    five times:
        A = X @ X^T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    p = p - lr * wd * p                                   decoupled weight decay
    p = p - lr * 0.2 * sqrt(max(rows, columns)) * X       X = X^T again if rows > columns

The quintic iteration of Newton and Schulz takes singular values between 0.01 and 1 to values between 0.68 and 1.14,
without a singular value decomposition. The factor 0.2 * sqrt(max(rows, columns)) is that of Liu et al. 2025: it gives a
step the root mean square 0.2 that steps of AdamW usually have, so that both share one learning rate and weight decay.
(Jordan's own factor is max(1, rows / columns)**0.5, with a learning rate of its own.) A matrix with named parts, such
as that of q, k and v, is treated as that many matrices. The steps are in docs/derivations/optimizers.md.
"""

from __future__ import annotations

import math

from minivit.arrays import Array, namespace
from minivit.ops.registry import op
from minivit.ops.update_rules import Group, pieces

ITERATIONS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)
_RMS = 0.2  # of a step of AdamW
_EPS = 1e-7


@op
def muon_step(
    values: Array,
    gradients: Array,
    m: Array,
    groups: tuple[Group, ...],
    *,
    lr_scale: float,
    momentum: float,
    factor: Array | None = None,
) -> None:
    """Do a step of Muon in place.

    Parameters
    ----------
    values, gradients, m : Array
        The flat vectors, of one float dtype; `gradients` are not changed, and `m` is b in the formulas above.
    groups : tuple of Group
        The matrices that are updated, with their shapes and parts.
    lr_scale : float
        A factor of the groups' learning rates.
    momentum : float
        See the formulas above.
    factor : Array, optional
        0-d; the gradients are multiplied by it. If it is NaN, nothing is changed.
    """
    for span, group in pieces(groups, (values, m), factor, whole=True):
        rows, parts = group.shape[0], max(1, len(group.parts))
        columns = group.shape[1] // parts
        p, g, b = values[span], gradients[span], m[span]
        if factor is not None:
            g = g * factor
        b *= momentum
        b += g
        u = (g + momentum * b).reshape(rows, parts, columns).swapaxes(0, 1)
        x = orthogonalized(u).swapaxes(0, 1).reshape(p.shape)
        lr = group.lr * lr_scale
        if group.weight_decay:
            p *= 1.0 - lr * group.weight_decay
        p -= x * (lr * _RMS * math.sqrt(max(rows, columns)))


def orthogonalized(u: Array) -> Array:
    """Return matrices (parts, rows, columns) with the singular vectors of `u`, and singular values near 1.

    A matrix of zeros stays as it is.
    """
    xp = namespace(u)
    a, b, c = _QUINTIC
    x = u / (xp.sqrt((u * u).sum(axis=(1, 2), keepdims=True)) + _EPS)
    tall = u.shape[1] > u.shape[2]
    if tall:
        x = x.swapaxes(1, 2)
    for _ in range(ITERATIONS):
        squares = x @ x.swapaxes(1, 2)
        x = a * x + (b * squares + c * (squares @ squares)) @ x
    return x.swapaxes(1, 2) if tall else x
