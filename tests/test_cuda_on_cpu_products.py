"""The products of cuBLAS on a CPU: they equal NumPy's, and calls that cuBLAS rejects or gets wrong are errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_on_cpu import cublas
from cuda_on_cpu.emulator import LaunchError
from cuda_on_cpu.memory import MixError
from strict import strict

from minivit.arrays import Array, dtype_named, to_backend, to_host

BATCH, M, N, K = 3, 5, 7, 4
TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
CODES = {
    "float32": cublas.CUBLAS_COMPUTE_32F,
    "float64": cublas.CUBLAS_COMPUTE_64F,
    "tf32": cublas.CUBLAS_COMPUTE_32F_FAST_TF32,
}


def matrices(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Any:
    """Return numbers of few bits, whose products are exact in float32."""
    numbers = np.random.default_rng(seed).integers(-8, 9, shape) / 8
    return to_backend(numbers.astype(dtype_named(dtype)), strict)


def number(value: float, compute: str) -> Array:
    return np.array(value, "float64" if compute == "float64" else "float32")


def gemm(
    a: Any, b: Any, c: Any, *, scale: float = 1.0, share: float = 0.0, compute: str = "float32", **other: Any
) -> None:
    """Set c (batch, n, m) to b (batch, n, k) @ a (batch, k, m), which is A @ B in column-major order."""
    alpha, beta = number(scale, compute), number(share, compute)
    options: dict[str, Any] = {
        "handle": cublas.handle(), "transa": 0, "transb": 0, "m": M, "n": N, "k": K,
        "alpha": int(alpha.ctypes.data), "A": a.data.ptr, "Atype": TYPES[a.dtype.name], "lda": M, "strideA": M * K,
        "B": b.data.ptr, "Btype": TYPES[b.dtype.name], "ldb": K, "strideB": K * N,
        "beta": int(beta.ctypes.data), "C": c.data.ptr, "Ctype": TYPES[c.dtype.name], "ldc": M, "strideC": M * N,
        "batchCount": BATCH, "computeType": CODES[compute], "algo": cublas.CUBLAS_GEMM_DEFAULT,
    }  # fmt: skip
    cublas.gemmStridedBatchedEx(**options | other)


def operands(dtype: str = "float32", out: str | None = None) -> tuple[Any, Any, Any]:
    a, b = matrices(dtype, (BATCH, K, M)), matrices(dtype, (BATCH, N, K), 1)
    return a, b, strict.empty((BATCH, N, M), dtype=dtype_named(out or dtype))


def expected(a: Any, b: Any) -> Array:
    return to_host(b).astype("float64") @ to_host(a).astype("float64")


@pytest.mark.parametrize(
    ("dtype", "out", "compute"),
    [("float32", "float32", "float32"), ("float32", "float32", "tf32"), ("float64", "float64", "float64"),
     ("float16", "float16", "float32"), ("float16", "float32", "float32"), ("bfloat16", "bfloat16", "float32"),
     ("bfloat16", "float32", "float32")],
)  # fmt: skip
def test_products_of_every_type_are_exact(dtype: str, out: str, compute: str) -> None:
    a, b, c = operands(dtype, out)
    gemm(a, b, c, scale=0.5, compute=compute)
    once = 0.5 * expected(a, b)
    assert (to_host(c) == once.astype(dtype_named(out))).all()
    gemm(a, b, c, share=2.0, compute=compute)
    assert (to_host(c) == (expected(a, b) + 2 * once.astype(dtype_named(out))).astype(dtype_named(out))).all()


@pytest.mark.parametrize("transa", [0, 1])
@pytest.mark.parametrize("transb", [0, 1])
def test_operands_may_be_transposed(transa: int, transb: int) -> None:
    a, b, c = operands()
    left, right = (x.swapaxes(1, 2).copy() if turn else x for x, turn in ((a, transa), (b, transb)))
    gemm(left, right, c, transa=transa, transb=transb, lda=K if transa else M, ldb=N if transb else K)
    assert (to_host(c) == expected(a, b)).all()


def test_rows_and_matrices_may_have_strides() -> None:
    """The heads of attention have such strides: the batches are interleaved within a row."""
    a, b, _ = operands()
    strided, c = strict.zeros((K, BATCH, M), dtype="float32"), strict.zeros((N, BATCH, M), dtype="float32")
    strided.swapaxes(0, 1)[...] = a
    gemm(strided, b, c, lda=BATCH * M, strideA=M, ldc=BATCH * M, strideC=M)
    assert (to_host(c).swapaxes(0, 1) == expected(a, b)).all()
    gemm(a, b, c, strideA=0, ldc=BATCH * M, strideC=M)
    assert (to_host(c).swapaxes(0, 1) == expected(a[:1], b)).all()


def test_gemm_ex_computes_one_product() -> None:
    a, b, c = operands()
    one, zero = number(1, ""), number(0, "")
    cublas.gemmEx(cublas.handle(), 0, 0, M, N, K, int(one.ctypes.data), a.data.ptr, 0, M, b.data.ptr, 0, K,
                  int(zero.ctypes.data), c.data.ptr, 0, M, cublas.CUBLAS_COMPUTE_32F, -1)  # fmt: skip
    assert (to_host(c[0]) == expected(a, b)[0]).all()
    assert np.isnan(to_host(c[1:])).all()


def test_tf32_keeps_ten_bits() -> None:
    a, b, c = operands()
    step = 2.0**-10
    for given, kept in ((0.75 * step, step), (0.5 * step, 0), (1.5 * step, 2 * step), (0.25 * step, 0)):
        for x, y in ((a, b), (b, a)):
            x[...], y[...] = 1 + given, 1.0
            gemm(a, b, c, compute="tf32")
            assert (to_host(c) == np.float32(K * (1 + kept))).all()
    a[...] = np.inf
    gemm(a, b, c, compute="tf32")
    assert np.isposinf(to_host(c)).all()
    gemm(strict.empty_like(a), b, c, compute="tf32")
    assert np.isnan(to_host(c)).all()


def test_a_product_of_empty_matrices_is_zero() -> None:
    a, b, c = operands()
    gemm(a, b, c, k=0, ldb=1)
    assert not to_host(c).any()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "handle": ({"handle": 1}, "handle 1"),
    "a NumPy integer": ({"m": np.int64(M)}, "arguments must be integers: m"),
    "a float": ({"lda": 5.0}, "arguments must be integers: lda"),
    "conjugate": ({"transb": 2}, "transa and transb must be N or T: 2"),
    "negative": ({"k": -1}, "sizes must not be negative"),
    "algorithm": ({"algo": 3}, "no algorithm 3"),
    "lda": ({"lda": M - 1}, "leading dimensions are too small: lda"),
    "lda transposed": ({"transa": 1, "lda": K - 1}, "leading dimensions are too small: lda"),
    "ldb": ({"ldb": K - 1}, "leading dimensions are too small: ldb"),
    "ldc": ({"ldc": M - 1}, "leading dimensions are too small: ldc"),
    "two types": ({"Btype": 2}, "types are not supported"),
    "an unknown type": ({"Atype": 3, "Btype": 3}, "types are not supported"),
    "result of fewer bits": ({"Ctype": 2}, "types are not supported"),
    "a type for a computation": ({"computeType": 0}, "types are not supported"),
    "double computation": ({"computeType": 70}, "types are not supported"),
    "A too short": ({"strideA": M * K + 1}, "A is not inside the memory"),
    "B too short": ({"batchCount": BATCH + 1, "strideA": 0, "strideC": 0}, "B is not inside the memory"),
    "C too short": ({"ldc": M + 1, "strideC": (M + 1) * N}, "C is not inside the memory"),
    "C below": ({"strideC": -M * N}, "C is not inside the memory"),
    "null": ({"A": 0}, "A is not inside the memory"),
    "an unaligned address": ({"strideA": 0, "A": 2}, "the address of A"),
    "equal results": ({"strideC": 0}, "matrices of C overlap"),
    "overlapping results": ({"strideC": M * N - 1}, "matrices of C overlap"),
    "alpha": ({"alpha": 0}, "alpha is not an address on the host"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_argument_is_an_error(fault: str) -> None:
    other, message = WRONG[fault]
    a, b, c = operands()
    if other.get("A"):
        other = other | {"A": a.data.ptr + other["A"]}
    with pytest.raises(LaunchError, match=f"^gemm: .*{message}"):
        gemm(a, b, c, **other)
    assert np.isnan(to_host(c)).all()


def test_a_result_must_not_overlap_an_operand() -> None:
    a, b, c = operands()
    with pytest.raises(LaunchError, match="C overlaps an operand"):
        gemm(c, b, c, strideA=0)
    with pytest.raises(LaunchError, match="beta is not an address on the host"):
        gemm(a, b, c, beta=c.data.ptr)


def test_arrays_on_two_devices_are_an_error() -> None:
    a, b, c = operands()
    with pytest.raises(MixError, match=r"gemm runs on device 0, .* on device 1"):
        gemm(strict.on_device(a, 1), b, c)
