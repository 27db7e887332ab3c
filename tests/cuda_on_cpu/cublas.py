"""gemmEx and gemmStridedBatchedEx of cuBLAS, computed by NumPy: ``cupy_backends.cuda.libs.cublas`` for tests.

Matrices are column-major. A `LaunchError` is raised for what cuBLAS does not support, and for what it would get wrong
without an error: memory outside of an allocation, and results that overlap.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from cuda_on_cpu.emulator import LaunchError
from cuda_on_cpu.memory import check_devices, device_of, owner_of

CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
CUBLAS_GEMM_DEFAULT, CUBLAS_GEMM_DEFAULT_TENSOR_OP = -1, 99
CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF = 0, 1, 2, 14
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_64F = 68, 77, 70

_DTYPES = {CUDA_R_32F: "float32", CUDA_R_64F: "float64", CUDA_R_16F: "float16", CUDA_R_16BF: "bfloat16"}
# For each type of computation, the supported types of operands and result.
SUPPORTED = {
    CUBLAS_COMPUTE_32F: {
        (CUDA_R_32F, CUDA_R_32F),
        (CUDA_R_16F, CUDA_R_16F),
        (CUDA_R_16F, CUDA_R_32F),
        (CUDA_R_16BF, CUDA_R_16BF),
        (CUDA_R_16BF, CUDA_R_32F),
    },
    CUBLAS_COMPUTE_32F_FAST_TF32: {(CUDA_R_32F, CUDA_R_32F)},
    CUBLAS_COMPUTE_64F: {(CUDA_R_64F, CUDA_R_64F)},
}
HANDLE = 0x0B1A5


def handle() -> int:
    """Return the handle of the current device."""
    return HANDLE


def gemmEx(  # noqa: N802 - as in CuPy
    handle: int, transa: int, transb: int, m: int, n: int, k: int,
    alpha: int, A: int, Atype: int, lda: int, B: int, Btype: int, ldb: int,
    beta: int, C: int, Ctype: int, ldc: int, computeType: int, algo: int,
) -> None:  # fmt: skip
    """Set C (m, n) to alpha * op(A) @ op(B) + beta * C."""
    gemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B, Btype, ldb, 0,
                         beta, C, Ctype, ldc, 0, 1, computeType, algo)  # fmt: skip


def gemmStridedBatchedEx(  # noqa: N802 - as in CuPy
    handle: int, transa: int, transb: int, m: int, n: int, k: int,
    alpha: int, A: int, Atype: int, lda: int, strideA: int, B: int, Btype: int, ldb: int, strideB: int,
    beta: int, C: int, Ctype: int, ldc: int, strideC: int, batchCount: int, computeType: int, algo: int,
) -> None:  # fmt: skip
    """Set each C (m, n) of a batch to alpha * op(A) @ op(B) + beta * C."""
    given = dict(locals())
    _reject([name for name, value in given.items() if type(value) is not int], "arguments must be integers")
    _reject(handle != HANDLE, f"the handle {handle} is not the result of handle()")
    _reject({transa, transb} - {CUBLAS_OP_N, CUBLAS_OP_T}, "transa and transb must be N or T")
    _reject(min(m, n, k, batchCount) < 0, f"sizes must not be negative: {m}, {n}, {k} and a batch of {batchCount}")
    algorithms = CUBLAS_GEMM_DEFAULT, CUBLAS_GEMM_DEFAULT_TENSOR_OP
    _reject(algo not in algorithms, f"there is no algorithm {algo}")
    _reject(
        Atype != Btype or (Atype, Ctype) not in SUPPORTED.get(computeType, ()),
        f"types are not supported: operands {Atype} and {Btype}, result {Ctype}, computation {computeType}",
    )
    rows_of = {"lda": (lda, k if transa else m), "ldb": (ldb, n if transb else k), "ldc": (ldc, m)}
    _reject([name for name, (ld, rows) in rows_of.items() if ld < max(1, rows)], "leading dimensions are too small")
    if 0 in (m, n, batchCount):
        return
    batch = batchCount
    a = _matrices("A", A, Atype, (batch, m, k), (strideA, lda, 1) if transa else (strideA, 1, lda))
    b = _matrices("B", B, Btype, (batch, k, n), (strideB, ldb, 1) if transb else (strideB, 1, ldb))
    c = _matrices("C", C, Ctype, (batch, m, n), (strideC, 1, ldc))
    _reject(_overlaps(c), "the matrices of C overlap")
    _reject(np.shares_memory(a, c) or np.shares_memory(b, c), "C overlaps an operand")
    check_devices("gemm", filter(None, map(device_of, (a, b, c))))
    scale, share = _number("alpha", alpha, computeType), _number("beta", beta, computeType)
    with np.errstate(all="ignore"):
        result = scale * (_operand(a, computeType) @ _operand(b, computeType))
        c[...] = (result + share * c.astype(result.dtype) if share else result).astype(c.dtype)


def _reject(wrong: Any, problem: str) -> None:
    """Raise LaunchError if `wrong` is True, or is not empty."""
    if wrong:
        raise LaunchError(f"gemm: {problem}" if wrong is True else f"gemm: {problem}: {', '.join(map(str, wrong))}")


def _matrices(
    name: str, address: int, type_: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Return a view of the numbers at an address; they must be inside one allocation."""
    dtype = np.dtype(_DTYPES[type_])
    if 0 in shape:
        return np.zeros(shape, dtype)
    _reject(address % dtype.itemsize != 0, f"the address of {name} is not a multiple of {dtype.itemsize}")
    steps = [stride * dtype.itemsize for stride in strides]
    spans = [(size - 1) * step for size, step in zip(shape, steps, strict=True)]
    first = address + sum(min(span, 0) for span in spans)
    stop = address + sum(max(span, 0) for span in spans) + dtype.itemsize
    memory = owner_of(first, stop)
    if memory is None:
        raise LaunchError(f"gemm: {name} is not inside the memory of an array")
    return np.ndarray(shape, dtype, memory, address - memory.start + memory.offset, steps)


def _overlaps(c: np.ndarray[Any, Any]) -> bool:
    span = 0
    for step, size in sorted((abs(step), size) for step, size in zip(c.strides, c.shape, strict=True) if size > 1):
        if step <= span:
            return True
        span += step * (size - 1)
    return False


def _number(name: str, address: int, compute: int) -> Any:
    _reject(address == 0 or owner_of(address, address + 1) is not None, f"{name} is not an address on the host")
    dtype = _compute_dtype(compute)
    return np.frombuffer(ctypes.string_at(address, dtype.itemsize), dtype)[0]


def _compute_dtype(compute: int) -> np.dtype[Any]:
    return np.dtype("float64" if compute == CUBLAS_COMPUTE_64F else "float32")


def _operand(x: np.ndarray[Any, Any], compute: int) -> np.ndarray[Any, Any]:
    """Return the operand in the type of the computation; TF32 keeps 10 bits of the mantissa."""
    if compute != CUBLAS_COMPUTE_32F_FAST_TF32:
        return x.astype(_compute_dtype(compute))
    bits: Any = x.view(np.uint32)
    bits = bits + 0xFFF + (bits >> 13 & 1) & 0xFFFFE000
    return np.where(np.isfinite(x), bits.view(np.float32), x)
