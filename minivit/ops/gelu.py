"""GELU, exact and by tanh (Hendrycks and Gimpel 2016).

    exact:  y = x * Phi(x)              dx = dy * (Phi(x) + x * phi(x))
    tanh:   y = x * (1 + t) / 2         dx = dy * ((1 + t) / 2 + x * (1 - t**2) / 2 * inner')
            t = tanh(inner)             inner = c * (x + a * x**3),  c = sqrt(2 / pi),  a = 0.044715

Phi is the normal distribution function and phi its density; both use the same exp(-x**2 / 2) (erf.py). The two forms
differ by up to 4.7e-4 and their derivatives by up to 8.7e-4, so each form has its own derivative. The steps are in
docs/derivations/gelu.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.erf import clip_real, normal_cdf
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect_gradient, same_dtype

_C = math.sqrt(2.0 / math.pi)
_A = 0.044715
_FLAT = 20.0  # for larger x, t rounds to 1
_DENSITY = 1.0 / math.sqrt(2.0 * math.pi)


class GELUCache(NamedTuple):
    """What the backward pass of `gelu` reads."""

    slope: Array  # dy/dx, the shape of x


def check_gelu(x: Array, approximate: str) -> Any:
    """Return the array library of the arguments of `gelu`, or raise if they are invalid."""
    xp = namespace(x)
    same_dtype("gelu", x=x)
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate is {approximate!r}; expected 'none' or 'tanh'")
    return xp


@op
def gelu(x: Array, approximate: str = "none", *, keep: bool = True) -> tuple[Array, GELUCache | None]:
    """Return GELU of each element of `x`.

    Parameters
    ----------
    x : Array
        Any shape, floating.
    approximate : str
        "none" for the exact form, "tanh" for the tanh approximation that many older models use.
    keep : bool
        Whether to return the cache that `gelu_backward` reads.
    """
    check_gelu(x, approximate)
    return (_gelu_exact if approximate == "none" else _gelu_tanh)(x, keep)


def _gelu_exact(x: Array, keep: bool) -> tuple[Array, GELUCache | None]:
    cdf, gauss = normal_cdf(x)
    y = x * cdf
    return y, GELUCache(_exact_derivative(x, cdf, gauss)) if keep else None


def _exact_derivative(x: Array, cdf: Array, gauss: Array) -> Array:
    return cdf + x * gauss * _DENSITY


def _gelu_tanh(x: Array, keep: bool) -> tuple[Array, GELUCache | None]:
    xp = namespace(x)
    bounded = clip_real(xp, x, _FLAT)
    square = bounded * bounded
    t = xp.tanh(bounded * (_C + _C * _A * square))
    y = x * (0.5 + 0.5 * t)
    return y, GELUCache(_tanh_derivative(bounded, square, t)) if keep else None


def _tanh_derivative(x: Array, square: Array, t: Array) -> Array:
    return 0.5 + 0.5 * t + x * (0.5 - 0.5 * t * t) * (_C + 3.0 * _C * _A * square)


@op_backward
def gelu_backward(dy: Array, cache: GELUCache) -> Array:
    """Return ``dx`` for the gradient `dy` of `gelu`'s result."""
    expect_gradient("gelu", dy, cache.slope.shape, cache.slope.dtype)
    return dy * cache.slope
