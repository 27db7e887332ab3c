"""Explain a wrong gradient: locate its worst element and recognise the mistake."""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.checking.evidence import Context, Evidence
from minivit.checking.methods import EPS, Probe
from minivit.checking.mistakes import recognise

ELEMENTWISE = 512  # arrays up to this size are checked element by element; larger ones are bisected and sampled
_SAMPLES = 24  # number of elements sampled from a larger array


def explain(
    name: str, probe: Probe, gradient: Array, analytic: bool, rng: np.random.Generator, context: Context
) -> tuple[tuple[int, ...], str]:
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
    evidence = Evidence(name, probe, gradient, indices, numeric, digits, analytic, rng, context)
    hint = recognise(evidence)
    return index, f"{note}; {hint}" if hint else note
