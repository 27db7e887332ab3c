"""CUDA source at run time: compiled once for each file and dtype, and launched on the current stream.

The library of the arrays compiles and launches, `RawModule` as in CuPy, and `register_blas` says where its cuBLAS is.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array, library_name, namespace

FOLDER = Path(__file__).parent
WARP = 32
MOST_BLOCKS = 65535  # of the second and third axis of a grid


class _Types(NamedTuple):
    real: str
    acc: str
    needs: tuple[str, ...] = ()


TYPES = {
    "float64": _Types("double", "double"),
    "float32": _Types("float", "float"),
    "float16": _Types("__half", "float", ("-DHALF",)),
    "bfloat16": _Types("__nv_bfloat16", "float", ("-DBFLOAT",)),
}
_INCLUDE = re.compile(r'^#include "(.*)"$', re.MULTILINE)
SIXTEEN_BITS = ("float16", "bfloat16")


class Blas(NamedTuple):
    """The cuBLAS bindings of an array library, and the handle of the current device."""

    bindings: Any
    handle: Callable[[], int]


_blas: dict[str, Blas] = {}
_functions: dict[tuple[Any, ...], Any] = {}


def source(name: str) -> str:
    """Return the text of the kernels in the file `name`, with the headers that it includes in their place."""
    return _INCLUDE.sub(lambda match: _text(match[1]).replace("#pragma once\n", ""), _text(f"{name}.cu"))


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def options(dtype: str) -> tuple[str, ...]:
    """Return the compiler's options for arrays of `dtype`."""
    types = TYPES[dtype]
    return "-std=c++17", f"-DREAL={types.real}", f"-DACC={types.acc}", *types.needs


def sources() -> list[str]:
    """Return the names of all files of kernels."""
    return sorted(path.stem for path in FOLDER.glob("*.cu"))


def acc_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype that kernels compute with for arrays of `dtype`: float64 for itself, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def launch(file: str, function: str, like: Array, grid: tuple[int, ...], block: tuple[int, ...], *args: Any,
           shared: int = 0) -> None:  # fmt: skip
    """Run a kernel of `file`, compiled for the dtype of `like`, with arrays, integers, floats and None for null."""
    key = type(like), like.dtype, file, function
    kernel = _functions.get(key)
    if kernel is None:
        module = namespace(like).RawModule(code=source(file), options=options(like.dtype.name))
        kernel = _functions[key] = module.get_function(function)
    kernel(tuple(grid), block, args, shared_mem=shared)


def register_blas(library: str, blas: Blas) -> None:
    """Say where the cuBLAS bindings of the array library called `library` are."""
    _blas[library] = blas


def blas_of(x: Array) -> Blas:
    """Return the cuBLAS bindings for the library of `x`."""
    name = library_name(namespace(x))
    if name not in _blas:
        cupy = importlib.import_module("cupy")
        bindings = importlib.import_module("cupy_backends.cuda.libs.cublas")
        register_blas("cupy", Blas(bindings, cupy.cuda.device.get_cublas_handle))
    return _blas[name]


def covers_dtype(x: Array) -> bool:
    """Return whether there are kernels for the dtype of `x`."""
    return x.dtype.name in TYPES and x.size > 0


def address(x: Any) -> int:
    """Return where the first number of `x` lies on its device."""
    return int(x.data.ptr)


def is_settled(x: Array) -> bool:
    """Return whether `x` is contiguous and starts at a multiple of 16 bytes, as the kernels want it."""
    return bool(x.flags.c_contiguous) and address(x) % 16 == 0


def settled(x: Array) -> Array:
    """Return `x`, or a copy that is contiguous and starts at a multiple of 16 bytes."""
    return x if is_settled(x) else x.copy(order="C")


def pack(dtype: Any) -> int:
    """Return how many numbers a lane takes at a time."""
    return 16 // int(dtype.itemsize)


def blocks(count: int, size: int) -> int:
    """Return how many blocks of `size` hold `count`."""
    return -(-count // size)
