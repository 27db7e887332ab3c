"""The devices on which the CUDA kernels are tested: a CPU that runs their source, and a GPU if there is one."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cuda_on_cpu import cublas
from strict import strict, watch

from minivit.arrays import backend
from minivit.kernels import cuda
from minivit.kernels.cuda.runtime import Blas, register_blas

needs_kernels = pytest.mark.skipif(not hasattr(strict, "RawModule"), reason="running the kernels on a CPU needs g++")

# `pytest -m gpu` selects the second one, which does not need g++.
DEVICES = [pytest.param("strict", marks=needs_kernels), pytest.param("cupy", marks=pytest.mark.gpu)]
SIXTEEN_BITS = [pytest.param(name, marks=needs_kernels) for name in ("bfloat16", "float16")]  # on strict


def register_kernels() -> None:
    """Register the CUDA kernels for the strict library, if they can be compiled."""
    if hasattr(strict, "RawModule"):
        cuda.register("strict")
        register_blas(strict, Blas(cublas, cublas.handle))


@contextmanager
def nothing_crosses(device: str) -> Iterator[None]:
    """Raise if the block copies anything between host and device, or waits for the device."""
    if device != "cupy":
        with watch() as counts:
            yield
        assert (counts.to_device, counts.to_host, counts.synchronisations) == (0, 0, 0)
        return
    cupy = backend(device)
    cupyx = importlib.import_module("cupyx")

    def of_the_device(x: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(x, cupy.ndarray):
            raise AssertionError(f"a {type(x).__name__} was copied to the device")
        return asarray(x, *args, **kwargs)

    asarray = cupy.asarray
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns that it does not detect every wait
        patch.setattr(cupy, "asarray", of_the_device)
        with cupyx.allow_synchronize(False):
            yield
