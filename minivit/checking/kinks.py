"""Points at which a function is not differentiable, such as ReLU at 0 or a maximum at a tie.

Let phi be the function of `minivit.checking.methods`, and T+ and T- the terms of its one-sided derivatives along an
element, one for each output. The element is a kink if T+ and T- differ. There, a gradient is accepted if it lies
between sum(min(T+, T-)) and sum(max(T+, T-)). Whether an element is a kink follows from the forward pass alone, so a
wrong gradient is never taken for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minivit.arrays import Array
from minivit.checking.methods import EPS, Probe

_STEPS = (2.0**-17, 2.0**-21, 2.0**-25)  # the largest one covers the steps of the central differences
_RATIO = 2.0**4  # of one step to the next
_SMOOTH = 1e-4  # the two terms differ less than this, relatively, where the function is smooth
_NODES = 1500  # largest number of parts of an array that are examined
_TESTED = 512  # largest number of elements whose one-sided derivatives are compared with the gradient
_TOLERANCE = 1e-5
TINY = 2.0**-28
KINK = "kink"  # in every note on kinks
MANY_KINKS = "kinks among"  # in the note on a sample of them


def one_sided(probe: Probe, step: Array, size: float) -> tuple[Array, Array, float]:
    """Return T+ and T- along `step`, in units of `size`, and a bound of their rounding errors.

    The steps in both directions are equal after they are rounded.
    """
    step = probe.shifted(step)[probe.where] - probe.x[probe.where]
    with np.errstate(all="ignore"):
        high, low = probe.evaluate(probe.shifted(step)), probe.evaluate(probe.shifted(-step))
        rounding = 8 * EPS * float(np.max(np.abs(probe.upstream * probe.y), initial=0)) / size
        right, left = probe.upstream * (high - probe.y) / size, probe.upstream * (probe.y - low) / size
        if probe.unit is not None:  # beside an offset, forward rounds the step itself
            terms = float(np.max(np.maximum(np.abs(right), np.abs(left)), initial=0))
            rounding += 8 * EPS * float(np.max(np.abs(probe.x[probe.where]))) / size * terms
        return right, left, rounding


def find_kinks(probe: Probe, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return a mask of the kinks of the function at ``probe.x``, found by bisection.

    Along a smooth direction, T+ - T- falls as the step; at a kink it does not. Parts that were not searched to the end
    are in the mask too.
    """
    count = int(np.prod(shape))
    signs = rng.choice([-1.0, 1.0], count) * rng.uniform(0.5, 1.5, count)
    found, nodes = np.zeros(count, bool), 0

    def bent(part: Array) -> bool:
        direction = np.zeros(count)
        direction[part] = signs[part]
        before: tuple[Array, Array] | None = None
        for relative in _STEPS:
            size = relative * probe.rms
            high, low, rounding = one_sided(probe, size * direction.reshape(shape), size)
            gap = np.abs(high - low)
            bound = _SMOOTH * np.maximum(np.abs(high), np.abs(low)) + 8 * rounding
            if before is not None:
                falls = np.abs(before[0] - _RATIO * gap) <= 0.5 * before[0] + before[1] + 8 * _RATIO * rounding
                if np.any((before[0] > before[1]) & ~falls):
                    return True
            before = gap, bound
        return False

    parts = [np.arange(count)] if count else []
    while parts:
        part = parts.pop()
        nodes += 1
        if not bent(part):
            continue
        if part.size == 1 or nodes > _NODES:
            found[part] = True
        else:
            parts.extend(np.array_split(part, 2))
    return found.reshape(shape)


def beside(probe: Probe, kinks: Array, rng: np.random.Generator) -> Array:
    """Return the array with its kinks moved aside by about 1 percent of its root mean square."""
    moves = rng.choice([-1.0, 1.0], kinks.shape) * rng.uniform(1, 2, kinks.shape) * 2.0**-7 * probe.rms
    return probe.shifted(np.where(kinks, moves, 0.0))


