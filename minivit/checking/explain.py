"""Explain a wrong gradient: locate its worst element and recognise common mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.checking.methods import EPS, NotAnalyticError, Probe

ELEMENTWISE = 256  # arrays up to this size are checked element by element; larger ones are bisected and sampled
_SAMPLES = 24  # number of elements sampled from a larger array


def explain(probe: Probe, gradient: Array, analytic: bool, rng: np.random.Generator) -> tuple[tuple[int, ...], str]:
    """Return the index of the worst element of a wrong `gradient`, and a description of the error.

    The derivatives are complex steps if `analytic`, central differences otherwise.
    """
    derivative = probe.complex_step if analytic else probe.central
    digits = 1e-9 if analytic else 1e-4
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
        indices = np.unique(np.append(rng.integers(flat.size, size=_SAMPLES), part))
    numeric = np.array([along(index, 1.0)[1] for index in indices])
    claimed = flat[indices]
    worst = int(np.argmax(np.abs(claimed - numeric)))
    index = tuple(int(k) for k in np.unravel_index(indices[worst], gradient.shape))
    place = f"worst at {list(index)}: " if index else ""
    if not np.all(np.isfinite(numeric)):
        return index, f"{place}the derivative of forward is {numeric[worst]}"
    top = max(abs(claimed[worst]), abs(numeric[worst]), np.finfo(np.float64).tiny)
    shown = int(np.clip(3 - np.log10(max(abs(claimed[worst] - numeric[worst]) / top, EPS)), 6, 17))
    note = f"{place}backward gives {claimed[worst]:.{shown}g}, the derivative of forward is {numeric[worst]:.{shown}g}"
    hint = _hint(probe, gradient, indices, numeric, digits, rng)
    return index, f"{note}; {hint}" if hint else note


def _hint(
    probe: Probe, gradient: Array, indices: Array, numeric: Array, digits: float, rng: np.random.Generator
) -> str:
    claimed = gradient.ravel()[indices]
    top = float(np.max(np.abs(numeric), initial=0))

    def like(candidate: Array, precision: float = digits) -> bool:
        return bool(np.all(np.abs(candidate - numeric) <= precision * top))

    if top == 0:
        return "forward does not depend on this array here, yet backward returns a gradient"
    if not np.any(gradient):
        return "backward returns zeros: the path to this array is cut"
    if digits < 3e-7 and like(claimed, 3e-7):
        return "right to about 7 digits only: float32 rounding or a truncated constant in the float64 pass"
    ratio = float(np.vdot(numeric, claimed) / np.vdot(numeric, numeric))
    if ratio != 0 and like(claimed / ratio):
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
    wrong = int(np.sum(np.abs(claimed - numeric) > digits * top))
    if 0 < wrong <= max(1, indices.size // 4):
        whole = f"of {indices.size}" + ("" if indices.size == gradient.size else f" sampled of {gradient.size}")
        return f"{wrong} {whole} elements {'is' if wrong == 1 else 'are'} wrong, the others right"
    return ""


def _length(probe: Probe, ratio: float) -> str:
    """Name the axis or array whose length is `ratio` or 1 / `ratio`."""
    for shape, what in ((probe.y.shape, "the output"), (probe.x.shape, "the array")):
        sizes = [(n, f"the length of axis {k} of {what}") for k, n in enumerate(shape)]
        sizes.append((int(np.prod(shape)), f"the size of {what}"))
        for n, words in sizes:
            if n > 1 and min(abs(ratio - n) / n, abs(ratio * n - 1)) < 1e-4:
                return f" ({'' if ratio > 1 else 'one over '}{words}): a sum where forward takes a mean, or the reverse"
    return ""


def _one_slice(probe: Probe, gradient: Array, digits: float, rng: np.random.Generator) -> str:
    """Detect a gradient that comes from one slice of the output only, such as one without the sum over the batch."""
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
            return f"only from index {int(np.argmax(match))} of the output's axis {axis}: not summed over that axis"
    return ""
