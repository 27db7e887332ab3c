"""Recognise the right numbers at wrong places, and errors at a few places only."""

from __future__ import annotations

import itertools

import numpy as np

from minivit.arrays import Array
from minivit.checking.evidence import Evidence
from minivit.checking.factors import factor_meaning, shown


def reordered(e: Evidence) -> str:
    """The right numbers at other places."""
    shape = e.gradient.shape
    for a, b in itertools.combinations(range(len(shape)), 2):
        if shape[a] == shape[b] and e.close(e.at(e.gradient.swapaxes(a, b)), e.true):
            return f"axes {a} and {b} are swapped: the gradient is transposed"
    if len(shape) == 2 and e.close(e.at(e.gradient.reshape(shape[::-1]).T), e.true):
        return "the transposed gradient, reshaped where it should be transposed back"
    for axis, length in enumerate(shape):
        if length > 1 and e.close(e.at(np.flip(e.gradient, axis)), e.true):
            return f"reversed along axis {axis}"
        for shift in range(1, min(length, 4)):
            for sign in (1, -1) if length > 2 else (1,):
                if e.close(e.at(np.roll(e.gradient, -sign * shift, axis)), e.true):
                    return f"shifted by {sign * shift} along axis {axis}"
    for count in (2, 3):
        if shape and shape[-1] % count == 0 and shape[-1] > count:
            parts = np.split(e.gradient, count, axis=-1)
            for order in itertools.permutations(range(count)):
                if e.close(e.at(np.concatenate([parts[k] for k in order], axis=-1)), e.true):
                    which = "halves" if count == 2 else "thirds (q, k and v?)"
                    return (
                        f"the {which} of axis {len(shape) - 1} are exchanged: they should be in the order {list(order)}"
                    )
    if 2 < len(shape) <= 5:
        for order in itertools.permutations(range(len(shape))):
            turned = e.gradient.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
            if e.close(e.at(turned), e.true):
                return f"reshaped to the array's shape from axes in the order {list(order)}: it should be transposed"
    several = e.truth is not None and e.gradient.size > 3 and np.unique(e.true).size > 3
    if several and e.close(np.sort(e.claimed), np.sort(e.true)):
        return "the right numbers at other places: a wrong reshape, transposition or index"
    return ""


def repeated_indices(e: Evidence) -> str:
    """A scatter that lets the last of several equal indices win."""
    for name, a in e.context.arrays.items():
        rows = e.dy.shape[a.ndim :]
        if a.dtype.kind not in "iu" or a.shape != e.dy.shape[: a.ndim] or e.gradient.shape[1:] != rows:
            continue
        if a.size == 0 or a.min() < 0 or a.max() >= e.gradient.shape[0]:
            continue
        last = np.zeros_like(e.gradient)
        last[a] = e.dy
        if e.close(e.at(last), e.claimed):
            return f"each row is written, not added, so of equal {name} only the last counts: use np.add.at"
    return ""


def one_range(e: Evidence) -> str:
    """A known error in a range of indices of one axis, the rest right."""
    found = _range(e)
    if not found:
        return ""
    axis, low, high, words = found
    return f"wrong only at {_indices(low, high)} of axis {axis}{words}" if words else ""


def one_place(e: Evidence) -> str:
    """Wrong at one index of one axis, or at a few elements."""
    found = _range(e)
    if found and found[1] == found[2]:
        return f"wrong only at {_indices(*found[1:3])} of axis {found[0]}"
    wrong = np.abs(e.claimed - e.true) > e.digits * e.top
    count = int(np.sum(wrong))
    if 0 < count <= max(1, e.indices.size // 4) and count < e.indices.size:
        whole = f"of {e.indices.size}" + ("" if e.truth is not None else f" sampled of {e.gradient.size}")
        return f"{count} {whole} elements {'is' if count == 1 else 'are'} wrong, the others right"
    return ""


def _range(e: Evidence) -> tuple[int, int, int, str] | None:
    """Return the axis, the first and the last index that hold all wrong elements, and what is wrong there."""
    if e.truth is None or e.difference is None:
        return None
    where, found = np.abs(e.difference) > e.digits * e.top, None
    if np.sum(where) < 2:
        return None
    for axis, length in enumerate(where.shape):
        along = np.flatnonzero(np.any(where, axis=tuple(k for k in range(where.ndim) if k != axis)))
        low, high = int(along[0]), int(along[-1])
        if along.size == length or along.size != high - low + 1:
            continue
        part = (slice(None),) * axis + (slice(low, high + 1),)
        words = _what(e, e.gradient[part], e.truth[part])
        if words or found is None:
            found = axis, low, high, words
        if words:
            break
    return found


def _indices(low: int, high: int) -> str:
    return f"index {low}" if low == high else f"the indices {low} to {high}"


def _what(e: Evidence, claimed: Array, true: Array) -> str:
    if not np.any(claimed):
        return ": it is 0 there"
    if claimed.size < 2:
        return ""
    ratio = float(np.vdot(true, claimed)) / max(float(np.vdot(true, true)), 1e-300)
    if ratio == 0 or not e.close(claimed, ratio * true):
        return ""
    return (
        ": a sign is flipped there"
        if abs(ratio + 1) < e.digits
        else f": {shown(ratio)} times the derivative there{factor_meaning(e, abs(ratio))}"
    )
