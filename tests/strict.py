"""A strict stand-in for the array library of a device, to test array-agnostic code without a device.

`StrictArray` wraps a NumPy array and behaves like an array of CuPy where the two differ: it is not converted to NumPy
implicitly, NumPy's functions and operations with host arrays or NumPy scalars raise, and there are 0-d arrays instead
of scalars. The namespace `strict` has only what both NumPy and CuPy have. `watch` counts transfers between host and
device, waits for the device, and allocations. A float64 result of arguments without float64 is an error, and so is an
operation that mixes precisions or devices. CUDA kernels run from their source (cuda_on_cpu). `empty` returns NaN.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cuda_on_cpu.compiler import COMPILER
from cuda_on_cpu.emulator import RawModule
from cuda_on_cpu.memory import Device, MixError, check_devices, device_of, placed, pointer_to

from minivit.arrays import is_floating, real_dtype, register_backend

CREATION = {"arange", "empty", "empty_like", "eye", "full", "full_like", "linspace", "ones", "ones_like", "zeros",
            "zeros_like"}  # fmt: skip
FUNCTIONS = CREATION | {
    "abs", "absolute", "add", "all", "any", "arccos", "arcsin", "arctan", "arctan2", "argmax", "argmin", "argsort",
    "ascontiguousarray", "broadcast_to", "ceil", "clip", "concatenate", "conj", "copysign", "copyto", "cos", "cosh",
    "cumsum", "divide", "dot", "einsum", "equal", "exp", "expand_dims", "expm1", "flip", "floor", "floor_divide",
    "fmax", "fmin", "greater", "greater_equal", "hypot", "imag", "isfinite", "isinf", "isnan", "less", "less_equal",
    "log", "log1p", "log2", "logical_and", "logical_not", "logical_or", "matmul", "max", "maximum", "mean", "min",
    "minimum", "mod", "moveaxis", "multiply", "nan_to_num", "negative", "not_equal", "pad", "power", "prod", "ravel",
    "real", "reciprocal", "remainder", "repeat", "reshape", "rint", "roll", "rot90", "searchsorted", "sign", "sin",
    "sinh", "sort", "split", "sqrt", "square", "squeeze", "stack", "std", "subtract", "sum", "swapaxes", "take",
    "take_along_axis", "tan", "tanh", "tensordot", "tile", "trace", "transpose", "tril", "triu", "true_divide", "var",
    "where",
}  # fmt: skip
CONSTANTS = {
    "bool_", "complex64", "complex128", "e", "float16", "float32", "float64", "inf", "int8", "int16", "int32", "int64",
    "nan", "newaxis", "pi", "uint8", "uint16", "uint32", "uint64",
}  # fmt: skip


class LeakError(AssertionError):
    """An operation returned a higher precision than that of its arguments, or float64 without a float argument."""


@dataclass
class Counts:
    """The events in a block of `watch`; `allocations` are the sizes in bytes of the new arrays."""

    to_device: int = 0
    to_host: int = 0
    synchronisations: int = 0
    allocations: list[int] = field(default_factory=list)


_counts = Counts()


@contextmanager
def watch() -> Iterator[Counts]:
    """Count the transfers, synchronisations and allocations in the block."""
    global _counts
    before, _counts = _counts, Counts()
    try:
        yield _counts
    finally:
        _counts = before


def _plain(value: Any) -> Any:
    """Return the NumPy array or Python number of an argument; raise MixError for an array or scalar of NumPy."""
    if isinstance(value, StrictArray):
        return value._array
    if isinstance(value, np.ndarray | np.generic):
        raise MixError(
            f"a strict array was combined with a NumPy {type(value).__name__} of {value.dtype} and shape {value.shape}"
        )
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _arrays(value: Any) -> Iterator[StrictArray]:
    if isinstance(value, StrictArray):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _arrays(item)
    elif isinstance(value, dict):
        yield from _arrays(list(value.values()))


def _call(name: str, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a NumPy function on the NumPy arrays of its arguments, and check the dtype of the result."""
    given = list(_arrays([args, kwargs]))
    floats = {real_dtype(x.dtype) for x in given if is_floating(x.dtype)}
    check_devices(name, [x.device for x in given])
    if len(floats) > 1 and name != "copyto":
        raise MixError(f"{name} mixes {' and '.join(sorted(str(dtype) for dtype in floats))}")
    converts = name == "astype" or kwargs.get("dtype") is not None
    requested = converts and (name in CREATION or not floats)
    result = function(*_plain(args), **_plain(kwargs))
    if result is NotImplemented:
        return result
    if kwargs.get("out") is not None:
        return kwargs["out"]
    wrapped = _wrapped(result, unknown=name in ("empty", "empty_like"))
    known = max((dtype.itemsize for dtype in floats), default=0)
    for x in _arrays(wrapped):
        size = real_dtype(x.dtype).itemsize if is_floating(x.dtype) else 0
        harmless = size < 8 and (converts or not floats)
        if size > known and not requested and not harmless:
            raise LeakError(
                f"{name} returns {x.dtype}, but its arguments are {', '.join(map(str, floats)) or 'no floats'}"
            )
    return wrapped


def _wrapped(result: Any, unknown: bool = False) -> Any:
    if isinstance(result, np.ndarray | np.generic):
        return StrictArray(np.asarray(result), unknown)
    return type(result)(map(_wrapped, result)) if isinstance(result, tuple | list) else result


def _key(key: Any) -> Any:
    """Return an index for NumPy; a list is an error, since it is on the host, and a mask waits for the device."""
    for part in key if isinstance(key, tuple) else (key,):
        if isinstance(part, list):
            raise MixError("a list indexes a strict array: convert it to an array on the device")
        if isinstance(part, StrictArray) and part.dtype == bool:
            _counts.synchronisations += 1
    return _plain(key)


