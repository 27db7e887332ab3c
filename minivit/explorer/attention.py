"""Attention of one image: the weights of each head and their gradients, and the rollout over the image."""

from __future__ import annotations

from typing import TypedDict

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.explorer.heat_maps import HeatMaps, Plane
from minivit.explorer.masks import Masks, places_of
from minivit.nn.model import Model
from minivit.nn.vit import ViT
from minivit.tracing.attention import attention_rollout
from minivit.tracing.statistics import Statistics
from minivit.tracing.trace import Trace


class BlockAttention(TypedDict):
    """The attention of one block, or of attention pooling. schema.json describes the fields."""

    layer: str
    weights: list[int]
    dweights: list[int] | None
    tokens: int
    queries: int
    places: list[int] | None


def attention_of(trace: Trace, maps: HeatMaps, model: Model, masks: Masks | None) -> list[BlockAttention]:
    """Return the attention of each layer that has weights (1, H, M, N), all of them finite.

    Of a layer that does not get all tokens, `places` are those that it gets.
    """
    found: list[BlockAttention] = []
    for record in trace:
        weights = record.quantities.get("weights")
        if record.is_op or weights is None or isinstance(weights, Statistics) or weights.ndim != 4:
            continue
        M, N = weights.shape[2:]
        some = masks is not None and M == N < model.config.num_tokens
        places = places_of(record.name, N, model, masks) if some else None
        shown = _heads(weights, "weights", maps, some)
        if shown is None or (some and places is None):  # it is not known which tokens these are
            continue
        dweights = record.dweights
        gradients = None if dweights is None else _heads(dweights, "gradient of the weights", maps, some)
        found.append(
            {
                "layer": record.name,
                "weights": shown,
                "dweights": gradients,
                "tokens": N,
                "queries": M,
                "places": places,
            }
        )
    return found


def _heads(weights: Array, what: str, maps: HeatMaps, some: bool) -> list[int] | None:
    order = " of the tokens that the layer gets, in its order" if some else ""
    how = f"{what} of one head: queries by keys{order}; a cell is a number; each row has 8 bits and its own scale"
    indices = [maps.add_exactly(each, how) for each in weights[0]]
    return None if None in indices else [index for index in indices if index is not None]


def rollout_of(model: Model, image: Array, maps: HeatMaps) -> int | None:
    """Return the map of attention rollout over the patches of an image (1, height, width, C), or None.

    There is none of a model whose weights are not finite, whose blocks are not those of attention, or that has no head
    to read the result, as in masked pre-training.
    """
    if not isinstance(model, ViT):
        return None
    try:
        rollout = attention_rollout(model, image)[0]
    except UserError:
        return None
    return maps.add(Plane(rollout, "rows of patches", "columns"), rollout.shape)
