"""What forward and backward return: ``y, cache``, then gradients in the order of the arrays, and flaws of both.

The flaws are those that need no derivative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minivit.arrays import Array, to_host
from minivit.errors import count_of

MISSING = object()  # stands for a gradient that backward does not return
NOTHING_RETURNED = "backward returns None: is its return statement missing?"


def result_of(returned: Any, what: str = "forward") -> tuple[Any, Any]:
    """Return ``y, cache``, or raise TypeError if `returned`, the result of `what`, is something else."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        got = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else f"a {type(returned).__name__}"
        raise TypeError(f"{what} must return (y, cache), got {got}")
    y, cache = returned
    if not (hasattr(y, "dtype") and hasattr(y, "shape")):
        advice = ": check one result at a time, or return np.concatenate of them" if _holds_arrays(y) else ""
        raise TypeError(f"{what} must return (y, cache) with an array y, got a {type(y).__name__} as y{advice}")
    return y, cache


def other_dtype(returned: np.dtype[Any], dtype: np.dtype[Any], arguments: Mapping[str, np.dtype[Any]]) -> str:
    """Return the finding that forward returns another dtype than `dtype`, that of the floats among its arguments."""
    words = f"forward returns {returned} for {dtype} arguments"
    if returned != np.dtype(np.float64) or dtype != np.dtype(np.float32):
        return words
    words += ": a NumPy scalar such as np.sqrt(d) or an array attribute is float64: use math.sqrt(d), or "
    words += "x.dtype.type(...)"
    for name, other in arguments.items():
        if other.kind in "iu" and np.result_type(other, dtype) == returned:
            words += f"; if forward computes with {name}, which is {other}, use {name}.astype('float32')"
    return words


def _holds_arrays(value: Any) -> bool:
    return isinstance(value, tuple | list) and any(hasattr(part, "dtype") for part in value)


def miscounted(returned: Any, dtypes: Sequence[np.dtype[Any]], what: str) -> str:
    """Return what is wrong with the number of gradients in `returned`, or an empty string.

    Parameters
    ----------
    returned
        What backward returned.
    dtypes
        Those of the arrays that may have a gradient.
    what
        What the arrays are called: "array" or "input".
    """
    count = sum(dtype.kind == "f" for dtype in dtypes)
    if returned is None:
        return NOTHING_RETURNED if count else ""
    number = len(as_tuple(returned))
    if number in (count, len(dtypes)):
        return ""
    return f"backward returns {count_of(number, 'gradient')}; expected {count}, one for each float {what}"


def align(gradients: Sequence[Any], dtypes: Sequence[np.dtype[Any]]) -> dict[int, Any]:
    """Return the gradient of each float array by index; `gradients` may include or omit those of other arrays."""
    floats = [k for k, dtype in enumerate(dtypes) if dtype.kind == "f"]
    if len(gradients) == len(dtypes):
        return {k: gradients[k] for k in floats}
    return dict(zip(floats, (*gradients, *(MISSING for _ in floats)), strict=False))


def as_tuple(gradients: Any) -> tuple[Any, ...]:
    """Return the gradients, one array or a sequence of arrays, as a tuple."""
    return tuple(gradients) if isinstance(gradients, tuple | list) else (gradients,)


def same(a: Any, b: Any) -> bool:
    """Return whether two gradients are equal up to rounding."""
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        try:
            return a is b or bool(a == b)
        except ValueError:  # dicts of arrays: no gradient, and reported as such
            return True
    if a.shape != b.shape or a.dtype.kind != "f":
        return np.array_equal(a, b)
    with np.errstate(invalid="ignore"):
        near = 100 * np.finfo(a.dtype).eps * np.max(np.abs(a), initial=0)
        return bool(np.all((np.abs(a - b) <= near) | (a == b) | (np.isnan(a) & np.isnan(b))))


def flaw(gradient: Any, point: Array, y: Array) -> str:
    """Return why a gradient cannot be verified, or an empty string."""
    if gradient is MISSING:
        return "backward returns no gradient for this array"
    if gradient is None:
        return "backward returns None for this array: not verified"
    if not isinstance(gradient, np.ndarray):
        return f"backward returns a {type(gradient).__name__}, not an array"
    if gradient.shape != point.shape:
        words = f"the gradient has shape {gradient.shape}, the array {point.shape}"
        shape = gradient.shape
        missed = [k for k in range(gradient.ndim) if (*shape[:k], *shape[k + 1 :]) == point.shape]
        if missed:
            words += f"; looks not summed over its axis {missed[0]}"
        elif gradient.shape == point.shape[::-1]:
            words += "; looks transposed"
        elif gradient.shape == y.shape:
            words += "; it has the shape of the output: not summed over the broadcast axes?"
        return words
    if gradient.dtype != point.dtype:
        return f"the gradient is {gradient.dtype}, the array {point.dtype}"
    if not np.all(np.isfinite(gradient)):
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(gradient))[0])
        return f"the gradient is {gradient[where]} at {list(where)}"
    return ""


def host_copy(gradient: Any) -> Any:
    """Return a copy of a gradient on the host; what is not an array stays as it is."""
    try:
        return gradient if gradient is None or gradient is MISSING else np.array(to_host(gradient))
    except TypeError:
        return gradient
