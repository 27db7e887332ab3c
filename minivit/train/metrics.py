"""What steps came to, kept on their device and read together, so that no step waits for the host."""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace, to_host
from minivit.ops.metrics import record_metrics


class Record(NamedTuple):
    """What a step came to."""

    loss: float
    correct: int  # images of the batch
    stopped: bool  # whether a loss or gradient was not finite, in this step or before


class MetricsBuffer:
    """The records of the last few steps.

    Parameters
    ----------
    values : Array
        Of the library, the device and the dtype in which the records are kept.
    size : int
        How many it holds.
    """

    def __init__(self, values: Array, size: int) -> None:
        self._records = namespace(values).zeros((size, 3), dtype=values.dtype)
        self._count = 0

    @property
    def full(self) -> bool:
        """Whether it must be read before the next step."""
        return self._count == len(self._records)

    def add(self, loss: Array, logits: Array, labels: Array, stopped: Array) -> None:
        """Keep what a step came to; see `ops.metrics.record_metrics`."""
        record_metrics(self._records[self._count], loss, logits, labels, stopped)
        self._count += 1

    def read(self) -> list[Record]:
        """Return the records since the last time, oldest first, and forget them; waits for the device."""
        if not self._count:
            return []
        rows = to_host(self._records[: self._count])
        self._count = 0
        return [Record(float(loss), int(correct), bool(stopped)) for loss, correct, stopped in rows]
