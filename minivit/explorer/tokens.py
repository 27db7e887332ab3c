"""The path: the norm of each token at each stage of the model, forward and backward; the image that it begins with."""

from __future__ import annotations

import base64
import io
import math
from typing import TypedDict

import numpy as np

from minivit.arrays import Array, to_host
from minivit.explorer.layers import block_of, title
from minivit.nn.vit import ViT
from minivit.tracing.figures import shown as as_picture
from minivit.tracing.statistics import Statistics
from minivit.tracing.table import norm_of
from minivit.tracing.trace import Trace

# Names of the stages, by kind, where the model has them; the blocks are between these.
_BEFORE = {"patch_embed": "patches", "pos_embed": "embed", "embed": "embed", "norm_pre": "norm"}
_AFTER = {"norm": "norm", "attn_pool": "head", "fc_norm": "norm", "pre_logits": "head", "head": "head"}


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


def path(trace: Trace, model: ViT) -> list[Stage]:
    """Return the stages of one image, in the order of the forward pass."""
    stages = {name: kind for name, kind in _BEFORE.items() if _has_effect(trace, name)}
    for i in range(len(model.blocks)):
        branches = {f"blocks.{i}.attn": "attention", f"blocks.{i}.mlp": "mlp", f"blocks.{i}": "block"}
        stages |= {name: kind for name, kind in branches.items() if name in trace}
    stages |= {name: kind for name, kind in _AFTER.items() if _has_effect(trace, name)}
    if "cross_entropy" in trace:
        stages["cross_entropy"] = "loss"
    return [_stage(trace, name, kind, model) for name, kind in stages.items()]


def _has_effect(trace: Trace, name: str) -> bool:
    return name in trace and trace.records[name].kind != "Identity"


def _stage(trace: Trace, name: str, kind: str, model: ViT) -> Stage:
    record = trace.records[name]
    dy = record.statistics.get("dy")
    return {
        "name": name,
        "title": title(name) + (": result" if block_of(name) is not None and name.count(".") == 1 else ""),
        "layer": name,
        "kind": kind,
        "y": _by_token(record.quantities["y"], model),
        "dy": _by_token(record.quantities["dy"], model) if dy is not None else None,
        "y_norm": norm_of(record.statistics["y"]),
        "dy_norm": None if dy is None else norm_of(dy),
    }


def _by_token(array: Array | Statistics, model: ViT) -> list[float] | None:
    """Return the norm of each token of (1, N, D), NaN for class and register tokens where they are not there yet."""
    config = model.config
    if (
        isinstance(array, Statistics)
        or array.ndim != 3
        or array.shape[1] not in (config.num_patches, config.num_tokens)
    ):
        return None
    norms = np.linalg.norm(to_host(array)[0].astype(np.float64), axis=-1).tolist()
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

    values = np.nan_to_num(to_host(image).real.astype(np.float64), posinf=0, neginf=0) if pixels is None else pixels
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * as_picture(np.asarray(values))).astype(np.uint8)).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
