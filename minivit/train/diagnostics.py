"""Tracing: the result of every layer in a forward pass, by the layer's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from minivit.arrays import Array, to_host
from minivit.nn.vit import ViT
from minivit.random import Key


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


def first_non_finite(model: ViT, pieces: Iterable[tuple[Array, Key | None]]) -> str | None:
    """Return where NaN or infinity shows first in a forward pass: in the images, a parameter or a layer's result.

    Parameters
    ----------
    model : ViT
        Is run as it is, in its own dtype.
    pieces : iterable of (Array, Key or None)
        The batch, piece by piece: images (B, height, width, C) of the model's dtype, and their key. What comes first
        in the model counts, in whichever piece it is.

    Returns
    -------
    str or None
        None where all is finite.
    """
    finite: dict[str, bool] = {}  # in the order of the forward pass

    def see(name: str, y: Array) -> None:
        finite[name] = finite.get(name, True) and _finite(y)

    images_finite = True
    with np.errstate(all="ignore"):
        for images, rng in pieces:
            images_finite = images_finite and _finite(images)
            trace(model, images, rng, see)
    if not images_finite:
        return "the images themselves hold NaN or infinity"
    if (name := first_non_finite_parameter(model)) is not None:
        return f"the parameter {name} holds NaN or infinity"
    shown = next((name or "the logits" for name in finite if not finite[name]), None)
    return None if shown is None else f"it shows first in the result of {shown}"


def first_non_finite_gradient(model: ViT) -> str | None:
    """Return the name of the parameter whose gradient the backward pass meets first with NaN or infinity, or None."""
    backward = reversed(list(model.parameters.items()))  # from the last layer to the first
    return next((name for name, parameter in backward if not _finite(parameter.grad)), None)


def first_non_finite_parameter(model: ViT) -> str | None:
    """Return the name of the first parameter whose value holds NaN or infinity, or None."""
    if _finite(model.parameters.store.values):
        return None
    return next(name for name, parameter in model.parameters.items() if not _finite(parameter.value))


def _finite(x: Array) -> bool:
    return bool(np.isfinite(to_host(x)).all())
