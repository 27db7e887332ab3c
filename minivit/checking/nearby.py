"""The function of one array, and its gradient, at points beside the one that is checked."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from minivit.arrays import Array
from minivit.checking.function import CheckedFunction
from minivit.checking.gradients import flaw
from minivit.checking.methods import EPS, Probe
from minivit.checking.settings import Settings
from minivit.checking.verdict import Place

Measured: TypeAlias = tuple[Probe, Array]  # the function of an array, and the gradient that backward returned


@dataclass(frozen=True)
class Nearby:
    """The functions under check at other points. None stands for points that they refuse or where they are infinite."""

    checked: CheckedFunction
    place: Place
    settings: Settings

    def at(self, x: Array) -> Measured | None:
        """Return what is measured at another value `x` of the array of `place`."""
        k = self.place.array
        return self._at([x if n == k else a for n, a in enumerate(self.checked.points)])

    def others_moved(self, size: float) -> Measured | None:
        """Return what is measured where all other float arrays are moved, or None if there is no other one.

        They are moved by `size` times their root mean square, and those of zeros by `size`.
        """
        points = list(self.checked.points)
        others = [n for n, a in enumerate(points) if n != self.place.array and a.dtype.kind == "f" and a.size]
        for n in others:
            points[n] = points[n] + size * (float(np.sqrt(np.mean(np.square(points[n])))) or 1.0)
        return self._at(points) if others else None

    def by_rounding(self, probe: Probe, rng: np.random.Generator) -> Probe:
        """Return `probe` with all float arrays changed by a unit in the last place."""
        points = self._rounded(EPS, rng)
        k = self.place.array
        return replace(probe, evaluate=functools.partial(self.checked.evaluate, k, points=points), x=points[k])

    def at_rounding(self, eps: float, rng: np.random.Generator) -> Measured | None:
        """Return what is measured with all float arrays changed by a unit in the last place of the precision `eps`."""
        return self._at(self._rounded(eps, rng))

    def _rounded(self, eps: float, rng: np.random.Generator) -> list[Array]:
        return [
            a * (1 + eps * rng.choice([-1.0, 1.0], a.shape)) if a.dtype.kind == "f" else a for a in self.checked.points
        ]

    def _at(self, points: Sequence[Array]) -> Measured | None:
        k = self.place.array
        try:
            passes = self.checked.run(points, self.settings.seed, self.settings.upstream, contracts=False)
        except Exception:
            return None
        if flaw(passes.gradients[k], points[k], passes.y):
            return None
        evaluate = functools.partial(self.checked.evaluate, k, points=points)
        where = self.place.where
        return Probe(evaluate, points[k], passes.y, passes.upstream, where), passes.gradients[k][where]
