"""The grad scaler and the metrics of a step, one launch each. Kernels of `update_grad_scaler` and `record_metrics`."""

from __future__ import annotations

import numpy as np

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.runtime import WARP, acc_dtype, aligned, launch
from minivit.ops.registry import Kernel, register_kernel

_COUNTERS = 32  # warps in the block that counts correct predictions


def _covers_scaler(state: Array, loss: Array, norm: Array, **options: object) -> bool:
    return state.dtype.name in ("float32", "float64") and loss.dtype == norm.dtype == state.dtype


def _update_grad_scaler(
    state: Array, loss: Array, norm: Array, *, clip_norm: float, scaled: bool, growth_steps: int, largest_scale: float
) -> None:
    namespace(state, loss, norm)
    launch("step", "update_grad_scaler", state, (1,), (1,), state, loss, norm, float(clip_norm), int(scaled),
           float(growth_steps), float(largest_scale))  # fmt: skip


def _covers_metrics(record: Array, loss: Array, logits: Array, labels: Array, stopped: Array) -> bool:
    sums = acc_dtype(logits.dtype)
    fits = record.dtype == loss.dtype == stopped.dtype == sums and labels.dtype == np.int64
    return fits and logits.dtype.name in ("float32", "float64") and logits.size > 0


def _record_metrics(record: Array, loss: Array, logits: Array, labels: Array, stopped: Array) -> None:
    namespace(record, loss, logits, labels, stopped)
    launch("step", "record_metrics", logits, (1,), (WARP, _COUNTERS), record, loss, aligned(logits), aligned(labels),
           stopped, *logits.shape)  # fmt: skip


def register(library: str) -> None:
    """Register the kernels for the array library called `library`."""
    register_kernel("update_grad_scaler", Kernel(library, _covers_scaler, _update_grad_scaler))
    register_kernel("record_metrics", Kernel(library, _covers_metrics, _record_metrics))
