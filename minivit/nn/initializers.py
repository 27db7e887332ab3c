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
from minivit.errors import UserError
from minivit.nn.parameters import Initializer


def zeros(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return zeros."""
    return np.zeros(shape)


def ones(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return ones."""
    return np.ones(shape)


@dataclass(frozen=True)
class constant:  # noqa: N801 - used like the functions beside it
    """An initialiser that returns `value` everywhere."""

    value: float

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return the array."""
        return np.full(shape, self.value)


@dataclass(frozen=True)
class normal:  # noqa: N801 - as `constant`
    """An initialiser that draws from the normal distribution with standard deviation `std`."""

    std: float

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return the drawn values."""
        return generator.normal(0.0, self.std, shape)


@dataclass(frozen=True)
class uniform:  # noqa: N801 - as `constant`
    """An initialiser that draws uniformly between ``-bound`` and ``bound``."""

    bound: float

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return the drawn values."""
        return generator.uniform(-self.bound, self.bound, shape)


def xavier_uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw (..., in, out) numbers uniformly within +-sqrt(6 / (in + out)) (Glorot and Bengio 2010)."""
    return generator.uniform(-1.0, 1.0, shape) * math.sqrt(6.0 / sum(shape[-2:]))


@dataclass(frozen=True)
class xavier_uniform_parts:  # noqa: N801 - as `constant`
    """An initialiser that draws an (in, `count` * out) matrix as Xavier-uniform (in, out) matrices, such as q, k, v."""

    count: int

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return the drawn values."""
        return generator.uniform(-1.0, 1.0, shape) * math.sqrt(6.0 / (shape[0] + shape[1] // self.count))


def lecun_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw a normal (in, out) matrix, truncated at two deviations, with deviation 1 / sqrt(in) (LeCun et al. 1998)."""
    deviation_of_truncated_normal = 0.87962566103423978
    return _truncated_normal(generator, shape) / (deviation_of_truncated_normal * math.sqrt(shape[0]))


def latent_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw (..., D) normal numbers, truncated at two deviations, and divide them by sqrt(D), as timm's latent query."""
    return _truncated_normal(generator, shape) / math.sqrt(shape[-1])


def _truncated_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    value = generator.normal(size=shape)
    while (outside := np.abs(value) > 2.0).any():
        value[outside] = generator.normal(size=int(outside.sum()))
    return value


@dataclass(frozen=True)
class Scheme:
    """The initialisers of a Vision Transformer, by the role of the parameter."""

    weight: Initializer
    qkv_weight: Initializer
    kv_weight: Initializer
    hidden_weight: Initializer  # of the layer before the head
    head_weight: Initializer
    bias: Initializer
    mlp_bias: Initializer
    cls_token: Initializer
    reg_token: Initializer  # random: registers that begin alike, and have no positions, would stay alike
    latent: Initializer
    pos_embed: Initializer


SCHEMES = {
    "timm": Scheme(
        weight=normal(0.02),
        qkv_weight=normal(0.02),
        kv_weight=normal(0.02),
        hidden_weight=normal(0.02),
        head_weight=normal(0.02),
        bias=zeros,
        mlp_bias=zeros,
        cls_token=normal(1e-6),
        reg_token=normal(1e-6),
        latent=latent_normal,
        pos_embed=normal(0.02),
    ),
    "jax": Scheme(
        weight=xavier_uniform,
        qkv_weight=xavier_uniform_parts(3),
        kv_weight=xavier_uniform_parts(2),
        hidden_weight=lecun_normal,
        head_weight=zeros,
        bias=zeros,
        mlp_bias=normal(1e-6),
        cls_token=zeros,
        reg_token=normal(0.02),
        latent=xavier_uniform,
        pos_embed=normal(0.02),
    ),
}


def scheme_named(init: str) -> Scheme:
    """Return the scheme of this name, one of `SCHEMES`; UserError if there is none."""
    if init not in SCHEMES:
        raise UserError(f"init is {init!r}; expected {' or '.join(map(repr, SCHEMES))}")
    return SCHEMES[init]


def patch_initializers(init: str, fan_in: int) -> tuple[Initializer, Initializer]:
    """Return the initialisers of the patch projection's weight and bias; `fan_in` is the number of values per patch."""
    if scheme_named(init) is SCHEMES["jax"]:
        return lecun_normal, zeros
    return uniform(1.0 / math.sqrt(fan_in)), uniform(1.0 / math.sqrt(fan_in))