def neighbours(probe: Probe, kinks: Array) -> Iterator[Array]:
    """Yield the array with its kinks moved very little, by steps that rise or fall with the index."""
    order = np.zeros(kinks.shape)
    order[kinks] = np.arange(1, np.sum(kinks) + 1)
    for steps in (order, order.max() + 1 - order):
        for sign in (1.0, -1.0):
            yield probe.shifted(np.where(kinks, sign * TINY * probe.rms * steps, 0.0))


class Judgement(NamedTuple):
    """Whether a gradient is accepted at the kinks.

    Attributes
    ----------
    accepted, each
        Whether it is accepted, and whether each element of the mask was tested.
    note
        The same in words.
    bent
        Whether the one-sided derivatives differ where it is refused.
    """

    accepted: bool
    each: bool
    note: str
    bent: bool = False


def judge(
    probe: Probe, gradient: Array, kinks: Array, rng: np.random.Generator, size: float | None = None
) -> Judgement:
    """Judge the gradient at the kinks.

    It is accepted if it lies between the one-sided derivatives at each of them, and along the direction in which all of
    them move together. If there are too many, a random sample is tested one by one. The steps have the length `size`;
    by default it follows the array and each element.
    """
    points = [tuple(int(k) for k in point) for point in np.argwhere(kinks)]
    each = len(points) <= _TESTED
    tested = points if each else [points[k] for k in np.sort(rng.choice(len(points), _TESTED, replace=False))]
    shown, bends = "", 0
    for index in tested:
        only = np.zeros(kinks.shape, bool)
        only[index] = True
        left, right, margin, least, largest = _sides(probe, only, abs(float(probe.x[probe.where][index])), size)
        bent = largest - least > 2 * margin
        bends += bent
        claim = float(gradient[index])
        sides = f"the one-sided derivatives are {left:.6g} and {right:.6g}"
        if not np.allclose(sorted((left, right)), (least, largest), rtol=1e-6, atol=margin):
            sides = f"the sums of the smaller and of the larger one-sided derivatives are {least:.6g} and {largest:.6g}"
        words = f"{_place(index)}: {sides}, backward gives {claim + 0.0:.6g}"
        shown = shown or (words if bent else "")
        if not least - margin <= claim <= largest + margin:
            note = f"kink at {words}, which is not between them" if bent else f"at {words}, beside a kink"
            return Judgement(False, each, note, bent)
    _, _, margin, least, largest = _sides(probe, kinks, 0.0, size)
    if not least - margin <= float(np.sum(gradient[kinks])) <= largest + margin:
        together = "wrong if all of these move together: is a tie counted twice?"
        return Judgement(False, each, f"kink at {named(kinks)}: {together}", largest - least > 2 * margin)
    more = f"; {bends - 1} more like it" if bends > 1 else ""
    note = f"kink at {shown}, which is accepted{more}" if shown else ""
    if not each:
        sample = f"{MANY_KINKS} {len(points)} elements: {len(tested)} of these were tested, the others were not"
        note = f"{sample}; {note}" if note else sample
    return Judgement(True, each, note)


def named(kinks: Array) -> str:
    """Return the place of the first kink, and the number of the others."""
    first, count = tuple(map(int, np.argwhere(kinks)[0])), int(np.sum(kinks))
    return f"{_place(first)} and {count - 1} more" if count > 1 else _place(first)


def _sides(probe: Probe, moving: Array, value: float, size: float | None) -> tuple[float, float, float, float, float]:
    """Return the one-sided derivatives as `moving` elements move, a margin, and the least and largest subgradient."""
    size = TINY * max(2.0**8 * value, probe.rms) if size is None else size
    right, left, rounding = one_sided(probe, np.where(moving, size, 0.0), size)
    margin = _TOLERANCE * float(np.sum(np.maximum(np.abs(right), np.abs(left)))) + rounding * max(1, right.size) ** 0.5
    least, largest = float(np.sum(np.minimum(right, left))), float(np.sum(np.maximum(right, left)))
    return float(np.sum(left)) + 0.0, float(np.sum(right)) + 0.0, margin, least, largest


def _place(index: tuple[int, ...]) -> str:
    return str(list(index)) if index else "this point"
