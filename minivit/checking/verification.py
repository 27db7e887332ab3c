"""The rows of a gradient check: each gradient is verified, examined again if it fails, and explained if it is wrong."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minivit.checking.constants import constant_arguments, one_sample
from minivit.checking.evidence import Context, Other, named_arrays
from minivit.checking.function import RANDOM, CheckedFunction, Passes
from minivit.checking.gradients import NOTHING_RETURNED, flaw
from minivit.checking.kinks import KINK, MANY_KINKS
from minivit.checking.methods import Probe
from minivit.checking.nearby import Measured, Nearby
from minivit.checking.other_parameters import of_other_parameters
from minivit.checking.recheck import (
    recheck_at_kinks,
    recheck_float32,
    recheck_rounding,
    recheck_saturated,
)
from minivit.checking.report import Report, Row
from minivit.checking.settings import Settings
from minivit.checking.state import CHANGED_BY_CALLS
from minivit.checking.verdict import Place, compare_float32, explained, verify


def checked_report(title: str, checked: CheckedFunction, places: Sequence[Place], settings: Settings) -> Report:
    """Verify the gradients of `places` in float64, then compare those of float32 arrays."""
    check = _Check.of(checked, settings)
    places = [place for place in places if place.array in checked.floats]
    low_places = [place for place in places if checked.given[place.array].dtype == np.float32]
    findings = list(check.high.findings)
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        settings.on_row(row, len(places) + len(low_places))

    measured: dict[int, Measured] = {}
    for number, place in enumerate(places):
        row, pair = check.verified(place)
        if pair is not None:
            measured[number] = pair
        add(row)
    wrong = [number for number, row in enumerate(rows) if row.verdict == "FAILED"]
    begin, advice = "", ""
    if check.steady:
        begin, advice = _begin_with(rows, wrong, checked.order)
        # A wrong gradient makes all earlier ones wrong, so only the failing layer nearest to the loss is explained.
        suspects = [n for n in wrong if rows[n].layer == begin and n in measured and f"{KINK} at" not in rows[n].note]
        for number, row in check.explained(rows, suspects, places, measured):
            rows[number] = row
    if not findings and not checked.findings and checked.num_inputs < len(checked.names):
        findings.extend(of_other_parameters(checked, places, rows, check.total, settings))
    if low_places:
        points = [np.array(a) for a in checked.given]
        low = checked.run(points, settings.seed, settings.upstream)
        findings += [f"in float32: {finding}" for finding in low.findings if finding not in findings]
        smooth = not any(KINK in row.note for row in rows)  # beside a kink, rounding changes the gradient by more
        for number, place in enumerate(places):
            if place in low_places:
                add(check.compared(place, low, smooth and rows[number].verdict == "ok"))
    findings += checked.findings
    if rows and all(row.verdict == "skipped" for row in rows) and NOTHING_RETURNED not in findings:
        findings.append("backward returns None for every array: nothing is verified")
    if not wrong and check.total == 0:
        advice = "Every gradient is zero here, which verifies little: check at another point."
    elif not wrong:
        inputs = checked.names[: checked.num_inputs], checked.given[: checked.num_inputs]
        advice = constant_arguments(*inputs) or _many_kinks(rows)
        advice = advice or one_sample(*inputs, has_parameters=checked.num_inputs < len(checked.names))
    return Report(title, tuple(rows), tuple(findings), settings.tolerance, advice)


@dataclass(frozen=True)
class _Check:
    """A pass in float64, whose gradients are verified one by one.

    Attributes
    ----------
    high
        The pass.
    flaws
        Why a gradient cannot be verified, by the index of its array; "" if it can.
    total
        Norm of all gradients together.
    steady
        Whether forward returns the same result in each call; otherwise no derivative can be measured.
    """

    checked: CheckedFunction
    settings: Settings
    high: Passes
    flaws: Mapping[int, str]
    total: float
    steady: bool

    @staticmethod
    def of(checked: CheckedFunction, settings: Settings) -> _Check:
        """Run the functions once, and look at what backward returned."""
        high = checked.run(checked.points, settings.seed, settings.upstream)
        flaws = {k: flaw(gradient, checked.points[k], high.y) for k, gradient in high.gradients.items()}
        sound = [high.gradients[k] for k, words in flaws.items() if not words]
        for k, words in flaws.items():
            shape = getattr(high.gradients[k], "shape", 0)
            fits = [m for m in flaws if m != k and flaws[m] and shape == checked.points[m].shape]
            if words.startswith("the gradient has shape") and fits:
                name = checked.names[fits[0]]
                flaws[k] += f"; it has the shape of {name}: are the gradients in the order of the arrays?"
        total = float(np.sqrt(sum(float(np.sum(np.square(gradient))) for gradient in sound)))
        return _Check(checked, settings, high, flaws, total, not {RANDOM, CHANGED_BY_CALLS} & {*high.findings})

    def verified(self, place: Place) -> tuple[Row, Measured | None]:
        """Return the row of a gradient, and what is to be explained if it failed."""
        checked, settings, k = self.checked, self.settings, place.array
        part = checked.points[k][place.where]
        if self.flaws[k] or part.size == 0:
            return place.unmeasured(part.shape, self.flaws[k], self.high.gradients[k], settings.method), None
        evaluate = functools.partial(checked.evaluate, k)
        probe = Probe(evaluate, checked.points[k], self.high.y, self.high.upstream, place.where)
        gradient = self.high.gradients[k][place.where]
        row = verify(probe, gradient, self.total, place, settings)
        nearby = Nearby(checked, place, settings)
        doubtful = self.steady and not probe.rounds_to_float32
        if doubtful and row.verdict == "FAILED":
            row = recheck_saturated(row, probe, self.total, nearby)
        if doubtful and row.verdict == "FAILED":
            row, probe = recheck_rounding(row, probe, gradient, self.total, nearby)
        if (doubtful and row.verdict == "FAILED") or (row.verdict == "zero" and row.method == "central"):
            row, probe, gradient = recheck_at_kinks(row, probe, gradient, self.total, nearby)
        return row, (probe, gradient)

    def explained(
        self, rows: Sequence[Row], suspects: Sequence[int], places: Sequence[Place], measured: Mapping[int, Measured]
    ) -> Iterator[tuple[int, Row]]:
        """Yield the numbers and the explained rows of the wrong gradients `suspects`."""
        if not suspects:
            return
        checked = self.checked
        points = dict(zip(checked.names, checked.points, strict=True))
        known = named_arrays(points, checked.cache_at(checked.points), self.high.y)
        for number in suspects:
            place, (probe, gradient) = places[number], measured[number]
            others = [
                Other(places[k].full_name, *pair)
                for k, pair in measured.items()
                if k != number and places[k].layer in ("", place.layer) and pair[1].size
            ]
            repaired = functools.partial(checked.repaired, place.array, probe.upstream)
            context = Context(*known, others, checked.evaluate_with, repaired)
            name = checked.names[place.array]
            yield number, explained(rows[number], name, probe, gradient, self.settings, context)

    def compared(self, place: Place, low: Passes, is_right: bool) -> Row:
        """Return the row of the comparison with the gradient of a pass in float32.

        Parameters
        ----------
        is_right
            Whether the gradient in float64 is right, and nothing is at a kink.
        """
        k, point = place.array, self.checked.given[place.array]
        words = self.flaws[k] or flaw(low.gradients[k], point, low.y)
        if words or point.size == 0:
            return place.unmeasured(point[place.where].shape, words, low.gradients[k], "float32")
        pair = low.gradients[k][place.where], self.high.gradients[k][place.where]
        row = compare_float32(*pair, self.total, place, self.settings, self.high.upstream)
        nearby = Nearby(self.checked, place, self.settings)
        return recheck_float32(row, pair[1], self.total, nearby) if is_right and self.steady else row


def _many_kinks(rows: Sequence[Row]) -> str:
    """Return advice on arrays of which only a sample of the kinks was tested, or an empty string."""
    names = [row.full_name for row in rows if MANY_KINKS in row.note]
    return f"Check at random values: many elements of {', '.join(names)} are at kinks." if names else ""


def _begin_with(rows: Sequence[Row], wrong: Sequence[int], order: Mapping[str, int]) -> tuple[str, str]:
    """Return the wrong layer nearest to the output, and advice to begin with it if there are others.

    Parameters
    ----------
    wrong
        The numbers of the wrong rows.
    order
        The places of the layers in the forward pass; without it, that of the parameters counts.
    """
    if not wrong:
        return "", ""
    last = rows[max(wrong, key=lambda number: (order.get(rows[number].layer, -1), number))]
    if len({rows[number].layer for number in wrong}) == 1:
        return last.layer, ""
    begin = f"Begin with {last.layer or last.name}"
    if not order:
        why = "it is the last in the order of the parameters and may cause the other errors"
        return last.layer, f"{begin}: {why}."
    after = {row.layer for row in rows if order.get(row.layer, -1) > order.get(last.layer, -1)}
    if not after:
        return last.layer, f"{begin}: it is nearest to the output and may cause the other errors."
    following = min(after, key=order.__getitem__)
    why = "its own gradients are right, the one that it passes back may not be"
    return last.layer, f"{begin}, or with {following}, which forward calls next: {why}."
