"""Update rules over the flat parameter vector, in place and in pieces that fit in the cache.

With g the gradient, lr the learning rate, wd the weight decay and t = 1, 2, ... the step:

    SGD     b = momentum * b + (g + wd * p)            p = p - lr * b

    Adam    g = g + wd * p                             (Kingma and Ba 2015, algorithm 1)
            m = m + (1 - beta1) * (g - m)              v = v + (1 - beta2) * (g * g - v)
            p = p - lr * m_hat / (sqrt(v_hat) + eps)   m_hat = m / (1 - beta1**t),  v_hat = v / (1 - beta2**t)

    AdamW   p = p - lr * wd * p, then Adam with wd = 0 (Loshchilov and Hutter 2019, algorithm 2)

An average a of the parameters over several steps moves towards them by a weight w: a = a + w * (p - a).

A step takes an optional factor for all gradients, a 0-d array on their device. If it is NaN the step changes nothing: a
device can skip a step without waiting for the host.

These rules are elementwise: they work on any span of the flat vector. A rule for matrices, such as `ops.muon`, takes
the same groups, one for each parameter, with the parameter's shape and the names of its equal parts. The steps are in
docs/derivations/optimizers.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from minivit.arrays import Array, namespace
from minivit.ops.registry import op

_CHUNK = 1 << 14  # elements: six vectors of float32 take 384 KiB


class Group(NamedTuple):
    """A span of the flat vector with a learning rate and a weight decay of its own: one parameter, or any other span.

    Attributes
    ----------
    span : slice
        The elements of the flat vector that the group covers.
    lr, weight_decay : float
        The learning rate and the weight decay.
    name : str
        The name of the parameter that fills the span; empty if it is not exactly one parameter.
    shape : tuple of int
        The shape of this parameter.
    parts : tuple of str
        The names of equal parts along its last axis, such as ``("q", "k", "v")``; empty if it has none.
    """

    span: slice
    lr: float
    weight_decay: float
    name: str = ""
    shape: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()

    def __hash__(self) -> int:
        """Allow groups as dictionary keys; before Python 3.12 a slice has no hash."""
        return hash((self.span.start, self.span.stop, *self[1:]))


def pieces(
    groups: Sequence[Group], vectors: Sequence[Array], factor: Array | None, whole: bool = False
) -> Iterator[tuple[slice, Group]]:
    """Yield the pieces of all groups, to be updated in `vectors`; if `factor` is NaN the vectors stay as they are.

    With `whole`, each group is one piece.
    """
    xp = namespace(*vectors)
    masked = factor is not None and xp is not np
    if factor is not None and not masked and np.isnan(factor):
        return
    kept = [vector.copy() for vector in vectors] if masked else []
    for group in groups:
        chunk = _CHUNK if xp is np and not whole else max(1, group.span.stop - group.span.start)
        for start in range(group.span.start, group.span.stop, chunk):
            yield slice(start, min(start + chunk, group.span.stop)), group
    for vector, before in zip(vectors, kept, strict=False):
        xp.copyto(vector, before, where=xp.isnan(factor))


def _scratch(values: Array, count: int) -> list[Array]:
    xp = namespace(values)
    size = min(_CHUNK, values.size) if xp is np else values.size
    return [xp.empty(size, dtype=values.dtype) for _ in range(count)]


@op
def sgd_step(
    values: Array,
    gradients: Array,
    momentum_vector: Array,
    groups: tuple[Group, ...],
    *,
    lr_scale: float,
    momentum: float,
    factor: Array | None = None,
) -> None:
    """Do a step of SGD in place; see `adam_step`."""
    xp = namespace(values, gradients, momentum_vector)
    whole = _scratch(values, 1)
    for piece, group in pieces(groups, (values, momentum_vector), factor):
        p, g, b = values[piece], gradients[piece], momentum_vector[piece]
        a = whole[0][: piece.stop - piece.start]
        b *= momentum
        b += g if factor is None else xp.multiply(g, factor, out=a)
        if group.weight_decay:
            b += xp.multiply(p, group.weight_decay, out=a)
        p -= xp.multiply(b, group.lr * lr_scale, out=a)


@op
def adam_step(
    values: Array,
    gradients: Array,
    m: Array,
    v: Array,
    groups: tuple[Group, ...],
    *,
    lr_scale: float,
    betas: tuple[float, float],
    eps: float,
    steps: int,
    decoupled: bool,
    factor: Array | None = None,
) -> None:
    """Do a step of Adam, or of AdamW if `decoupled`, in place.

    Parameters
    ----------
    values, gradients, m, v : Array
        The flat vectors, of one float dtype; `gradients` are not changed.
    groups : tuple of Group
        The spans that are updated.
    lr_scale : float
        A factor of the groups' learning rates.
    betas, eps
        See the formulas above.
    steps : int
        t, the number of this step: 1, 2, ...
    decoupled : bool
        Whether weight decay is applied to the parameter, as in AdamW, or added to the gradient.
    factor : Array, optional
        0-d; the gradients are multiplied by it. If it is NaN, nothing is changed.
    """
    xp = namespace(values, gradients, m, v)
    beta1, beta2 = betas
    whole = _scratch(values, 2)
    for piece, group in pieces(groups, (values, m, v), factor):
        p, g, m_, v_ = values[piece], gradients[piece], m[piece], v[piece]
        a, scaled = (vector[: piece.stop - piece.start] for vector in whole)
        lr = group.lr * lr_scale
        if factor is not None:
            g = xp.multiply(g, factor, out=scaled)
        if group.weight_decay and decoupled:
            p *= 1.0 - lr * group.weight_decay
        elif group.weight_decay:
            g = xp.add(g, xp.multiply(p, group.weight_decay, out=a), out=scaled)
        xp.subtract(g, m_, out=a)
        a *= 1.0 - beta1
        m_ += a
        xp.multiply(g, g, out=a)
        a -= v_
        a *= 1.0 - beta2
        v_ += a
        xp.multiply(v_, 1.0 / (1.0 - beta2**steps), out=a)
        xp.sqrt(a, out=a)
        a += eps
        xp.divide(m_, a, out=a)
        a *= lr / (1.0 - beta1**steps)
        p -= a


@op
def average_step(average: Array, values: Array, *, weight: float) -> None:
    """Move the flat vector `average` towards `values`, which do not change, by `weight` (0 to 1), in place."""
    xp = namespace(average, values)
    (whole,) = _scratch(values, 1)
    for start in range(0, values.size, max(1, whole.size)):
        piece = slice(start, min(start + whole.size, values.size))
        a = xp.subtract(values[piece], average[piece], out=whole[: piece.stop - piece.start])
        a *= weight
        average[piece] += a


@op
def gradient_norm(gradients: Array) -> Array:
    """Return the L2 norm of the flat vector `gradients`, a 0-d array on its device.

    See docs/derivations/grad_scaler.md.
    """
    xp = namespace(gradients)
    size = 1 << 16 if xp is np else max(1, gradients.size)
    pieces = (gradients[start : start + size] for start in range(0, gradients.size, size))
    return xp.asarray(xp.sqrt(sum((piece * piece).sum() for piece in pieces)))


@np.errstate(under="ignore")
def clip_factor(norm: Array, max_norm: float) -> Array:
    """Return the factor, at most 1, that scales a vector of norm `norm` (0-d) to a norm of at most `max_norm`.

    See docs/derivations/grad_scaler.md.
    """
    xp = namespace(norm)
    scale = max_norm / (norm + 1e-6)
    return xp.where(scale < 1.0, scale, xp.ones_like(scale))
