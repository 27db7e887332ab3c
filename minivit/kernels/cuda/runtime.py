"""CUDA source at run time: compiled once for each file and dtype, and launched on the current stream.

The library of the arrays compiles and launches, `RawModule` as in CuPy, and `register_blas` says where its cuBLAS is.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array, is_out_of_memory, namespace
from minivit.arrays.cuda import OR_NUMPY, WHEELS, one_line
from minivit.errors import UserError

FOLDER = Path(__file__).parent
WARP = 32
TALL = 8  # warps of most blocks, one above the other
MOST_BLOCKS = 65535  # of the second axis of a grid


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


class Blas(NamedTuple):
    """The cuBLAS bindings of an array library, and the handle of the current device."""

    bindings: Any
    handle: Callable[[], int]


_blas: dict[Any, Blas] = {}  # by library
_functions: dict[tuple[Any, ...], Any] = {}


def source(name: str) -> str:
    """Return the text of the kernels in the file `name`, with the headers that it includes in their place."""
    return _INCLUDE.sub(lambda match: _text(match[1]).replace("#pragma once\n", ""), _text(f"{name}.cu"))


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


class Lanes(NamedTuple):
    """How a kernel is compiled that has a row in registers: by so many lanes, each with so many packs of 16 bytes."""

    lanes: int
    chunks: int


LANES = (Lanes(4, 1), Lanes(8, 1), Lanes(16, 1), Lanes(32, 1), Lanes(32, 2), Lanes(32, 4), Lanes(32, 8))


@functools.cache  # every pass over rows asks
def shared_rows(columns: int, dtype: Any, stride: int | None = None) -> tuple[Lanes | None, int]:
    """Return how lanes share rows, `stride` (by default `columns`) apart, and how many a warp takes at a time."""
    lanes = lanes_for(columns, dtype) if (stride or columns) % pack(dtype) == 0 else None
    return lanes, WARP // (lanes.lanes if lanes else WARP)


def lanes_for(columns: int, dtype: Any) -> Lanes | None:
    """Return how lanes share rows of so many `columns`, or None if they are too many for their registers."""
    return next((lanes for lanes in lanes_of(dtype) if lanes.lanes * lanes.chunks * pack(dtype) >= columns), None)


def lanes_of(dtype: Any) -> list[Lanes]:
    """Return those of `LANES` for which there are registers: 32 words of what a lane keeps of one row."""
    return [lanes for lanes in LANES if lanes.chunks * pack(dtype) * acc_dtype(dtype).itemsize <= 32 * 4]


def options(dtype: str, lanes: Lanes | None = None) -> tuple[str, ...]:
    """Return the compiler's options for arrays of `dtype`."""
    types = TYPES[dtype]
    rows = () if lanes is None else (f"-DLANES={lanes.lanes}", f"-DCHUNKS={lanes.chunks}")
    return "-std=c++17", f"-DREAL={types.real}", f"-DACC={types.acc}", f"-DTALL={TALL}", *types.needs, *rows


def sources() -> list[str]:
    """Return the names of all files of kernels."""
    return sorted(path.stem for path in FOLDER.glob("*.cu"))


def acc_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype that kernels compute with for arrays of `dtype`: float64 for itself, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def launch(file: str, function: str, like: Array, grid: tuple[int, ...], block: tuple[int, ...], *args: Any,
           shared: int = 0, lanes: Lanes | None = None) -> None:  # fmt: skip
    """Run a kernel of `file`, compiled for the dtype of `like`, with arrays, integers, floats and None for null."""
    key = type(like), like.dtype, file, lanes, function
    kernel = _functions.get(key)
    if kernel is None:
        kernel = _functions[key] = _compiled(namespace(like), file, function, options(like.dtype.name, lanes))
    kernel(tuple(grid), block, args, shared_mem=shared)


def _compiled(xp: Any, file: str, function: str, options: tuple[str, ...]) -> Any:
    try:
        return xp.RawModule(code=source(file), options=options).get_function(function)
    except Exception as error:  # of the compiler, or of CuPy that does not find CUDA's headers
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"the CUDA kernel {function} does not compile here ({one_line(error)[:200]}); {WHEELS} {OR_NUMPY}"
        ) from error


def register_blas(library: Any, blas: Blas) -> None:
    """Say where the cuBLAS bindings of an array library are."""
    _blas[library] = blas


def blas_of(library: Any) -> Blas:
    """Return the cuBLAS bindings of an array library; those of CuPy are found when they are first asked for."""
    if library not in _blas:
        bindings = importlib.import_module("cupy_backends.cuda.libs.cublas")
        register_blas(library, Blas(bindings, library.cuda.device.get_cublas_handle))
    return _blas[library]


def covers_dtype(x: Array) -> bool:
    """Return whether there are kernels for the dtype of `x`."""
    return x.dtype.name in TYPES and x.size > 0


def address(x: Any) -> int:
    """Return where the first number of `x` lies on its device."""
    if isinstance(x, np.ndarray):
        raise TypeError("a NumPy array met arrays of a device; move it there with minivit.to_backend")
    return int(x.data.ptr)


def is_aligned(x: Array) -> bool:
    """Return whether `x` is contiguous and starts at a multiple of 16 bytes, as the kernels want it."""
    return bool(x.flags.c_contiguous) and address(x) % 16 == 0


def aligned(x: Array) -> Array:
    """Return `x`, or a copy that is contiguous and starts at a multiple of 16 bytes."""
    return x if is_aligned(x) else x.copy(order="C")


def pack(dtype: Any) -> int:
    """Return how many numbers a lane takes at a time."""
    return 16 // int(dtype.itemsize)


def whole_packs(count: int, dtype: Any) -> int:
    """Return `count`, or as many numbers more as make the last pack whole."""
    return blocks(count, pack(dtype)) * pack(dtype)


def blocks(count: int, size: int) -> int:
    """Return how many blocks of `size` hold `count`."""
    return -(-count // size)
