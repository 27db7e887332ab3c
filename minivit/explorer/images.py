"""The images of a page: what the trace of each shows, with heat maps or, of a large model, with statistics alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from minivit import ops
from minivit.arrays import Array
from minivit.errors import count_of
from minivit.explorer.attention import attention_of
from minivit.explorer.heat_maps import HeatMaps, NoRoomError, Plane
from minivit.explorer.layers import layers_of, shown
from minivit.explorer.masks import Masks, encoder_of, masks_of, weights_of
from minivit.explorer.tokens import path, stages
from minivit.nn.model import Model
from minivit.tracing.measures import host
from minivit.tracing.trace import Trace, trace


class Limits(NamedTuple):
    """What a page may hold.

    Attributes
    ----------
    images : int
        The number of images.
    maps : int
        The characters of all heat maps. If they are more, the page has statistics alone.
    cells : tuple of int
        The numbers of rows and columns of a heat map, at most; the first is taken with which all maps fit.
    steps : int
        The number of kept steps of a run.
    weights : int
        The attention weights of one image that are computed for rollout and distance.
    layer : int
        The numbers of a layer that are kept, and checked, where the page has statistics alone.
    """

    images: int = 16
    maps: int = 6_000_000
    cells: tuple[int, ...] = (64, 32, 16)
    steps: int = 24
    weights: int = 1 << 27
    layer: int = 1_000_000


LIMITS = Limits()


class Traces(NamedTuple):
    """The traces of an image.

    Attributes
    ----------
    whole : Trace
        With arrays or, of a large model, with statistics alone.
    arrays : Trace
        The same, or of a large model that of the stages of the path and of small layers, with arrays.
    checked : list of str
        The names of layers and ops whose gradients are checked: those that are shown or, of a large model, are small.
    """

    whole: Trace
    arrays: Trace
    checked: list[str]


class Images(NamedTuple):
    """The images of a page, without their names and pictures.

    Attributes
    ----------
    found : list of dict
        One for each image.
    first : Traces
        Of the first image.
    maps : HeatMaps
        The maps of all.
    note : str
        Why there are statistics alone, or "".
    """

    found: list[dict[str, Any]]
    first: Traces
    maps: HeatMaps
    note: str


def images_within(limits: Limits, model: Model, singles: Sequence[Array], labels: Sequence[int | None]) -> Images:
    """Return what a page shows of some images.

    Parameters
    ----------
    limits : Limits
        What the page may hold.
    model : Model
        The model.
    singles : sequence of Array
        Each (1, height, width, C), as the model takes it.
    labels : sequence of int or None
        The label of each; None: no backward pass, but of a model that gives losses.
    """
    config, count = model.config, len(singles)
    # Attention has a cell for each weight and for its gradient; base64 has 4 characters for 3 of them.
    if count * weights_of(model) * 2 * 4 // 3 <= limits.maps:
        for most in limits.cells:
            with suppress(NoRoomError):
                maps = HeatMaps(most, limits.maps)
                found = _images(model, singles, labels, maps, None)
                maps.room = None  # what is added for the model as a whole is little
                return Images(*found, maps, "")
    parts = [
        count_of(len(encoder_of(model).blocks), "block"),
        f"{config.num_heads} heads",
        f"{config.num_tokens:,} tokens",
    ]
    several = "; fewer images may have room" if count > 1 else ""
    note = (
        f"The model has {', '.join(parts)}: the heat maps of {count_of(count, 'image')} would take more than "
        f"{limits.maps / 1e6:.3g} MB. This page has statistics alone{several}."
    )
    maps = HeatMaps(limits.cells[0])
    return Images(*_images(model, singles, labels, maps, limits.layer), maps, note)


def _images(
    model: Model, singles: Sequence[Array], labels: Sequence[int | None], maps: HeatMaps, most: int | None
) -> tuple[list[dict[str, Any]], Traces]:
    """Return the images and the traces of the first; with statistics alone for layers of more than `most` numbers."""
    found, first = [], None
    for image, label in zip(singles, labels, strict=True):
        traces = _traced(model, image, label, most)
        first = first or traces
        found.append({"label": label, **_image(model, traces, image, maps, most is None)})
    assert first is not None
    return found, first


def _traced(model: Model, image: Array, label: int | None, most: int | None) -> Traces:
    """Return the traces of an image; if `most` is given, with arrays of the stages and of layers of `most` numbers."""
    labels = None if label is None else [label]
    traced = trace(model, image, labels, statistics=most is not None)
    names = shown(traced.records)
    if most is None:
        return Traces(traced, traced, names)
    small = [name for name in names if sum(map(math.prod, traced.records[name].shapes.values())) <= most]
    kept = {name for name, kind in stages(traced, model).items() if kind not in ("attention", "mlp")}
    return Traces(traced, trace(model, image, labels, ["", *kept, *small]), small)


def _image(model: Model, traces: Traces, image: Array, maps: HeatMaps, full: bool) -> dict[str, Any]:
    traced, arrays, _ = traces
    masks = masks_of(model, image)
    dimage = arrays[""].dx
    gradient = None if dimage is None else np.linalg.norm(host(dimage)[0], axis=-1)
    height, width, channels = image.shape[1:]
    over = f"norm over {count_of(channels, 'channel')}"
    return {
        "loss": None if traced.loss is None else float(host(traced.loss)),
        **_result(traced, masks),
        "width": width,
        "height": height,
        "dimage": None if gradient is None else maps.add(Plane(gradient, "rows", "columns", over), gradient.shape),
        "layers": layers_of(traced.records, model, maps if full else None),
        "path": path(traced, arrays, model, masks),
        "attention": attention_of(traced, maps, model, masks) if full else None,
    }


def _result(traced: Trace, masks: Masks | None) -> dict[str, Any]:
    """Return what a classifier predicts; of a model of masked pre-training, which gives a loss alone, there is none."""
    assert traced.y is not None
    if masks is not None:
        return {"logits": None, "probabilities": None, "predicted": None}
    logits = host(traced.y)[0]
    probabilities, _ = ops.softmax(logits[None], keep=False)
    return {"logits": logits.tolist(), "probabilities": probabilities[0].tolist(), "predicted": int(logits.argmax())}
