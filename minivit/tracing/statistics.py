"""Statistics of an array: what a trace keeps of it where the array itself would take too much memory."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minivit.arrays import Array, to_host

BINS = 32
_CHUNK = 1 << 15  # numbers that are converted to float64 at once
_LEAST, _LARGEST = 1e-290, 1e290  # widths of bins whose reciprocal and 32-fold are numbers

# Which values of these quantities mean that a unit is saturated: its gradient is nearly lost there.
_SATURATED = {"slope": lambda x: np.abs(x) < 1e-2, "weights": lambda x: x > 0.99}

COUNTED = tuple(_SATURATED)


@dataclass(frozen=True)
class Statistics:
    """Statistics of one array, computed in float64 on the host; of the absolute values if it is complex.

    Attributes
    ----------
    size : int
        The number of elements. Those that are not finite count here alone, and in `finite`.
    finite : bool
        Whether all elements are finite.
    norm, mean, std, min, max : float
        The Euclidean norm, the mean, the standard deviation and the extremes of the finite elements.
    zeros : float
        The share of elements that are zero.
    saturated : float or None
        The share of saturated units. Of an activation's `slope`: elements below 0.01 in magnitude; of attention's
        `weights`: elements above 0.99. None for other quantities.
    counts : tuple of int
        A histogram of the finite elements in equal bins from `min` to `max`; `edges` are the bins' borders.
    """

    size: int
    finite: bool
    norm: float
    mean: float
    std: float
    min: float
    max: float
    zeros: float
    saturated: float | None
    counts: tuple[int, ...]

    @property
    def rms(self) -> float:
        """The root of the mean square of the finite elements, which does not grow with the array."""
        return math.hypot(self.mean, self.std)

    @property
    def edges(self) -> Array:
        """The borders of the bins of `counts`, one more than there are bins."""
        return np.linspace(self.min, self.max, len(self.counts) + 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes by name, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Statistics:
        """Return what `to_dict` was called on."""
        return cls(**{**values, "counts": tuple(values["counts"])})

    @classmethod
    def of(cls, array: Array, quantity: str = "") -> Statistics:
        """Return the statistics of `array`, from any array library.

        Parameters
        ----------
        array : Array
            Any shape and dtype.
        quantity : str
            What it is, such as "weights": see `saturated`.
        """
        flat = to_host(array).reshape(-1)
        size = flat.size
        if flat.dtype.kind in "bc":
            flat = np.abs(flat) if flat.dtype.kind == "c" else flat.astype(np.uint8)
        rule = _SATURATED.get(quantity)
        saturated = None if rule is None or not size else int(np.count_nonzero(rule(flat))) / size
        zeros = int(np.count_nonzero(flat == 0)) / size if size else 0.0
        low, high = (float(flat.min()), float(flat.max())) if size else (0.0, 0.0)  # NaN if any is
        finite = math.isfinite(low) and math.isfinite(high)
        if not finite:
            flat = flat[np.isfinite(flat)]
            low, high = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 0.0)
        mean, std, counts = _moments(flat, low, high)
        norm = math.hypot(mean, std) * math.sqrt(flat.size)  # neither term is negative, so that nothing cancels
        return cls(size, finite, norm, mean, std, low, high, zeros, saturated, tuple(counts.tolist()))


def _moments(flat: Array, low: float, high: float) -> tuple[float, float, Array]:
    """Return the mean, the standard deviation and the histogram.

    All are computed of the distances from `low`, in widths of a bin, so that no square overflows. The moments of pieces
    that fit in the cache are merged (Chan et al. 1979).
    """
    counts = np.zeros(BINS + 1, np.int64)  # `high` alone is in the last one, and then in the one before
    width = high / BINS - low / BINS
    if not width:
        counts[0] = flat.size
        return low, 0.0, counts[:BINS]
    if not _LEAST < width < _LARGEST:
        factor = 2.0**600 if width < 1 else 2.0**-600
        mean, std, counts = _moments(flat * factor, low * factor, high * factor)
        return mean / factor, std / factor, counts
    mean = deviations = 0.0
    scale = 1 / width
    space = np.empty(min(flat.size, _CHUNK))
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK]
        x = space[: piece.size]
        x[...] = piece
        x -= low
        x *= scale
        counts += np.bincount(x.astype(np.uint8), minlength=BINS + 1)
        of_piece = float(x.sum()) / x.size
        x -= of_piece
        x *= x
        ratio, difference = x.size / (start + x.size), of_piece - mean
        mean += difference * ratio
        deviations += float(x.sum()) + difference * difference * start * ratio
    counts[BINS - 1] += counts[BINS]
    return low + width * mean, width * math.sqrt(deviations / flat.size), counts[:BINS]
