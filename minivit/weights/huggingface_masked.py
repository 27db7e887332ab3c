"""The models for masked pre-training of Hugging Face transformers: ViTMAEForPreTraining, ViTForMaskedImageModeling.

Their encoder is a ViTModel (`minivit.weights.huggingface`). The decoder of the former is a Transformer with fixed
positions, that of the latter a convolution of 1 x 1 whose channels are the pixels of a patch, channel by channel.

https://github.com/huggingface/transformers, src/transformers/models/vit_mae and src/transformers/models/vit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.masked import MaskedModel
from minivit.ops.sincos_positions import sincos_table
from minivit.weights.deduce import expect_axes, warn_of_assumed
from minivit.weights.entries import Entry, linear, norm, same
from minivit.weights.huggingface import HuggingFace, block_entries, is_of_decoder, written
from minivit.weights.huggingface_config import said_of
from minivit.weights.layout import WeightsFile

_LAYOUT = HuggingFace()
_POSITIONS = "decoder.decoder_pos_embed"
_LAYER = "decoder.decoder_layers.{}."
_HEAD = ("head.weight", "head.bias")
# The options that config.json defines, with its names and defaults.
_SAID = {
    "ratio": ("mask_ratio", 0.75),
    "decoder_heads": ("decoder_num_attention_heads", 16),
    "norm_pixels": ("norm_pix_loss", False),
}
_SIZES = {
    "decoder_dim": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_mlp": "decoder_intermediate_size",
}


def whole(tensors: dict[str, Array]) -> dict[str, Array]:
    """Return the tensors of encoder and decoder with the names in files; they may be `hollow`."""
    decoder = {written(name): value for name, value in tensors.items() if is_of_decoder(name)}
    return _LAYOUT.prepare(tensors) | decoder


def task_of(file: WeightsFile) -> str | None:
    """Return the task of the model, by its decoder, or None."""
    if any(name.startswith("decoder.decoder_") for name in file.tensors):
        return "mae"
    return "simmim" if any(name.startswith("decoder.0.") for name in file.tensors) else None


def options_of(file: WeightsFile, task: str, config: ViTConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the model beside its encoder, of which `config` is the configuration.

    `given` are the options that the caller replaces; the others that the files do not define are assumed.

    Raises
    ------
    UserError
        The decoder is incomplete, predicts something else than the pixels of a patch, or differs from config.json.
    """
    shapes, said = file.shapes, file.config_json
    patch = config.patch_height, config.patch_width
    if task == "simmim":
        expect_axes(file, _LAYOUT.program, shapes, {"decoder.0.weight": 4})
        outputs, pixels = shapes["decoder.0.weight"][0], patch[0] * patch[1] * config.in_chans
        stride = said.get("encoder_stride", patch[0])
        if patch[0] != patch[1] or outputs != pixels or stride != patch[0]:
            raise UserError(
                f"{file.path} predicts {outputs} numbers for each patch, with encoder_stride {stride!r:.40}; expected "
                f"the {pixels} of a square patch of {patch[0]} x {patch[1]} pixels"
            )
        return {}
    embed, hidden = "decoder.decoder_embed.weight", _LAYER.format(0) + "intermediate.dense.weight"
    expect_axes(file, _LAYOUT.program, shapes, {embed: 2} | ({hidden: 2} if hidden in shapes else {}))
    layers = {match[1] for name in shapes if (match := re.match(r"decoder\.decoder_layers\.(\d+)\.", name))}
    found = {"decoder_dim": shapes[embed][0], "decoder_depth": len(layers)}
    found |= {"decoder_mlp": shapes[hidden][0]} if hidden in shapes else {}
    if layers and not config.qkv_bias:
        raise UserError(f"{file.path} has a decoder without biases of queries, keys and values; minivit's has them")
    for name, size in found.items():
        if said.get(_SIZES[name], size) != size:
            raise UserError(
                f"{file.path.with_name('config.json')} belongs to another model: it has {_SIZES[name]} "
                f"{said[_SIZES[name]]!r:.40}, and the tensors in {file.path.name} {size}"
            )
    options = {name: said.get(theirs, usual) for name, (theirs, usual) in _SAID.items()}
    if not said_of(file):
        warn_of_assumed(file, {n: v for n, v in options.items() if n not in given}, f"as in {_LAYOUT.program}")
    return options | found | {"eps": config.norm_eps}


def entries(model: MaskedModel) -> list[Entry]:
    """Return an entry for each parameter of encoder and decoder."""
    config = model.encoder.config
    encoder = [entry._replace(name=f"encoder.{entry.name}") for entry in _LAYOUT.entries(model.encoder)]
    ours = {entry.name: entry for entry in encoder}
    if model.task == "simmim":
        P, Q, C = config.patch_height, config.patch_width, config.in_chans
        ours["mask_token"] = same("mask_token", "vit.embeddings.mask_token")
        ours |= {name: _pixels(name, f"decoder.0.{name.removeprefix('head.')}", P, Q, C) for name in _HEAD}
    else:
        ours["mask_token"] = same("mask_token", "decoder.mask_token")
        for name in ("decoder_embed", "decoder_pred"):
            ours |= linear(name, f"decoder.{name}")
        ours |= norm("decoder_norm", "decoder.decoder_norm")
        for i in range(model.options["decoder_depth"]):
            ours |= block_entries(f"decoder_blocks.{i}.", _LAYER.format(i))
    return [ours[name] for name in model.declared() if name in ours]


def fixed(file: WeightsFile, task: str, config: ViTConfig, options: Mapping[str, Any]) -> dict[str, Array]:
    """Return the tensors of the file that are not parameters here, with the values that they must have.

    Raises
    ------
    UserError
        There are no such positions for the decoder's width, or theirs have another shape.
    """
    if task != "mae":
        return {}
    width = options["decoder_dim"]
    shape = (1, 1 + config.num_patches, width)
    if file.shapes.get(_POSITIONS) != shape:  # so the table is no larger than the file
        raise UserError(f"{file.path} has no {_POSITIONS} of shape {shape}, the fixed positions of its decoder")
    try:
        table = sincos_table(config.grid, width, "mae")
    except ValueError as error:
        raise UserError(f"{file.path}: its decoder has no positions that minivit computes: {error}") from error
    return {_POSITIONS: np.concatenate([np.zeros((1, width)), table])[None]}


def _pixels(name: str, theirs: str, P: int, Q: int, C: int) -> Entry:
    """Return the entry of a weight (D, P Q C) or a bias (P Q C), which is (C P Q, D, 1, 1) or (C P Q) there."""
    last = (1, 1) if name == "head.weight" else ()

    def join(values: list[Array]) -> Array:
        value = values[0].reshape(C, P, Q, -1).transpose(1, 2, 0, 3).reshape(P * Q * C, -1)
        return value.T if last else value[:, 0]

    def split(value: Array) -> list[Array]:
        columns = value.T if last else value[:, None]
        moved = columns.reshape(P, Q, C, -1).transpose(2, 0, 1, 3).reshape(P * Q * C, -1)
        return [moved.reshape(*moved.shape, *last) if last else moved[:, 0]]

    return Entry(name, (theirs,), join, split)
