"""CUDA kernels that run on a CPU: a `RawModule` with the interface of CuPy's.

A launch raises an error with the name of the kernel where CUDA would reject it, hang or corrupt memory: a block that is
too large, an argument of another type, a barrier that not all threads reach, an access outside of the arrays that were
passed. `thread_order` sets the order of the threads; results must not depend on it.
"""

from __future__ import annotations

import ctypes
import math
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from cuda_on_cpu.compiler import block_library, kernel_library
from cuda_on_cpu.memory import Device, MixError, Pointer, check_devices

ORDERS = ("forward", "backward", "shuffled")
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
MOST_THREADS = (1024, 1024, 64)
MOST_SHARED = 48 << 10
SCALARS = {"float64": "d", "int64": "q", "uint64": "Q", "int32": "i4x", "uint32": "I4x"}

_order = (0, 0)


class LaunchError(AssertionError):
    """A kernel was launched, or did something, that CUDA does not allow."""


class _Parameter(ctypes.Structure):
    _fields_ = [("type", ctypes.c_char_p), ("is_pointer", ctypes.c_int), ("is_const", ctypes.c_int)]


class _Kernel(ctypes.Structure):
    _fields_ = [
        ("call", ctypes.c_void_p),
        ("most_threads", ctypes.c_int),
        ("parameters", ctypes.POINTER(_Parameter)),
    ]


@contextmanager
def thread_order(order: str, seed: int = 0) -> Iterator[None]:
    """Run the threads and blocks of launches in one of `ORDERS` inside the block; `seed` is for the shuffled order."""
    global _order
    before, _order = _order, (ORDERS.index(order), seed)
    try:
        yield
    finally:
        _order = before


class RawModule:
    """The kernels of a CUDA source."""

    def __init__(self, *, code: str, options: tuple[str, ...] = ()) -> None:
        self.code = code
        self.options = options

    def get_function(self, name: str) -> Kernel:
        """Return a kernel that the source declares as ``extern "C" __global__ void name(...)``."""
        library = _loaded(str(kernel_library(self.code, self.options)))
        if not all(hasattr(library, symbol) for symbol in (name, f"cuda_on_cpu_{name}")):
            raise LaunchError(f'the source has no kernel extern "C" __global__ void {name}')
        return Kernel(name, library, self.code)


class Kernel:
    """A kernel that can be launched."""

    def __init__(self, name: str, library: ctypes.PyDLL, code: str) -> None:
        self.name = name
        self._code = code.splitlines()
        self._library = library  # keeps the library loaded
        self._launch = _launcher()
        self._image = list((ctypes.c_uint64 * 2).in_dll(library, "cuda_on_cpu_image"))
        described = _Kernel.in_dll(library, f"cuda_on_cpu_{name}")
        self._call = described.call
        self._most_threads = described.most_threads
        self._parameters: list[tuple[str, bool, bool]] = []
        while type_ := described.parameters[len(self._parameters)].type:
            parameter = described.parameters[len(self._parameters)]
            self._parameters.append((type_.decode(), bool(parameter.is_pointer), bool(parameter.is_const)))
            if not parameter.is_pointer and type_.decode() not in SCALARS:
                self._fail(f"it takes {type_.decode()} by value; Python numbers are passed as {' or '.join(SCALARS)}")
        self._format = "=" + "".join("Q" if is_pointer else SCALARS[t] for t, is_pointer, _ in self._parameters)

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], *, shared_mem: int = 0
    ) -> None:
        """Run the kernel with strict arrays, None for null, integers and floats."""
        grid, block = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        self._check_shape(grid, block, shared_mem)
        values, ranges = self._checked(args)
        geometry = struct.pack("=10Q", *grid, *block, shared_mem, *_order, len(ranges))
        packed = b"".join(struct.pack("=QQqq", *range_) for range_ in ranges)
        message = self._launch(self._call, values, geometry, packed, *self._image)
        if message:
            self._fail(re.sub(r"line (\d+)", self._line, message.decode()))

    def _check_shape(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int) -> None:
        for what, sizes, most in (("grid", grid, MOST_BLOCKS), ("block", block, MOST_THREADS)):
            if not all(type(size) is int and 0 < size <= limit for size, limit in zip(sizes, most, strict=True)):
                self._fail(f"the {what} is {sizes}; CUDA takes integers from 1 to {most}")
        if math.prod(block) > self._most_threads:
            self._fail(f"a block of {block} has {math.prod(block)} threads; the limit is {self._most_threads}")
        if not (type(shared) is int and 0 <= shared <= MOST_SHARED):
            self._fail(f"{shared} bytes of dynamic shared memory; expected 0 to {MOST_SHARED}")

    def _checked(self, args: Sequence[Any]) -> tuple[bytes, list[tuple[int, int, int, int]]]:
        """Return the packed arguments, and the memory that the kernel may access."""
        if len(args) != len(self._parameters):
            self._fail(f"it takes {len(self._parameters)} arguments and got {len(args)}")
        values: list[Any] = []
        ranges: list[tuple[int, int, int, int]] = []
        devices: list[Device] = []
        for number, (arg, (type_, is_pointer, is_const)) in enumerate(zip(args, self._parameters, strict=True)):
            given = getattr(arg, "data", None) if type(arg) not in (int, float) else None
            if isinstance(given, Pointer):
                if not is_pointer or type_ not in (given.dtype, "void"):
                    self._reject(number, f"an array of {given.dtype}")
                values.append(given.ptr)
                ranges.append((given.first, given.stop, given.writable and not is_const, number))
                devices.append(given.device)
            elif arg is None and is_pointer:
                values.append(0)
            elif not is_pointer and type(arg) is (float if type_ == "float64" else int):
                values.append(arg)
            elif arg is None or type(arg) in (int, float):
                self._reject(number, repr(arg))
            else:
                raise MixError(
                    f"kernel {self.name}: argument {number} is a {type(arg).__name__}; "
                    "a launch takes arrays of the device, None, int and float"
                )
        check_devices(f"kernel {self.name}", devices)
        try:
            return struct.pack(self._format, *values), ranges
        except struct.error as error:
            self._fail(f"an integer does not fit: {error}")

    def _reject(self, number: int, what: str) -> NoReturn:
        type_, is_pointer, _ = self._parameters[number]
        self._fail(f"argument {number} is {what}, but the kernel takes {type_}{'*' if is_pointer else ''}")

    def _line(self, match: re.Match[str]) -> str:
        number = int(match[1])
        return f"line {number} ({self._code[number - 1].strip()})" if 0 < number <= len(self._code) else match[0]

    def _fail(self, problem: str) -> NoReturn:
        raise LaunchError(f"kernel {self.name}: {problem}")


_libraries: dict[str, ctypes.PyDLL] = {}


def _loaded(path: str) -> ctypes.PyDLL:
    """Return a library whose calls hold the interpreter lock, since all blocks share one scheduler."""
    _launcher()
    if path not in _libraries:
        _libraries[path] = ctypes.PyDLL(path)
    return _libraries[path]


def _launcher() -> Any:
    path = str(block_library())
    if path not in _libraries:
        _libraries[path] = library = ctypes.PyDLL(path, mode=ctypes.RTLD_GLOBAL)
        library.cuda_on_cpu_launch.restype = ctypes.c_char_p
        text, number = ctypes.c_char_p, ctypes.c_uint64
        library.cuda_on_cpu_launch.argtypes = [ctypes.c_void_p, text, text, text, number, number]
    return _libraries[path].cuda_on_cpu_launch
