"""How a derivative is measured without trusting the backward pass.

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
from typing import Any, Literal

import numpy as np

from minivit.arrays import Array

EPS = float(np.finfo(np.float64).eps)
SLOPE_MARGIN = 0.05
_CLIFF = 8  # an order that no smooth function has: beyond a kink, there is nothing but rounding
_SMALLEST = 43  # halvings of the unit step, after which little but rounding is left
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
    """How the Taylor remainder falls.

    Attributes
    ----------
    slope
        Its order in h, or "linear" where it is rounding alone.
    gap
        Remainder over step at the last step: an upper bound of the error along the direction.
    blind
        Error that could hide in the rounding.
    passed
        Whether the gradient is right as far as this shows.
    """

    slope: float | Literal["linear"]
    gap: float
    blind: float
    passed: bool


def taylor(probe: Probe, gradient: Array, d: Array) -> Taylor:
    """Measure the order at which phi(x + hd) - phi(x) - h<gradient, d> falls as h is halved.

    It is judged in windows of four steps just above rounding, where higher orders no longer show and even a small error
    of the gradient would make the slope 1. More than 2 proves as much: the second derivative vanishes along `d`, or a
    kink was left behind.
    """
    d = d * probe.rms
    part = probe.x[probe.where]
    size = float(np.sum(np.abs(probe.upstream * probe.y)))
    known: dict[int, tuple[float, float]] = {}

    def remainder(halvings: int) -> tuple[float, float]:
        """Return the remainder at h = 2**-halvings, and what of it may be rounding."""
        if halvings not in known:
            moved = probe.shifted(2.0**-halvings * d)
            with np.errstate(all="ignore"):
                y = probe.evaluate(moved)
                rise = np.sum(probe.upstream * (y - probe.y))
                rest = abs(float(rise - np.sum(gradient * (moved[probe.where] - part))))  # the step as it was rounded
                known[halvings] = rest, 100 * EPS * max(size, float(np.sum(np.abs(probe.upstream * y))))
        return known[halvings]

    # Steps of a few units in the last place show how much of a remainder is rounding, whatever the gradient is.
    noise = 30 * max(remainder(halvings)[0] for halvings in (_SMALLEST + 1, _SMALLEST + 2))

    def stands(halvings: int) -> bool:
        rest, floor = remainder(halvings)
        return np.isfinite(rest) and rest > max(floor, noise)

    first = next((halvings for halvings in range(0, _SMALLEST, 4) if np.isfinite(remainder(halvings)[0])), 0)
    if not stands(first):
        rest, floor = remainder(first)
        step = 2.0**-first * probe.rms
        return Taylor("linear", rest / step, max(floor, noise) / step, True)
    # The smallest step that stands above rounding: where slope 2 would have it, then up or down from there.
    rest, floor = remainder(first)
    last = min(first + int(np.log2(rest / max(floor, noise)) / 2), _SMALLEST)
    while not stands(last):
        last -= 1
    for stride in (4, 1):
        while last + stride <= _SMALLEST and stands(last + stride):
            last += stride

    slopes: list[float] = []
    for end in range(last, last - 3, -1):
        window = range(end - 3, end + 1)
        if not all(map(stands, window)):
            break
        slopes.append(-float(np.polyfit(window, [np.log2(remainder(k)[0]) for k in window], 1)[0]))
        if abs(slopes[-1] - 2) <= SLOPE_MARGIN:
            break
    slope = min(slopes, key=lambda value: abs(value - 2), default=0.0)
    if abs(slope - 2) > SLOPE_MARGIN:  # above 2, or no window: see how the remainder sinks into the rounding
        sinks = float(np.log2(remainder(last)[0]) - np.log2(remainder(last + 1)[0] or EPS * EPS))
        slope = max(slope, sinks) if sinks > 2 - SLOPE_MARGIN or not slopes else slope
    step = 2.0**-last * probe.rms
    gap, blind = remainder(last)[0] / step, max(remainder(last)[1], noise) / step
    return Taylor("linear" if slope > _CLIFF else slope, gap, blind, slope > 2 - SLOPE_MARGIN)
