"""From measured points to tables: how the cost grows, beside how the arithmetic does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.output import markdown_table
from minivit.cli.reporters import percent


@dataclass(frozen=True)
class Point:
    """What was measured of one side at one place of an axis.

    Parameters
    ----------
    axis, kind, side : str
        "tokens" and the like; "training" or "prediction"; "minivit" or "PyTorch eager".
    value : int
        The place on the axis.
    images_a_second : tuple of float
        One for each round, from the median step of its process.
    peak_bytes : int
        The largest resident memory of its processes.
    flops_an_image : int
        Of the matrix products that the mathematics needs.
    """

    axis: str
    kind: str
    side: str
    value: int
    images_a_second: tuple[float, ...]
    peak_bytes: int
    flops_an_image: int

    @property
    def best(self) -> float:
        """Images a second in the best round: what else the machine did can only have slowed the others."""
        return max(self.images_a_second)


class Fit(NamedTuple):
    """``y ~ x ** exponent``, from a straight line through the logarithms; `last` is between the last two points."""

    exponent: float
    error: float  # standard error; NaN for two points
    last: float


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Return how `y` grows with `x`.

    Raises
    ------
    ValueError
        There are fewer than two points, or a number that is not above 0.
    """
    if len(x) < 2 or len(x) != len(y) or min(*x, *y) <= 0:
        raise ValueError(f"an exponent needs two or more points above 0, got {list(x)} and {list(y)}")
    u, v = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    exponent, offset = np.polyfit(u, v, 1)
    last = (v[-1] - v[-2]) / (u[-1] - u[-2])
    if len(x) == 2:
        return Fit(float(exponent), math.nan, float(last))
    residual = float(((v - exponent * u - offset) ** 2).sum()) / (len(x) - 2)
    return Fit(float(exponent), math.sqrt(residual / float(((u - u.mean()) ** 2).sum())), float(last))


def fit_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return offset and slope of the straight line nearest to the points."""
    slope, offset = np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)
    return float(offset), float(slope)


def curve(points: Iterable[Point], axis: str, kind: str, side: str) -> list[Point]:
    """Return the points of one curve, from left to right."""
    found = [point for point in points if (point.axis, point.kind, point.side) == (axis, kind, side)]
    return sorted(found, key=lambda point: point.value)


def distinct(texts: Iterable[str]) -> list[str]:
    """Return each text once, in the order of the first time."""
    return list(dict.fromkeys(texts))


def rate_table(points: Sequence[Point], axis: str, label: str) -> str:
    """Return images/s of all sides along an axis, ours against each of the others, and the spread of the rounds."""
    kinds, sides = distinct(p.kind for p in points), distinct(p.side for p in points)
    parts = []
    for kind in kinds:
        curves = {side: {p.value: p for p in curve(points, axis, kind, side)} for side in sides}
        ours, others = sides[0], [side for side in sides[1:] if curves[side]]
        head = [label, *(f"{side}, images/s" for side in (ours, *others)), *(f"against {side}" for side in others)]
        several = any(len(p.images_a_second) > 1 for p in curves[ours].values())  # of one round there is no spread
        head += ["spread"] * several
        rows = []
        for value, point in curves[ours].items():
            here = [curves[side].get(value) for side in others]
            rates = [f"{p.best:.0f}" if p else "" for p in (point, *here)]
            ratios = [f"{point.best / p.best:.2f}x" if p else "" for p in here]
            spread = max(1 - min(p.images_a_second) / p.best for p in (point, *filter(None, here)))
            rows.append([str(value), *rates, *ratios, *[percent(spread)] * several])
        parts.append(f"{kind.capitalize()}:\n\n{markdown_table(head, rows)}")
    return "\n\n".join(parts)


def growth_table(points: Sequence[Point], axes: Sequence[str]) -> str:
    """Return the exponents with which the seconds of an image grow along each axis, and those of the arithmetic."""
    rows = []
    for axis in axes:
        for kind in distinct(p.kind for p in points):
            for side in distinct(p.side for p in points):
                found = curve(points, axis, kind, side)
                if len(found) < 2:
                    continue
                x = [p.value for p in found]
                cost = fit_exponent(x, [1 / p.best for p in found])
                work = fit_exponent(x, [p.flops_an_image for p in found])
                whole = f"{_signed(cost.exponent)} ± {cost.error:.2f}" if len(found) > 2 else _signed(cost.exponent)
                span, end = f"{x[0]} to {x[-1]}", f"{x[-2]} to {x[-1]}"
                rows.append(
                    [axis, kind, side, span, whole, _signed(work.exponent), end, _signed(cost.last), _signed(work.last)]
                )
    head = ["axis", "kind", "side", "from, to", "seconds", "arithmetic", "its end", "seconds", "arithmetic"]
    return markdown_table(head, rows, words=3)


def _signed(exponent: float) -> str:
    return f"{exponent:.2f}".replace("-0.00", "0.00")


def memory_table(points: Sequence[Point]) -> str:
    """Return the peak memory of each side by batch size, and the line nearest to it."""
    parts = []
    for kind in distinct(p.kind for p in points):
        curves = {side: curve(points, "batch", kind, side) for side in distinct(p.side for p in points)}
        peaks = {side: {p.value: p.peak_bytes / 1e6 for p in found} for side, found in curves.items()}
        values = sorted({value for found in peaks.values() for value in found})
        rows = [
            [str(value), *(f"{found[value]:.0f}" if value in found else "" for found in peaks.values())]
            for value in values
        ]
        lines = []
        for side, found in peaks.items():
            if len(found) > 1:
                offset, slope = fit_line(list(found), list(found.values()))
                lines.append(f"{side}: {offset:.0f} MB and {slope:.3f} MB for each image.")
        head = ["images in a batch", *(f"{side}, MB" for side in peaks)]
        parts.append("\n\n".join([f"{kind.capitalize()}:", markdown_table(head, rows), *lines]))
    return "\n\n".join(parts)
