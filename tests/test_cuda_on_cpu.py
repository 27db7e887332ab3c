"""CUDA kernels on a CPU: small kernels give the results that CUDA defines, in every order of their threads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_on_cpu.compiler import CompileError
from cuda_on_cpu.emulator import ORDERS, LaunchError, thread_order
from devices import needs_kernels
from strict import strict

from minivit.arrays import dtype_named

pytestmark = needs_kernels

SHUFFLES = """
extern "C" __global__ void shuffles(int *out) {
  const int lane = threadIdx.x;
  int *row = out + lane * 8;
  row[0] = __shfl_xor_sync(0xffffffff, lane, 5);
  row[1] = __shfl_xor_sync(0xffffffff, lane, 12, 8);
  row[2] = __shfl_down_sync(0xffffffff, lane, 3);
  row[3] = __shfl_down_sync(0xffffffff, lane, 3, 16);
  row[4] = __shfl_up_sync(0xffffffff, lane, 2);
  row[5] = __shfl_up_sync(0xffffffff, lane, 2, 4);
  row[6] = __shfl_sync(0xffffffff, lane, lane * 7);
  row[7] = __shfl_sync(0xffffffff, lane, 9, 8);
}
"""

SUMS = """
template <class T> __device__ T warp_sum(T x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(0xffffffff, x, offset);
  return x;
}

