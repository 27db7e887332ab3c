"""Three methods to measure a directional derivative from the forward pass alone.

Let phi(x) = <u, f(x)> for a random upstream gradient u. A gradient g is right if <g, d> = phi'(x)[d] for every
direction d.

    complex step         phi(x + ihd).imag / h             h = 1e-100; no subtraction, hence accurate to rounding
    Taylor remainder     |phi(x + hd) - phi(x) - h<g, d>|  falls as h^2 if g is right, as h if g is wrong
    central differences  (phi(x + hd) - phi(x - hd)) / 2h  accurate to about 1e-9, for any f

The complex step (Squire and Trapp, SIAM Review 40 (1998) 110) requires that the code of f is analytic.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from minivit.arrays import Array

Remainders: TypeAlias = tuple[tuple[float, float], ...]

EPS = float(np.finfo(np.float64).eps)
SLOPE_MARGIN = 0.05
_KINK_SLOPE = 8  # no smooth function has a larger slope here: below a kink the remainder is only rounding
_SMALLEST = 43  # largest number of halvings of the unit step; beyond it almost only rounding is left
_STEP = 1e-100  # small beside any element of an array; its square, 1e-200, does not underflow
_LARGEST_SPREAD = 1e-2  # of an array, relative to its root mean square: its offset is then much larger
_LEAST_SPREAD = 2.0**10 * EPS
_CENTRAL_STEPS = (2.0**-18, 2.0**-14, 2.0**-21, 2.0**-24)

ANALYTIC_CODE = (
    "np.abs, np.var, np.std and np.linalg.norm are not analytic: write sums, products and np.sqrt; .real and an "
    "overflow in complex arithmetic have the same effect"
)


class NotAnalyticError(Exception):
    """The complex step is impossible: forward refuses complex arguments or discards their imaginary part."""


@dataclass(frozen=True)
class Probe:
    """The function phi of one array, or of a part of one array, with all other arguments fixed.

    Attributes
    ----------
    evaluate
        Returns f with the array replaced by its argument, which may be complex.
    x, y, upstream
        The point x (float64), f(x), and the upstream gradient u, which has the shape of `y`.
    where
        Index of the part of `x` that varies; directions have the shape of ``x[where]``.
    unit
        The unit of real steps; the root mean square of the part that varies if it is None.
    """

    evaluate: Callable[[Array], Array]
    x: Array
    y: Array
    upstream: Array
    where: tuple[Any, ...] = (Ellipsis,)
    unit: float | None = None

    @property
    def rms(self) -> float:
        """The unit of real steps: the root mean square of the part that varies, or 1 if it is zero."""
        if self.unit is not None:
            return self.unit
        return float(np.sqrt(np.mean(np.square(self.x[self.where])))) or 1.0

    @property
    def spread(self) -> float | None:
        """The standard deviation of the part that varies if it is small beside an offset, but above rounding."""
        spread, rms = float(np.std(self.x[self.where])), self.rms
        return spread if _LEAST_SPREAD * rms < spread < _LARGEST_SPREAD * rms else None

    @property
    def rounds_to_float32(self) -> bool:
        """Whether f computes in float32: every number of `y` is one of float32, and those of `x` are not.

        If all of `y` are numbers of float16 too, such as whole numbers, f need not round.
        """
        with np.errstate(over="ignore"):
            low, lower = self.y.astype(np.float32), self.y.astype(np.float16)
            is_low = np.array_equal(low, self.y) and not np.array_equal(lower, self.y)
            return is_low and not np.array_equal(self.x.astype(np.float32), self.x)

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
            `evaluate` does not propagate the imaginary part of its argument.
        """
        return float(np.sum(self.upstream * self.complex_rates(d)))

    def rates(self, d: Array, analytic: bool) -> Array:
        """Return the derivative of f along `d`, of the shape of `y`, by the complex step or by central differences."""
        if analytic:
            return self.complex_rates(d)
        size = _CENTRAL_STEPS[0] * self.rms
        with np.errstate(all="ignore"):
            rates: Array = (self.evaluate(self.shifted(size * d)) - self.evaluate(self.shifted(-size * d))) / (2 * size)
        return rates

    def complex_rates(self, d: Array) -> Array:
        """Return the derivative of f along `d`, of the shape of `y`, by the complex step."""
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            try:
                y = self.evaluate(self.shifted(1j * (_STEP * d)))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise NotAnalyticError(f"forward refuses complex arguments ({reason})") from error
        if not np.iscomplexobj(y):
            raise NotAnalyticError(f"forward returns real values for complex arguments; {ANALYTIC_CODE}")
        rates: Array = y.imag / _STEP
        return rates

    def central(self, d: Array, h: float = _CENTRAL_STEPS[0]) -> float:
        """Return the central difference of phi along `d` with the step `h` * `rms`."""
        size = h * self.rms
        with np.errstate(all="ignore"):
            high, low = self.evaluate(self.shifted(size * d)), self.evaluate(self.shifted(-size * d))
            return float(np.sum(self.upstream * (high - low))) / (2 * size)

    def central_nearest(self, d: Array, claim: float) -> float:
        """Return the central difference along `d` that is nearest to `claim`, over several step sizes.

        Rounding or a kink may spoil any one step size. No step size gives a value near a wrong claim.
        """
        return min((self.central(d, h) for h in _CENTRAL_STEPS), key=lambda value: _distance(value, claim))


