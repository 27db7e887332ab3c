"""Explain a wrong gradient: locate a wrong element and recognise the mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.checking.evidence import Context, Evidence, accuracy_for, digits_beside
from minivit.checking.methods import Probe
from minivit.checking.mistakes import recognise

ELEMENTWISE = 512  # arrays up to this size are checked element by element; larger ones are bisected and sampled
_SAMPLES = 24  # number of elements sampled from a larger array


def explain(
    name: str, probe: Probe, gradient: Array, analytic: bool, rng: np.random.Generator, context: Context
) -> tuple[tuple[int, ...], str]:
    """Return the index of a wrong element of `gradient`, and a description of the error.

    Up to `ELEMENTWISE` elements, it is the one with the largest error; of a larger array, the largest of those that
    were measured. The derivatives are complex steps if `analytic`, central differences otherwise.
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
        normal = rng.standard_normal(flat.size)

        def bisected(size: Callable[[float, float], float]) -> int:
            """Return an element where the size of the claim and the derivative is large, or the largest."""
            part = np.arange(flat.size)
            while part.size > 1:
                halves = np.array_split(part, 2)
                part = halves[int(np.argmax([size(*along(half, normal[half])) for half in halves]))]
            return int(part[0])

        wrong = bisected(lambda claim, true: abs(claim - true))
        not_zero = bisected(lambda claim, true: abs(true))
        sampled = rng.integers(flat.size, size=_SAMPLES)
        claimed = np.flatnonzero(flat)
        claimed = claimed[rng.integers(claimed.size, size=_SAMPLES // 3)] if claimed.size else claimed
        indices = np.unique([*sampled, *claimed, wrong, not_zero])
    numeric = np.array([along(index, 1.0)[1] for index in indices])
    claimed = flat[indices]
    worst = int(np.argmax(np.abs(claimed - numeric)))
    index = tuple(int(k) for k in np.unravel_index(indices[worst], gradient.shape))
    place = f"{'worst' if indices.size == flat.size else 'wrong'} at {list(index)}: " if index else ""
    if not np.all(np.isfinite(numeric)):
        return index, f"{place}the derivative of forward is {numeric[worst]}"
    mine, true = float(claimed[worst]), float(numeric[worst])
    shown = digits_beside(mine, true)
    note = f"{place}backward gives {mine:.{shown}g}, the derivative of forward is {true:.{shown}g}"
    digits = accuracy_for(claimed, numeric, digits, least=1e-13 if analytic else 1e-7)
    evidence = Evidence(name, probe, gradient, indices, numeric, digits, analytic, rng, context)
    hint = recognise(evidence)
    return index, f"{note}; {hint}" if hint else note