template <class T> __device__ T block_sum(T x) {
  __shared__ T sums[32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  T total = 0;
  for (int w = 0; w < blockDim.x / 32; ++w) total += sums[w];
  __syncthreads();
  return total;
}

extern "C" __global__ void __launch_bounds__(256) row_sums(const REAL *x, REAL *out, long long columns) {
  REAL sum = 0, squares = 0;
  for (long long c = threadIdx.x; c < columns; c += blockDim.x) {
    const REAL a = x[blockIdx.x * columns + c];
    sum += a;
    squares += a * a;
  }
  sum = block_sum(sum);
  squares = block_sum(squares);
  if (threadIdx.x == 0) out[2 * blockIdx.x] = sum, out[2 * blockIdx.x + 1] = squares;
}
"""

ANY = """
extern "C" __global__ void any_of(const int *x, int *out, int count) {
  for (int i = 0; i < count; ++i) out[i * blockDim.x + threadIdx.x] = __syncthreads_or(x[i * blockDim.x + threadIdx.x]);
}
"""

REVERSE = """
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif
extern "C" __global__ void reverse(double *x) {
  DYNAMIC_SHARED(double, kept);
  kept[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = kept[blockDim.x - 1 - threadIdx.x];
}
"""

FIRST_LANES = """
extern "C" __global__ void first_lanes(float *out) {
  if (threadIdx.x >= 20) return;
  const unsigned mask = threadIdx.x < 8 ? 0x000000ff : 0x000fff00;
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_xor_sync(mask, float(threadIdx.x), 1);
  else out[threadIdx.x] = __shfl_down_sync(mask, float(threadIdx.x), 1);
}
"""

PLACES = """
extern "C" __global__ void places(unsigned *out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1000 * block + thread;
}
"""

ROUNDING = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void narrow(const FROM *x, REAL *y, long long n) {
  for (long long i = threadIdx.x; i < n; i += blockDim.x) y[i] = REAL(x[i]);
}
extern "C" __global__ void widen(const REAL *x, float *y, long long n) {
  for (long long i = threadIdx.x; i < n; i += blockDim.x) y[i] = float(x[i]);
}
"""

ARITHMETIC = """
extern "C" __global__ void arithmetic(const float *x, float *y, double a, int b, unsigned c, long long d) {
  const int i = threadIdx.x;
  y[i] = x[i] * x[i] - __ldg(x + i + 1);
  y[32 + i] = rsqrt(x[i]);
  y[64 + i] = normcdf(x[i]);
  y[96 + i] = min(x[i], 2) + max(b, d);
  y[128 + i] = max(NAN, x[i]);
  y[160 + i] = isfinite(x[i]) ? a : c;
  y[192 + i] = __fadd_rn(__fmul_rn(x[i], x[i]), x[i]);
  y[224 + i] = warpSize;
}
"""


def kernel(code: str, name: str, *options: str) -> Any:
    return strict.RawModule(code=code, options=options).get_function(name)


def on_device(x: Any) -> Any:
    return strict.asarray(np.asarray(x))


def host(x: Any) -> np.ndarray[Any, Any]:
    return strict.asnumpy(x)


def test_shuffles_exchange_values_between_lanes() -> None:
    out = strict.empty((32, 8), dtype="int32")
    kernel(SHUFFLES, "shuffles")((1,), (32,), (out,))
    lanes = np.arange(32)
    in_eight = np.where(lanes ^ 12 <= lanes | 7, lanes ^ 12, lanes)
    expected = [lanes ^ 5, in_eight, np.minimum(lanes + 3, 31), np.where(lanes % 16 < 13, lanes + 3, lanes)]
    expected += [np.where(lanes < 2, lanes, lanes - 2), np.where(lanes % 4 < 2, lanes, lanes - 2), lanes * 7 % 32]
    expected += [lanes // 8 * 8 + 1]
    expected[2][29:] = lanes[29:]
    assert (host(out) == np.stack(expected, axis=1)).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_over_a_block_have_the_same_bits_in_every_order(dtype: str, order: str) -> None:
    x = np.random.default_rng(0).standard_normal((5, 1000)).astype(dtype)
    row_sums = kernel(SUMS, "row_sums", "-DREAL=float" if dtype == "float32" else "-DREAL=double")
    results = [strict.empty((5, 2), dtype=dtype) for _ in range(2)]
    row_sums((5,), (256,), (on_device(x), results[0], 1000))
    with thread_order(order, seed=7):
        row_sums((5,), (256,), (on_device(x), results[1], 1000))
    assert (host(results[0]) == host(results[1])).all()
    assert np.allclose(host(results[0]), np.stack([x.sum(1), np.square(x).sum(1)], 1), rtol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_every_thread_learns_whether_a_number_of_any_is_not_zero(order: str) -> None:
    x = np.zeros((5, 70), np.int32)
    x[1, 69], x[3, 0], x[4] = 4, -2, 1
    out = on_device(np.full((5, 70), 9, np.int32))
    with thread_order(order, seed=5):
        kernel(ANY, "any_of")((1,), (70,), (on_device(x), out, 5))
    assert ((host(out) != 0) == np.array([0, 1, 0, 1, 1])[:, None]).all()


@pytest.mark.parametrize("order", ORDERS)
def test_dynamic_shared_memory_is_shared_by_a_block(order: str) -> None:
    x = on_device(np.arange(1024.0))
    with thread_order(order):
        kernel(REVERSE, "reverse")((1,), (1024,), (x,), shared_mem=8192)
    assert (host(x) == np.arange(1024.0)[::-1]).all()


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_outside_of_every_mask_may_end_early(order: str) -> None:
    out = on_device(np.zeros(32, np.float32))
    with thread_order(order):
        kernel(FIRST_LANES, "first_lanes")((1,), (32,), (out,))
    got = host(out)
    assert got[:8].tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert got[8:19].tolist() == list(range(9, 20))
    assert np.isnan(got[19])  # lane 20 is not in the mask, so its value is undefined
    assert not got[20:].any()


@pytest.mark.parametrize("order", ORDERS)
def test_every_thread_of_every_block_runs_once(order: str) -> None:
    out = on_device(np.zeros(24 * 60, np.uint32))
    with thread_order(order, seed=3):
        kernel(PLACES, "places")((2, 3, 4), (3, 4, 5), (out,))
    assert (host(out).reshape(24, 60) == 1000 * np.arange(24)[:, None] + np.arange(60)).all()


def midpoints(dtype: Any) -> np.ndarray[Any, Any]:
    """Return all finite 16-bit numbers, the midpoints between neighbours, and the float64 numbers next to those."""
    infinity = int(np.array(np.inf, dtype).view(np.uint16))
    numbers = np.arange(infinity, dtype=np.uint16).view(dtype).astype(np.float64)
    halfway = (numbers[1:] + numbers[:-1]) / 2
    halfway = np.append(halfway, 1.5 * numbers[-1] - numbers[-2] / 2)  # rounds to infinity
    return np.concatenate([numbers, halfway, np.nextafter(halfway, 0), np.nextafter(halfway, np.inf)])


@pytest.mark.parametrize(("dtype", "type_"), [("float16", "__half"), ("bfloat16", "__nv_bfloat16")])
def test_16_bit_numbers_are_rounded_once_to_nearest_even(dtype: str, type_: str) -> None:
    exact = midpoints(dtype_named(dtype))
    count = len(exact) // 4
    numbers, halfway, below, above = exact.reshape(4, count)
    numbers = np.append(numbers, np.inf)
    even = np.where(np.arange(count) % 2, numbers[1:], numbers[:-1])
    expected = np.concatenate([numbers[:-1], even, numbers[:-1], numbers[1:]])
    narrow = kernel(ROUNDING, "narrow", f"-DREAL={type_}", "-DFROM=double")
    for sign in (1, -1):
        y = strict.empty(exact.size, dtype=dtype_named(dtype))
        narrow((1,), (64,), (on_device(sign * exact), y, exact.size))
        assert (host(y).astype("float64") == sign * expected).all()
    assert (below < halfway).all()
    assert (halfway < above).all()


@pytest.mark.parametrize(("dtype", "type_"), [("float16", "__half"), ("bfloat16", "__nv_bfloat16")])
def test_16_bit_numbers_are_converted_exactly(dtype: str, type_: str) -> None:
    x = np.arange(0x10000, dtype=np.uint32).astype(np.uint16).view(dtype_named(dtype))
    y = strict.empty(x.size, dtype="float32")
    kernel(ROUNDING, "widen", f"-DREAL={type_}", "-DFROM=float")((1,), (64,), (on_device(x), y, x.size))
    assert np.array_equal(host(y), x.astype("float32"), equal_nan=True)
    assert (np.signbit(host(y)) == np.signbit(x.astype("float32"))).all()
    narrowed = strict.empty(5, dtype=dtype_named(dtype))
    special = np.array([np.nan, -0.0, np.inf, -1e39, 1.5 * 2.0 ** (16 if dtype == "float16" else 128)])
    kernel(ROUNDING, "narrow", f"-DREAL={type_}", "-DFROM=double")((1,), (5,), (on_device(special), narrowed, 5))
    assert [f"{number:g}" for number in host(narrowed).astype("float64")] == ["nan", "-0", "inf", "-inf", "inf"]


def test_arithmetic_rounds_after_every_operation() -> None:
    x = np.random.default_rng(0).random(33, np.float32) + 0.5
    y = strict.empty((8, 32), dtype="float32")
    kernel(ARITHMETIC, "arithmetic")((1,), (32,), (on_device(x), y, 0.1, -3, 2**32 - 1, 2**40))
    got, (x, after) = host(y), (x[:32], x[1:])
    assert (got[0] == x * x - after).all()
    assert np.allclose(got[1], x**-0.5, rtol=2e-7)
    assert np.allclose(got[2], [0.5 * math.erfc(-a * 0.5**0.5) for a in x], rtol=2e-7)
    assert (got[3] == np.minimum(x, 2) + np.float32(2**40)).all()
    assert (got[4] == x).all()
    assert (got[5] == np.float32(0.1)).all()
    assert (got[6] == x * x + x).all()
    assert (got[7] == 32).all()


def test_options_define_macros_and_include_folders(tmp_path: Path) -> None:
    (tmp_path / "twice.cuh").write_text("__device__ int twice(int x) { return 2 * x; }\n", encoding="utf-8")
    code = '#include "twice.cuh"\nextern "C" __global__ void k(int *out) { *out = twice(NUMBER); }\n'
    out = strict.empty((), dtype="int32")
    for number in (3, 4):
        options = "-std=c++17", "--use_fast_math", f"-I{tmp_path}", f"-DNUMBER={number}"
        kernel(code, "k", *options)((1,), (1,), (out,))
        assert int(out) == 2 * number
    (tmp_path / "twice.cuh").write_text("__device__ int twice(int x) { return x + x + 1; }\n", encoding="utf-8")
    kernel(code, "k", *options)((1,), (1,), (out,))
    assert int(out) == 9


def test_a_source_that_cannot_be_compiled_says_why() -> None:
    with pytest.raises(CompileError, match=r"expected .;."):
        kernel('extern "C" __global__ void k(int *out) { *out = 1 }', "k")
    with pytest.raises(CompileError, match="one at a time"):
        kernel('extern "C" __global__ void k() { __shared__ float a[2], b[2]; }', "k")


@pytest.mark.parametrize("code", ["__global__ void k() {}", 'extern "C" __global__ void other() {}'])
def test_a_kernel_is_found_by_its_name(code: str) -> None:
    with pytest.raises(LaunchError, match='no kernel extern "C" __global__ void k'):
        kernel(code, "k")
