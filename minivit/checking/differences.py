"""Recognise a mistake from the difference between a wrong gradient and the right one: a term is missing or wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from minivit.arrays import Array
from minivit.checking.evidence import Evidence


def whole_term(e: Evidence) -> str:
    """The difference is a multiple of dy, of an argument or of another gradient."""
    difference = e.claimed - e.true
    terms = {name: a for name, a in e.arrays.items() if a.shape == e.gradient.shape}
    gradients = {f"the gradient of {other.name}": other.gradient for other in e.context.others}
    terms |= {name: a for name, a in gradients.items() if a.shape == e.gradient.shape and np.any(a)}
    for name, a in terms.items():
        c = e.multiple(difference, a)
        if c is None or np.count_nonzero(e.at(a)) < 2:
            continue
        past = ": the way past the branch (the residual, or skip, connection)" if name == "dy" else ""
        for value, words in ((-1, "is missing"), (-2, "has the wrong sign"), (1, "is added once too often")):
            if abs(c - value) <= 10 * e.digits:
                return f"the term {name} {words}{past}"
        return f"the difference from the derivative is {c:.6g} times {name}"
    return ""


def scaled_term(e: Evidence) -> str:
    """The term dy, of the way past a branch, is multiplied by an array."""
    if e.dy.shape != e.gradient.shape:
        return ""
    difference, dy = e.claimed - e.true, e.at(e.dy)
    for name, a in e.arrays.items():
        if (
            name == "dy"
            or a.ndim > e.dy.ndim
            or any(n not in (1, m) for n, m in zip(a.shape[::-1], e.dy.shape[::-1], strict=False))
        ):
            continue
        factor = e.at(np.broadcast_to(a, e.dy.shape))
        if e.close(difference, dy * (factor - 1)):
            return f"the term dy is multiplied by {name}: the way past the branch is not"
        if e.close(difference, dy * (1 - factor)):
            return f"the term dy lacks the factor {name}"
    return ""


def target_term(e: Evidence) -> str:
    """The difference is at one element of each row, or at two with opposite signs."""
    if e.difference is None or e.difference.ndim < 2 or e.difference.shape[-1] < 3:
        return ""
    rows = e.difference.reshape(-1, e.difference.shape[-1])
    large = np.abs(rows) > e.digits * e.top
    if len(rows) < 2 or np.array_equal(large, np.eye(*large.shape, dtype=bool)):
        return ""
    if np.all(large.sum(1) == 1):
        return "wrong at one class of each row: the term of the target (one-hot) is missing or wrong"
    opposite = np.abs(rows.sum(1)) <= 10 * e.digits * e.top
    if np.all(np.isin(large.sum(1), (0, 2)) & opposite) and np.any(large):
        return "in each row one class is too large and one too small by the same number: the targets are shifted"
    return ""


def constant_term(e: Evidence) -> str:
    """The difference is constant along an axis."""
    if e.difference is None:
        return ""
    for axes in _axes(e.difference):
        mean = e.difference.mean(axis=axes, keepdims=True)
        if e.close(e.difference, mean):
            along = _words(axes)
            return (
                f"the difference from the derivative is constant along {along}: the term with the mean or sum over "
                f"{along}, such as the one through the mean, is missing or wrong"
            )
    return ""


def projection(e: Evidence) -> str:
    """The difference is proportional to an array along an axis, as a row sum of softmax or a variance."""
    if e.difference is None:
        return ""
    for axes in _axes(e.difference):
        for name, a in _candidates(e, axes, e.difference.shape):
            square = np.sum(a * a, axis=axes, keepdims=True)
            weights = np.sum(e.difference * a, axis=axes, keepdims=True) / np.where(square == 0, np.inf, square)
            if e.close(e.difference, weights * a):
                return (
                    f"the difference is proportional to {name} along {_words(axes)}: {_term(e, name, a, axes, weights)}"
                )
    for axes in _axes(e.difference):
        centred = _centred(e, axes)
        if centred is None or np.prod([e.difference.shape[axis] for axis in axes]) < 4:
            continue
        mean = e.difference.mean(axis=axes, keepdims=True)
        rest = e.difference - mean
        square = np.sum(centred * centred, axis=axes, keepdims=True)
        if e.close(rest, np.sum(rest * centred, axis=axes, keepdims=True) / square * centred):
            return (
                f"along {_words(axes)} the difference is a number plus a multiple of x - mean(x): the terms through "
                "the mean and through the variance are both missing or wrong"
            )
    return ""


def _candidates(e: Evidence, axes: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    centred = _centred(e, axes)
    if centred is not None:
        yield f"{e.name} - mean({e.name})", centred
    for name in ("y", *e.arrays):
        a = e.arrays.get(name)
        if name != "dy" and a is not None and a.shape == shape:
            yield name, a


def _centred(e: Evidence, axes: tuple[int, ...]) -> Array | None:
    x: Array = e.probe.x[e.probe.where]
    centred: Array = x - x.mean(axis=axes, keepdims=True)
    return centred if np.any(centred) else None


def _term(e: Evidence, name: str, a: Array, axes: tuple[int, ...], weights: Array) -> str:
    if name == f"{e.name} - mean({e.name})":
        return "the term through the variance is missing or wrong"
    sums = np.sum(a, axis=axes)
    if np.all(a >= 0) and np.allclose(sums, 1, rtol=1e-9):
        if e.dy.shape == a.shape and not _proportional(weights, np.sum(e.dy * a, axis=axes, keepdims=True)):
            if _proportional(weights, np.sum(e.dy, axis=axes, keepdims=True)):
                return f"the term {name} * sum(dy), as of the logarithm of softmax, is missing or wrong"
            return f"a term {name} * sum(...) over it is missing or wrong"
        return f"softmax's row sum, the term {name} * sum(dy * {name}), is missing or wrong"
    return f"a projection, a term {name} * sum(... * {name}) over it, is missing or wrong"


def _proportional(a: Array, b: Array) -> bool:
    c = np.vdot(b, a) / max(float(np.vdot(b, b)), 1e-300)
    return bool(np.allclose(a, c * b, rtol=1e-6, atol=1e-6 * float(np.max(np.abs(a)))))


def _axes(difference: Array) -> Iterator[tuple[int, ...]]:
    """Yield the last axis, the other axes, and several of them, if a fit of one number along them says something."""
    ndim = difference.ndim
    several = [tuple(range(k)) for k in range(2, ndim)] + [tuple(range(k, ndim)) for k in range(ndim - 2, 0, -1)]
    for axes in [*((axis,) for axis in range(ndim - 1, -1, -1)), *several, tuple(range(ndim)) if ndim > 1 else ()]:
        if axes and np.prod([difference.shape[axis] for axis in axes]) > 2:
            yield axes


def _words(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


DIFFERENCES: tuple[Callable[[Evidence], str], ...] = (whole_term, scaled_term, target_term, constant_term, projection)
