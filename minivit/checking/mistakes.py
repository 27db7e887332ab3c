"""Recognise the mistake behind a wrong gradient.

Each function here tests one kind of mistake against the numbers and returns a sentence, or "" if they do not fit. A
sentence is returned only if the numbers fit to the accuracy of the derivatives, which for random arrays does not happen
by chance. The first function with a sentence is the answer, so the more specific kinds come first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from minivit.arrays import Array
from minivit.checking.differences import DIFFERENCES
from minivit.checking.evidence import Evidence, Other, rates_or_none
from minivit.checking.factors import constant_factor, mask, varying_factor
from minivit.checking.formulas import other_formula
from minivit.checking.places import one_place, one_range, reordered, repeated_indices

_LONGEST = 8  # number of other gradients and square arrays that are tried


def recognise(e: Evidence) -> str:
    """Return a sentence about the mistake, or "" if none is recognised."""
    for hypothesis in MISTAKES:
        try:
            with np.errstate(all="ignore"):
                sentence = hypothesis(e)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            continue  # forward cannot be evaluated at the other point that this hypothesis needs
        if sentence:
            return sentence
    return ""


def float32_forward(e: Evidence) -> str:
    """Forward computes in float32, so that small steps change nothing."""
    if not e.probe.rounds_to_float32:
        return ""
    return (
        f"forward computes in float32: every number of its result is one of float32, so its derivative cannot be "
        f"measured. Keep the dtype of {e.name}"
    )


def no_dependence(e: Evidence) -> str:
    """Forward does not use the array."""
    if e.top > 0 or any(np.any(rate) for rate in e.rates):
        return ""
    return "forward does not depend on this array here, yet backward returns a gradient"


def zeros(e: Evidence) -> str:
    """Backward returns zeros."""
    return "" if np.any(e.gradient) else "backward returns zeros: the path to this array is cut"


def changed_in_place(e: Evidence) -> str:
    """Forward changes an array in place after it was stored in the cache."""
    for name, operation, gradient in e.context.repaired():
        whole = gradient[e.probe.where]
        if whole.shape == e.gradient.shape and e.close(e.at(whole), e.true):
            return (
                f"forward changes {name} in place (by {operation}) after it stored it: with the values before, the "
                "gradient is right. Store a copy, or change a copy"
            )
    return ""


def low_precision(e: Evidence) -> str:
    """A float64 pass with float32 rounding: most elements have a small error, relative to themselves."""
    present = e.true != 0
    if not (e.digits < 1e-7 and np.any(present) and 1e-9 <= e.error <= 3e-7):
        return ""
    errors = np.abs(e.claimed - e.true)[present] / np.abs(e.true[present])
    if np.median(errors) > 1e-12 and np.quantile(errors, 0.75) < 1e-5:
        digits = int(-math.log10(e.error))
        words = f"right to about {digits} digits only: float32 rounding or a truncated constant in the float64 pass"
        if e.probe.unit is not None:
            words += (
                f", or rounding beside the offset of {e.name}, far larger than its spread: check without the offset"
            )
        return words
    return ""


def exchanged(e: Evidence) -> str:
    """The gradient of another array, whose gradient is this one."""
    mine = [float(np.sum(e.dy * rate)) for rate in e.rates]
    for other in _whose(e):
        back = [float(np.sum(other.gradient * d)) for d in e.directions]
        if np.allclose(back, mine, rtol=10 * e.digits, atol=10 * e.digits * max(map(abs, mine))):
            return f"this is the gradient of {other.name}, and that one is this: the two are exchanged"
    return ""


def of_another(e: Evidence) -> str:
    """The gradient of another array."""
    others = _whose(e)
    return f"this is the gradient of {others[0].name}" if len(others) == 1 else ""


def _whose(e: Evidence) -> list[Other]:
    """Return the other arrays whose right gradient is the one that backward returned for this array."""
    fits = []
    for other in [other for other in e.context.others if other.gradient.shape == e.gradient.shape][:_LONGEST]:
        rates = [rates_or_none(other.probe, d, e.analytic) for d in e.directions]
        if all(rate is not None for rate in rates) and e.from_rates(
            [e.dy * rate for rate in rates if rate is not None]
        ):
            fits.append(other)
    return fits


def without_dy(e: Evidence) -> str:
    """The gradient of the sum of y."""
    return "right for a dy of ones: backward does not use dy" if e.from_upstream(np.ones_like(e.dy)) else ""


def other_upstream(e: Evidence) -> str:
    """Right for another dy: one slice of it, dy reversed, or without a factor."""
    y = e.probe.y
    sums = [[e.dy * rate for rate in e.rates]]
    for axis, length in enumerate(y.shape):
        if length < 2:
            continue
        others = tuple(k for k in range(y.ndim) if k != axis)
        slices = np.array([np.sum(term, axis=others) for term in sums[0]])  # (3, length)
        scale = e.digits * np.max(np.abs(slices))
        claims = np.array(e.claims)[:, None]
        one = np.flatnonzero(np.all(np.abs(slices - claims) <= scale, axis=0))
        if one.size == 1:
            return f"only from index {one[0]} of the output's axis {axis}: not summed over that axis"
        rest = np.flatnonzero(np.all(np.abs(np.sum(slices, 1, keepdims=True) - slices - claims) <= scale, axis=0))
        if one.size == 0 and rest.size == 1 and length > 2:
            return f"without index {rest[0]} of the output's axis {axis}: the sum over that axis leaves it out"
        partial = np.all(np.abs(np.cumsum(slices, axis=1) - claims) <= scale, axis=0)
        if np.sum(partial[:-1]) == 1:
            return f"only from the first {int(np.argmax(partial)) + 1} of {length} indices of the output's axis {axis}"
    if y.size < 2:
        return ""
    for axis, length in enumerate(y.shape):
        for index, other in itertools.permutations(range(length), 2) if 2 < length <= 2 * _LONGEST else ():
            if _moved_slice(e, axis, index, other):
                return f"from index {other} of the output's axis {axis}, where forward uses index {index}"
        if length > 1 and e.from_upstream(np.flip(e.dy, axis)):
            return f"right for dy reversed along axis {axis}, as if counted from the other end"
    for a, b in itertools.combinations(range(y.ndim), 2):
        if y.shape[a] == y.shape[b] and e.from_upstream(e.dy.swapaxes(a, b)):
            return f"right for dy with axes {a} and {b} swapped"
    for name, factor in e.arrays.items():
        shapes = zip(factor.shape[::-1], y.shape[::-1], strict=False)
        if factor.ndim > y.ndim or any(n not in (1, m) for n, m in shapes):
            continue
        if e.from_upstream(e.dy / factor):
            return f"right for dy / {name}: the factor {name} is missing"
        if e.from_upstream(e.dy * factor):
            return f"right for dy * {name}: a factor {name} too many"
    return ""


def _moved_slice(e: Evidence, axis: int, index: int, other: int) -> bool:
    """Return whether forward needs one index of the axis of dy alone, and backward uses another one in its place."""
    rest = np.delete(np.array(e.rates), index, axis=axis + 1)
    if np.any(rest):
        return False
    moved = np.array(e.dy)
    np.moveaxis(moved, axis, 0)[index] = np.moveaxis(e.dy, axis, 0)[other]
    return e.from_upstream(moved)


def forward_again(e: Evidence) -> str:
    """The derivative of forward, applied to dy where its transpose is needed."""
    x, y = e.probe.x, e.probe.y
    if x.shape != y.shape or e.gradient.shape != x.shape or y.size < 2:
        return ""
    along = rates_or_none(e.probe, e.dy, e.analytic)
    if along is None or not e.close(e.claimed, e.at(along)):
        return ""
    d, rate = e.directions[0], e.rates[0]
    rise = e.probe.evaluate(e.probe.shifted(d)) - y
    if np.allclose(rise, rate, rtol=1e-6, atol=1e-6 * float(np.max(np.abs(rate)))):
        return (
            "forward, applied to dy: the transpose is needed, such as the inverse rotation or the sum in reverse order"
        )
    return (
        "J dy in place of J^T dy, where J is the derivative of forward: backward takes the factors in the order of "
        "forward and needs the reverse order"
    )


def other_point(e: Evidence) -> str:
    """Right at other arguments: a transposed matrix, y in place of x, other indices."""
    if e.context.evaluate is None:
        return ""
    arguments = {name: a for name, a in e.context.arrays.items() if name not in e.context.cached}
    tries: list[tuple[str, dict[str, Array]]] = []
    for name, a in arguments.items():
        if a.dtype.kind == "f" and a.ndim > 1 and a.shape[-1] == a.shape[-2] > 1:
            tries.append(
                (f"with {name} transposed: a transpose of {name} is missing or extra", {name: a.swapaxes(-1, -2)})
            )
        if a.dtype.kind in "iu" and a.size > 1:
            words = "the targets or indices are shifted"
            tries += [(f"for {name} {sign} 1: {words}", {name: a + step}) for sign, step in (("+", 1), ("-", -1))]
            tries += [(f"for {name} rolled by {step}: {words}", {name: np.roll(a, step, 0)}) for step in (1, -1)]
    # Where forward at y gives y again, as np.abs does, this says nothing.
    y = e.probe.y
    if e.probe.x.shape == y.shape and e.name in arguments and not np.array_equal(e.probe.evaluate(y), y):
        tries.append((f"at y in place of {e.name}: the output is used where the input is needed", {e.name: y}))
    for words, changes in tries[: 2 * _LONGEST]:
        if e.from_rates(_rates_at(e, changes)):
            return f"right {words}"
    return ""


def _rates_at(e: Evidence, changes: dict[str, Array]) -> list[Array]:
    """Return the terms of the derivatives along the directions at other arguments; NaN where they are undefined."""
    evaluate, x = e.context.evaluate, changes.get(e.name, e.probe.x)
    assert evaluate is not None
    others = {name: a for name, a in changes.items() if name != e.name}
    probe = type(e.probe)(lambda value: evaluate({**others, e.name: value}), x, e.probe.y, e.dy, e.probe.where)
    terms = []
    for d in e.directions:
        rates = rates_or_none(probe, d, e.analytic)
        if rates is None or rates.shape != e.dy.shape:
            return [np.full((), np.nan)] * len(e.directions)
        terms.append(e.dy * rates)
    return terms


def few_digits(e: Evidence) -> str:
    """A small error everywhere."""
    if 10 * e.digits < e.error < 1e-3 and np.array_equal(e.claimed, e.claimed.astype(np.float16)):
        return "every number is one of float16: backward computes, or returns, in float16"
    if 10 * e.digits < e.error < 1e-3:
        return f"right to about {int(-math.log10(e.error))} digits: a constant, such as an eps, is left out or differs"
    return ""


MISTAKES: tuple[Callable[[Evidence], str], ...] = (
    float32_forward,
    no_dependence,
    zeros,
    changed_in_place,
    low_precision,
    exchanged,
    without_dy,
    constant_factor,
    of_another,
    mask,
    one_range,
    varying_factor,
    reordered,
    repeated_indices,
    other_upstream,
    other_point,
    *DIFFERENCES,
    other_formula,
    forward_again,
    one_place,
    few_digits,
)
