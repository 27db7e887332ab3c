"""The path: the norm of each token at each stage of the model, forward and backward; the image that it begins with."""

from __future__ import annotations

import base64
import io
import math
from typing import TypedDict

import numpy as np

from minivit.arrays import Array
from minivit.explorer.heat_maps import in_floats
from minivit.explorer.layers import title
from minivit.nn.vit import ViT
from minivit.tracing.figures import shown as as_picture
from minivit.tracing.snapshots import Snapshot
from minivit.tracing.statistics import Statistics
from minivit.tracing.table import norm_of
from minivit.tracing.trace import Trace

# Names of the stages, by kind, where the model has them; the blocks are between these.
_BEFORE = {"patch_embed": "patches", "pos_embed": "embed", "embed": "embed", "norm_pre": "norm"}
_AFTER = {
    "norm": "norm",
    "attn_pool": "head",
    "fc_norm": "norm",
    "pre_logits": "head",
    "head": "head",
    "cross_entropy": "loss",
}


class Stage(TypedDict):
    """One stage of the path. schema.json describes the fields."""

    name: str
    title: str
    layer: str
    kind: str
    y: list[float] | None
    dy: list[float] | None
    y_norm: float
    dy_norm: float | None


def stages(trace: Trace, model: ViT) -> dict[str, str]:
    """Return the names of the layers and ops that are stages, in the order of the forward pass, with their kinds."""
    found = dict(_BEFORE)
    for i in range(len(model.blocks)):
        found |= {f"blocks.{i}.attn": "attention", f"blocks.{i}.mlp": "mlp", f"blocks.{i}": "block"}
    found |= _AFTER
    return {name: kind for name, kind in found.items() if name in trace and trace.records[name].kind != "Identity"}


def path(trace: Trace, arrays: Trace, model: ViT) -> list[Stage]:
    """Return the stages of one image, in the order of the forward pass.

    Parameters
    ----------
    trace : Trace
        Of the image, also with ``statistics=True``.
    arrays : Trace
        The same with arrays, of all stages or some.
    model : ViT
        The model.
    """
    return [_stage(trace, arrays, name, kind, model) for name, kind in stages(trace, model).items()]


def _stage(trace: Trace, arrays: Trace, name: str, kind: str, model: ViT) -> Stage:
    statistics = trace.records[name].statistics
    held = arrays.records[name].quantities if name in arrays else {}
    return {
        "name": name,
        "title": title(name, model) + (": result" if kind == "block" else ""),
        "layer": name,
        "kind": kind,
        "y": _by_token(held.get("y"), model),
        "dy": _by_token(held.get("dy"), model),
        "y_norm": norm_of(statistics["y"]),
        "dy_norm": norm_of(statistics["dy"]) if "dy" in statistics else None,
    }


def _by_token(array: Snapshot | None, model: ViT) -> list[float] | None:
    """Return the norm of each token of (1, N, D), NaN for class and register tokens where they are not there yet."""
    if array is None or isinstance(array, Statistics) or array.ndim != 3:
        return None
    config = model.config
    if array.shape[1] not in (config.num_patches, config.num_tokens):
        return None
    norms = np.linalg.norm(in_floats(array)[0], axis=-1).tolist()
    return [math.nan] * (config.num_tokens - len(norms)) + norms


def picture(image: Array, pixels: Array | None) -> str:
    """Return an image as the data of a PNG file.

    Parameters
    ----------
    image : Array
        (height, width, C), as the model takes it.
    pixels : Array or None
        The same before it was normalised, uint8; without it the values are shown from the least to the largest.
    """
    from PIL import Image

    values = np.nan_to_num(in_floats(image), posinf=0, neginf=0) if pixels is None else pixels
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * as_picture(np.asarray(values))).astype(np.uint8)).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
