"""What a page shows of a model of masked pre-training: which patches it saw, and where the tokens of its layers are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minivit.arrays import Array, to_host
from minivit.errors import UserError
from minivit.nn.corrupted import SimMIM
from minivit.nn.mae import MAE
from minivit.nn.masked import MaskedModel
from minivit.nn.masked_patches import MaskedPatches
from minivit.nn.model import Model
from minivit.nn.vit import ViT
from minivit.tracing.measures import part_of

_GREY = 128  # of a patch that is not seen
_OF_PREDICTED = ("head", "decoder_norm", "decoder_pred")  # layers after the choice of the predicted patches


class Masks(NamedTuple):
    """The patches of an image in evaluation, by their numbers from 0, row by row.

    Attributes
    ----------
    seen : list of int
        For each patch the number of that which the model sees in its place, -1 where it sees none.
    predicted : list of int
        Those that are predicted, in the order of the model.
    encoded : list of int or None
        Of a masked autoencoder: the tokens that its encoder gets, in their order. None: it gets all.
    """

    seen: list[int]
    predicted: list[int]
    encoded: list[int] | None


def expect_shown(model: object) -> Model:
    """Return the model, or raise UserError if it is none that a page can show."""
    if not isinstance(model, ViT | MaskedPatches | SimMIM | MAE):
        raise UserError(
            f"the model is of type {type(model).__name__}; expected a ViT or a model of masked pre-training"
        )
    return model


def encoder_of(model: Model) -> ViT:
    """Return the encoder of a model of masked pre-training, or the ViT itself."""
    encoder = model.encoder if isinstance(model, MaskedModel) else model
    assert isinstance(encoder, ViT)
    return encoder


def masks_of(model: Model, image: Array) -> Masks | None:
    """Return what a model of masked pre-training sees in evaluation of an image (1, height, width, C), or None."""
    if not isinstance(model, MaskedModel):
        return None
    _, key = model.key(None, image)
    order = model.order(key)
    numbers: list[int] = to_host(order)[0].tolist()
    predicted, others = numbers[: model.num_masked], numbers[model.num_masked :]
    if isinstance(model, MaskedPatches | SimMIM):
        return Masks(to_host(model.corruption(key, order))[0].tolist(), predicted, None)
    prefix, hidden = model.config.num_prefix_tokens, set(predicted)
    seen = [-1 if patch in hidden else patch for patch in range(len(numbers))]
    return Masks(seen, predicted, [*range(prefix), *(prefix + patch for patch in others)])


def places_of(name: str, count: int, model: Model, masks: Masks | None) -> list[int] | None:
    """Return which tokens of the model the `count` rows of a layer or op are, or None where they are not tokens.

    Parameters
    ----------
    name : str
        Of the layer or op.
    count : int
        The number of rows, those of its result.
    model : Model
        The model.
    masks : Masks or None
        Of the image, for a model of masked pre-training.
    """
    config = model.config
    tokens, patches = config.num_tokens, config.num_patches
    places = None
    if masks is not None and part_of(name) in _OF_PREDICTED:
        places = [config.num_prefix_tokens + patch for patch in masks.predicted]
    elif masks is not None and masks.encoded is not None and _is_encoded(name):
        places = masks.encoded
    elif count in (tokens, patches):
        return list(range(tokens - count, tokens))
    return places if places is not None and len(places) == count else None


def _is_encoded(name: str) -> bool:
    return name.startswith("encoder.blocks.") or part_of(name) in ("encoder.norm", "decoder_embed")


def seen_pixels(pixels: Array, masks: Masks, grid: tuple[int, int]) -> Array:
    """Return an image (height, width) or (height, width, 3), uint8, with the patches that are seen; others are grey."""
    (rows, columns), (height, width) = grid, pixels.shape[:2]
    shape = rows, height // rows, columns, width // columns, *pixels.shape[2:]
    patches = np.moveaxis(pixels.reshape(shape), 2, 1).reshape(rows * columns, *shape[1:2], *shape[3:])
    seen = np.full_like(patches, _GREY)
    for place, patch in enumerate(masks.seen):
        if patch >= 0:
            seen[place] = patches[patch]
    back = np.moveaxis(seen.reshape(rows, columns, *seen.shape[1:]), 1, 2)
    return back.reshape(pixels.shape)


def weights_of(model: Model) -> int:
    """Return the number of attention weights of one image."""
    encoder, config = encoder_of(model), model.config
    tokens = config.num_tokens
    if not isinstance(model, MAE):
        return len(encoder.blocks) * config.num_heads * tokens**2
    attentions = [getattr(block, "attn", None) for block in model.decoder_blocks]  # blocks may be replaced
    decoder = sum(getattr(attention, "num_heads", config.num_heads) for attention in attentions)
    return len(encoder.blocks) * config.num_heads * (tokens - model.num_masked) ** 2 + decoder * tokens**2
