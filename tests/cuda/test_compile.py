"""Every CUDA source compiles for every dtype without warnings and spilled registers. No GPU is needed.

compilers.py lists the packages to install. Run with: pytest -m cuda tests/cuda
"""

from __future__ import annotations

import importlib.util
from importlib import metadata

import pytest
from compilers import ARCHITECTURES, COMPILERS, INSTALL, CompileError, find_nvcc, variants

from minivit.kernels.cuda import runtime

pytestmark = pytest.mark.cuda

GOOD = """
extern "C" __global__ void shifted(const REAL *x, REAL *y, int count) {
  extern __shared__ ACC shared[];
  shared[threadIdx.x] = ACC(x[threadIdx.x]) + __shfl_xor_sync(0xffffffffu, ACC(x[threadIdx.x]), 1);
  __syncthreads();
  if (threadIdx.x < count) y[threadIdx.x] = REAL(shared[count - 1 - threadIdx.x]);
}
"""
SPILLS = """
extern "C" __global__ void __launch_bounds__(1024, 2) spills(float *x) {
  float a[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) a[i] = x[i * 97 + threadIdx.x];
  for (int step = 0; step < 100; ++step)
#pragma unroll
    for (int i = 0; i < 64; ++i) a[i] = a[i] * a[(i * 7 + 1) % 64] + 1.0f;
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i * 97 + threadIdx.x] = a[i];
}
"""


@pytest.fixture(scope="module", autouse=True)
def compilers_are_installed() -> None:
    try:
        find_nvcc()
        missing = "" if importlib.util.find_spec("cupy") else "CuPy"
    except metadata.PackageNotFoundError as error:
        missing = str(error.name)
    if missing:
        pytest.fail(f"these tests need {missing}: {INSTALL}")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", runtime.TYPES)
@pytest.mark.parametrize("name", runtime.sources())
@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_source_compiles(compiler: str, name: str, dtype: str, arch: str) -> None:
    for options in variants(name, dtype):
        assert COMPILERS[compiler](runtime.source(name), options, arch)


def test_there_are_sources() -> None:
    assert runtime.sources()


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        pytest.param(GOOD.replace("__syncthreads();", "__syncthreads()"), 'expected a ";"', id="syntax"),
        pytest.param(GOOD.replace("if (threadIdx.x < count)", "if (threadIdx.x < rows)"), "rows", id="unknown name"),
        pytest.param(GOOD.replace("__syncthreads();", "__syncthreads(); int lane;"), "lane", id="warning"),
        pytest.param('#include "common.cuh"\n' + GOOD, "common.cuh", id="missing header"),
        pytest.param(SPILLS, "spill", id="spilled registers"),
    ],
)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_broken_source_is_an_error(compiler: str, broken: str, complaint: str) -> None:
    with pytest.raises(CompileError, match=complaint):
        COMPILERS[compiler](broken, runtime.options("float32"), "80")


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_source_that_is_not_broken_compiles(compiler: str) -> None:
    (kernel,) = COMPILERS[compiler](GOOD, runtime.options("float32"), "80")
    assert kernel.name == "shifted"
    assert kernel.registers > 0
