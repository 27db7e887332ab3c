"""What steps came to, kept on their device and read together, so that no step waits for the host."""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace, to_host
from minivit.ops.registry import routine


class Record(NamedTuple):
    """What a step came to."""

    loss: float
    correct: int  # images of the batch
    stopped: bool  # whether a loss or gradient was not finite, in this step or before


@routine
def note(record: Array, loss: Array, logits: Array, labels: Array, stopped: Array) -> None:
    """Set `record` (3,) to the loss, the number of rows of `logits` (B, C) with their largest at `labels`, and a flag.

    Parameters
    ----------
    record : Array
        (3,) floats, set in place.
    loss, stopped : Array
        0-d, of the dtype of `record`.
    logits : Array
        (B, C) floats.
    labels : Array
        (B,) integers.
    """
    namespace(record, loss, logits, labels, stopped)
    record[0] = loss
    record[1] = (logits.argmax(axis=1) == labels).sum().astype(record.dtype)
    record[2] = stopped


class Tally:
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
        """Keep what a step came to; see `note`."""
        note(self._records[self._count], loss, logits, labels, stopped)
        self._count += 1

    def read(self) -> list[Record]:
        """Return the records since the last time, oldest first, and forget them; waits for the device."""
        if not self._count:
            return []
        rows = to_host(self._records[: self._count])
        self._count = 0
        return [Record(float(loss), int(correct), bool(stopped)) for loss, correct, stopped in rows]