class StrictArray:
    """An array that behaves as if it were on a device."""

    __array_ufunc__ = None  # NumPy's operators call those of this class
    __hash__ = None  # type: ignore[assignment]  # as for every array

    def __init__(self, array: np.ndarray[Any, Any], unknown: bool = False) -> None:
        """Wrap an array that is on a device, or copy it to the current one; if `unknown`, leave the numbers out."""
        if device_of(array) is None:
            array = placed(array, copy=not unknown)
            _counts.allocations.append(array.nbytes)
        self._array = array

    def __repr__(self) -> str:
        return f"StrictArray(shape={self.shape}, dtype={self.dtype})"

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("implicit conversion of a strict array to a NumPy array; call asnumpy")

    def __array_function__(self, function: Any, *args: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called on a strict array; use namespace(x)")

    shape = property(lambda self: self._array.shape)
    dtype = property(lambda self: self._array.dtype)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    nbytes = property(lambda self: self._array.nbytes)
    itemsize = property(lambda self: self._array.itemsize)
    strides = property(lambda self: self._array.strides)
    flags = property(lambda self: self._array.flags)
    data = property(lambda self: pointer_to(self._array))
    device = property(lambda self: device_of(self._array))
    T = property(lambda self: StrictArray(self._array.T))
    real = property(lambda self: StrictArray(self._array.real))
    imag = property(lambda self: StrictArray(self._array.imag))

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[StrictArray]:
        if self.ndim < 2:
            raise TypeError("iteration over the numbers of a strict array waits for the device at each number")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> StrictArray:
        key = _key(key)
        result = self._array[key]
        if isinstance(result, np.generic):  # CuPy returns a 0-d view instead of a scalar
            result = self._array[(*key, ...) if isinstance(key, tuple) else (key, ...)]
        return StrictArray(result)

    def __setitem__(self, key: Any, value: Any) -> None:
        _call("assignment", lambda array, item: operator.setitem(array, _key(key), item), (self, value), {})

    def astype(self, dtype: Any, **kwargs: Any) -> Any:
        return _call("astype", np.ndarray.astype, (self,), {"dtype": dtype, **kwargs})

    def item(self, *args: int) -> Any:
        _counts.to_host += 1
        _counts.synchronisations += 1
        return self._array.item(*args)

    def tolist(self) -> Any:
        _counts.to_host += 1
        _counts.synchronisations += 1
        return self._array.tolist()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __index__(self) -> int:
        return operator.index(self.item())


def _method(name: str) -> Callable[..., Any]:
    function = getattr(np.ndarray, name)
    return lambda self, *args, **kwargs: _call(name, function, (self, *args), kwargs)


def _in_place(name: str) -> Callable[..., Any]:
    function = getattr(operator, f"__{name}__")

    def update(self: StrictArray, other: Any) -> StrictArray:
        _call(name, function, (self, other), {})
        return self

    return update


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")
for _name in _BINARY:
    setattr(StrictArray, f"__{_name}__", _method(f"__{_name}__"))
    setattr(StrictArray, f"__r{_name}__", _method(f"__r{_name}__"))
    setattr(StrictArray, f"__i{_name}__", _in_place(f"i{_name}"))
for _name in ("neg", "pos", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge"):
    setattr(StrictArray, f"__{_name}__", _method(f"__{_name}__"))
for _name in ("all", "any", "argmax", "argmin", "argsort", "clip", "conj", "copy", "cumsum", "dot", "fill", "flatten",
              "max", "mean", "min", "prod", "ravel", "repeat", "reshape", "squeeze", "std", "sum", "swapaxes", "take",
              "transpose", "var", "view"):  # fmt: skip
    setattr(StrictArray, _name, _method(_name))


class StrictLibrary:
    """The functions that both NumPy and CuPy have, for strict arrays."""

    ndarray = StrictArray
    if COMPILER:
        RawModule = RawModule

    def __getattr__(self, name: str) -> Any:
        if name in CONSTANTS:
            return getattr(np, name)
        if name in FUNCTIONS:
            return functools.partial(self._run, name)
        raise AttributeError(f"the strict library has no {name!r}: use what both NumPy and CuPy have")

    @staticmethod
    def _run(name: str, *args: Any, **kwargs: Any) -> Any:
        return _call(name, getattr(np, name), args, kwargs)

    @staticmethod
    def asarray(x: Any, dtype: Any = None) -> StrictArray:
        """Return a strict array; an argument on the host counts as a transfer."""
        if isinstance(x, StrictArray):
            return x if dtype is None or x.dtype == dtype else x.astype(dtype)
        _counts.to_device += 1
        return StrictArray(np.array(x, dtype=dtype))

    array = asarray

    @staticmethod
    def select(index: int | None) -> Device:
        """Return a device, the current one for None; `minivit.arrays` calls this, and CuPy has no such function."""
        return Device(Device.current if index is None else index)

    @staticmethod
    def on_device(x: StrictArray, index: int) -> StrictArray:
        """Return a copy of `x` on another device; CuPy has no such function."""
        with Device(index):
            return StrictArray(x._array.copy())

    @staticmethod
    def asnumpy(x: StrictArray) -> np.ndarray[Any, Any]:
        """Return a copy on the host."""
        _counts.to_host += 1
        _counts.synchronisations += 1
        return x._array.copy()


strict = StrictLibrary()


def register() -> None:
    """Register ``backend="strict"`` with minivit."""
    register_backend("strict", strict, StrictArray)
