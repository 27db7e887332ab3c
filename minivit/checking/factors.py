"""Recognise a wrong gradient as a multiple of the right one, and what the factor stands for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from minivit.checking.evidence import Evidence, digits_beside

_LARGEST_WIDTH = 4096  # of a head
_ROOT_DIGITS = 1e-7  # a number fits the root of some width to this accuracy by chance once in 600 times, or less often


def constant_factor(e: Evidence) -> str:
    """Everywhere the same multiple of the derivative."""
    square = float(np.vdot(e.true, e.true))
    ratio = float(np.vdot(e.true, e.claimed)) / square
    if ratio == 0 or not e.close(e.claimed / ratio, e.true):
        return ""
    meaning = factor_meaning(e, abs(ratio))
    if np.count_nonzero(e.true) < 2 and not meaning and not math.isclose(abs(ratio), 1, rel_tol=e.digits):
        return ""  # one number is always a multiple of another one
    sign = "a sign is flipped" if ratio < 0 else ""
    factor = "" if abs(abs(ratio) - 1) < e.digits else f"everywhere {shown(abs(ratio))} times the derivative{meaning}"
    return " and ".join(filter(None, (sign, factor)))


def shown(ratio: float) -> str:
    """Return a factor with as many digits as show its difference from 1."""
    return f"{ratio:.{digits_beside(abs(ratio), 1.0)}g}"


def factor_meaning(e: Evidence, ratio: float) -> str:
    """Return what a factor may stand for: a length, a product of lengths, a square root, or an array of one element."""
    near = 10 * e.digits

    def is_(value: float) -> bool:
        return math.isclose(ratio, value, rel_tol=near)

    kept = _kept(e)
    if kept and (is_(kept) or is_(1 / kept)):
        return f": the scale 1/{kept:.6g} of the elements that dropout keeps is {'missing' if ratio < 1 else 'extra'}"
    for name, a in e.context.arrays.items():
        if a.size == 1 and a.dtype.kind == "f" and name not in e.context.cached:
            value = abs(float(a.ravel()[0]))
            if is_(value) and not is_(1):
                return f" (the value of {name}): a factor {name} too many"
            if value and is_(1 / value) and not is_(1):
                return f" (1/{name}): the factor {name} is missing"
    meanings: dict[str, str] = {}
    sources = [(e.probe.y.shape, "the output"), (e.probe.x.shape, "the array")]
    for group in [sources, *([(a.shape, name)] for name, a in e.arrays.items())]:
        if meanings:
            break
        for n, of, single in _lengths(group):
            if is_(n):
                meanings.setdefault("n", f"{of}): a sum where forward takes a mean, or the reverse")
            elif is_(1 / n):
                meanings.setdefault("1/n", f"one over {of}): a mean where forward takes a sum, or the reverse")
            elif is_(math.sqrt(n)):
                meanings.setdefault("sqrt", f"the square root of {of}): the scale 1/sqrt({n}) is missing")
            elif is_(1 / math.sqrt(n)):
                meanings.setdefault("1/sqrt", f"one over the square root of {of}): the scale 1/sqrt({n}) is extra")
            elif single and n > 2 and (is_(n / (n - 1)) or is_((n - 1) / n)):
                meanings.setdefault("ddof", f"n and n - 1 for {of}): a sum of n terms divided by n - 1, or the reverse")
    if not meanings:
        meanings |= _two_lengths(e, is_)
    large = max(ratio, 1 / ratio)
    square = round(min(large, _LARGEST_WIDTH) ** 2)
    # A whole number may be anything, but the root of a multiple of 16 is often that of the width of a head.
    whole = math.isqrt(square) ** 2 == square
    if (
        not meanings
        and 1 < square <= _LARGEST_WIDTH
        and not (whole and square % 16)
        and math.isclose(large, math.sqrt(square), rel_tol=min(near, _ROOT_DIGITS))
    ):
        what = "missing" if ratio > 1 else "extra"
        perhaps = "perhaps " if whole else ""
        meanings["root"] = (
            f"the square root of {square}): {perhaps}a scale 1/sqrt({square}), as of the width of a head, is {what}"
        )
    found = list(meanings.values())
    if is_(2) or is_(0.5):
        found.insert(0, f"a factor {'2 too many' if ratio > 1 else '2 missing'}, as of a square)")
    elif is_(3) or is_(1 / 3):
        found.append(f"a factor {'3 too many' if ratio > 1 else '3 missing'}, as of a cube)")
    return f" ({', or ('.join(found)}" if found else ""


def _two_lengths(e: Evidence, is_: Callable[[float], bool]) -> dict[str, str]:
    """Return the meaning of a factor that is one length divided by another: a mean over the wrong axis."""
    shapes = {"the output": e.probe.y.shape, "the array": e.gradient.shape}
    lengths = [(f"axis {axis} of {what}", n) for what, shape in shapes.items() for axis, n in enumerate(shape)]
    for (a, n), (b, m) in itertools.permutations(lengths, 2):
        if n > 1 and m > 1 and n != m and is_(n / m):
            return {"n/m": f"{n}/{m}, the length of {a} over that of {b}): divided by the length of the wrong axis"}
    return {}


def _lengths(shapes: Sequence[tuple[tuple[int, ...], str]]) -> Iterator[tuple[int, str, bool]]:
    """Yield the lengths of axes, then their products, each with words and whether it is the length of an axis.

    The words name one axis and one product: nothing tells which of them is meant.
    """
    single: dict[int, str] = {}
    products: dict[int, str] = {}
    for shape, what in shapes:
        axes = [axis for axis, n in enumerate(shape) if n > 1]
        for axis in axes:
            single.setdefault(shape[axis], f"the length of axis {axis} of {what}")
        for count in range(2, len(axes) + 1):
            for some in itertools.combinations(axes, count):
                names = f"the lengths of axes {', '.join(map(str, some[:-1]))} and {some[-1]} of {what} multiplied"
                n = math.prod(shape[axis] for axis in some)
                products.setdefault(n, f"the size of {what}" if count == len(axes) else names)
    for n in [*single, *(n for n in products if n not in single)]:
        yield n, " or ".join(words[n] for words in (single, products) if n in words), n in single


def _kept(e: Evidence) -> float | None:
    """Return the fraction that dropout keeps, if forward is x * mask / kept."""
    x, y = e.probe.x[e.probe.where], e.probe.y
    if x.shape != y.shape or not (0 < np.count_nonzero(y) < y.size):
        return None
    ratios = (x / np.where(y == 0, np.nan, y))[y != 0]
    kept = float(ratios[0])
    return kept if 0 < kept < 1 and np.allclose(ratios, kept, rtol=1e-12) else None


def mask(e: Evidence) -> str:
    """The mask of forward is not applied, or inverted."""
    zero = np.abs(e.true) <= e.digits * e.top
    if not 2 <= np.sum(zero) < zero.size:
        return ""
    wrong = np.abs(e.claimed[zero]) > e.digits * e.top
    if e.close(e.claimed[~zero], e.true[~zero]) and np.sum(wrong) > 1 and not np.all(wrong):
        return (
            "right except at some elements where the derivative is 0: forward leaves out more than backward does, as a "
            "clip at both ends, a second mask or a part of an index"
        )
    if e.close(e.claimed[~zero], e.true[~zero]) and np.all(wrong):
        return (
            "right except where the derivative is 0: what forward leaves out, by a mask or an index, as in ReLU, "
            "dropout or pooling, is not left out"
        )
    if not np.any(e.claimed[~zero]) and np.all(e.claimed[zero]) and np.sum(~zero) > 1:
        return "0 exactly where the derivative is not, and not 0 where it is: the mask is inverted"
    return ""


def varying_factor(e: Evidence) -> str:
    """A multiple of the derivative that is an array, or depends on one axis."""
    shape = e.gradient.shape
    if np.count_nonzero(e.true) < 3:
        return ""
    for name, a in e.arrays.items():
        if a.ndim > len(shape) or any(n not in (1, m) for n, m in zip(a.shape[::-1], shape[::-1], strict=False)):
            continue
        factor = e.at(np.broadcast_to(a, shape))
        if e.close(e.claimed, e.true * factor):
            return f"{name} times the derivative: a factor {name} too many"
        if np.all(factor) and e.close(e.claimed, e.true / factor):
            return f"the derivative divided by {name}: the factor {name} is missing"
    if e.truth is None:
        return ""
    for axis, length in enumerate(shape):
        others = tuple(k for k in range(len(shape)) if k != axis)
        if length < 2 or e.gradient.size < 2 * length:
            continue
        square = np.sum(e.truth * e.truth, axis=others, keepdims=True)
        factors = np.sum(e.gradient * e.truth, axis=others, keepdims=True) / np.where(square == 0, 1, square)
        right = np.sum(np.abs(factors - 1) <= e.digits)
        if e.close(e.gradient, factors * e.truth) and (length <= 8 or np.unique(factors.round(6)).size < length / 2):
            if right >= length - 1 or np.all(np.isin(factors.round(9), (0, 1))):
                return ""  # one index is wrong, or slices are missing
            words = ", ".join([*(shown(float(value)) for value in factors.ravel()[:8]), *["..."][: length > 8]])
            return f"the derivative times a factor that depends on axis {axis} alone ({words})"
    return ""
