"""`explore`: everything that the page of a model shows, as plain data for JSON."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

import minivit
from minivit import ops
from minivit.arrays import Array, to_host
from minivit.errors import UserError
from minivit.explorer.attention import attention_of, rollout_of
from minivit.explorer.depth import depth_of
from minivit.explorer.heat_maps import MOST_CELLS, HeatMaps, Plane
from minivit.explorer.layers import layers_of
from minivit.explorer.tokens import path, picture
from minivit.nn.vit import ViT
from minivit.tracing.measures import expect_vit
from minivit.tracing.trace import Trace, trace
from minivit.train.run_folder import RunFolder

MOST_IMAGES = 16

PageData: TypeAlias = dict[str, Any]


def explore(
    model: ViT,
    images: Array,
    labels: Array | Sequence[int] | None = None,
    *,
    class_names: Sequence[str] = (),
    names: Sequence[str] = (),
    pixels: Array | None = None,
    run: RunFolder | None = None,
    checkpoint: str | None = None,
    subject: tuple[str, str] | None = None,
    title: str = "",
    command: str | None = None,
) -> PageData:
    """Trace a model, and return what its page shows.

    Parameters
    ----------
    model : ViT
        The model; it stays as it is.
    images : Array
        (B, height, width, C), as the model takes them; at most 16.
    labels : Array or sequence of int, optional
        (B,). Without labels there is no backward pass.
    class_names : sequence of str
        The names of all classes.
    names : sequence of str
        The names of the images.
    pixels : Array, optional
        uint8, the images before they were normalised, as they are shown.
    run : RunFolder, optional
        The run of the model, whose kept steps are shown.
    checkpoint : str, optional
        Which model of the run it is, "best" or "last".
    subject : (str, str), optional
        Where the model is from ("run", "file", "name" or "model"), and what it is called.
    title : str
        The title of the page.
    command : str, optional
        The command that makes the page.

    Returns
    -------
    PageData
        A dict that `json.dumps` takes; explorer/schema.json describes it.

    Raises
    ------
    UserError
        There are no images or too many of them, or numbers of labels or names are wrong.
    """
    expect_vit(model)
    model.check_images(images)
    B = len(images)
    if not 1 <= B <= MOST_IMAGES:
        raise UserError(f"{B} images were given; expected 1 to {MOST_IMAGES}")
    for what, given in (("labels", labels), ("names", names or None), ("pixels", pixels)):
        if given is not None and len(given) != B:
            raise UserError(f"{len(given)} {what} were given for {B} images; give one for each")
    maps = HeatMaps()
    found, traces = [], []
    for i in range(B):
        image = images[i : i + 1]
        label = None if labels is None else int(labels[i])
        traced = trace(model, image, None if label is None else [label])
        name = names[i] if names else f"image {i}"
        found.append(_image(model, traced, image, label, name, None if pixels is None else pixels[i], maps))
        traces.append(traced)
    first = None if labels is None else [int(labels[0])]
    source, called = subject or ("model", type(model).__name__)
    data = {
        "schema": 1,
        "version": minivit.__version__,
        "title": title or called,
        "made": datetime.date.today().isoformat(),
        "command": command,
        "reduction": (
            f"Arrays are reduced to at most {MOST_CELLS} x {MOST_CELLS} cells of 8 bits; each map says how, and has "
            "its scale. Attention has a cell for each number. Statistics are those of all numbers, exactly."
        ),
        "note": "",
        "full": True,
        "subject": {"source": source, "name": called, "checkpoint": checkpoint},
        "model": _model(model, class_names, called),
        "images": found,
        "maps": maps.table,
        "formulas": {},
        "sources": {},
        "checks": {},
        "mistakes": [],
        "depth": depth_of(model, traces[0], images[:1], first, run, checkpoint or called),
    }
    return _plain(data)


def _image(
    model: ViT, traced: Trace, image: Array, label: int | None, name: str, pixels: Array | None, maps: HeatMaps
) -> dict[str, Any]:
    logits = to_host(traced.y)[0].real.astype(np.float64)
    probabilities, _ = ops.softmax(logits[None], keep=False)
    dimage = traced.records["model"].dx
    norms = None if dimage is None else np.linalg.norm(to_host(dimage)[0].astype(np.float64), axis=-1)
    plane = None if norms is None else Plane(norms, "rows of the image", "columns", "")
    height, width = image.shape[1:3]
    return {
        "name": name,
        "label": label,
        "loss": None if traced.loss is None else float(to_host(traced.loss).real),
        "logits": logits.tolist(),
        "probabilities": probabilities[0].tolist(),
        "predicted": int(logits.argmax()),
        "width": width,
        "height": height,
        "png": picture(image[0], pixels),
        "dimage": None if plane is None else maps.add(plane, plane.values.shape),
        "layers": layers_of(traced.records, maps),
        "path": path(traced, model),
        "attention": attention_of(traced, maps),
        "rollout": rollout_of(model, image, maps),
    }


def _model(model: ViT, class_names: Sequence[str], name: str) -> dict[str, Any]:
    config = model.config
    return {
        "name": name,
        "class": type(model).__name__,
        "parameters": sum(parameter.size for parameter in model.parameters.values()),
        "dtype": str(model.parameters.store.values.dtype),
        "img_size": [config.height, config.width],
        "in_chans": config.in_chans,
        "patch_size": [config.patch_height, config.patch_width],
        "stride": list(config.stride),
        "grid": list(config.grid),
        "prefix_tokens": config.num_prefix_tokens,
        "tokens": config.num_tokens,
        "embed_dim": config.embed_dim,
        "depth": len(model.blocks),
        "num_heads": config.num_heads,
        "class_names": list(class_names),
    }


def _plain(value: Any) -> Any:
    """Return the data with null for each number that is not finite, as JSON has none."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
