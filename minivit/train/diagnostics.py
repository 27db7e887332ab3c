"""Diagnostics: where training stopped being finite, and what to do about it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minivit.arrays import Array, is_out_of_memory, on_device_of, to_host
from minivit.engine import AnyEngine
from minivit.engine.device_step import DEVICE_BATCH
from minivit.engine.micro_batches import micro_batch_slices
from minivit.errors import RunError
from minivit.nn.layer import Layer
from minivit.ops.update_rules import gradient_norm
from minivit.random import Key
from minivit.train.evaluation import image_transform

_FLOAT16 = "float16 holds nothing above 65504, while bfloat16 does: --resume --precision bfloat16 (or float32)"


class NonFinitePlace(NamedTuple):
    """Where NaN or infinity appears first: a sentence, and the name of the layer, "" for the model itself."""

    words: str
    layer: str


class NotFiniteError(RunError):
    """Training is not finite; `step` counts from 1, and `words` say where."""

    def __init__(self, message: str, step: int, words: str) -> None:
        super().__init__(message)
        self.step, self.words = step, words


def not_finite_error(
    step: int, where: str, study: str, checkpoint: Path, precision: str | None, rollbacks: int
) -> NotFiniteError:
    """Return the error that stops a run at `step` (from 1), with advice on how to go on from its last `checkpoint`.

    `study` is a sentence about what was written to study it.
    """
    advice = (
        "--resume --on-nan rollback goes on at half the learning rate, and a new run with a smaller --lr often helps"
    )
    if rollbacks:
        advice = f"it was rolled back {rollbacks} times already; a new run with a smaller --lr often helps"
    if precision == "float16":
        advice = f"{_FLOAT16} goes on; otherwise {advice}"
    message = f"training is not finite at step {step}: {where}. The last good checkpoint is in {checkpoint}; {advice}"
    return NotFiniteError(f"{message}. {study}" if study else message, step, where)


def not_finite_on_test_error(step: int, where: str, study: str, best: Path, precision: str | None) -> NotFiniteError:
    """Return the error that ends a run whose model of the best epoch, after `step`, is not finite on the test images.

    Its training is complete: no step is left that --resume could take, with or without a rollback. The model is in the
    folder `best`, and `study` is that of `not_finite_error`.
    """
    advice = (
        "--resume would end in the same way, and has no step to roll back; a new run with a smaller --lr often helps"
    )
    if precision == "float16":
        advice = f"{_FLOAT16} evaluates it again; otherwise a new run with a smaller --lr often helps"
    message = (
        f"training is complete, but the model of the best epoch, after step {step}, is not finite: {where}. It is in "
        f"{best}; {advice}"
    )
    return NotFiniteError(f"{message}. {study}" if study else message, step, where)


def where_not_finite(
    engine: AnyEngine,
    count: int,
    piece: Callable[[slice], tuple[Array, Key | None]],
    backward: Callable[[], object] | None = None,
) -> NonFinitePlace:
    """Return where NaN or infinity appears first in a computation of the engine, for `not_finite_error`.

    The model computes in the precision of the step, and takes no more images at a time than the step did.

    Parameters
    ----------
    engine : Engine or LayerEngine
        The engine whose model holds the parameters of that computation.
    count : int
        The number of images.
    piece : callable
        Returns a slice of the images, in the engine's dtype and on its device, and their key.
    backward : callable, optional
        Sets the gradients; it is called if the forward pass is finite. Gradients that are finite one by one are too
        large if their norm is not finite, which is a sum of squares.
    """
    model = engine.model
    values = model.parameters.store.values
    try:
        with on_device_of(values):
            replica = model.replica(values.astype(engine.dtype, copy=False))
            where = first_non_finite(replica, map(piece, micro_batch_slices(count, engine.micro_batch or DEVICE_BATCH)))
            if where is not None:
                return where
            name, norm_overflows = None, False
            if backward is not None:
                backward()
                name = first_non_finite_gradient(model)
                norm_overflows = name is None and _norm_overflows(model)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return NonFinitePlace("there is too little memory to find out where", "")
    if norm_overflows:
        name = _largest_gradient(model)
        words = f"the forward pass and all gradients are finite, but their norm overflows {values.dtype}"
        return NonFinitePlace(f"{words}; the largest is in the gradient of {name}", layer_of(name))
    words = f"the forward pass is finite; it shows first in {f'the gradient of {name}' if name else 'the loss'}"
    return NonFinitePlace(words, layer_of(name or ""))


def where_evaluation_is_not_finite(
    engine: AnyEngine, images: Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> NonFinitePlace:
    """Return the result of `where_not_finite` for an evaluation of uint8 `images`."""
    transform = image_transform(engine, mean, std)
    return where_not_finite(engine, len(images), lambda part: (transform(images[part]), None))


def first_non_finite(model: Layer, pieces: Iterable[tuple[Array, Key | None]]) -> NonFinitePlace | None:
    """Return where NaN or infinity appears first in a forward pass: in the images, a parameter or a layer's result.

    Parameters
    ----------
    model : Layer
        The model, which computes in its own dtype. Its layers have hooks during the call.
    pieces : iterable of (Array, Key or None)
        The batch, piece by piece: images (B, height, width, C) of the model's dtype, and their key. The result is the
        first layer in the order of the model that fails on any piece.

    Returns
    -------
    NonFinitePlace or None
        None if all is finite.
    """
    finite: dict[str, bool] = {}  # by layer, in the order of the forward pass

    def record(name: str, layer: Layer, x: Array, y: Array) -> None:
        finite[name] = finite.get(name, True) and _finite(y)

    images_finite = True
    with np.errstate(all="ignore"), ExitStack() as hooks:
        for name, layer in model.named_layers():
            hooks.enter_context(layer.register_forward_hook(functools.partial(record, name)))
        for images, rng in pieces:
            images_finite = images_finite and _finite(images)
            model.forward(images, rng, keep=False)
    if not images_finite:
        return NonFinitePlace("the images themselves hold NaN or infinity", "")
    if (parameter := first_non_finite_parameter(model)) is not None:
        return NonFinitePlace(f"the parameter {parameter} holds NaN or infinity", layer_of(parameter))
    first = next((name for name in finite if not finite[name]), None)
    outputs = "the losses" if getattr(model, "gives_losses", False) else "the logits"
    return None if first is None else NonFinitePlace(f"it shows first in the result of {first or outputs}", first)


def layer_of(parameter: str) -> str:
    """Return the name of the layer that owns the parameter of this name."""
    return parameter.rpartition(".")[0]


def first_non_finite_gradient(model: Layer) -> str | None:
    """Return the parameter whose gradient is the first in the backward pass to hold NaN or infinity, or None."""
    backward = reversed(list(model.parameters.items()))  # from the last layer to the first
    return next((name for name, parameter in backward if not _finite(parameter.grad)), None)


def _norm_overflows(model: Layer) -> bool:
    with np.errstate(over="ignore"):
        return not _finite(gradient_norm(model.parameters.store.gradients))


def _largest_gradient(model: Layer) -> str:
    """Return the name of the parameter whose gradient has the largest magnitude; all gradients are finite."""
    largest = {name: np.abs(to_host(parameter.grad)).max(initial=0.0) for name, parameter in model.parameters.items()}
    return max(largest, key=lambda name: float(largest[name]))


def first_non_finite_parameter(model: Layer) -> str | None:
    """Return the name of the first parameter whose value holds NaN or infinity, or None."""
    if _finite(model.parameters.store.values):
        return None
    return next(name for name, parameter in model.parameters.items() if not _finite(parameter.value))


def _finite(x: Array) -> bool:
    return bool(np.isfinite(to_host(x)).all())
