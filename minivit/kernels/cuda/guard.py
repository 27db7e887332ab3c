"""What becomes of a step, in one launch for the judgement and one for the record. Rivals of `judge` and `note`."""

from __future__ import annotations

import numpy as np

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.runtime import WARP, acc_dtype, launch, settled
from minivit.ops.registry import Rival, open_to_rivals, register_rival

_COUNTERS = 32  # warps of the block that counts


def _covers_judge(state: Array, loss: Array, norm: Array, **options: object) -> bool:
    return state.dtype.name in ("float32", "float64") and loss.dtype == norm.dtype == state.dtype


def _judge(
    state: Array, loss: Array, norm: Array, *, clip_norm: float, scaled: bool, growth_steps: int, largest_scale: float
) -> None:
    namespace(state, loss, norm)
    launch("guard", "judge", state, (1,), (1,), state, loss, norm, float(clip_norm), int(scaled), float(growth_steps),
           float(largest_scale))  # fmt: skip


def _covers_note(record: Array, loss: Array, logits: Array, labels: Array, stopped: Array) -> bool:
    sums = acc_dtype(logits.dtype)
    fits = record.dtype == loss.dtype == stopped.dtype == sums and labels.dtype == np.int64
    return fits and logits.dtype.name in ("float32", "float64") and logits.size > 0


def _note(record: Array, loss: Array, logits: Array, labels: Array, stopped: Array) -> None:
    namespace(record, loss, logits, labels, stopped)
    launch("guard", "note", logits, (1,), (WARP, _COUNTERS), record, loss, settled(logits), settled(labels), stopped,
           *logits.shape)  # fmt: skip


def register(library: str) -> None:
    """Let the kernels compete on `library`."""
    for name, covers, function in (("judge", _covers_judge, _judge), ("note", _covers_note, _note)):
        open_to_rivals(name)
        register_rival(name, Rival(library, covers, function))
