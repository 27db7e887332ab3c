"""Compilation and launch of the CUDA sources: each file is compiled once for each dtype.

The arrays' library compiles and launches, with a `RawModule` as in CuPy. `register_blas` registers its cuBLAS bindings.
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
from minivit.arrays.cuda import OR_NUMPY, one_line, wheels
from minivit.errors import UserError

FOLDER = Path(__file__).parent
WARP = 32
TALL = 8  # warps in most blocks
MAX_BLOCKS = 65535  # in the second axis of a grid


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
    """The cuBLAS bindings of an array library, and a function that returns the handle of the current device."""

    bindings: Any
    handle: Callable[[], int]


_blas: dict[Any, Blas] = {}  # by library
_functions: dict[tuple[Any, ...], Any] = {}


def source(name: str) -> str:
    """Return the source of the kernels in the file `name`, with its includes expanded."""
    return _INCLUDE.sub(lambda match: _text(match[1]).replace("#pragma once\n", ""), _text(f"{name}.cu"))


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


class Lanes(NamedTuple):
    """How a kernel that keeps a row in registers is compiled: the lanes for a row, and the packs of each lane."""

    lanes: int
    chunks: int


LANES = (Lanes(4, 1), Lanes(8, 1), Lanes(16, 1), Lanes(32, 1), Lanes(32, 2), Lanes(32, 4), Lanes(32, 8))


@functools.cache  # called at every launch over rows
def shared_rows(columns: int, dtype: Any, stride: int | None = None) -> tuple[Lanes | None, int]:
    """Return how lanes share rows that are `stride` (by default `columns`) apart, and the rows for each warp."""
    lanes = lanes_for(columns, dtype) if (stride or columns) % pack(dtype) == 0 else None
    return lanes, WARP // (lanes.lanes if lanes else WARP)


def lanes_for(columns: int, dtype: Any) -> Lanes | None:
    """Return how lanes share rows of `columns`, or None if a row does not fit into their registers."""
    return next((lanes for lanes in lanes_of(dtype) if lanes.lanes * lanes.chunks * pack(dtype) >= columns), None)


def lanes_of(dtype: Any) -> list[Lanes]:
    """Return the entries of `LANES` in which a lane keeps at most 32 registers of a row."""
    return [lanes for lanes in LANES if lanes.chunks * pack(dtype) * acc_dtype(dtype).itemsize <= 32 * 4]


def options(dtype: str, lanes: Lanes | None = None) -> tuple[str, ...]:
    """Return the compiler's options for arrays of `dtype`."""
    types = TYPES[dtype]
    rows = () if lanes is None else (f"-DLANES={lanes.lanes}", f"-DCHUNKS={lanes.chunks}")
    return "-std=c++17", f"-DREAL={types.real}", f"-DACC={types.acc}", f"-DTALL={TALL}", *types.needs, *rows


def sources() -> list[str]:
    """Return the names of all source files."""
    return sorted(path.stem for path in FOLDER.glob("*.cu"))


def acc_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype that kernels compute with for arrays of `dtype`: float64 for itself, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def launch(file: str, function: str, like: Array, grid: tuple[int, ...], block: tuple[int, ...], *args: Any,
           shared: int = 0, lanes: Lanes | None = None) -> None:  # fmt: skip
    """Launch the kernel `function` of `file`, compiled for the dtype of `like`.

    The arguments are arrays, integers, floats, and None for a null pointer.
    """
    key = type(like), like.dtype, file, lanes, function
    kernel = _functions.get(key)
    if kernel is None:
        kernel = _functions[key] = _compiled(namespace(like), file, function, options(like.dtype.name, lanes))
    kernel(tuple(grid), block, args, shared_mem=shared)


def _compiled(xp: Any, file: str, function: str, options: tuple[str, ...]) -> Any:
    try:
        return xp.RawModule(code=source(file), options=options).get_function(function)
    except Exception as error:  # from the compiler, or from CuPy if it does not find CUDA's headers
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"the CUDA kernel {function} cannot be compiled ({one_line(error)[:200]}); {wheels()} {OR_NUMPY}"
        ) from error


def register_blas(library: Any, blas: Blas) -> None:
    """Register the cuBLAS bindings of an array library."""
    _blas[library] = blas


def blas_of(library: Any) -> Blas:
    """Return the cuBLAS bindings of an array library; those of CuPy are imported at the first call."""
    if library not in _blas:
        bindings = importlib.import_module("cupy_backends.cuda.libs.cublas")
        register_blas(library, Blas(bindings, library.cuda.device.get_cublas_handle))
    return _blas[library]


def covers_dtype(x: Array) -> bool:
    """Return whether there are kernels for the dtype of `x`, and `x` is not empty."""
    return x.dtype.name in TYPES and x.size > 0


def address(x: Any) -> int:
    """Return the device address of the first element of `x`."""
    if isinstance(x, np.ndarray):
        raise TypeError("expected an array on a device, got a NumPy array; move it with minivit.to_backend")
    return int(x.data.ptr)


def is_aligned(x: Array) -> bool:
    """Return whether `x` is contiguous and starts at a multiple of 16 bytes, as the kernels require."""
    return bool(x.flags.c_contiguous) and address(x) % 16 == 0


def aligned(x: Array) -> Array:
    """Return `x`, or a copy that is contiguous and starts at a multiple of 16 bytes."""
    return x if is_aligned(x) else x.copy(order="C")


def pack(dtype: Any) -> int:
    """Return how many elements are in a pack of 16 bytes."""
    return 16 // int(dtype.itemsize)


def whole_packs(count: int, dtype: Any) -> int:
    """Return `count` rounded up to whole packs."""
    return blocks(count, pack(dtype)) * pack(dtype)


def blocks(count: int, size: int) -> int:
    """Return how many blocks of `size` are needed for `count`."""
    return -(-count // size)
