"""Examine a failed gradient again: at points where forward is not differentiable, and where it is saturated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from minivit.arrays import Array
from minivit.checking.kinks import TINY, beside, find_kinks, judge, named, neighbours
from minivit.checking.methods import EPS, NotAnalyticError, Probe, taylor
from minivit.checking.nearby import Measured, Nearby
from minivit.checking.report import Row
from minivit.checking.verdict import ROUNDING, SATURATED, SCALE_FLOOR, vacuous, verify

_PARTS = tuple(2.0**-k for k in (5, 9, 13, 18, 23, 28))  # of the distance from a kink, for steps beside it
ROUNDING_ALONE = "the derivative changes as much if the arrays change"  # in the note on a row that is right up to it
_LARGEST_ROUNDING = 1e-8  # a larger error is not excused by the rounding of the arrays


def recheck_at_kinks(row: Row, probe: Probe, gradient: Array, total: float, nearby: Nearby) -> tuple[Row, Probe, Array]:
    """Return a failed row, or the row that replaces it where the function is not differentiable at some elements.

    The other elements are verified as usual, these elements by their one-sided derivatives, and the whole gradient
    once more at a point where these elements are moved aside.

    Returns
    -------
    row, probe, gradient
        The row, and what is to be explained if it failed.
    """
    place, settings = nearby.place, nearby.settings
    rng = place.generator(settings)
    kinks = find_kinks(probe, gradient.shape, rng)
    if not kinks.any():
        return row, probe, gradient
    smooth = verify(probe, gradient, total, place, settings, kinks)
    accepted, each, note, _ = judge(probe, gradient, kinks, rng)
    moved = nearby.at(beside(probe, kinks, rng))
    moved = (replace(moved[0], unit=probe.unit), moved[1]) if moved else None
    aside = verify(*moved, total, place, settings) if moved else smooth
    if moved and aside.verdict == "FAILED":
        return replace(aside, note=_joined(aside.note, "found with the kinks of forward moved aside")), *moved
    if not accepted and (where := _limit(probe, gradient, kinks, total, nearby, rng)):
        accepted, note = True, f"kink at {named(kinks)}: backward gives the gradient {where}, which is accepted"
    if not accepted:
        return replace(smooth, verdict="FAILED", error=max(row.error, smooth.error), note=note), probe, gradient
    verdict = smooth.verdict if each or smooth.verdict == "FAILED" else "vacuous"
    note = _joined(smooth.note, note)
    return replace(smooth, verdict=verdict, error=max(smooth.error, aside.error), note=note), probe, gradient


def _limit(probe: Probe, gradient: Array, kinks: Array, total: float, nearby: Nearby, rng: np.random.Generator) -> str:
    """Return beside which point the gradient is the limit of right ones, in words, or an empty string.

    Several kinks may meet in one element, as those of all units of a ReLU layer whose biases are zero do at a row of
    zeros. The gradient need not lie between the one-sided derivatives there.
    """
    near_zero = 1e-5 * float(np.max(np.abs(gradient), initial=0))

    def is_right(near: Measured | None) -> bool:
        """Return whether the gradient beside the kinks is this one, and right by steps that do not reach a kink.

        The distance of a kink depends on the sizes of all arrays: steps that reach it are followed by shorter ones.
        """
        if near is None or not np.allclose(near[1], gradient, rtol=1e-5, atol=near_zero):
            return False
        near_probe = replace(near[0], unit=probe.rms)
        judgements = (judge(near_probe, near[1], kinks, rng, part * TINY * probe.rms) for part in _PARTS)
        return next((each.accepted for each in judgements if each.accepted or not each.bent), False)

    if any(is_right(nearby.at(x)) for x in neighbours(probe, kinks)):
        return "at a neighbouring point"
    for sign in (1.0, -1.0):
        near, far = nearby.others_moved(sign * TINY), nearby.others_moved(sign * 2.0**-7)
        if far is None or not is_right(near):
            continue
        if verify(*far, total, nearby.place, nearby.settings).verdict in ("ok", "zero"):
            return "with the other arrays moved very little"
    return ""


def recheck_saturated(row: Row, probe: Probe, total: float, nearby: Nearby) -> Row:
    """Return a failed row, or another verdict where the gradient is only rounding.

    In a saturated function, such as softmax of large numbers, the digits of 1 - y are lost in any right backward pass:
    such a row is vacuous if the gradient is right at another point. It is zero if it is rounding at every point, as
    for a sum of softmax.
    """
    place, settings = nearby.place, nearby.settings
    dy = float(np.linalg.norm(probe.upstream))
    scale = max(row.norm, SCALE_FLOOR * total)
    difference = row.error * scale if scale else _largest_derivative(probe, nearby)
    if not (row.norm <= SATURATED * dy and 0 < difference <= ROUNDING * EPS * dy):
        return row
    rounding = ROUNDING * EPS * float(np.sum(np.abs(probe.upstream * probe.y)))
    others = [probe.x / 8, probe.x / 64, probe.x / 512]
    others.append(probe.x + probe.rms * place.generator(settings).standard_normal(probe.x.shape))
    wrong_elsewhere = False
    for moved in filter(None, map(nearby.at, others)):
        norm = float(np.linalg.norm(moved[1]))
        if norm == 0 and _largest_derivative(moved[0], nearby) * moved[0].rms > rounding:
            return row
        if norm >= 100 * row.norm and norm * moved[0].rms > rounding:
            if verify(*moved, norm, place, settings).verdict != "ok":
                wrong_elsewhere = True
                continue  # it may be saturated there too
            note = f"{vacuous(row.norm, difference)}: forward is saturated here; right at another point"
            return replace(row, verdict="vacuous", note=note)
    is_rounding = not wrong_elsewhere and max(row.norm, difference) * probe.rms <= rounding
    return replace(row, verdict="zero", error=0.0) if is_rounding else row


def recheck_rounding(row: Row, probe: Probe, gradient: Array, total: float, nearby: Nearby) -> tuple[Row, Probe]:
    """Return a failed row, or the row that replaces it.

    Beside an offset far larger than the spread of the array, it is verified with steps of the size of the spread. Up to
    an error of 1e-8 it is accepted if a change of all arrays by one unit in the last place changes the derivative as
    much; this depends on forward alone.

    Returns
    -------
    row, probe
        The row, and the function with the steps that fit.
    """
    place, settings = nearby.place, nearby.settings
    if settings.method == "taylor":
        return row, probe
    if probe.spread is not None:
        probe = replace(probe, unit=probe.spread)
        row = verify(probe, gradient, total, place, settings)
    if row.verdict != "FAILED" or row.method != "complex" or not settings.tolerance < row.error <= _LARGEST_ROUNDING:
        return row, probe
    rng = place.generator(settings)
    directions = [rng.standard_normal(gradient.shape) for _ in range(settings.directions)]
    try:
        values = [probe.complex_step(d) for d in directions]
        changed = (nearby.by_rounding(probe, rng) for _ in range(4))
        others = [[near.complex_step(d) for d in directions] for near in changed]
    except NotAnalyticError:
        return row, probe
    changes = np.max(np.abs(np.array(others) - values), axis=1)
    errors = [abs(value - float(np.sum(gradient * d))) for value, d in zip(values, directions, strict=True)]
    passes = settings.method == "complex" or any(taylor(probe, gradient, d).passed for d in directions)
    if not (passes and max(errors) <= 4 * np.median(changes)):
        return row, probe
    words = f"{ROUNDING_ALONE} by one unit in the last place"
    return replace(row, verdict="ok", note=f"right to {row.error:.1e} only: {words}"), probe


def recheck_float32(row: Row, gradient: Array, total: float, nearby: Nearby) -> Row:
    """Return a failed row of the comparison in float32, or one that passed where the error is rounding of the arrays.

    The float64 gradient must be right. Up to a hundred times the tolerance, the error is accepted if this gradient
    changes as much where all arrays change by one unit in the last place of float32.
    """
    place, settings = nearby.place, nearby.settings
    if row.verdict != "FAILED" or not row.error <= 100 * settings.float32_tolerance:
        return row
    rng, eps = place.generator(settings), float(np.finfo(np.float32).eps)
    moved = [near for near in (nearby.at_rounding(eps, rng) for _ in range(4)) if near]
    changes = [float(np.linalg.norm(near[1] - gradient)) for near in moved]
    scale = max(float(np.linalg.norm(gradient)), SCALE_FLOOR * total)
    if not changes or row.error * scale > 4 * np.median(changes):
        return row
    words = "the gradient changes as much if the arrays change by one unit in the last place of float32"
    return replace(row, verdict="ok", worst_index=None, note=f"right to {row.error:.1e} only: {words}")


def _largest_derivative(probe: Probe, nearby: Nearby) -> float:
    """Return the largest derivative along the random directions, infinity where the complex step is impossible."""
    rng, shape = nearby.place.generator(nearby.settings), probe.x[probe.where].shape
    try:
        return max(abs(probe.complex_step(rng.standard_normal(shape))) for _ in range(nearby.settings.directions))
    except NotAnalyticError:
        return np.inf


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))
