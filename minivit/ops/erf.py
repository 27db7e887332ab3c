"""The error function and the normal distribution function, with one approximation for each precision.

    erf(x) = 2 / sqrt(pi) * integral of exp(-t²) from 0 to x
    Phi(x) = (1 + erf(x / sqrt(2))) / 2        gauss(x) = exp(-x² / 2)        Phi'(x) = gauss(x) / sqrt(2 pi)

With z = |x|, the tail is gauss times a factor that varies slowly. One rational function approximates this factor on
the whole half line, and one exponential gives both Phi and its derivative (the form of Cody 1969, "Rational Chebyshev
approximations for the error function", on one interval; erfcx(z) = exp(z²) erfc(z)):

    Phi(-z) = gauss(z) * r(z)        r(z) = erfcx(z / sqrt(2)) / 2 ≈ p(z) / q(z)        Phi(z) = 1 - Phi(-z)

All coefficients of p and q are positive, so there is no cancellation. They are fitted by minimax; the error is 8.6e-8
in float32 and 4.9e-18 in float64, relative to 1 + z² / 4, since gauss itself has an error of z² / 2 roundings. For
z < 1, where 1 - 2 Phi(-sqrt(2) z) would cancel, erf(x) ≈ x + x s(x²), with errors of 1.2e-9 and 7.3e-18.
docs/derivations/fit_erf.py computes the coefficients.

complex128 uses the same arithmetic. Signs and branches depend on the real part alone and no derivative is used, so the
complex step f(x + ih).imag / h is the slope of this approximation, within 1e-14 of the exact slope. The derivatives are
used in docs/derivations/gelu.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array, namespace, native


class _Fit(NamedTuple):
    """Coefficients, highest power first."""

    p: tuple[float, ...]
    q: tuple[float, ...]
    s: tuple[float, ...]


_SINGLE = _Fit(
    p=(0.398831383, 2.96211465, 9.29608844, 13.4574033),
    q=(1.0, 7.41540371, 24.4369513, 40.0669486, 26.9148089),
    s=(7.85384677e-5, -0.000801018896, 0.00518832711, -0.0268538116, 0.112835851, -0.376126258, 0.128379166),
)
_DOUBLE = _Fit(
    p=(
        0.39894228039541331, 11.154121251483727, 151.60316550682358, 1299.3256112673346, 7690.5003680123014,
        32516.393856911131, 98287.746668767221, 205784.25980681492, 273710.919805666, 180486.57041749882,
    ),
    q=(
        1.0, 27.959235704870956, 381.01278141011688, 3284.8855396174417, 19655.238828046251, 84707.510802977328,
        264898.21807377763, 591094.35483151932, 897664.02201751631, 835436.73554809457, 360973.14083499764,
    ),
    s=(
        -7.779452641602147e-10, 1.3710971335429075e-8, -1.6206311503241484e-7, 1.6447131251092506e-6,
        -1.4924712273441257e-5, 0.00012055293575237291, -0.00085483259292509687, 0.0052239776061169155,
        -0.026866170643111234, 0.11283791670944183, -0.37612638903183519, 0.12837916709551257,
    ),
)  # fmt: skip
_FITS = {"float32": _SINGLE, "float64": _DOUBLE, "complex128": _DOUBLE}

# exp(-39² / 2) is 0 in float32 and float64. Without a limit z² would overflow.
_LIMIT = 39.0


@np.errstate(under="ignore")
def erf(x: Array) -> Array:
    """Return the error function of `x`, in its shape and dtype.

    Parameters
    ----------
    x : Array
        Any shape; float32 (within 2 ulp), float64 (relative error 1e-15) or complex128 with an imaginary part whose
        square is negligible, as in the complex step.

    Raises
    ------
    TypeError
        `x` is not an array, or has another dtype.
    """
    x = native(x)
    xp, fit, flat = _prepare(x)
    bounded = clip_real(xp, flat, _LIMIT / math.sqrt(2))
    z = magnitude(xp, bounded)
    near = bounded + bounded * _polynomial(fit.s, z * z)
    far = 1.0 - 2.0 * normal_cdf(-math.sqrt(2) * z)[0]
    y: Array = xp.where(z.real < 1, near, xp.where(flat.real < 0, -far, far))
    return y.reshape(x.shape)


@np.errstate(under="ignore")
def normal_cdf(x: Array) -> tuple[Array, Array]:
    """Return the normal distribution function of `x` and the exponential in it, in the shape and dtype of `x`.

    Parameters
    ----------
    x : Array
        Any shape; float32, float64 or complex128, as for `erf`.

    Returns
    -------
    cdf : Array
        Phi(x), with a small relative error in the lower tail too.
    gauss : Array
        exp(-x² / 2); the derivative of cdf is gauss / sqrt(2 pi).

    Raises
    ------
    TypeError
        `x` is not an array, or has another dtype.
    """
    xp, fit, flat = _prepare(x)
    z = magnitude(xp, clip_real(xp, flat, _LIMIT))
    tail = _polynomial(fit.p, z)
    tail /= _polynomial(fit.q, z)
    gauss = xp.multiply(z, z, out=z)
    gauss *= -0.5
    xp.exp(gauss, out=gauss)
    tail *= gauss
    # |1 - tail| for x >= 0 and |0 - tail| for x < 0: ten times as fast as xp.where on random signs.
    cdf = magnitude(xp, xp.subtract(flat.real >= 0, tail, out=tail))
    return cdf.reshape(x.shape), gauss.reshape(x.shape)


def _prepare(x: Array) -> tuple[Any, _Fit, Array]:
    xp = namespace(x)
    fit = _FITS.get(x.dtype.name)
    if fit is None:
        of_gelu = " (GELU on the host does not compute 16 bits: use model.astype('float32'))"
        hint = of_gelu if x.dtype.itemsize == 2 else ""
        raise TypeError(
            f"erf and normal_cdf take float32, float64 or complex128, got {x.dtype}; convert with x.astype{hint}"
        )
    # The in-place steps need an array, but operations on 0-d arrays return scalars.
    return xp, fit, x.reshape(x.shape or (1,))


def clip_real(xp: Any, x: Array, limit: float) -> Array:
    """Return a copy with the real part clipped to [-limit, limit], outside of which the function is constant."""
    if x.dtype.kind != "c":
        return xp.clip(x, -limit, limit)
    return xp.where(x.real > limit, limit, xp.where(x.real < -limit, -limit, x))


def magnitude(xp: Any, x: Array) -> Array:
    """Return x times the sign of its real part: |x| for a real x, and analytic for a complex one."""
    return xp.where(x.real < 0, -x, x) if x.dtype.kind == "c" else xp.abs(x)


def _polynomial(coefficients: tuple[float, ...], z: Array) -> Array:
    value = coefficients[0] * z
    for coefficient in coefficients[1:-1]:
        value += coefficient
        value *= z
    value += coefficients[-1]
    return value
