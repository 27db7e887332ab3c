"""A step on a device: whole batches, or micro-batches one after another, in the requested precision.

With 16 bits the model computes with a rounded copy of the parameters, which is renewed before each step. The gradients
are added to the model's own float32 vector. Nothing in this file waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minivit.arrays import Array, check_dtype, dtype_named, namespace, on_device_of
from minivit.arrays.precision import PRECISIONS, tf32
from minivit.engine.micro_batches import Batch, StepOptions, accumulate, micro_batch_slices, predict
from minivit.errors import UserError
from minivit.nn.model import Model
from minivit.ops.registry import disabled_kernels

_SIXTEEN_BITS = ("bfloat16", "float16")
DEVICE_BATCH = 256  # images per prediction pass, so that memory does not grow with their number


def check_precision(precision: str | None, dtype: Any, on_host: bool) -> None:
    """Raise UserError unless a model of `dtype` can compute with `precision`; None is the model's own precision."""
    if precision is None:
        return
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if dtype != "float32":
        raise UserError(f"precision {precision} is for models of float32, and this one is {dtype}; leave it out")
    if on_host and precision != "float32":
        raise UserError(f"precision {precision} needs a GPU, and this model is on the CPU; leave it out, or use cupy")


class DeviceStep:
    """Runs training and prediction of a model on its device.

    Parameters
    ----------
    model : Model
        A model on a device.
    precision : str, optional
        One of `PRECISIONS`; by default that of the model's own dtype.

    Raises
    ------
    UserError
        The device or the model does not support the precision.
    """

    def __init__(self, model: Model, precision: str | None) -> None:
        self._store = model.parameters.store
        values = self._store.values
        xp = namespace(values)
        self._tf32 = precision == "tf32"
        self._rounded: Array | None = None
        if precision in _SIXTEEN_BITS:
            assert precision is not None
            dtype = dtype_named(precision)
            with on_device_of(values):
                check_dtype(xp, dtype)
                self._rounded = xp.zeros(values.shape, dtype=dtype)
        self.replica = model.replica(values if self._rounded is None else self._rounded)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        values = self._store.values
        if self._rounded is not None:
            if disabled_kernels():
                raise UserError("16 bits need the kernels, which reference_only disables; use precision='float32'")
            namespace(values).copyto(self._rounded, values, casting="unsafe")
        with tf32(self._tf32):
            yield

    def train(self, batch: Batch, options: StepOptions, slices: list[slice]) -> None:
        """Set the model's gradients to the sum over all micro-batches, added in index order."""
        self.replica.parameters.store.share_gradients(self._store)
        self.replica.parameters.clear_gaps()  # the user may have written there
        with self._computing():
            accumulate(self.replica, batch, options, slices, range(len(slices)))

    def predict(self, images: Array, logits: Array, micro_batch: int | None) -> None:
        """Set `logits` (B, classes) to those of `images`, which are converted micro-batch by micro-batch."""
        slices = micro_batch_slices(len(images), micro_batch or DEVICE_BATCH)
        with self._computing():
            predict(self.replica, images, logits, slices, range(len(slices)))
