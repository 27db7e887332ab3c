"""Checks of shapes and dtypes for all ops; the messages say what came and what was expected."""

from __future__ import annotations

from typing import Any

from minivit.arrays import is_floating, namespace, real_dtype


def same_dtype(op: str, **arrays: Any) -> None:
    """Raise TypeError unless all `arrays` have one floating dtype."""
    present = [(name, x.dtype) for name, x in arrays.items() if x is not None]
    name, first = present[0]
    if not is_floating(first):
        raise TypeError(f"{op}: {name} has dtype {first}; expected floating point, such as {name}.astype('float32')")
    for _, dtype in present:
        if dtype != first:
            listed = ", ".join(f"{name} {dtype}" for name, dtype in present)
            raise TypeError(f"{op}: the arguments differ in dtype ({listed}); convert them to one with astype")


def expect(op: str, name: str, array: Any, expected: tuple[int | str, ...]) -> None:
    """Raise ValueError unless `array` has the shape `expected`, where a string stands for any size."""
    shape = array.shape
    fits = len(shape) == len(expected)
    if fits:
        for size, want in zip(shape, expected, strict=True):
            if not isinstance(want, str) and want != size:
                fits = False
    if not fits:
        wanted = ", ".join(map(str, expected)) + "," * (len(expected) == 1)
        raise ValueError(f"{op}: {name} has shape {shape}; expected ({wanted})")


def expect_rows(op: str, name: str, array: Any) -> None:
    """Raise ValueError unless `array` has a last axis with at least one number."""
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"{op}: {name} has shape {array.shape}; expected (..., C), with C at least 1")


def expect_last(op: str, name: str, array: Any, size: int, of: str) -> None:
    """Raise ValueError unless the last axis of `array` has `size`, the size of `of`."""
    if array.ndim == 0 or array.shape[-1] != size:
        raise ValueError(f"{op}: {name} has shape {array.shape}; expected (..., {size}), the size of {of}")


def expect_gradient(op: str, dy: Any, shape: tuple[int, ...], dtype: Any = None) -> None:
    """Raise unless `dy`, the gradient of the result of `op`, has the result's `shape` and, if given, its `dtype`."""
    namespace(dy)
    if dy.shape != shape:
        raise ValueError(f"{op}_backward: dy has shape {dy.shape}; expected {shape}, the shape of the result of {op}")
    if dtype is None and not is_floating(dy.dtype):
        raise TypeError(f"{op}_backward: dy has dtype {dy.dtype}; expected floating point")
    if dtype is not None and dy.dtype != dtype:
        raise TypeError(f"{op}_backward: dy has dtype {dy.dtype}; expected {dtype}, the dtype of the result of {op}")


def same_precision(op: str, name: str, array: Any, x: Any) -> None:
    """Raise TypeError unless `array` has the real dtype of the same precision as `x`."""
    expected = real_dtype(x.dtype)
    if array.dtype != expected:
        raise TypeError(
            f"{op}: {name} has dtype {array.dtype}; expected {expected}, the precision of the other arguments"
        )
