"""Verify one gradient along random directions, and compare a float32 gradient with a float64 one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType

import numpy as np

from minivit.arrays import Array
from minivit.checking.evidence import Context
from minivit.checking.explain import explain
from minivit.checking.methods import (
    ANALYTIC_CODE,
    EPS,
    SLOPE_MARGIN,
    NotAnalyticError,
    Probe,
    Taylor,
    differs_from_complex_step,
    taylor,
)
from minivit.checking.report import Row, Verdict, dotted
from minivit.checking.settings import Settings

SCALE_FLOOR = 1e-3  # errors are relative to at least this fraction of the norm of all gradients
_ZERO_ULPS = 64  # a gradient is zero up to this many units in the last place of the norm of all gradients
_NEGLIGIBLE = 1e-36  # smaller differences are zero; the complex step neglects terms of order h^2 = 1e-200
ROUNDING = 128  # in a saturated function, an error of up to this many ulps of the norm of dy may be rounding
SATURATED = 1e-3  # a function is saturated if the norm of the gradient is at most this fraction of that of dy
_NOT_ANALYTIC = 1e-7  # a larger error by the complex step may mean that forward is not analytic
# The largest error by central differences, as a fraction of that by the complex step, if forward is not analytic.
_MUCH_NEARER = 0.1

_DISAGREES = f"the complex step disagrees; {ANALYTIC_CODE}"


@dataclass(frozen=True)
class Place:
    """The array that a gradient belongs to: its layer, its name, its index, and the index of a part of it."""

    layer: str
    name: str
    array: int
    where: tuple[EllipsisType | slice, ...] = (...,)

    @property
    def full_name(self) -> str:
        """The names of the layer and of the array, joined by a dot."""
        return dotted(self.layer, self.name)

    def split(self, parts: Sequence[str], length: int) -> list[Place]:
        """Return a place for each of the named parts of the last axis, of `length` elements."""
        width = length // len(parts)
        slices = [slice(k * width, (k + 1) * width) for k in range(len(parts))]
        return [
            replace(self, name=f"{self.name}[{part}]", where=(..., where))
            for part, where in zip(parts, slices, strict=True)
        ]

    def generator(self, settings: Settings) -> np.random.Generator:
        """Return the generator of the random directions of this gradient."""
        return np.random.default_rng([settings.seed, self.array, *self.name.encode()])

    def unmeasured(self, shape: tuple[int, ...], flaw: str, gradient: object, method: str) -> Row:
        """Return the row of a gradient that cannot be measured: one with a flaw, None, or an empty array."""
        verdict: Verdict = "zero" if not flaw else "skipped" if gradient is None else "FAILED"
        method = "complex" if method == "auto" else method
        error = np.inf if verdict == "FAILED" else 0.0
        return Row(self.layer, self.name, shape, 0.0, error, None, None, verdict, method, flaw)


def verify(
    probe: Probe, gradient: Array, total: float, place: Place, settings: Settings, fixed: Array | None = None
) -> Row:
    """Verify one gradient by the methods that `settings` selects.

    Parameters
    ----------
    probe
        The function of the array, or of the part of an array, that `gradient` belongs to.
    gradient
        The gradient that backward returned, float64.
    total
        Norm of all gradients together.
    fixed
        Mask of elements that the directions leave where they are.
    """
    rng = place.generator(settings)
    directions = [rng.standard_normal(gradient.shape) for _ in range(settings.directions)]
    if fixed is not None:
        directions = [np.where(fixed, 0.0, d) for d in directions]
    claims = [float(np.sum(gradient * d)) for d in directions]
    norm = float(np.linalg.norm(gradient))
    scale = max(norm, SCALE_FLOOR * total)

    def error_of(values: Sequence[float]) -> float:
        return max(relative(abs(value - claim), scale) for value, claim in zip(values, claims, strict=True))

    test: Taylor | None
    if settings.method == "taylor":
        test = _taylor(probe, gradient, directions)
        method, values, note = "taylor", claims, ""
        error, agrees, detectable = relative(test.bound, scale), test.passed, test.detectable
    else:
        method, values, note = _measure(probe, directions, claims, error_of, settings)
        error = error_of(values)
        tolerance = settings.central_tolerance if method == "central" else settings.tolerance
        agrees, detectable = error <= tolerance, tolerance * scale
        test = None
        if settings.method == "auto" and method == "complex":
            test = _taylor(probe, gradient, directions if agrees else directions[:1])
    verdict, notes = verdict_of(norm, max(map(abs, values)), total, agrees, detectable), [note]
    if agrees and test and settings.method == "auto" and test.slope != "linear" and abs(test.slope - 2) > SLOPE_MARGIN:
        if test.passed:
            why = "the second derivative of forward along the direction is small beside the higher ones here"
            notes.append(f"the remainder falls faster than h^2, which excludes an error: {why}")
        elif error_of(_central(probe, directions, claims)) <= settings.central_tolerance:
            notes.append("the remainder has no clear order here; central differences agree with the gradient")
        else:
            verdict = "FAILED"
            notes.append(
                "the complex step agrees, the real function does not: forward is not analytic, or forward computes two "
                "different things"
            )
    if verdict == "vacuous":
        notes.append(vacuous(norm, detectable))
    slope, remainders = (test.slope, test.remainders) if test else (None, ())
    note = "; ".join(filter(None, notes))
    return Row(place.layer, place.name, gradient.shape, norm, error, slope, None, verdict, method, note, remainders)


def explained(row: Row, name: str, probe: Probe, gradient: Array, settings: Settings, context: Context) -> Row:
    """Return a failed row with its worst index and a note that describes the error."""
    # If the complex step agrees with the gradient or is impossible, the error shows in central differences only.
    analytic = row.method == "complex" and settings.tolerance < row.error and not row.note
    index, words = explain(name, probe, gradient, analytic, np.random.default_rng(settings.seed), context)
    return replace(row, worst_index=index, note="; ".join(filter(None, (row.note, words))))


def _measure(
    probe: Probe,
    directions: Sequence[Array],
    claims: Sequence[float],
    error_of: Callable[[Sequence[float]], float],
    settings: Settings,
) -> tuple[str, list[float], str]:
    """Return the method that was used, the derivatives along the directions, and a note about the method."""
    if settings.method == "central":
        return "central", _central(probe, directions, claims), ""
    try:
        values = [probe.complex_step(d) for d in directions]
    except NotAnalyticError as refusal:
        if settings.method == "complex":
            return "complex", [np.nan] * len(claims), str(refusal)
        note = f"not analytic, verified by central differences: {refusal}"
        return "central", _central(probe, directions, claims), note
    error = error_of(values)
    if settings.method == "auto" and not error <= _NOT_ANALYTIC:
        other = _central(probe, directions, claims)
        if error_of(other) <= min(settings.central_tolerance, _MUCH_NEARER * error):
            return "central", other, f"not analytic, verified by central differences: {_DISAGREES}"
        if any(
            map(functools.partial(differs_from_complex_step, probe, settings.central_tolerance), directions, values)
        ):
            return "central", other, f"not analytic, measured by central differences: {_DISAGREES}"
    return "complex", values, ""


def _central(probe: Probe, directions: Sequence[Array], claims: Sequence[float]) -> list[float]:
    return [probe.central_nearest(d, claim) for d, claim in zip(directions, claims, strict=True)]


def _taylor(probe: Probe, gradient: Array, directions: Sequence[Array]) -> Taylor:
    """Return the best Taylor test over the directions; a wrong gradient has slope 1 along each of them."""
    tests = []
    for d in directions:
        test = taylor(probe, gradient, d)
        if test.slope == "linear" or abs(test.slope - 2) <= SLOPE_MARGIN:
            return test
        tests.append(test)
    return next((test for test in tests if test.passed), tests[-1])


def relative(difference: float, scale: float) -> float:
    """Return `difference` / `scale`; a negligible difference gives 0, NaN gives infinity."""
    if difference <= _NEGLIGIBLE:
        return 0.0
    return difference / scale if scale > 0 and np.isfinite(difference) else np.inf


def verdict_of(norm: float, largest: float, total: float, agrees: bool, detectable: float) -> Verdict:
    """Return the verdict on a gradient.

    Parameters
    ----------
    norm, largest
        Norm of the gradient that backward returned, and the largest measured value.
    total
        Norm of all gradients together.
    agrees
        Whether the gradient agrees with the measured values.
    detectable
        The smallest error that would have been detected.
    """
    if not agrees:
        return "FAILED"
    if max(norm, largest) <= max(_ZERO_ULPS * EPS * total, _NEGLIGIBLE):
        return "zero"
    return "vacuous" if norm <= detectable else "ok"


def vacuous(norm: float, detectable: float) -> str:
    """Return the note of a vacuous verdict."""
    return f"verifies nothing: an error of {detectable:.1e} would pass, and the norm of the gradient is {norm:.1e}"


def compare_float32(low: Array, high: Array, total: float, place: Place, settings: Settings, upstream: Array) -> Row:
    """Compare the float32 gradient `low` with the float64 gradient `high`, which belong to `upstream`."""
    difference, tolerance = np.abs(low - high), settings.float32_tolerance
    norms = [float(np.linalg.norm(values.astype(np.float64))) for values in (low, high)]
    scale = max(norms[1], SCALE_FLOOR * total)
    error = relative(float(np.linalg.norm(difference)), scale)
    eps, detectable = float(np.finfo(np.float32).eps), tolerance * scale
    rounding, dy = _ZERO_ULPS * eps * total, float(np.linalg.norm(upstream))
    both_rounding = max(norms) <= rounding
    agrees = error <= tolerance or (both_rounding and norms[1] <= _ZERO_ULPS * EPS * total)
    verdict = verdict_of(norms[1], norms[1], total, agrees, detectable)
    if not agrees and both_rounding:
        verdict, detectable = "vacuous", rounding
    elif not agrees and norms[1] <= SATURATED * dy and error * scale <= ROUNDING * eps * dy:
        verdict, detectable = "vacuous", ROUNDING * eps * dy  # rounding in a saturated function
    note, index = vacuous(norms[1], detectable) if verdict == "vacuous" else "", None
    if verdict == "FAILED":
        index = tuple(int(k) for k in np.unravel_index(np.argmax(difference), difference.shape))
        note = f"worst at {list(index)}: {low[index]:.6g} in float32, {high[index]:.6g} in float64"
    return Row(place.layer, place.name, low.shape, norms[0], error, None, index, verdict, "float32", note)
