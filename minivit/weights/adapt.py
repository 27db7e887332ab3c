"""Weights of one model for another: a new head, and positions for images of another size, as in fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.vit import ViT
from minivit.weights.resample import CONVENTIONS, resampled

# The fields of a configuration that `load_model` changes after the file was read.
CHANGEABLE = ("num_classes", "img_size")
_HEAD = ("head.", "pre_logits.")
_SEQUENCE = re.compile(r"pos_embed|pos_embeds\.\d+")


def adapted_config(config: ViTConfig, wanted: Mapping[str, Any]) -> ViTConfig:
    """Return `config` with the `CHANGEABLE` fields in `wanted`.

    Another number of classes replaces the whole head, its hidden layer included, by one linear layer.
    """
    changed = replace(config, **{name: wanted[name] for name in CHANGEABLE if name in wanted})
    if changed.num_classes != config.num_classes:
        changed = replace(changed, representation_size=0)
    return changed


def adapted(state: Mapping[str, Array], config: ViTConfig, model: ViT, resample: str = "timm") -> dict[str, Array]:
    """Return the parameters of a model of `config` for `model`, which may have no values yet.

    Parameters
    ----------
    state : mapping of str to Array
        The parameters, on the host.
    config : ViTConfig
        The configuration that they belong to.
    model : ViT
        The model that they are for; its configuration is one that `adapted_config` returned.
    resample : str
        How learned positions are resampled for another grid of patches: "timm" or "google".

    Raises
    ------
    UserError
        The positions are for distances in a sequence of another length, or there is no such convention.
    """
    expect_convention(resample)
    new, values = model.config, dict(state)
    if new.num_classes != config.num_classes:
        dtype = next(iter(values.values())).dtype
        values = {name: value for name, value in values.items() if not name.startswith(_HEAD)}
        declared = model.declared()
        values |= {name: np.zeros(it.shape, dtype) for name, it in declared.items() if name.startswith(_HEAD)}
    if new.grid == config.grid:
        return values
    if config.pos_embed == "relative":
        raise UserError(
            f"the relative positions of this model are for {config.num_tokens} tokens, and images of {new.height} x "
            f"{new.width} have {new.num_tokens}: they cannot be resampled; leave img_size out"
        )
    prefix = 0 if config.no_embed_class else config.num_prefix_tokens
    for name, value in values.items():
        if _SEQUENCE.fullmatch(name):
            D = value.shape[-1]
            grid = resampled(value[0, prefix:].reshape(*config.grid, D), new.grid, resample).reshape(1, -1, D)
            values[name] = np.concatenate([value[:, :prefix], grid], axis=1)
        elif name == "pos_embed.rows":
            values[name] = resampled(value[:, None], (new.grid[0], 1), resample)[:, 0]
        elif name == "pos_embed.columns":
            values[name] = resampled(value[None], (1, new.grid[1]), resample)[0]
    return values


def expect_convention(resample: str) -> None:
    """Raise UserError unless `resample` is one of `CONVENTIONS`."""
    if resample not in CONVENTIONS:
        raise UserError(f"resample is {resample!r:.40}; expected {' or '.join(map(repr, CONVENTIONS))}")
