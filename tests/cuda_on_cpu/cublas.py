"""The matrix products of cuBLAS that take any floating type, by NumPy: ``cupy_backends.cuda.libs.cublas`` for tests.

Matrices lie column by column. What cuBLAS does not support, and what it would get wrong in silence - memory outside of
an allocation, results that overlap - is a `LaunchError`.
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
# For each type of computation, the types of the operands and of the result.
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
    """Return the handle that every call expects."""
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
    _refuse([name for name, value in given.items() if type(value) is not int], "are no integers")
    _refuse(handle != HANDLE, f"the handle {handle} is not that of handle()")
    _refuse({transa, transb} - {CUBLAS_OP_N, CUBLAS_OP_T}, "are neither N nor T")
    _refuse(min(m, n, k, batchCount) < 0, f"{m}, {n}, {k} and a batch of {batchCount} are no sizes")
    algorithms = CUBLAS_GEMM_DEFAULT, CUBLAS_GEMM_DEFAULT_TENSOR_OP
    _refuse(algo not in algorithms, f"there is no algorithm {algo}")
    _refuse(
        Atype != Btype or (Atype, Ctype) not in SUPPORTED.get(computeType, ()),
        f"operands of types {Atype} and {Btype}, a result of {Ctype} and computation by {computeType} do not fit",
    )
    least = {"lda": (lda, k if transa else m), "ldb": (ldb, n if transb else k), "ldc": (ldc, m)}
    _refuse([name for name, (ld, rows) in least.items() if ld < max(1, rows)], "are less than the rows of a column")
    if 0 in (m, n, batchCount):
        return
    batch = batchCount
    a = _matrices("A", A, Atype, (batch, m, k), (strideA, lda, 1) if transa else (strideA, 1, lda))
    b = _matrices("B", B, Btype, (batch, k, n), (strideB, ldb, 1) if transb else (strideB, 1, ldb))
    c = _matrices("C", C, Ctype, (batch, m, n), (strideC, 1, ldc))
    _refuse(_overlaps(c), "the matrices of C overlap")
    _refuse(np.shares_memory(a, c) or np.shares_memory(b, c), "C overlaps an operand")
    check_devices("gemm", filter(None, map(device_of, (a, b, c))))
    scale, share = _number("alpha", alpha, computeType), _number("beta", beta, computeType)
    with np.errstate(all="ignore"):
        result = scale * (_operand(a, computeType) @ _operand(b, computeType))
        c[...] = (result + share * c.astype(result.dtype) if share else result).astype(c.dtype)


def _refuse(wrong: Any, problem: str) -> None:
    if wrong:
        raise LaunchError(f"gemm: {problem}" if wrong is True else f"gemm: {', '.join(map(str, wrong))} {problem}")


def _matrices(
    name: str, address: int, type_: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Return a view of the numbers at an address; they must lie in one allocation."""
    dtype = np.dtype(_DTYPES[type_])
    if 0 in shape:
        return np.zeros(shape, dtype)
    _refuse(address % dtype.itemsize != 0, f"{name} starts at an address that is no multiple of {dtype.itemsize}")
    steps = [stride * dtype.itemsize for stride in strides]
    reach = [(size - 1) * step for size, step in zip(shape, steps, strict=True)]
    first = address + sum(min(way, 0) for way in reach)
    stop = address + sum(max(way, 0) for way in reach) + dtype.itemsize
    memory = owner_of(first, stop)
    if memory is None:
        raise LaunchError(f"gemm: {name} reaches outside of the memory of an array")
    return np.ndarray(shape, dtype, memory, address - memory.start + memory.offset, steps)


def _overlaps(c: np.ndarray[Any, Any]) -> bool:
    reach = 0
    for step, size in sorted((abs(step), size) for step, size in zip(c.strides, c.shape, strict=True) if size > 1):
        if step <= reach:
            return True
        reach += step * (size - 1)
    return False


def _number(name: str, address: int, compute: int) -> Any:
    _refuse(address == 0 or owner_of(address, address + 1) is not None, f"{name} is no address on the host")
    dtype = _compute_dtype(compute)
    return np.frombuffer(ctypes.string_at(address, dtype.itemsize), dtype)[0]


def _compute_dtype(compute: int) -> np.dtype[Any]:
    return np.dtype("float64" if compute == CUBLAS_COMPUTE_64F else "float32")


def _operand(x: np.ndarray[Any, Any], compute: int) -> np.ndarray[Any, Any]:
    """Return the numbers as they are multiplied: TF32 keeps 10 bits of a fraction."""
    if compute != CUBLAS_COMPUTE_32F_FAST_TF32:
        return x.astype(_compute_dtype(compute))
    bits: Any = x.view(np.uint32)
    bits = bits + 0xFFF + (bits >> 13 & 1) & 0xFFFFE000
    return np.where(np.isfinite(x), bits.view(np.float32), x)
