"""Initial values of parameters: the distributions, and two schemes for Vision Transformers.

"jax" is the scheme of the original code: Xavier-uniform weights (q, k and v as separate matrices), a LeCun-normal patch
projection, and a head of zeros. "timm" is timm's default: normal weights with standard deviation 0.02, and a patch
projection that is uniform as in PyTorch's convolution.
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
    """Return an initialiser that draws from the normal distribution with standard deviation `std`."""
    return lambda generator, shape: generator.normal(0.0, std, shape)


def uniform(bound: float) -> Initializer:
    """Return an initialiser that draws uniformly between ``-bound`` and ``bound``."""
    return lambda generator, shape: generator.uniform(-bound, bound, shape)


def xavier_uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw an (in, out) matrix uniformly within +-sqrt(6 / (in + out)) (Glorot and Bengio 2010)."""
    return generator.uniform(-1.0, 1.0, shape) * math.sqrt(6.0 / sum(shape))


def xavier_uniform_qkv(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw an (in, 3 out) matrix as three Xavier-uniform (in, out) matrices for q, k and v."""
    return generator.uniform(-1.0, 1.0, shape) * math.sqrt(6.0 / (shape[0] + shape[1] // 3))


def lecun_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw a normal (in, out) matrix, truncated at two deviations, with deviation 1 / sqrt(in) (LeCun et al. 1998)."""
    value = generator.normal(size=shape)
    while (outside := np.abs(value) > 2.0).any():
        value[outside] = generator.normal(size=int(outside.sum()))
    deviation_of_truncated_normal = 0.87962566103423978
    return value / (deviation_of_truncated_normal * math.sqrt(shape[0]))


@dataclass(frozen=True)
class Scheme:
    """The initialisers of a Vision Transformer, by the role of the parameter."""

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
    """Return the initialisers of the patch projection's weight and bias; `fan_in` is the number of values per patch."""
    if scheme == "jax":
        return lecun_normal, zeros
    return uniform(1.0 / math.sqrt(fan_in)), uniform(1.0 / math.sqrt(fan_in))
