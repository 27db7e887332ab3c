"""Why a run stops whose numbers are no longer finite: where that shows first, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from minivit.arrays import Array, is_out_of_memory, on_device_of
from minivit.engine import Engine
from minivit.engine.device_step import DEVICE_BATCH
from minivit.engine.micro_batches import micro_batch_slices
from minivit.errors import RunError
from minivit.random import Key
from minivit.train.diagnostics import first_non_finite, first_non_finite_gradient
from minivit.train.evaluate import ready_for


def where_not_finite(
    engine: Engine,
    count: int,
    piece: Callable[[slice], tuple[Array, Key | None]],
    backward: Callable[[], object] | None = None,
) -> str:
    """Return where NaN or infinity shows first in what the engine computed, for the message of `not_finite`.

    The model computes as in the step, in 16 bits if these were asked for, and on no more images at a time.

    Parameters
    ----------
    engine : Engine
        Its model has the parameters with which it computed.
    count : int
        How many images there were.
    piece : callable
        Returns some of them, in the engine's dtype and on its device, and their key.
    backward : callable, optional
        Sets the gradients; it is called where the forward pass is finite.
    """
    model = engine.model
    values = model.parameters.store.values
    try:
        with on_device_of(values):
            replica = model.replica(values.astype(engine.dtype, copy=False))
            where = first_non_finite(replica, map(piece, micro_batch_slices(count, engine.micro_batch or DEVICE_BATCH)))
            if where is not None:
                return where
            name = None
            if backward is not None:
                backward()
                name = first_non_finite_gradient(model)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return "there is too little memory to see where"
    return f"the forward pass is finite; it shows first in {f'the gradient of {name}' if name else 'the loss'}"


def where_evaluation_is_not_finite(
    engine: Engine, images: Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> str:
    """Return what `where_not_finite` does, for uint8 `images` that `evaluate` was given."""
    ready = ready_for(engine, mean, std)
    return where_not_finite(engine, len(images), lambda some: (ready(images[some]), None))


def not_finite(step: int, where: str, checkpoint: Path, precision: str | None) -> RunError:
    """Return the error that stops a run at `step` (from 1), with the way on from its last `checkpoint`."""
    way_on = "a new run with a smaller --lr often helps"
    if precision == "float16":
        way_on = (
            "float16 holds nothing above 65504, while bfloat16 does: "
            f"--resume --precision bfloat16 (or float32) goes on; otherwise {way_on}"
        )
    return RunError(
        f"training is not finite at step {step}: {where}. The last good checkpoint is in {checkpoint}; {way_on}"
    )
