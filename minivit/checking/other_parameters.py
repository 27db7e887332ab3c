"""Gradients that are right at the given values of the parameters, and wrong after a small change of them.

A layer may keep an array that it computed from earlier values, in any place: an attribute, its class, a module. Values
such as an exponent of 2 or an identity may hide a mistake.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from minivit.arrays import Array
from minivit.checking.function import CheckedFunction, Passes
from minivit.checking.gradients import flaw
from minivit.checking.kinks import KINK, find_kinks
from minivit.checking.methods import Probe
from minivit.checking.recheck import ROUNDING_ALONE
from minivit.checking.report import Row
from minivit.checking.settings import Settings
from minivit.checking.state import HIDDEN_BY_VALUES, KEEPS_EARLIER_VALUES, STORES_VALUES, with_other_parameters
from minivit.checking.verdict import Place, verify


def of_other_parameters(
    checked: CheckedFunction, places: Sequence[Place], rows: Sequence[Row], total: float, settings: Settings
) -> Iterator[str]:
    """Yield what is found of a layer after a small change of its parameters.

    Parameters
    ----------
    places, rows
        The gradients that were verified in float64, and the verdicts on them.
    total
        Norm of all gradients together.
    """
    is_wrong = any(row.verdict == "FAILED" for row in rows)
    if checked.copies_differ:
        is_kept = is_wrong or _are_wrong(checked, places, rows, total, settings)
        yield KEEPS_EARLIER_VALUES if is_kept else STORES_VALUES
    elif checked.moves_parameters and not is_wrong and _are_wrong(checked, places, rows, total, settings):
        yield HIDDEN_BY_VALUES


def _are_wrong(
    checked: CheckedFunction, places: Sequence[Place], rows: Sequence[Row], total: float, settings: Settings
) -> bool:
    """Return whether a gradient that is right is wrong after the change."""
    points = with_other_parameters(checked.points, checked.num_inputs)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            passes = checked.run(points, settings.seed, settings.upstream, contracts=False)
        except Exception:  # these values are refused
            return False
        together: list[Place] = []
        for place, row in zip(places, rows, strict=True):
            k = place.array
            is_right = row.verdict == "ok" and ROUNDING_ALONE not in row.note
            if not is_right or flaw(passes.gradients[k], points[k], passes.y):
                continue
            if row.method == "complex" and KINK not in row.note:
                together.append(place)
                continue
            evaluate = functools.partial(checked.evaluate, k, points=points)
            probe = Probe(evaluate, points[k], passes.y, passes.upstream, place.where)
            gradient = passes.gradients[k][place.where]
            kinks = find_kinks(probe, gradient.shape, place.generator(settings)) if KINK in row.note else None
            later = verify(probe, gradient, total, place, settings, kinks)
            if later.verdict == "FAILED" and later.error > max(10 * settings.central_tolerance, 100 * row.error):
                return True
        before = max((row.error for row in rows if row.verdict == "ok"), default=0.0)
        error = _error_together(checked, together, points, passes, settings) if together else 0.0
    return error > max(10 * settings.tolerance, 100 * before)


def _error_together(
    checked: CheckedFunction, places: Sequence[Place], points: Sequence[Array], passes: Passes, settings: Settings
) -> float:
    """Return the error of the derivative along a random direction of several arrays at once: one complex step."""
    rng = places[0].generator(settings)
    directions = []
    for place in places:
        part = points[place.array][place.where]
        directions.append((float(np.sqrt(np.mean(np.square(part)))) or 1.0) * rng.standard_normal(part.shape))
    pairs = list(zip(places, directions, strict=True))

    def evaluate(t: Array) -> Array:
        moved = [np.array(a + 0 * t[0] if a.dtype.kind == "f" else a) for a in points]  # complex if t is
        for place, d in pairs:
            moved[place.array][place.where] += (t[0] - 1) * d
        return checked.evaluate(places[0].array, moved[places[0].array], moved)

    parts = [passes.gradients[place.array][place.where] * d for place, d in pairs]
    total = float(np.sqrt(sum(np.sum(np.square(part)) for part in parts)))
    probe = Probe(evaluate, np.ones(1), passes.y, passes.upstream)
    one_step = replace(settings, directions=1, method="complex")
    row = verify(probe, np.array([sum(map(np.sum, parts))]), total, places[0], one_step)
    return row.error if row.verdict == "FAILED" else 0.0
