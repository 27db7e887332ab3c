"""The layers of the page: each quantity of a layer with its statistics, its shape and its heat map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from minivit.explorer.heat_maps import HeatMaps, plane_of
from minivit.explorer.sources import kind_of
from minivit.explorer.subjects import layer_of, layers_by_name
from minivit.nn.mae import MAE
from minivit.nn.model import Model
from minivit.tracing.quantities import ATTENTION
from minivit.tracing.record import Record
from minivit.tracing.statistics import Statistics

_ENCODER = "encoder."
_ROLES = {"x": "in", "y": "out", "dy": "back", "dx": "passed"}

_TITLES = {
    "patch_embed": "patch embedding",
    "patch_embed.patches": "cut into patches",
    "patch_embed.proj": "patch embedding: projection",
    "pos_embed": "positions",
    "pos_drop": "dropout after the positions",
    "patch_drop": "dropout of patches",
    "norm_pre": "layer norm before the blocks",
    "norm": "final layer norm",
    "fc_norm": "layer norm of the pooled vector",
    "attn_pool": "attention pooling",
    "head_drop": "dropout before the head",
    "pre_logits": "hidden layer before the head",
    "head": "head",
    "pool": "pooling",
    "cross_entropy": "loss: cross-entropy",
}
_MASKED = {
    "encoder.norm": "final norm of the encoder",
    "fill_tokens": "some tokens are replaced",
    "take_tokens": "tokens of the patches to predict",
    "head": "head: predictions",
    "patches": "pixels, cut into patches",
    "take_tokens_2": "pixels to predict",
    "pixel_error": "loss: error of the pixels",
    "token_cross_entropy": "loss: cross-entropy of colours",
}
_MAE = {
    **_MASKED,
    "take_tokens": "tokens that the encoder sees",
    "decoder_embed": "map to the decoder's width",
    "fill_tokens": "mask tokens for the others",
    "sincos_positions": "positions of the decoder",
    "take_tokens_2": "tokens of the patches to predict",
    "decoder_norm": "final norm of the decoder",
    "decoder_pred": "predictions of pixels",
    "take_tokens_3": "pixels to predict",
    "layer_norm": "pixels of each patch, with mean 0 and variance 1",
}
_IN_BLOCK = {
    "norm1": "layer norm before attention",
    "attn": "attention",
    "attn.qkv": "queries, keys and values",
    "attn.q_norm": "layer norm of the queries",
    "attn.k_norm": "layer norm of the keys",
    "attn.softmax": "softmax of the scores",
    "attn.attn_drop": "dropout of the weights",
    "attn.proj": "projection of the heads",
    "attn.proj_drop": "dropout after attention",
    "ls1": "scale of the attention branch",
    "drop_path1": "stochastic depth of the attention branch",
    "norm2": "layer norm before the MLP",
    "mlp": "MLP",
    "mlp.fc1": "MLP, first linear layer",
    "mlp.act": "MLP, activation",
    "mlp.drop1": "MLP, dropout of the hidden features",
    "mlp.fc2": "MLP, second linear layer",
    "mlp.drop2": "dropout after the MLP",
    "ls2": "scale of the MLP branch",
    "drop_path2": "stochastic depth of the MLP branch",
}


class Quantity(TypedDict):
    """One array of a layer. schema.json describes the fields."""

    name: str
    role: str
    shape: list[int]
    dtype: str
    statistics: dict[str, Any]
    map: int | None


class Layer(TypedDict):
    """One layer, or an op that has no layer of its own."""

    name: str
    kind: str
    title: str
    block: int | None
    quantities: list[Quantity]


def layers_of(records: Mapping[str, Record], model: Model, maps: HeatMaps | None) -> list[Layer]:
    """Return the layers of a trace of one image, and its ops that have no layer of their own, in their order.

    Parameters
    ----------
    records : mapping
        Those of the trace, by name.
    model : Model
        The model of the trace.
    maps : HeatMaps or None
        Where the heat maps go; None: statistics alone.
    """
    return [
        {
            "name": name,
            "kind": kind if isinstance(kind, str) else kind_of(kind),
            "title": title(name, model),
            "block": block_of(name),
            "quantities": _quantities(records[name], maps),
        }
        for name, kind in kinds_of(records, model).items()
    ]


def kinds_of(records: Mapping[str, Record], model: Model) -> dict[str, str | type]:
    """Return the class of each layer that is shown, and the name of each op, by its name."""
    layers = layers_by_name(model)
    return {
        name: records[name].kind if records[name].is_op else type(layer_of(name, layers)) for name in shown(records)
    }


def shown(records: Mapping[str, Record]) -> list[str]:
    """Return the names of the layers, and of the ops that show more than the layer that calls them.

    The only op of a layer without parts, such as `linear` of a Linear, has the quantities of the layer; so has the op
    of attention, whose softmax is shown.
    """
    with_parts = {name.rpartition(".")[0] for name, record in records.items() if not record.is_op} | {""}
    return [
        name
        for name, record in records.items()
        if not record.is_op or (name.rpartition(".")[0] in with_parts and record.kind not in ATTENTION)
    ]


def title(name: str, model: Model) -> str:
    """Return what a layer or op of a model is, in words."""
    if name == next(iter(layers_by_name(model))):
        return "the whole model"
    block = block_of(name)
    if name == "embed":
        return _added(model)
    own = name.removeprefix(_ENCODER)
    if block is None:
        of_masked = (_MAE if isinstance(model, MAE) else _MASKED) if model.gives_losses else {}
        return of_masked.get(name, _TITLES.get(own, name))
    rest = own.split(".", 2)[2:]
    words = _IN_BLOCK.get(rest[0], rest[0]) if rest else ""
    of = "decoder " if name.startswith("decoder_") else "encoder " if own != name else ""
    return f"{of}block {block}: {words}" if words else f"{of}block {block}"


def _added(model: Model) -> str:
    """Return what is added to the patches: "class token and positions"."""
    config = model.config
    has = {
        "class token": config.class_token,
        "registers": config.reg_tokens,
        "positions": config.pos_embed == "learn",
    }
    parts = [part for part, present in has.items() if present]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "nothing is added"


def block_of(name: str) -> int | None:
    """Return the number of the block that a layer or op is in, or None."""
    first, *rest = name.removeprefix(_ENCODER).split(".")
    return int(rest[0]) if first in ("blocks", "decoder_blocks") and rest and rest[0].isdecimal() else None


def _quantities(record: Record, maps: HeatMaps | None) -> list[Quantity]:
    """Return x, y, dy and dx, then what is inside, then the parameters, each followed by its gradient."""
    names = [name for name in record.quantities if not name.startswith("d") or name[1:] not in record.quantities]
    # Of an op, the first argument is also called x; there is no derivative by labels and indices.
    parameters = [name for name in record.argument_names if name != "x"]
    if record.is_op:
        first = record.argument_names[:1]
        names = [name for name in names if name not in (*first, "labels", "index") or name == "x"]
        parameters = [name for name in parameters if name in names and name != "target"]  # the pixels to predict
    inside = [name for name in names if name not in ("x", "y", *parameters)]
    found = [_quantity(record, name, role, maps) for name, role in _ROLES.items() if name in record.quantities]
    for group, role, gradient in ((inside, "inside", "inside"), (parameters, "parameter", "gradient")):
        for name in group:
            found.append(_quantity(record, name, role, maps))
            if f"d{name}" in record.quantities:
                found.append(_quantity(record, f"d{name}", gradient, maps))
    return found


def _quantity(record: Record, name: str, role: str, maps: HeatMaps | None) -> Quantity:
    array, shape, index = record.quantities[name], record.shapes[name], None
    if maps is not None and not isinstance(array, Statistics):
        index = maps.add(plane_of(array, name, record.kind, record.name), shape)
    return {
        "name": name,
        "role": role,
        "shape": list(shape),
        "dtype": record.dtypes[name],
        "statistics": record.statistics[name].to_dict(),
        "map": index,
    }
