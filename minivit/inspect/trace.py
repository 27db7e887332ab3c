"""Tracing: the result of every layer in a forward pass, by the layer's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minivit.arrays import Array, to_host
from minivit.keys import Key
from minivit.vit import ViT


def trace(model: ViT, images: Array, rng: Key | None, see: Callable[[str, Array], None]) -> Array:
    """Run `model` on `images`, call ``see(name, result)`` as each layer ends, and return the logits.

    The layers of a replica are watched: the model itself is not touched.
    """
    watched = model.replica()
    for name, layer in watched.named_layers():

        def forward(*args: Any, _name: str = name, _forward: Any = layer.forward, **kwargs: Any) -> tuple[Array, Any]:
            y, cache = _forward(*args, **kwargs)
            see(_name, y)
            return y, cache

        layer.forward = forward  # type: ignore[method-assign]
    return watched.forward(images, rng, keep=False)[0]


def first_non_finite(model: ViT, images: Array, rng: Key | None) -> str:
    """Return where NaN or infinity shows first: in the images, a parameter, a layer's result or a gradient."""
    if not _finite(images):
        return "the images themselves hold NaN or infinity"
    if (name := first_non_finite_parameter(model)) is not None:
        return f"the parameter {name} holds NaN or infinity"
    shown: list[str] = []
    with np.errstate(all="ignore"):
        trace(model, images, rng, lambda name, y: None if _finite(y) else shown.append(name or "the logits"))
    if shown:
        return f"it shows first in the result of {shown[0]}"
    # The backward pass goes from the last layer to the first.
    backward = reversed(list(model.parameters.items()))
    gradients = (name for name, parameter in backward if not _finite(parameter.grad))
    return f"the forward pass is finite; it shows first in the gradient of {next(gradients, 'the loss')}"


def first_non_finite_parameter(model: ViT) -> str | None:
    """Return the name of the first parameter whose value holds NaN or infinity, or None."""
    if _finite(model.parameters.store.peek()):
        return None
    return next(name for name, parameter in model.parameters.items() if not _finite(parameter.value))


def _finite(x: Array) -> bool:
    return bool(np.isfinite(to_host(x)).all())
