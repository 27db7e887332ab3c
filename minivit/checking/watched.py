"""Detects arrays that a forward pass changes in place, with the values that they had before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from minivit.arrays import Array


class Change(NamedTuple):
    """One change in place: the array, its values before, and the operation."""

    array: Array
    before: Array
    operation: str


class Watched(np.ndarray):
    """An array that records when it, or an array computed from it, is changed in place."""

    changes: ClassVar[list[Change]] = []

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        out = options.get("out")
        if out:
            options["out"] = tuple(map(_plain, out))
            self.changes.extend(Change(a, np.array(a), ufunc.__name__) for a in options["out"] if a is not None)
        result = getattr(ufunc, method)(*map(_plain, inputs), **options)
        if out and len(out) == 1:
            return out[0]
        return result.view(Watched) if isinstance(result, np.ndarray) else result

    def __setitem__(self, key: Any, value: Any) -> None:
        plain = _plain(self)
        self.changes.append(Change(plain, np.array(plain), "an assignment"))
        plain[_plain(key)] = _plain(value)


def _plain(a: Any) -> Any:
    if isinstance(a, tuple):
        return tuple(map(_plain, a))
    return a.view(np.ndarray) if isinstance(a, Watched) else a


def watch(call: Callable[..., Any], arrays: list[Array]) -> tuple[Any, list[Change]]:
    """Return the result of ``call(*arrays)`` and the changes in place; the arrays are copied first."""
    Watched.changes = []
    result = call(*(np.array(a).view(Watched) if a.dtype.kind == "f" else a for a in arrays))
    changes, Watched.changes = Watched.changes, []
    return result, changes
