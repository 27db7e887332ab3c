"""Matrix products by cuBLAS on strided views: no operand is copied, transposed or converted.

gemmEx, or gemmStridedBatchedEx for a batch, computes every dtype. 16-bit operands are summed in float32 and may give a
float32 result; float32 operands are rounded to TF32 if `minivit.arrays.precision` allows it. cuBLAS is column-major, so
it computes out.T = b.T @ a.T.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from minivit.arrays import Array, namespace
from minivit.arrays.precision import tf32_allowed
from minivit.kernels.cuda.runtime import acc_dtype, address, blas_of

# cudaDataType_t and cublasComputeType_t
_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32, _COMPUTE_64F = 68, 77, 70
_DEFAULT_ALGORITHM = -1


def product(a: Array, b: Array, out: Array, *, scale: float = 1.0, add: bool = False) -> None:
    """Set `out` to ``scale * a @ b``, or add it.

    Parameters
    ----------
    a, b, out : Array
        (m, k), (k, n) and (m, n), or with one batch axis in front of all three. One of the last two axes must be
        contiguous, in `out` the last. Any of the four floating dtypes; `out` may have `acc_dtype` instead.

    Raises
    ------
    ValueError
        The shapes do not match, or the strides are not supported.
    """
    library = namespace(a, b, out)
    m, k = a.shape[-2:]
    n = b.shape[-1]
    if a.shape[:-2] != b.shape[:-2] or b.shape[-2] != k or out.shape != (*a.shape[:-2], m, n):
        raise ValueError(f"the shapes of a product do not match: {a.shape} @ {b.shape} into {out.shape}")
    if 0 in out.shape:
        return
    transpose_a, lda = _layout(a)
    transpose_b, ldb = _layout(b)
    transpose_out, ldc = _layout(out)
    if transpose_out:
        raise ValueError(f"the result of a product has strides {out.strides}; its rows must be contiguous")
    bindings, handle = blas_of(library)
    number = _number(acc_dtype(a.dtype))
    common = handle(), transpose_b, transpose_a, n, m, k, number(scale)
    how = _compute_type(a), _DEFAULT_ALGORITHM
    if out.ndim == 2:
        bindings.gemmEx(
            *common, address(b), _code(b), ldb, address(a), _code(a), lda, number(float(add)), address(out), _code(out),
            ldc, *how,
        )  # fmt: skip
    else:
        bindings.gemmStridedBatchedEx(
            *common, address(b), _code(b), ldb, _batch_stride(b), address(a), _code(a), lda, _batch_stride(a),
            number(float(add)), address(out), _code(out), ldc, _batch_stride(out), len(out), *how,
        )  # fmt: skip


def _layout(x: Array) -> tuple[int, int]:
    """Return whether `x` is transposed, that is, its columns are contiguous, and the leading dimension."""
    rows, columns = x.shape[-2:]
    row, column = (stride // x.itemsize for stride in x.strides[-2:])
    if min(x.strides) < 0:
        raise ValueError(f"an operand of a product has strides {x.strides}; none may be negative")
    if columns == 1 or column == 1:
        return 0, max(row if rows > 1 else columns, 1)
    if rows == 1 or row == 1:
        return 1, column
    raise ValueError(f"an operand of a product has strides {x.strides}; its rows or its columns must be contiguous")


def _batch_stride(x: Array) -> int:
    return x.strides[0] // x.itemsize


def _code(x: Array) -> int:
    return _codes(x.dtype)


@functools.cache
def _codes(dtype: Any) -> int:
    return _TYPES[dtype.name]


def _compute_type(x: Array) -> int:
    if x.dtype == np.float64:
        return _COMPUTE_64F
    return _COMPUTE_32F_FAST_TF32 if tf32_allowed() and x.dtype == np.float32 else _COMPUTE_32F


@functools.cache
def _number(dtype: np.dtype[Any]) -> Any:
    """Return a function that returns the host address of a number of `dtype`."""

    @functools.cache
    def address(value: float) -> int:
        number = np.array(value, dtype)
        kept.append(number)
        return int(number.ctypes.data)

    kept: list[Array] = []
    return address
