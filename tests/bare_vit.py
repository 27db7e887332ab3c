"""A small float64 model without dropout, initialised from its configuration, and images for it."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np
from contract import normal

from minivit import Layer, ViT, ViTConfig
from minivit.arrays import Array

L = TypeVar("L", bound=Layer)
SMALL = ViTConfig(img_size=(4, 9), patch_size=(2, 3), embed_dim=6, depth=3, num_heads=2, num_classes=7)


def model(dtype: str = "float64", **fields: Any) -> ViT:
    return ViT(dataclasses.replace(SMALL, **fields), seed=3, dtype=dtype)


def shaken(layer: L, by: float = 0.3) -> L:
    """Add random numbers to every parameter, so that no gradient vanishes because a bias or the head is zero."""
    for seed, parameter in enumerate(layer.parameters.values()):
        parameter.value[...] += by * normal(parameter.value, seed)
    return layer


def images(B: int = 2, dtype: str = "float64") -> Array:
    return np.random.default_rng(0).standard_normal((B, 4, 9, 3)).astype(dtype)
