"""The rows of a gradient check: each gradient is verified, examined again if it fails, and explained if it is wrong."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from minivit.arrays import Array
from minivit.checking.evidence import Context, Other, named_arrays
from minivit.checking.function import RANDOM, CheckedFunction
from minivit.checking.gradients import NOTHING_RETURNED, flaw
from minivit.checking.layer import CheckedLayer
from minivit.checking.methods import EPS, Probe
from minivit.checking.recheck import recheck_at_kinks, recheck_rounding, recheck_saturated
from minivit.checking.report import Report, Row
from minivit.checking.settings import Settings
from minivit.checking.state import CHANGED_BY_CALLS
from minivit.checking.verdict import Place, compare_float32, explained, verify


def checked_report(title: str, checked: CheckedFunction, places: Sequence[Place], settings: Settings) -> Report:
    """Verify the gradients of `places` in float64, then compare those of float32 arrays."""
    high = checked.run(checked.points, settings.seed, settings.upstream)
    flaws = {k: flaw(gradient, checked.points[k], high.y) for k, gradient in high.gradients.items()}
    for k, words in flaws.items():
        fits = [
            m
            for m in flaws
            if m != k and flaws[m] and getattr(high.gradients[k], "shape", 0) == checked.points[m].shape
        ]
        if words.startswith("the gradient has shape") and fits:
            flaws[k] += f"; it has the shape of {checked.names[fits[0]]}: are the gradients in the order of the arrays?"
    sound = [high.gradients[k] for k, words in flaws.items() if not words]
    total = float(np.sqrt(sum(float(np.sum(np.square(gradient))) for gradient in sound)))
    places = [place for place in places if place.array in checked.floats]
    low_places = [place for place in places if checked.given[place.array].dtype == np.float32]
    findings = list(high.findings)
    steady = not {RANDOM, CHANGED_BY_CALLS} & set(findings)  # otherwise no derivative can be measured
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        settings.on_row(row, len(places) + len(low_places))

    probes: dict[int, tuple[Probe, Array]] = {}
    for number, place in enumerate(places):
        k, point = place.array, checked.points[place.array]
        part = point[place.where]
        if flaws[k] or part.size == 0:
            add(place.unmeasured(part.shape, flaws[k], high.gradients[k], settings.method))
        else:
            probe = Probe(functools.partial(checked.evaluate, k), point, high.y, high.upstream, place.where)
            gradient = high.gradients[k][place.where]
            row = verify(probe, gradient, total, place, settings)
            elsewhere = functools.partial(_elsewhere, checked, place, settings)
            if steady and row.verdict == "FAILED":
                row = recheck_saturated(row, probe, total, place, settings, elsewhere)
            if steady and row.verdict == "FAILED":
                nearby = functools.partial(_beside_by_rounding, checked, place, probe)
                row, probe = recheck_rounding(row, probe, gradient, total, place, settings, nearby)
            if (steady and row.verdict == "FAILED") or (row.verdict == "zero" and row.method == "central"):
                others = functools.partial(_others_moved, checked, place, settings)
                row, probe, gradient = recheck_at_kinks(row, probe, gradient, total, place, settings, elsewhere, others)
            probes[number] = probe, gradient
            add(row)
    wrong = [number for number, row in enumerate(rows) if row.verdict == "FAILED"]
    arguments: tuple[dict[str, Array], frozenset[str]] | None = None
    for number in wrong:
        # A wrong gradient makes all earlier ones wrong, so only the failing layer nearest to the loss is explained.
        if (
            steady
            and number in probes
            and "kink at" not in rows[number].note
            and rows[number].layer == rows[wrong[-1]].layer
        ):
            arguments = arguments or named_arrays(
                dict(zip(checked.names, checked.points, strict=True)), checked.cache_at(checked.points), high.y
            )
            context = _context(checked, places, number, probes, arguments)
            name = checked.names[places[number].array]
            rows[number] = explained(rows[number], name, *probes[number], settings, context)
    if low_places:
        points = [np.array(a) for a in checked.given]
        low = checked.run(points, settings.seed, settings.upstream)
        findings += [f"in float32: {finding}" for finding in low.findings if finding not in findings]
        for place in low_places:
            k = place.array
            words = flaws[k] or flaw(low.gradients[k], points[k], low.y)
            if words or points[k].size == 0:
                add(place.unmeasured(points[k][place.where].shape, words, low.gradients[k], "float32"))
            else:
                pair = low.gradients[k][place.where], high.gradients[k][place.where]
                add(compare_float32(*pair, total, place, settings, high.upstream))
    findings += checked.findings if isinstance(checked, CheckedLayer) else ()
    if rows and all(row.verdict == "skipped" for row in rows) and NOTHING_RETURNED not in findings:
        findings.append("backward returns None for every array: nothing is verified")
    advice = ""
    if len({rows[number].layer for number in wrong}) > 1:
        last = rows[wrong[-1]]
        advice = f"Begin with {last.layer or last.name}: it is nearest to the output and may cause the other errors."
    elif total == 0 and not wrong:
        advice = "Every gradient is zero here, which verifies little: check at another point."
    return Report(title, tuple(rows), tuple(findings), settings.tolerance, advice)


def _context(
    checked: CheckedFunction,
    places: Sequence[Place],
    number: int,
    probes: Mapping[int, tuple[Probe, Array]],
    arguments: tuple[dict[str, Array], frozenset[str]],
) -> Context:
    """Return what is known beside the gradient of place `number`: arrays, and the gradients of its layer and inputs."""
    place = places[number]
    others = [
        Other(places[k].full_name, *probes[k])
        for k in probes
        if k != number and places[k].layer in ("", place.layer) and probes[k][1].size
    ]
    repaired = functools.partial(checked.repaired, place.array, probes[number][0].upstream)
    return Context(*arguments, others, checked.evaluate_with, repaired)


def _beside_by_rounding(checked: CheckedFunction, place: Place, probe: Probe, rng: np.random.Generator) -> Probe:
    """Return the function of the array of `place`, with all float arrays changed by a unit in the last place."""
    points = [a * (1 + EPS * rng.choice([-1.0, 1.0], a.shape)) if a.dtype.kind == "f" else a for a in checked.points]
    return replace(
        probe, evaluate=functools.partial(checked.evaluate, place.array, points=points), x=points[place.array]
    )


def _others_moved(
    checked: CheckedFunction, place: Place, settings: Settings, size: float
) -> tuple[Probe, Array] | None:
    """Return what `_at` returns where all other float arrays are moved, or None if there is no other one.

    They are moved by `size` times their root mean square, and those of zeros by `size`.
    """
    points = list(checked.points)
    others = [n for n, a in enumerate(points) if n != place.array and a.dtype.kind == "f" and a.size]
    for n in others:
        points[n] = points[n] + size * (float(np.sqrt(np.mean(np.square(points[n])))) or 1.0)
    return _at(checked, place, settings, points) if others else None


def _elsewhere(checked: CheckedFunction, place: Place, settings: Settings, x: Array) -> tuple[Probe, Array] | None:
    """Return what `_at` returns at another value `x` of the array of `place`."""
    return _at(checked, place, settings, [x if n == place.array else a for n, a in enumerate(checked.points)])


def _at(
    checked: CheckedFunction, place: Place, settings: Settings, points: Sequence[Array]
) -> tuple[Probe, Array] | None:
    """Return the function of the array of `place` and the gradient at `points`, or None if they are not finite there.

    None too if the functions refuse `points`.
    """
    k = place.array
    try:
        passes = checked.run(points, settings.seed, settings.upstream, contracts=False)
    except Exception:
        return None
    if flaw(passes.gradients[k], points[k], passes.y):
        return None
    evaluate = functools.partial(checked.evaluate, k, points=points)
    return Probe(evaluate, points[k], passes.y, passes.upstream, place.where), passes.gradients[k][place.where]
