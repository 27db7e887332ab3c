"""The path: the norm of each token at each stage of the model, forward and backward; the image that it begins with."""

from __future__ import annotations

import base64
import io
import math
import re
from typing import TypedDict

import numpy as np

from minivit.arrays import Array
from minivit.explorer.layers import title
from minivit.explorer.masks import Masks, places_of, seen_pixels
from minivit.nn.mae import MAE
from minivit.nn.masked import MaskedModel
from minivit.nn.model import Model
from minivit.tracing.figures import shown as as_picture
from minivit.tracing.measures import host
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


def stages(trace: Trace, model: Model) -> dict[str, str]:
    """Return the names of the layers and ops that are stages, in the order of the forward pass, with their kinds."""
    if isinstance(model, MaskedModel):
        found = _masked_stages(trace, model)
    else:
        found = {**_BEFORE, **_block_stages(trace, "blocks"), **_AFTER}
    return {name: kind for name, kind in found.items() if name in trace and trace.records[name].kind != "Identity"}


def _block_stages(trace: Trace, blocks: str) -> dict[str, str]:
    """Return the calls of all blocks in their order, each after its attention and its MLP.

    A block that stands in several places is called "blocks.0", "blocks.0_2", and its MLP "blocks.0.mlp_2".
    """
    found: dict[str, str] = {}
    block: dict[str, str] = {}  # the one that is called: the trace has it before its parts
    for name in trace.names:
        call = re.fullmatch(rf"{re.escape(blocks)}\.\d+(\.attn|\.mlp)?(_\d+)?", name)
        if call and call[1]:
            found[name] = "attention" if call[1] == ".attn" else "mlp"
        elif call:
            found |= block
            block = {name: "block"}
    return found | block


def _masked_stages(trace: Trace, model: MaskedModel) -> dict[str, str]:
    """Return the stages of a model of masked pre-training; it calls `embed` itself, the layers of its encoder too."""
    found = {"encoder.patch_embed": "patches"}
    if not isinstance(model, MAE):
        found["fill_tokens"] = "embed"
    found |= {"encoder.pos_embed": "embed", "embed": "embed", "encoder.norm_pre": "norm"}
    found |= _block_stages(trace, "encoder.blocks")
    if isinstance(model, MAE):
        found |= {"encoder.norm": "norm", "decoder_embed": "embed", "fill_tokens": "embed"}
        found |= _block_stages(trace, "decoder_blocks")
        return found | {"decoder_norm": "norm", "decoder_pred": "head", "pixel_error": "loss"}
    return found | {"encoder.norm": "norm", "head": "head", "pixel_error": "loss", "token_cross_entropy": "loss"}


def path(trace: Trace, arrays: Trace, model: Model, masks: Masks | None) -> list[Stage]:
    """Return the stages of one image, in the order of the forward pass.

    Parameters
    ----------
    trace : Trace
        Of the image, also with ``statistics=True``.
    arrays : Trace
        The same with arrays, of all stages or some.
    model : Model
        The model.
    masks : Masks or None
        What a model of masked pre-training sees of the image.
    """
    return [_stage(trace, arrays, name, kind, model, masks) for name, kind in stages(trace, model).items()]


def _stage(trace: Trace, arrays: Trace, name: str, kind: str, model: Model, masks: Masks | None) -> Stage:
    statistics = trace.records[name].statistics
    held = arrays.records[name].quantities if name in arrays else {}
    return {
        "name": name,
        "title": title(name, model) + (": result" if kind == "block" else ""),
        "layer": name,
        "kind": kind,
        "y": _by_token(held.get("y"), name, model, masks),
        "dy": _by_token(held.get("dy"), name, model, masks),
        "y_norm": norm_of(statistics["y"]),
        "dy_norm": norm_of(statistics["dy"]) if "dy" in statistics else None,
    }


def _by_token(array: Snapshot | None, name: str, model: Model, masks: Masks | None) -> list[float] | None:
    """Return the norm of each token of (1, N, D), NaN for tokens that are not there."""
    if array is None or isinstance(array, Statistics) or array.ndim != 3:
        return None
    places = places_of(name, array.shape[1], model, masks)
    if places is None:
        return None
    norms = np.full(model.config.num_tokens, math.nan)
    norms[places] = np.linalg.norm(host(array)[0], axis=-1)
    return [float(norm) for norm in norms]


def picture(image: Array, pixels: Array | None, masks: Masks | None = None, grid: tuple[int, int] = (1, 1)) -> str:
    """Return an image as the data of a PNG file.

    Parameters
    ----------
    image : Array
        (height, width, C), as the model takes it.
    pixels : Array or None
        The same before it was normalised, uint8; without it the values are shown from the least to the largest.
    masks : Masks, optional
        Which patches are shown, in place of all.
    grid : (int, int)
        The rows and columns of patches.
    """
    from PIL import Image

    values = np.nan_to_num(host(image), posinf=0, neginf=0) if pixels is None else pixels
    shown = np.rint(255 * as_picture(values)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(shown if masks is None else seen_pixels(shown, masks, grid)).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