def differs_from_complex_step(probe: Probe, tolerance: float, d: Array, value: float) -> bool:
    """Return whether the central differences along `d` agree with each other, but not with the complex step, `value`.

    The code of forward is not analytic then. No gradient is needed to see it.
    """
    values = np.array([probe.central(d, h) for h in _CENTRAL_STEPS])
    size = float(np.sum(np.abs(probe.upstream * probe.y)))
    rounding = 8 * EPS * size / (probe.rms * np.array(_CENTRAL_STEPS))
    if not np.all(np.isfinite(values)):
        return False
    gaps = np.abs(values - value)
    scale = max(float(np.max(np.abs(values))), abs(value))
    return bool(np.all(gaps > tolerance * scale + rounding) and np.ptp(values) <= 0.1 * float(np.min(gaps)))


def _distance(value: float, claim: float) -> float:
    return abs(value - claim) if np.isfinite(value) else np.inf


@dataclass(frozen=True)
class Taylor:
    """The result of a Taylor test along one direction.

    Attributes
    ----------
    slope
        Order of the remainder in h, or "linear" if the remainder is only rounding.
    bound
        Remainder / step at the smallest step used: an upper bound of the error along the direction.
    detectable
        The smallest error that would exceed the rounding.
    passed
        Whether the test found no error.
    remainders
        Pairs of h and the remainder at h, largest h first: the steps that were tried, where it is finite.
    """

    slope: float | Literal["linear"]
    bound: float
    detectable: float
    passed: bool
    remainders: Remainders = ()


def taylor(probe: Probe, gradient: Array, d: Array) -> Taylor:
    """Measure the order in h of the remainder phi(x + hd) - phi(x) - h<gradient, d> as h is halved.

    The order is fitted over four steps just above rounding, where higher orders are negligible and even a small error
    of the gradient makes the slope 1. A slope above 2 passes too: the second derivative vanishes along `d`, or the
    larger steps crossed a kink.
    """
    d = d * probe.rms
    part = probe.x[probe.where]
    size = float(np.sum(np.abs(probe.upstream * probe.y)))
    known: dict[int, tuple[float, float]] = {}

    def remainder(halvings: int) -> tuple[float, float]:
        """Return the remainder at h = 2**-halvings, and a bound of its rounding error."""
        if halvings not in known:
            moved = probe.shifted(2.0**-halvings * d)
            with np.errstate(all="ignore"):
                y = probe.evaluate(moved)
                rise = np.sum(probe.upstream * (y - probe.y))
                rest = abs(float(rise - np.sum(gradient * (moved[probe.where] - part))))  # the step after rounding
                known[halvings] = rest, 100 * EPS * max(size, float(np.sum(np.abs(probe.upstream * y))))
        return known[halvings]

    # At steps of a few units in the last place the remainder is only rounding, whether or not the gradient is right.
    noise = 30 * max(remainder(halvings)[0] for halvings in (_SMALLEST + 1, _SMALLEST + 2))

    def remainders() -> Remainders:
        tried = ((2.0**-halvings, known[halvings][0]) for halvings in sorted(known))
        return tuple((h, rest) for h, rest in tried if np.isfinite(rest))

    def above_rounding(halvings: int) -> bool:
        rest, floor = remainder(halvings)
        return np.isfinite(rest) and rest > max(floor, noise)

    first = next((halvings for halvings in range(0, _SMALLEST, 4) if np.isfinite(remainder(halvings)[0])), 0)
    if not above_rounding(first):
        rest, floor = remainder(first)
        step = 2.0**-first * probe.rms
        return Taylor("linear", rest / step, max(floor, noise) / step, True, remainders())
    # Find the smallest step whose remainder is above rounding: start where slope 2 predicts it, then adjust.
    rest, floor = remainder(first)
    last = min(first + int(np.log2(rest / max(floor, noise)) / 2), _SMALLEST)
    while not above_rounding(last):
        last -= 1
    for stride in (4, 1):
        while last + stride <= _SMALLEST and above_rounding(last + stride):
            last += stride

    slopes: list[float] = []
    for end in range(last, last - 3, -1):
        window = range(end - 3, end + 1)
        if not all(map(above_rounding, window)):
            break
        slopes.append(-float(np.polyfit(window, [np.log2(remainder(k)[0]) for k in window], 1)[0]))
        if abs(slopes[-1] - 2) <= SLOPE_MARGIN:
            break
    slope = min(slopes, key=lambda value: abs(value - 2), default=0.0)
    if abs(slope - 2) > SLOPE_MARGIN:  # above 2, or no window: use the drop from the last step into the rounding
        drop = float(np.log2(remainder(last)[0]) - np.log2(remainder(last + 1)[0] or EPS * EPS))
        slope = max(slope, drop) if drop > 2 - SLOPE_MARGIN or not slopes else slope
    step = 2.0**-last * probe.rms
    bound, detectable = remainder(last)[0] / step, max(remainder(last)[1], noise) / step
    order: float | Literal["linear"] = "linear" if slope > _KINK_SLOPE else slope
    return Taylor(order, bound, detectable, slope > 2 - SLOPE_MARGIN, remainders())
