"""How a derivative is measured without trusting the backward pass, and how a wrong one is explained.

With phi(x) = <u, f(x)> for a random upstream u, and a gradient g that claims <g, d> = phi'(x)[d] for every d:

    complex step         phi(x + ihd).imag / h             h = 1e-20; nothing is subtracted, so all digits are right
    Taylor remainder     |phi(x + hd) - phi(x) - h<g, d>|  falls as h^2 if g is right, as h if it is not
    central differences  (phi(x + hd) - phi(x - hd)) / 2h  right to about 1e-9, for any f

The complex step is Squire and Trapp, SIAM Review 40 (1998) 110; it holds where f is analytic as it is coded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.check_report import Slope

EPS = float(np.finfo(np.float64).eps)
ELEMENTWISE = 256  # an array up to this size is searched element by element, a larger one by halving
_STEP = 1e-20
_CENTRAL_STEPS = (2.0**-18, 2.0**-14, 2.0**-21, 2.0**-24)


class NotAnalyticError(Exception):
    """The complex step cannot be taken: forward refuses complex arguments, or drops their imaginary part."""


@dataclass(frozen=True)
class Probe:
    """The function phi of one array, or of a part of it, with every other argument held.

    Attributes
    ----------
    evaluate
        Returns f with the array replaced by the given one, which may be complex.
    x, y, upstream
        The point (float64), f there, and the random u; `upstream` has the shape of `y`.
    where
        Index of the part of `x` that moves; directions have the shape ``x[where]``.
    """

    evaluate: Callable[[Array], Array]
    x: Array
    y: Array
    upstream: Array
    where: tuple[Any, ...] = (Ellipsis,)

    @property
    def rms(self) -> float:
        """Root mean square of the part that moves, or 1 if it is zero: the unit of a real step."""
        return float(np.sqrt(np.mean(np.square(self.x[self.where])))) or 1.0

    def shifted(self, step: Array) -> Array:
        """Return x + step."""
        moved = np.array(self.x, dtype=np.result_type(self.x, step))
        moved[self.where] += step
        return moved

    def complex_step(self, d: Array) -> float:
        """Return the derivative of phi along `d`.

        Raises
        ------
        NotAnalyticError
            `evaluate` does not carry an imaginary part from its argument to its result.
        """
        return float(np.sum(self.complex_terms(d)))

    def complex_terms(self, d: Array) -> Array:
        """Return the terms, in the shape of `y`, whose sum is the derivative of phi along `d`."""
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            try:
                y = self.evaluate(self.shifted(1j * (_STEP * d)))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise NotAnalyticError(f"forward refuses complex arguments ({reason})") from error
        if not np.iscomplexobj(y):
            raise NotAnalyticError("forward returns real values for complex arguments")
        terms: Array = self.upstream * (y.imag / _STEP)
        return terms

    def central(self, d: Array, h: float = _CENTRAL_STEPS[0]) -> float:
        """Return the central difference of phi along `d`, over a step of `h` root mean squares of x."""
        size = h * self.rms
        with np.errstate(all="ignore"):
            high, low = self.evaluate(self.shifted(size * d)), self.evaluate(self.shifted(-size * d))
            return float(np.sum(self.upstream * (high - low))) / (2 * size)

    def central_nearest(self, d: Array, claim: float) -> float:
        """Return the central difference nearest to `claim` over a few steps: rounding and kinks shun no one step.

        A wrong claim is missed by all of them.
        """
        return min((self.central(d, h) for h in _CENTRAL_STEPS), key=lambda value: _distance(value, claim))


def _distance(value: float, claim: float) -> float:
    return abs(value - claim) if np.isfinite(value) else np.inf


@dataclass(frozen=True)
class Taylor:
    """How the Taylor remainder falls: its order, and the last remainder over its step, a bound on the error."""

    slope: Slope
    gap: float
    passed: bool


def taylor(probe: Probe, gradient: Array, d: Array) -> Taylor:
    """Measure the order at which phi(x + hd) - phi(x) - h<gradient, d> falls as h is halved.

    It is judged in the windows of four steps just above rounding, where higher orders no longer show and even a small
    error of the gradient would make the slope 1. A slope above 2 is as good a proof: the second derivative vanishes
    along `d`, or a kink was left behind.
    """
    d = d * probe.rms
    x, size0 = probe.x[probe.where], float(np.sum(np.abs(probe.upstream * probe.y)))

    def remainder(halvings: int) -> tuple[float, float]:
        moved = probe.shifted(2.0**-halvings * d)
        step = moved[probe.where] - x  # what the step was after rounding
        with np.errstate(all="ignore"):
            y = probe.evaluate(moved)
            rest = np.sum(probe.upstream * (y - probe.y)) - np.sum(gradient * step)
            return abs(float(rest)), 100 * EPS * max(size0, float(np.sum(np.abs(probe.upstream * y))))

    # Steps of a few units in the last place show how much of a remainder is rounding, whatever the gradient is.
    noise = 30 * max(remainder(halvings)[0] for halvings in (44, 45, 46))

    def above(halvings: int) -> float:
        """Return the remainder where it stands above rounding, 0 where it does not, NaN where f is not finite."""
        rest, floor = remainder(halvings)
        return rest if not rest <= max(floor, noise) else 0.0

    seen: dict[int, float] = {}
    for halvings in range(0, 44, 4):
        seen[halvings] = above(halvings)
        if seen[halvings] == 0:
            break
    standing = [halvings for halvings, rest in seen.items() if rest > 0]
    if not standing:
        return Taylor("linear", remainder(0)[0] / probe.rms, True)
    last = max(standing)
    while last < 43 and (rest := above(last + 1)) > 0:
        last += 1
        seen[last] = rest
    orders = {h: np.log2(rest) for h in range(last, last - 9, -1) if (rest := seen.get(h) or above(h)) > 0}
    windows = [range(h - 3, h + 1) for h in orders if all(k in orders for k in range(h - 3, h + 1))]
    slopes = [float(-np.polyfit(window, [orders[k] for k in window], 1)[0]) for window in windows]
    slopes = slopes or [float(orders[last] - np.log2(remainder(last + 1)[0] or EPS))]
    best = min(slopes, key=lambda slope: abs(slope - 2))
    if abs(best - 2) > 0.05:
        drop = float(orders[last] - np.log2(remainder(last + 1)[0] or EPS))
        best = max(best, drop) if max(best, drop) > 2 else best
    return Taylor(best, remainder(last)[0] * 2.0**last / probe.rms, best > 1.95)


def explain(
    probe: Probe, gradient: Array, derivative: Callable[[Array], float], digits: float, rng: np.random.Generator
) -> tuple[tuple[int, ...], str]:
    """Find the worst element of a wrong `gradient`, and say what the error looks like.

    Parameters
    ----------
    derivative
        Measures the derivative of phi along a direction of the gradient's shape.
    digits
        Relative precision to which `derivative` can be trusted.
    """
    flat = gradient.ravel()

    def along(index: Any, values: Any) -> tuple[float, float]:
        d = np.zeros(flat.size)
        d[index] = values
        return float(np.sum(flat * d)), derivative(d.reshape(gradient.shape))

    if flat.size <= ELEMENTWISE:
        indices = np.arange(flat.size)
    else:
        normal, part = rng.standard_normal(flat.size), np.arange(flat.size)
        while part.size > 1:
            halves = np.array_split(part, 2)
            gaps = [abs(np.subtract(*along(half, normal[half]))) for half in halves]
            part = halves[int(np.argmax(gaps))]
        indices = np.unique(np.append(rng.integers(flat.size, size=24), part))
    numeric = np.array([along(index, 1.0)[1] for index in indices])
    analytic = flat[indices]
    worst = int(np.argmax(np.abs(analytic - numeric)))
    index = tuple(int(k) for k in np.unravel_index(indices[worst], gradient.shape))
    place = f"worst at {list(index)}: " if index else ""
    note = f"{place}backward gives {analytic[worst]:.6g}, the derivative of forward is {numeric[worst]:.6g}"
    hint = _hint(probe, gradient, indices, numeric, digits, rng)
    return index, f"{note}; {hint}" if hint else note


def _hint(
    probe: Probe, gradient: Array, indices: Array, numeric: Array, digits: float, rng: np.random.Generator
) -> str:
    analytic = gradient.ravel()[indices]
    top = float(np.max(np.abs(numeric), initial=0))

    def like(candidate: Array, precision: float = digits) -> bool:
        return bool(np.all(np.abs(candidate - numeric) <= precision * top))

    if top == 0:
        return "forward does not depend on this array here, yet backward returns a gradient"
    if not np.any(gradient):
        return "backward returns zeros: the path to this array is cut"
    if like(analytic, 3e-7):
        return "right to about 7 digits: float32 rounding, or a constant cut short, inside the float64 pass"
    ratio = float(np.vdot(numeric, analytic) / np.vdot(numeric, numeric))
    if ratio != 0 and like(analytic / ratio):
        sign = "a sign is flipped" if ratio < 0 else ""
        size = abs(ratio)
        factor = "" if abs(size - 1) < digits else f"everywhere {size:.6g} times the derivative{_length(probe, size)}"
        return " and ".join(filter(None, (sign, factor)))
    for a in range(gradient.ndim):
        for b in range(a + 1, gradient.ndim):
            square = gradient.shape[a] == gradient.shape[b]
            if square and like(gradient.swapaxes(a, b).ravel()[indices]):
                return f"axes {a} and {b} are swapped"
    if gradient.ndim == 2 and like(gradient.reshape(gradient.shape[::-1]).T.ravel()[indices]):
        return "the transposed gradient, reshaped where it should be transposed back"
    if alone := _one_slice(probe, gradient, digits, rng):
        return alone
    wrong = int(np.sum(np.abs(analytic - numeric) > digits * top))
    if 0 < wrong <= max(1, indices.size // 4):
        whole = f"of {indices.size}" + ("" if indices.size == gradient.size else f" sampled of {gradient.size}")
        return f"{wrong} {whole} elements {'is' if wrong == 1 else 'are'} wrong, the others right"
    return ""


def _length(probe: Probe, ratio: float) -> str:
    """Name the axis, or the whole, whose length is the ratio or one over it."""
    for shape, what in ((probe.y.shape, "the output"), (probe.x.shape, "the array")):
        sizes = [(n, f"the length of axis {k} of {what}") for k, n in enumerate(shape)]
        sizes.append((int(np.prod(shape)), f"the size of {what}"))
        for n, words in sizes:
            if n > 1 and min(abs(ratio - n) / n, abs(ratio * n - 1)) < 1e-4:
                return f" ({'' if ratio > 1 else 'one over '}{words}): a sum where forward takes a mean, or the reverse"
    return ""


def _one_slice(probe: Probe, gradient: Array, digits: float, rng: np.random.Generator) -> str:
    """Tell whether the gradient is that of a single slice of the output, as where a sum over the batch was missed."""
    directions = [rng.standard_normal(gradient.shape) for _ in range(3)]
    try:
        terms = [probe.complex_terms(d) for d in directions]
    except NotAnalyticError:
        return ""
    for axis, length in enumerate(probe.y.shape):
        others = tuple(k for k in range(probe.y.ndim) if k != axis)
        slices = np.array([np.sum(term, axis=others) for term in terms])  # (3, length)
        claims = np.array([[np.sum(gradient * d)] for d in directions])
        match = np.all(np.abs(slices - claims) <= digits * np.max(np.abs(slices)), axis=0)
        if length > 1 and np.sum(match) == 1:
            return f"the gradient of slice {int(np.argmax(match))} of the output's axis {axis} alone: not summed over it"
    return ""
