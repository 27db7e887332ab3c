"""The verdict on one gradient: measured along random directions, explained where it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Literal

import numpy as np

from minivit.arrays import Array
from minivit.checking.explain import explain
from minivit.checking.methods import EPS, SLOPE_MARGIN, NotAnalyticError, Probe, Taylor, taylor
from minivit.checking.report import Row, Verdict

Method = Literal["auto", "complex", "taylor", "central"]

_SHARE = 1e-3  # a gradient below this share of the whole case's is judged on that scale
_ZERO_ULPS = 64  # units in the last place of the whole case's gradient up to which one is zero
_NOTHING = 1e-36  # what the complex step neglects is of order h^2 = 1e-40
_GROSS = 1e-4  # a complex step that is off by more may be the fault of code that is not analytic


def _ignore(row: Row, total: int) -> None:
    """Do nothing with a row."""


@dataclass(frozen=True)
class Settings:
    """The options of `gradcheck`, which describes them."""

    seed: int = 0
    tolerance: float = 1e-11
    method: Method = "auto"
    directions: int = 3
    central_tolerance: float = 1e-6
    float32_tolerance: float = 1e-4
    on_row: Callable[[Row, int], None] = _ignore

    def __post_init__(self) -> None:
        if self.method not in ("auto", "complex", "taylor", "central"):
            raise ValueError(f"unknown method {self.method!r}; expected 'auto', 'complex', 'taylor' or 'central'")
        if self.directions < 1:
            raise ValueError(f"directions is {self.directions}; at least one is needed")


@dataclass(frozen=True)
class Place:
    """Whose gradient it is: a layer, a name, the index of the array, and of the part of it that is meant."""

    layer: str
    name: str
    array: int
    where: tuple[EllipsisType | slice, ...] = (...,)

    def unmeasured(self, shape: tuple[int, ...], flaw: str, gradient: object, method: str) -> Row:
        """Return the row of a gradient that cannot be measured: flawed, None, or empty."""
        verdict: Verdict = "zero" if not flaw else "skipped" if gradient is None else "FAILED"
        method = "complex" if method == "auto" else method
        error = np.inf if verdict == "FAILED" else 0.0
        return Row(self.layer, self.name, shape, 0.0, error, None, None, verdict, method, flaw)


def judge(probe: Probe, gradient: Array, total: float, place: Place, settings: Settings) -> Row:
    """Measure one gradient by the methods that were asked for.

    Parameters
    ----------
    probe
        The function of the array, or of the part of it, that `gradient` belongs to.
    gradient
        What backward claims, float64.
    total
        Norm of all gradients of the case.
    """
    rng = np.random.default_rng([settings.seed, place.array, *place.name.encode()])
    directions = [rng.standard_normal(gradient.shape) for _ in range(settings.directions)]
    claims = [float(np.sum(gradient * d)) for d in directions]
    norm = float(np.linalg.norm(gradient))
    scale = max(norm, _SHARE * total)

    def error_of(values: Sequence[float]) -> float:
        return max(relative(abs(value - claim), scale) for value, claim in zip(values, claims, strict=True))

    fall: Taylor | None
    if settings.method == "taylor":
        fall = _fall(probe, gradient, directions)
        method, values, note = "taylor", claims, ""
        error, proved, blind = relative(fall.gap, scale), fall.passed, fall.blind
    else:
        method, values, note = _measure(probe, directions, claims, error_of, settings)
        error = error_of(values)
        tolerance = settings.central_tolerance if method == "central" else settings.tolerance
        proved, blind = error <= tolerance, tolerance * scale
        fall = None
        if settings.method == "auto" and method == "complex":
            fall = _fall(probe, gradient, directions if proved else directions[:1])
    verdict, notes = verdict_of(norm, max(map(abs, values)), total, proved, blind), [note]
    if proved and fall and settings.method == "auto" and fall.slope != "linear" and abs(fall.slope - 2) > SLOPE_MARGIN:
        if fall.passed:
            notes.append("the remainder falls faster than h^2, as no wrong gradient's does: hardly any curvature here")
        elif error_of(_central(probe, directions, claims)) <= settings.central_tolerance:
            notes.append("the remainder falls at no clear order here; central differences agree")
        else:
            verdict = "FAILED"
            notes.append("the complex step agrees, the real function does not: forward computes two different things")
    if verdict == "vacuous":
        notes.append(vacuous(norm, blind))
    slope, note = fall.slope if fall else None, "; ".join(filter(None, notes))
    return Row(place.layer, place.name, gradient.shape, norm, error, slope, None, verdict, method, note)


def explained(row: Row, probe: Probe, gradient: Array, settings: Settings) -> Row:
    """Return a failed row with its worst index, and a note on what the error looks like."""
    # Where the complex step agrees and the rest does not, or cannot be taken, central differences tell.
    analytic = row.method == "complex" and settings.tolerance < row.error and not row.note
    index, words = explain(probe, gradient, analytic, np.random.default_rng(settings.seed))
    return replace(row, worst_index=index, note="; ".join(filter(None, (row.note, words))))


def _measure(
    probe: Probe,
    directions: Sequence[Array],
    claims: Sequence[float],
    error_of: Callable[[Sequence[float]], float],
    settings: Settings,
) -> tuple[str, list[float], str]:
    """Return the method that could be used, the derivatives along the directions, and what is to be said about it."""
    if settings.method == "central":
        return "central", _central(probe, directions, claims), ""
    try:
        values = [probe.complex_step(d) for d in directions]
    except NotAnalyticError as refusal:
        if settings.method == "complex":
            return "complex", [np.nan] * len(claims), str(refusal)
        return "central", _central(probe, directions, claims), f"not analytic, judged by central differences: {refusal}"
    if settings.method == "auto" and not error_of(values) <= _GROSS:
        other = _central(probe, directions, claims)
        if error_of(other) <= settings.central_tolerance:
            return "central", other, "not analytic, judged by central differences: the complex step is far off them"
    return "complex", values, ""


def _central(probe: Probe, directions: Sequence[Array], claims: Sequence[float]) -> list[float]:
    return [probe.central_nearest(d, claim) for d, claim in zip(directions, claims, strict=True)]


def _fall(probe: Probe, gradient: Array, directions: Sequence[Array]) -> Taylor:
    """Return the best Taylor test of the directions: a wrong gradient has slope 1 along every one."""
    falls = []
    for d in directions:
        fall = taylor(probe, gradient, d)
        if fall.slope == "linear" or abs(fall.slope - 2) <= SLOPE_MARGIN:
            return fall
        falls.append(fall)
    return next((fall for fall in falls if fall.passed), falls[-1])


def relative(gap: float, scale: float) -> float:
    """Return gap / scale, for which nothing over nothing is 0 and NaN is infinite."""
    if gap <= _NOTHING:
        return 0.0
    return gap / scale if scale > 0 and np.isfinite(gap) else np.inf


def verdict_of(norm: float, largest: float, total: float, proved: bool, blind: float, eps: float = EPS) -> Verdict:
    """Return the verdict on a gradient of norm `norm`, where an error of `blind` would not have been seen."""
    if not proved:
        return "FAILED"
    if max(norm, largest) <= max(_ZERO_ULPS * eps * total, _NOTHING):
        return "zero"
    return "vacuous" if norm <= blind else "ok"


def vacuous(norm: float, blind: float) -> str:
    """Say why a verdict means nothing."""
    return f"proves nothing: an error of {blind:.1e} would pass, and the whole gradient is {norm:.1e}"


def compare_float32(low: Array, proved: Array, total: float, place: Place, settings: Settings) -> Row:
    """Compare a float32 gradient with the float64 one."""
    gap, tolerance = np.abs(low - proved), settings.float32_tolerance
    norms = [float(np.linalg.norm(values.astype(np.float64))) for values in (low, proved)]
    scale = max(norms[1], _SHARE * total)
    error = relative(float(np.linalg.norm(gap)), scale)
    eps, blind = float(np.finfo(np.float32).eps), tolerance * scale
    both_zero = max(norms) <= _ZERO_ULPS * eps * total
    verdict = verdict_of(norms[1], norms[0], total, both_zero or error <= tolerance, blind, eps)
    note, index = vacuous(norms[1], blind) if verdict == "vacuous" else "", None
    if verdict == "FAILED":
        index = tuple(int(k) for k in np.unravel_index(np.argmax(gap), gap.shape))
        note = f"worst at {list(index)}: {low[index]:.6g} in float32, {proved[index]:.6g} in float64"
    return Row(place.layer, place.name, low.shape, norms[0], error, None, index, verdict, "float32", note)
