"""Snapshots: copies of arrays as they were when they were seen, or their statistics, made once for each array.

The result of one layer is the input of the next, and the caller of a layer may change a result in place. An array that
was seen before is therefore known by its id and by its content: it is compared with its copy, or by a CRC-32 where
there are statistics alone. Arrays on a device are copied each time, since the host would wait for the comparison.
"""

from __future__ import annotations

import weakref
import zlib
from typing import Any, TypeAlias

import numpy as np

from minivit.arrays import Array, namespace
from minivit.tracing.statistics import COUNTED, Statistics

Snapshot: TypeAlias = Array | Statistics
_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}  # by the size of an element


class Snapshots:
    """Makes copies, or `Statistics` if `statistics` is set."""

    def __init__(self, statistics: bool) -> None:
        self.statistics = statistics
        self._seen: dict[tuple[int, str], tuple[Any, int, Snapshot]] = {}

    def kind(self, quantity: str) -> str:
        """Return a name that is the same for quantities whose snapshots are."""
        return quantity if self.statistics and quantity in COUNTED else ""

    def of(self, array: Array, quantity: str, again: bool = True) -> Snapshot:
        """Return the snapshot of `array`, which is the `quantity` of some layer or op, and may be seen `again`."""
        if not again or namespace(array) is not np:
            return self._new(array, quantity)
        key = id(array), self.kind(quantity)
        mark = zlib.crc32(_bytes(array).data) if self.statistics else 0
        known = self._seen.get(key)
        if known is not None and known[0]() is array and known[1] == mark and self._is_copy(known[2], array):
            return known[2]
        snapshot = self._new(array, quantity)
        self._seen[key] = weakref.ref(array), mark, snapshot
        return snapshot

    def _is_copy(self, snapshot: Snapshot, array: Array) -> bool:
        """Return whether a snapshot has the bits of `array`; statistics are known by the checksum alone."""
        if isinstance(snapshot, Statistics):
            return True
        words = _WORDS.get(array.itemsize, np.uint8)
        return array.dtype == snapshot.dtype and np.array_equal(_bytes(array).view(words), _bytes(snapshot).view(words))

    def _new(self, array: Array, quantity: str) -> Snapshot:
        return Statistics.of(array, quantity) if self.statistics else array.copy()


def _bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
