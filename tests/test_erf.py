"""erf and normal_cdf against SciPy; a well-known formula fails the same tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bare_vit import model
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special

from minivit.ops.erf import erf, normal_cdf

Floats = NDArray[Any]
Function = Callable[[Floats], Floats]

STEP = 1e-20
ULPS, RELATIVE, SLOPE = 2.0, 1e-15, 1e-13


def five_terms(x: Floats) -> Floats:
    """Return erf by formula 7.1.26 of Abramowitz and Stegun."""
    sign = np.where(x.real < 0, -1.0, 1.0).astype(x.real.dtype)
    t = 1.0 / (1.0 + 0.3275911 * (sign * x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    result: Floats = sign * (1.0 - series * np.exp(-x * x))
    return result


def normal_float32() -> Floats:
    """Every 4096th float32 from the smallest normal number to the largest, of both signs, and a dense grid."""
    bits = np.arange(0x00800000, 0x7F800000, 4096, dtype=np.uint32)
    return np.concatenate([bits.view(np.float32), -bits.view(np.float32), np.linspace(-4.5, 4.5, 500_001, dtype="f4")])


def ulps(value: Floats, exact: Floats) -> Floats:
    distance: Floats = np.abs(value.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32))
    return distance


def worst_ulps(f: Function, x: Floats) -> float:
    return float(ulps(f(x), special.erf(x.astype(np.float64))).max())


def worst_relative(f: Function, x: Floats) -> float:
    exact = special.erf(x)
    return float((np.abs(f(x) - exact) / np.maximum(np.abs(exact), 1e-300)).max())


def worst_slope(f: Function, slope: Function, x: Floats) -> float:
    return float(np.abs(f(x + STEP * 1j).imag / STEP - slope(x)).max())


def gauss(x: Floats) -> Floats:
    return np.asarray(np.exp(-x * x / 2))


def density(x: Floats) -> Floats:
    return np.asarray(gauss(x) / np.sqrt(2 * np.pi))


def erf_slope(x: Floats) -> Floats:
    return np.asarray(2 / np.sqrt(np.pi) * np.exp(-x * x))


LINE = np.linspace(-8, 8, 200_001)
LOG_LINE = np.concatenate([sign * np.logspace(-290, 300, 50_001) for sign in (-1, 1)])


def test_float32_erf_is_within_two_ulps() -> None:
    assert worst_ulps(erf, normal_float32()) <= ULPS


def test_float64_erf_has_a_small_relative_error() -> None:
    assert worst_relative(erf, LINE) <= RELATIVE
    assert worst_relative(erf, LOG_LINE) <= RELATIVE


def test_the_complex_step_gives_the_slope_of_erf() -> None:
    assert worst_slope(erf, erf_slope, LINE) <= SLOPE


def test_the_five_term_formula_exceeds_every_tolerance() -> None:
    assert worst_ulps(five_terms, np.linspace(-4.5, 4.5, 10_001, dtype=np.float32)) > ULPS
    assert worst_relative(five_terms, LINE) > RELATIVE
    assert worst_slope(five_terms, erf_slope, LINE) > SLOPE


def test_the_complex_step_gives_the_slopes_of_normal_cdf() -> None:
    assert worst_slope(lambda x: normal_cdf(x)[0], density, LINE) <= SLOPE
    assert worst_slope(lambda x: normal_cdf(x)[1], lambda x: -x * gauss(x), LINE) <= SLOPE


def test_complex128_and_float64_have_the_same_values() -> None:
    x = np.concatenate([LINE, LOG_LINE])
    for one, other in zip((erf(x + STEP * 1j), *normal_cdf(x + STEP * 1j)), (erf(x), *normal_cdf(x)), strict=True):
        np.testing.assert_allclose(one.real, other, rtol=0, atol=4e-16)


def test_float32_normal_cdf_is_exact_enough_for_gelu() -> None:
    x = normal_float32()
    wide = x.astype(np.float64)
    error = np.abs(normal_cdf(x)[0] - special.ndtr(wide)) * np.abs(wide)
    assert (error / np.maximum(1, np.abs(wide))).max() < 1e-7


@pytest.mark.parametrize(("dtype", "rounding", "start"), [("float32", 4e-7, -13), ("float64", 1e-15, -37)])
def test_the_lower_tail_has_a_small_relative_error(dtype: str, rounding: float, start: float) -> None:
    """exp(-x² / 2) alone has a relative error of x² / 2 roundings; no result may be worse than that."""
    x = np.linspace(start, 0, 200_001).astype(dtype)
    wide = x.astype(np.float64)
    cdf, factor = normal_cdf(x)
    allowed = rounding * (1 + wide * wide / 2)
    assert (np.abs(cdf / special.ndtr(wide) - 1) < allowed).all()
    assert (np.abs(factor / gauss(wide) - 1) < allowed).all()


def test_float32_normal_cdf_is_exact_at_minus_six() -> None:
    assert normal_cdf(np.array([-6], np.float32))[0][0] == pytest.approx(special.ndtr(-6.0), rel=1e-6)


@given(st.floats(width=32, allow_nan=False))
@example(1.1754943508222875e-38)
@example(1e-45)
@example(0.99999994)
@example(1.0)
def test_any_float32_number_is_within_two_ulps(value: float) -> None:
    x = np.array([value], np.float32)
    exact = special.erf(x.astype(np.float64))
    assert ulps(erf(x), exact) <= ULPS
    assert erf(-x) == -erf(x)
    assert np.signbit(erf(x)) == np.signbit(x)
    cdf, factor = normal_cdf(x)
    assert 0 <= cdf <= 1
    assert 0 <= factor <= 1


@given(st.floats(allow_nan=False, allow_subnormal=False))
def test_any_float64_number_has_a_small_relative_error(value: float) -> None:
    x = np.array([value])
    np.testing.assert_allclose(erf(x), special.erf(x), rtol=RELATIVE, atol=0)
    np.testing.assert_allclose(normal_cdf(x)[0], special.ndtr(x), rtol=0, atol=4e-16)
    assert erf(-x) == -erf(x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_infinite_and_very_large_arguments_give_the_limits(dtype: str) -> None:
    huge = float(np.finfo(dtype).max)
    x = np.array([-np.inf, -huge, -1e30, -0.0, 0.0, 1e30, huge, np.inf, np.nan], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y, (cdf, factor) = erf(x), normal_cdf(x)
    np.testing.assert_array_equal(y, [-1, -1, -1, -0.0, 0, 1, 1, 1, np.nan])
    np.testing.assert_array_equal(np.signbit(y[3:5]), [True, False])
    np.testing.assert_array_equal(cdf, np.array([0, 0, 0, 0.5, 0.5, 1, 1, 1, np.nan]))
    np.testing.assert_array_equal(factor, [0, 0, 0, 1, 1, 0, 0, 0, np.nan])


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5, 7), (2, 3, 5)])
def test_shape_and_dtype_are_kept_and_the_argument_is_unchanged(shape: tuple[int, ...], dtype: str) -> None:
    x = np.asarray(np.random.default_rng(0).normal(0, 2, shape)).astype(dtype)
    before = x.copy()
    for result in (erf(x), *normal_cdf(x)):
        assert (result.shape, result.dtype) == (x.shape, x.dtype)
        assert not np.shares_memory(result, x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_strides_do_not_change_the_result(dtype: str) -> None:
    x = np.random.default_rng(0).normal(0, 2, (6, 10, 7)).astype(dtype).T[::-2, 1::3]
    packed = x.copy(order="C")
    x.flags.writeable = False
    for one, other in zip((erf(x), *normal_cdf(x)), (erf(packed), *normal_cdf(packed)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "int64", "bool", "complex64"])
@pytest.mark.parametrize("f", [erf, normal_cdf])
def test_other_dtypes_are_an_error(f: Callable[[Any], Any], dtype: str) -> None:
    with pytest.raises(TypeError, match=f"float32, float64 or complex128, got {dtype}"):
        f(np.ones(3, dtype))


@pytest.mark.parametrize("f", [erf, normal_cdf])
def test_an_argument_that_is_not_an_array_is_an_error(f: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="got list"):
        f([1.0])


def test_a_model_of_16_bits_on_the_host_is_told_to_be_converted() -> None:
    x = np.ones((1, 4, 9, 3), np.float16)
    with pytest.raises(TypeError, match=r"GELU on the host does not compute 16 bits: use model\.astype\('float32'\)"):
        model("float16")(x)
