"""CUDA kernels on a CPU: every fault in a kernel or in its launch is an error that describes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_on_cpu.emulator import ORDERS, LaunchError, thread_order
from cuda_on_cpu.memory import MixError
from devices import needs_kernels
from strict import strict

pytestmark = needs_kernels

X = np.arange(64, dtype=np.float32)


def array(x: Any = X) -> Any:
    return strict.asarray(x)


def run(body: str, *args: Any, threads: int = 64, shared: int = 0, head: str = "float *x", bound: str = "") -> None:
    """Launch a kernel with this body on one block."""
    code = f'extern "C" __global__ void {bound} faulty({head}) {{ {body} }}'
    strict.RawModule(code=code).get_function("faulty")((1,), (threads,), args, shared_mem=shared)


# Order

SHIFT = "__shared__ float s[64]; s[threadIdx.x] = x[threadIdx.x]; {} x[threadIdx.x] = s[(threadIdx.x + 1) % 64];"
REUSED = """__shared__ float s[2]; const int w = threadIdx.x / 32; float sum = 0;
for (int i = 0; i < 2; ++i) {{
  if (threadIdx.x % 32 == 0) s[w] = x[i + 2 * w];
  __syncthreads(); sum += s[1 - w]; {}
}}
x[threadIdx.x] = sum;"""
IN_A_WARP = "__shared__ float s[32]; s[threadIdx.x] = x[threadIdx.x]; {} x[threadIdx.x] = s[31 - threadIdx.x];"


def results(body: str, threads: int) -> set[bytes]:
    """Return the different results for all orders of the threads."""
    found = set()
    for order in ORDERS:
        x = array()
        with thread_order(order):
            run(body, x, threads=threads)
        found.add(strict.asnumpy(x).tobytes())
    return found


@pytest.mark.parametrize(
    ("body", "threads", "barrier"),
    [
        (SHIFT, 64, "__syncthreads();"),
        (REUSED, 64, "__syncthreads();"),
        (IN_A_WARP, 32, "__syncthreads();"),
        (IN_A_WARP, 32, "__syncwarp();"),
    ],
)
def test_results_without_a_barrier_depend_on_the_order_of_threads(body: str, threads: int, barrier: str) -> None:
    assert len(results(body.format(""), threads)) > 1
    assert len(results(body.format(barrier), threads)) == 1


def test_results_can_depend_on_the_order_of_blocks() -> None:
    code = 'extern "C" __global__ void last(int *x) { if (threadIdx.x == 0) *x = blockIdx.x; }'
    seen = []
    for order, seed in [("forward", 0), ("backward", 0), ("shuffled", 0), ("shuffled", 1), ("shuffled", 2)]:
        x = strict.empty((), dtype="int32")
        with thread_order(order, seed):
            strict.RawModule(code=code).get_function("last")((1000,), (32,), (x,))
        seen.append(int(x))
    assert seen[:2] == [999, 0]
    assert len(set(seen)) == 5


# Barriers

DIVERGENT = {
    "if (threadIdx.x < 33) __syncthreads(); else __syncwarp();": "for the lanes 0x00000001|wait forever",
    "if (threadIdx.x < 32) __syncthreads();\nelse __syncthreads();": "waits at line [12] .* while others wait at line",
    "if (threadIdx.x % 2) return; __syncwarp();": "which have ended or do not exist|wait forever",
    "if (threadIdx.x % 2) __syncwarp();\nelse x[0] = __shfl_sync(0xffffffff, x[0], 0);": "32 at other lines",
    "x[threadIdx.x] = __shfl_xor_sync(0x7fffffff, x[threadIdx.x], 1);": r"is not in the mask 0x7fffffff|wait forever",
    "__syncwarp(threadIdx.x % 32 < 31 ? 0xffffffff : 0xc0000000);": "wait forever",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("body", DIVERGENT)
def test_a_barrier_that_some_threads_do_not_reach_is_an_error(body: str, order: str) -> None:
    with thread_order(order), pytest.raises(LaunchError, match=f"^kernel faulty: .*({DIVERGENT[body]})"):
        run(body, array())
    x = array()
    run(SHIFT.format("__syncthreads();"), x)  # the next launch works
    assert (strict.asnumpy(x) == np.roll(X, -1)).all()


def test_a_shuffle_by_a_lane_outside_of_the_mask_is_an_error() -> None:
    with (
        thread_order("backward"),
        pytest.raises(LaunchError, match=r"thread \(63, 0, 0\) .* not in the mask 0x7fffffff"),
    ):
        run("x[threadIdx.x] = __shfl_xor_sync(0x7fffffff, x[threadIdx.x], 1);", array())


def test_an_error_shows_the_line_of_the_source() -> None:
    with pytest.raises(
        LaunchError, match=r"block \(0, 0, 0\) wait.*line 2 \(if \(threadIdx.y\) return; __syncwarp\(\);"
    ):
        run("x[0] = 0;\nif (threadIdx.y) return; __syncwarp();\n if (threadIdx.x) x[1] = 0;", array(), threads=40)


def test_a_shuffle_with_missing_lanes_is_an_error() -> None:
    with pytest.raises(LaunchError, match="lanes 0xff000000, which have ended or do not exist"):
        run("x[0] = __shfl_xor_sync(0xffffffff, x[0], 1);", array(), threads=24)


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_does_not_wait_for_threads_that_have_ended(order: str) -> None:
    with thread_order(order):
        run("if (threadIdx.x < 40) return; __syncthreads(); x[threadIdx.x] = -1;", x := array())
    assert (strict.asnumpy(x) == np.where(np.arange(64) < 40, X, -1)).all()


# Memory

OUTSIDE = {
    "x[threadIdx.x + 1] = 0;": r"writes 4 bytes outside of the array of argument 0, up to 4 bytes after its end",
    "x[threadIdx.x * 2] = 0;": r"thread \(32, 0, 0\) .*outside of the array of argument 0",
    "x[-3] = 0;": r"outside of the array of argument 0, up to 12 bytes before its start",
    "x[0] = x[1000000];": r"reads 4 bytes outside of the array of argument 0, up to 3999748 bytes after",
    "*(double *)(x + 63) = 0;": r"writes 8 bytes outside of the array of argument 0, up to 4 bytes after its end",
    "*(double *)(x + 1) = 0;": r"writes 8 bytes at an address that is not a multiple of that",
    "float *null = nullptr; *null = 0;": r"writes 4 bytes through null",
    "__shared__ float s[4]; s[threadIdx.x] = 0;": r"index 4 at line 1 .* outside of its array",
    "float s[2][8]; for (int i = 0; i <= threadIdx.x; ++i) s[0][i] = x[i]; x[0] = s[0][3];": "takes the index 8",
    "DYNAMIC_SHARED(float, s); s[threadIdx.x] = 0;": r"thread \(32, 0, 0\) .* outside of shared memory, up to 4 bytes",
}


@pytest.mark.parametrize("body", OUTSIDE)
def test_an_access_outside_of_the_arrays_is_an_error(body: str) -> None:
    with pytest.raises(LaunchError, match=rf"^kernel faulty: .*{OUTSIDE[body]}"):
        run(body, array(), shared=128)


def test_an_access_outside_of_a_view_is_an_error() -> None:
    whole = array(np.zeros((4, 64), np.float32))
    run("x[threadIdx.x] = 1;", whole[2])
    assert strict.asnumpy(whole).sum(1).tolist() == [0, 0, 64, 0]
    with pytest.raises(LaunchError, match="after its end"):
        run("x[64 + threadIdx.x] = 1;", whole[2])
    with pytest.raises(LaunchError, match="before its start"):
        run("x[-1] = 1;", whole[2])
    run("x[64 * threadIdx.x] = 2;", whole[:, 3], threads=4)
    assert strict.asnumpy(whole).sum(1).tolist() == [2, 2, 65, 2]


def test_a_write_to_a_const_argument_is_an_error() -> None:
    for x in (array(), strict.broadcast_to(array(X[0]), (64,))):
        with pytest.raises(LaunchError, match="writes to argument 0, which is read-only"):
            run("*(float *)x = 1;", x, head="const float *x" if x.strides == (4,) else "float *x")


def test_uninitialised_numbers_are_nan() -> None:
    y = strict.empty(64, dtype="float32")
    run("y[threadIdx.x] = x[threadIdx.x] + 1;", strict.empty_like(y), y, head="const float *x, float *y")
    assert np.isnan(strict.asnumpy(y)).all()


def test_shared_memory_is_uninitialised_at_the_start_of_each_block() -> None:
    body = """__shared__ float s[64]; DYNAMIC_SHARED(float, d); x[blockIdx.x * 64 + threadIdx.x] = s[threadIdx.x];
    y[blockIdx.x * 64 + threadIdx.x] = d[threadIdx.x]; s[threadIdx.x] = d[threadIdx.x] = 1;"""
    code = f'extern "C" __global__ void k(float *x, float *y) {{ {body} }}'
    x, y = array(np.zeros(192, np.float32)), array(np.zeros(192, np.float32))
    strict.RawModule(code=code).get_function("k")((3,), (64,), (x, y), shared_mem=256)
    assert np.isnan(strict.asnumpy(x)).all()
    assert np.isnan(strict.asnumpy(y)).all()


# Launches

HEAD = "const float *x, int *labels, double a, long long n, int i, unsigned u"
SHAPES: dict[str, tuple[Any, Any, int, str]] = {
    "a block too large": ((1,), (1025,), 0, "has 1025 threads|the block is"),
    "too many threads": ((1,), (64, 32), 0, "has 2048 threads; the limit is 1024"),
    "too deep": ((1,), (1, 1, 65), 0, "the block is"),
    "too many blocks": ((1, 65536), (32,), 0, "the grid is"),
    "no blocks": ((0,), (32,), 0, "the grid is"),
    "no threads": ((1,), (32, 0), 0, "the block is"),
    "half a block": ((1.5,), (32,), 0, "the grid is"),
    "much shared memory": ((1,), (32,), 49153, "49153 bytes of dynamic shared memory"),
}


@pytest.mark.parametrize("fault", SHAPES)
def test_an_invalid_grid_or_block_is_an_error(fault: str) -> None:
    grid, block, shared, message = SHAPES[fault]
    kernel = strict.RawModule(code='extern "C" __global__ void k() {}').get_function("k")
    with pytest.raises(LaunchError, match=f"^kernel k: .*({message})"):
        kernel(grid, block, (), shared_mem=shared)


def test_too_much_shared_memory_is_an_error() -> None:
    body = "__shared__ double s[4096]; __shared__ float t[1024]; s[0] = t[0] = 0; DYNAMIC_SHARED(float, d); d[0] = 0;"
    run(body, array(), shared=12288)
    with pytest.raises(LaunchError, match="36864 static and 12289 dynamic bytes"):
        run(body, array(), shared=12289)


@pytest.mark.parametrize("bound", ["__launch_bounds__(64)", "__launch_bounds__(8 * (2 + 6), 2)"])
def test_a_block_beyond_the_launch_bounds_is_an_error(bound: str) -> None:
    run("x[0] = 1;", array(), threads=64, bound=bound)
    with pytest.raises(LaunchError, match="the limit is 64"):
        run("x[0] = 1;", array(), threads=65, bound=bound)


def arguments(**other: Any) -> list[Any]:
    given = {"x": array(), "labels": strict.zeros(3, dtype="int32"), "a": 0.5, "n": 2**40, "i": -7, "u": 7}
    return list((given | other).values())


def test_arguments_as_cupy_takes_them_are_accepted() -> None:
    run("*labels = *x == 0 && a == 0.5 && n == 1ll << 40 && i == -7 && u == 7;", *(given := arguments()), head=HEAD)
    assert strict.asnumpy(given[1]).tolist() == [1, 0, 0]
    run("if (x) *labels = 1;", *arguments(x=None), head=HEAD)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "too many": ({"more": 1}, LaunchError, "takes 6 arguments and got 7"),
    "a NumPy array": ({"x": X}, MixError, "argument 0 is a ndarray"),
    "a NumPy scalar": ({"a": np.float64(0.5)}, MixError, "argument 2 is a float64"),
    "a NumPy integer": ({"n": np.int64(3)}, MixError, "argument 3 is a int64"),
    "a bool": ({"n": True}, MixError, "argument 3 is a bool"),
    "an integer for a double": ({"a": 1}, LaunchError, "argument 2 is 1, but the kernel takes float64"),
    "a float for an integer": ({"n": 1.0}, LaunchError, "argument 3 is 1.0, but the kernel takes int64"),
    "a number for an array": ({"x": 0}, LaunchError, r"argument 0 is 0, but the kernel takes float32\*"),
    "an array for a number": ({"n": array(X)}, LaunchError, "argument 3 is an array of float32"),
    "null for a number": ({"n": None}, LaunchError, "argument 3 is None"),
    "another dtype": ({"x": array(X.astype("float64"))}, LaunchError, "argument 0 is an array of float64"),
    "an integer of 33 bits": ({"i": 2**32}, LaunchError, "an integer does not fit"),
    "a negative integer": ({"u": -1}, LaunchError, "an integer does not fit"),
    "another device": ({"x": strict.on_device(array(X), 1)}, MixError, "runs on device 0, .* on device 1"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_argument_is_an_error(fault: str) -> None:
    other, error, message = WRONG[fault]
    with pytest.raises(error, match=f"kernel faulty.* {message}"):
        run("*labels = 1;", *arguments(**other), head=HEAD)
    with pytest.raises(LaunchError, match="takes 6 arguments and got 5"):
        run("*labels = 1;", *arguments()[:5], head=HEAD)


def test_a_float32_parameter_is_an_error() -> None:
    with pytest.raises(LaunchError, match="takes float32 by value"):
        run("*x = a;", array(), 1.0, head="float *x, float a")
