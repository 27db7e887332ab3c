"""How parameters start: the distributions, and the two named schemes of Vision Transformers.

"jax" is that of the original code (Xavier-uniform maps with q, k and v each by itself, LeCun-normal patches, a head of
zeros); "timm" is timm's default (normal with deviation 0.02, patches uniform as PyTorch's convolution).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from minivit.arrays import Array
from minivit.nn.parameters import Initializer


def zeros(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return zeros."""
    return np.zeros(shape)


def ones(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return ones."""
    return np.ones(shape)


def normal(std: float) -> Initializer:
    """Return an initialiser that draws from the normal distribution with deviation `std`."""
    return lambda generator, shape: generator.normal(0.0, std, shape)


def uniform(bound: float) -> Initializer:
    """Return an initialiser that draws evenly between ``-bound`` and ``bound``."""
    return lambda generator, shape: generator.uniform(-bound, bound, shape)


def xavier_uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw an (in, out) matrix evenly within sqrt(6 / (in + out)) (Glorot and Bengio 2010)."""
    return generator.uniform(-1.0, 1.0, shape) * math.sqrt(6.0 / sum(shape))


def xavier_uniform_qkv(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw an (in, 3 out) matrix as three Xavier-uniform matrices, for q, k and v."""
    return generator.uniform(-1.0, 1.0, shape) * math.sqrt(6.0 / (shape[0] + shape[1] // 3))


def lecun_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw an (in, out) matrix with deviation 1 / sqrt(in), cut at two deviations (LeCun et al. 1998)."""
    value = generator.normal(size=shape)
    while (outside := np.abs(value) > 2.0).any():
        value[outside] = generator.normal(size=int(outside.sum()))
    deviation_of_cut_normal = 0.87962566103423978
    return value / (deviation_of_cut_normal * math.sqrt(shape[0]))


@dataclass(frozen=True)
class Scheme:
    """One initialiser for each role of a parameter in a Vision Transformer."""

    weight: Initializer
    qkv_weight: Initializer
    head_weight: Initializer
    bias: Initializer
    mlp_bias: Initializer
    cls_token: Initializer
    pos_embed: Initializer


SCHEMES = {
    "timm": Scheme(
        weight=normal(0.02),
        qkv_weight=normal(0.02),
        head_weight=normal(0.02),
        bias=zeros,
        mlp_bias=zeros,
        cls_token=normal(1e-6),
        pos_embed=normal(0.02),
    ),
    "jax": Scheme(
        weight=xavier_uniform,
        qkv_weight=xavier_uniform_qkv,
        head_weight=zeros,
        bias=zeros,
        mlp_bias=normal(1e-6),
        cls_token=zeros,
        pos_embed=normal(0.02),
    ),
}


def patch_initializers(scheme: str, fan_in: int) -> tuple[Initializer, Initializer]:
    """Return the initialisers of the patch projection's weight and bias, whose rows have `fan_in` numbers."""
    if scheme == "jax":
        return lecun_normal, zeros
    return uniform(1.0 / math.sqrt(fan_in)), uniform(1.0 / math.sqrt(fan_in))
