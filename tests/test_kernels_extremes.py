"""The NumPy kernels on extreme values: scores out of the range of exp, the tails of GELU, rows with a large mean."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import numpy as np
import pytest
from contract import normal
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import special

from minivit import ops
from minivit.arrays import Array
from minivit.kernels.numpy.block_inference import twice_gelu

B, N, H, K = 3, 7, 2, 5


def attention_passes(qkv: Array, dy: Array, queries: slice = slice(None)) -> list[Array]:
    """Return the result and the gradients of queries, keys and values."""
    y, cache = ops.attention(qkv, H, None, queries)
    return [y, *np.split(ops.attention_backward(dy, cache), 3, axis=-1)]


def tokens_with_scores(offsets: Array) -> Array:
    """Return qkv (B, N, 3 D) whose scores are random numbers plus the `offsets` (B, N, H) of their queries."""
    qkv = np.random.default_rng(0).standard_normal((B, N, 3, H, K))
    length = np.sqrt(np.abs(offsets).max() * K**0.5) + 1e-30
    qkv[:, :, 0, :, 0] = offsets * K**0.5 / length
    qkv[:, :, 1, :, 0] = length
    return qkv.reshape(B, N, -1)


def assert_attention(qkv: Array, dy: Array, dtype: str, score: float, queries: slice = slice(None)) -> None:
    """Assert that the kernel equals the reference in float64, up to the rounding of scores of size `score`.

    An absolute error of a score is a relative error of its weight, and a score has a few rounding errors of its size.
    """
    qkv, dy = qkv.astype(dtype), dy.astype(dtype)
    got = attention_passes(qkv, dy, queries)
    with ops.reference_only():
        expected = attention_passes(qkv.astype("float64"), dy.astype("float64"), queries)
    tolerance = (10 + score) * np.finfo(dtype).eps
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == dtype
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)


# In float32 the last two underflow or overflow if a product is not divided by the sum of its row.
@pytest.mark.parametrize(("v", "dy"), [(1.0, 1.0), (1e-10, 1.0), (1.0, 1e-14), (1e9, 1.0), (1.0, 1e9)])
@pytest.mark.parametrize("score", [0.0, 12.0, 27.0, 50.0, 65.0, 75.0, 85.0, 700.0, 1e4])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attention_is_exact_for_scores_of_any_size(dtype: str, sign: int, score: float, v: float, dy: float) -> None:
    qkv = tokens_with_scores(np.full((B, N, H), sign * score))
    qkv[:, :, 2 * H * K :] *= v
    assert_attention(qkv, dy * normal(qkv[:, :, : H * K]), dtype, score)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attention_is_exact_for_scores_of_different_sizes(dtype: str) -> None:
    offsets = np.random.default_rng(1).choice([-1e4, -85, -30, 0, 30, 85, 1e4], (B, N, H))
    qkv = tokens_with_scores(offsets)
    assert_attention(qkv, normal(qkv[:, :, : H * K]), dtype, 1e4)


@pytest.mark.parametrize("queries", [slice(0, 1), slice(2, 4), slice(-3, None), slice(0, 7, 3), slice(6, None, -2)])
@pytest.mark.parametrize("score", [0.0, 1e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attention_of_some_queries_is_exact(dtype: str, score: float, queries: slice) -> None:
    """The class token alone, some tokens in the middle, and in another order; other tokens have a zero dq."""
    qkv = tokens_with_scores(np.full((B, N, H), score))
    dy = normal(qkv[:, queries, : H * K])
    assert_attention(qkv, dy, dtype, score, queries)
    dq = attention_passes(qkv.astype(dtype), dy.astype(dtype), queries)[1]
    selected = np.zeros(N, bool)
    selected[queries] = True
    assert (dq[:, ~selected] == 0).all()
    assert (dq[:, selected] != 0).any(axis=-1).all()


def test_attention_of_a_query_with_nan_is_nan() -> None:
    qkv = normal(np.zeros((B, N, 3 * H * K), "float32"))
    qkv[1, 2, 0] = np.nan  # of the query of one token in one head
    y, _ = ops.attention(qkv, H)
    assert np.argwhere(np.isnan(y)).tolist() == [[1, 2, column] for column in range(K)]


def line() -> Array:
    """Return every 4096th float32 of both signs, the largest ones, and a dense grid on [-12, 12]."""
    bits = np.arange(0, 0x7F800000, 4096, dtype=np.uint32).view("float32")
    largest = np.finfo("float32").max
    return np.concatenate([bits, -bits, [largest, -largest], np.linspace(-12, 12, 1_000_001, dtype="float32")])


def test_gelu_and_its_slope_are_within_two_ulps_of_one() -> None:
    """The fit of Phi has an error of 2.9e-8, a quarter of an ulp; the rest is rounding.

    tanh and exp have errors of up to 2 ulps; halving 1 + tanh, and the density, make that 1 ulp. The measured errors
    are 1.2 ulps for the result, relative to x for x > 1, and 1.5 ulps for the slope.
    """
    x = line()
    wide = x.astype("float64")
    y, cache = ops.gelu(x)
    cdf = special.ndtr(wide)
    bounded = np.clip(wide, -40, 40)
    slope = cdf + bounded * np.exp(-bounded * bounded / 2) / np.sqrt(2 * np.pi)
    allowed = 2 * np.finfo("float32").eps
    assert (np.abs(y - wide * cdf) <= allowed * np.maximum(1, np.abs(wide))).all()
    assert np.abs(ops.gelu_backward(np.ones_like(x), cache) - slope).max() <= allowed


def test_gelu_of_inference_is_within_two_ulps_of_one() -> None:
    """The fit has an error of half an ulp; the measured error of the result is 1.4 ulps, relative to x for x > 1."""
    x = line()
    x = x[np.abs(x) <= np.finfo("float32").max / 2]  # of larger ones, twice the result is infinite
    y, wide = x.copy(), x.astype("float64")
    twice_gelu(y)
    exact = wide * special.ndtr(wide)
    assert (np.abs(y / 2.0 - exact) <= 2 * np.finfo("float32").eps * np.maximum(1, np.abs(wide))).all()


def test_gelu_has_monotone_tails() -> None:
    for x in (np.linspace(-20, -5.5, 100_001, dtype="float32"), np.linspace(5.5, 20, 100_001, dtype="float32")):
        cdf = ops.gelu(x)[0] / x
        assert (np.diff(cdf) >= 0).all()
        assert 0 <= cdf[0] <= cdf[-1] <= 1
    assert ops.gelu(np.array([-20], "float32"))[0] == 0
    assert ops.gelu(np.array([20], "float32"))[0] == 20


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(1.1754943508222875e-38)
@example(1e-45)
@example(-0.0)
@example(3.4028234663852886e38)
def test_gelu_of_any_number_raises_no_warning_and_has_the_sign_of_its_argument(value: float) -> None:
    x = np.array([value], "float32")
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y, cache = ops.gelu(x)
        slope = ops.gelu_backward(np.ones_like(x), cache)
    assert np.signbit(y) == np.signbit(x)
    assert np.abs(y) <= np.abs(x)
    assert -0.13 <= slope <= 1.13
    if abs(value) < 1e-8:
        assert y == x * np.float32(0.5)
        assert slope == 0.5


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 5)])
def test_gelu_keeps_the_shape_of_its_argument(shape: tuple[int, ...]) -> None:
    x = np.asarray(normal(np.zeros(shape, "float32")))
    y, cache = ops.gelu(x)
    dx = ops.gelu_backward(y, cache)
    assert (y.shape, y.dtype, dx.shape, dx.dtype) == (shape, x.dtype, shape, x.dtype)


def layer_norm_passes(x: Array, dtype: str, eps: float = 1e-6) -> list[Array]:
    """Return the result and all gradients for rows (n, D) with weight and bias about 1."""
    weight, bias = ((1 + 0.1 * normal(x[0], seed)).astype(dtype) for seed in (1, 2))
    y, cache = ops.layer_norm(x.astype(dtype), weight, bias, eps)
    return [y, *ops.layer_norm_backward(normal(x, 3).astype(dtype), cache)]


@pytest.mark.parametrize("mean", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("D", [7, 192])
def test_layer_norm_of_rows_with_a_large_mean_is_exact(D: int, mean: float) -> None:
    """The rounding error of a mean is relative to its size, and x minus the mean has the same absolute error."""
    x = (mean + normal(np.zeros((50, D)))).astype("float32")
    got = layer_norm_passes(x, "float32")
    with ops.reference_only():
        expected = layer_norm_passes(x, "float64")
    for one, other in zip(got, expected, strict=True):
        assert np.linalg.norm(one - other) <= 2 * (1 + mean) * np.finfo("float32").eps * np.linalg.norm(other)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [0.0, -3.3, 1e3])
def test_layer_norm_of_constant_rows_is_the_bias_up_to_the_rounding_of_the_mean(value: float, dtype: str) -> None:
    D, eps = 192, 1e-6
    weight, bias = (1 + 0.1 * normal(np.zeros(D, dtype), seed) for seed in (1, 2))
    x = np.full((4, D), value, dtype)
    y, cache = ops.layer_norm(x, weight, bias, eps)
    rounding = 8 * np.finfo(dtype).eps * abs(value) / eps**0.5 + np.finfo(dtype).eps
    assert np.abs((y - bias) / weight).max() <= 4 * rounding
    assert all(np.isfinite(dx).all() for dx in ops.layer_norm_backward(normal(x), cache))


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layer_norm_with_any_eps_equals_the_reference(dtype: str, eps: float) -> None:
    x = normal(np.zeros((11, 13), dtype))
    got = layer_norm_passes(x, dtype, eps)
    with ops.reference_only():
        expected = layer_norm_passes(x, dtype, eps)
    for one, other in zip(got, expected, strict=True):
        assert np.linalg.norm(one - other) <= 10 * np.finfo(dtype).eps * np.linalg.norm(other)


def test_layer_norm_of_one_number_is_the_bias() -> None:
    x, dy = np.array([[3], [5]], "float32"), np.array([[2], [3]], "float32")
    y, cache = ops.layer_norm(x, np.array([7], "float32"), np.array([11], "float32"))
    dx, dweight, dbias = ops.layer_norm_backward(dy, cache)
    assert (y.tolist(), dx.tolist()) == ([[11], [11]], [[0], [0]])
    assert (dweight.tolist(), dbias.tolist()) == ([0], [5])


class _Words(ctypes.Structure):
    """A signalling NaN of float32, as often as fits in 64 KiB."""

    _fields_ = (("words", ctypes.c_uint32 * (1 << 14)),)


@pytest.fixture
def signalling_stack() -> Callable[[], None]:
    """Leaves signalling NaNs where the next call has its stack."""
    leave = ctypes.CDLL(None).getpid
    leave.argtypes = [_Words]
    words = _Words((ctypes.c_uint32 * (1 << 14))(*[0x7FA00000] * (1 << 14)))
    return lambda: leave(words)


of_posix = pytest.mark.skipif(os.name != "posix", reason="the C library has another name")


@of_posix
def test_attention_does_not_warn_of_what_an_earlier_call_left_on_the_stack(
    signalling_stack: Callable[[], None],
) -> None:
    qkv = normal(np.empty((1, 5, 3 * H * K))).astype("float32")
    signalling_stack()
    with np.errstate(invalid="raise"):
        ops.attention(qkv, H, None, slice(0, 1))


@of_posix
@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 5, 1)], ids=str)
def test_a_linear_map_does_not_warn_of_what_is_left_on_the_stack(
    shape: tuple[int, int, int], signalling_stack: Callable[[], None]
) -> None:
    B, I, O = shape  # noqa: E741 - of the op
    x, weight = normal(np.empty((B, I))).astype("float32"), normal(np.empty((I, O))).astype("float32")
    with np.errstate(invalid="raise"):
        signalling_stack()
        y, cache = ops.linear(x, weight)
        signalling_stack()
        ops.linear_backward(y, cache)
