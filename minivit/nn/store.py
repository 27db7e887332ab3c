"""The flat store: one vector of all values and one of all gradients, in which parameters are views.

Views start at multiples of 256 bytes. On a host whose processes can fork, both vectors are in shared memory: worker
processes view the model's own vectors, and see every value that is written to them, through whichever view. Any other
forked process gets its own copies.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import numpy as np

from minivit.arrays import Array, library_name, namespace, on_device_of
from minivit.arrays.shared import is_shared, is_worker_starting, shared_zeros

ALIGNMENT = 256  # bytes


class FlatStore:
    """A vector of values and, from its first use on, a vector of gradients of the same size.

    Parameters
    ----------
    values : Array
        The flat vector of values, which the store uses without a copy; `zero_vector` makes one.
    """

    def __init__(self, values: Array) -> None:
        self._values = values
        self._gradients: Array | None = None
        self.generation = 0
        _stores.add(self)

    def __repr__(self) -> str:
        gradients = "with" if self.has_gradients else "without"
        return f"FlatStore({len(self._values):,} numbers, {kind_of(self._values)}, {gradients} gradients)"

    def __deepcopy__(self, memo: dict[int, Any]) -> FlatStore:
        """Return a store of copies, allocated by `zero_vector`; stores that share a vector share its copy."""
        store = FlatStore(_copied(self._values, memo))
        if self._gradients is not None:
            store._gradients = _copied(self._gradients, memo)
        store.generation = self.generation
        return store

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copy the vectors of a pickled store into memory that `zero_vector` allocates."""
        vectors = {name: state[name] for name in ("_values", "_gradients") if state[name] is not None}
        vars(self).update(state | {name: _copied(vector, {}) for name, vector in vectors.items()})
        _stores.add(self)

    def unshare(self, memo: dict[int, Any]) -> None:
        """Replace vectors in shared memory by copies; with one `memo`, stores that share a vector share its copy."""
        if is_shared(self._values):
            self._values = _copied(self._values, memo)
        if self._gradients is not None and is_shared(self._gradients):
            self._gradients = _copied(self._gradients, memo)

    @property
    def values(self) -> Array:
        """The flat vector of values."""
        return self._values

    @property
    def gradients(self) -> Array:
        """The flat gradient vector, allocated as zeros on first use; of 16-bit values it is float32."""
        if self._gradients is None:
            xp, dtype = namespace(self._values), self._values.dtype
            self._gradients = zero_vector(len(self._values), xp.float32 if dtype.itemsize == 2 else dtype, xp)
        return self._gradients

    def share_gradients(self, store: FlatStore) -> None:
        """Use the gradient vector of `store`; to be called before the first use of `gradients`."""
        self._gradients = store.gradients

    def forget_gradients(self) -> None:
        """Make every gradient zero without a pass over the vector: the next gradient of a parameter overwrites it.

        Until then `gradients` holds the old numbers; `Parameters.complete_gradients` sets them to zero.
        """
        self.generation += 1

    @property
    def has_gradients(self) -> bool:
        """Whether the gradient vector has been allocated."""
        return self._gradients is not None


_stores: WeakSet[FlatStore] = WeakSet()


def _unshare_in_child() -> None:
    """In a forked process that is not a worker, replace the shared vectors of all models by copies."""
    if not is_worker_starting():
        memo: dict[int, Any] = {}
        for store in list(_stores):
            store.unshare(memo)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unshare_in_child)


def kind_of(values: Array) -> str:
    """Return dtype, library and device of a vector, such as "float32 on numpy" or "float32 on cupy:1"."""
    return " on ".join(dtype_and_place(values))


def dtype_and_place(values: Array) -> tuple[str, str]:
    """Return the name of the dtype of a vector, and its library with the number of its device if that is not 0."""
    number = getattr(getattr(values, "device", None), "id", None)
    name = library_name(namespace(values))
    return values.dtype.name, name if number in (None, 0) else f"{name}:{number}"


def zero_vector(length: int, dtype: Any, xp: Any) -> Array:
    """Return a vector of zeros for a `FlatStore`; on the host it is in shared memory."""
    vector: Array = shared_zeros((length,), dtype) if xp is np else xp.zeros(length, dtype=dtype)
    return vector


def _copied(vector: Array, memo: dict[int, Any]) -> Array:
    """Return a copy of `vector` for a `FlatStore`, the same one for every call with one `memo`."""
    if id(vector) not in memo:
        with on_device_of(vector):
            memo[id(vector)] = zero_vector(len(vector), vector.dtype, namespace(vector))
            memo[id(vector)][...] = vector
    copied: Array = memo[id(vector)]
    return copied


def padded(size: int, itemsize: int) -> int:
    """Return the first element from `size` on at which a view may start."""
    step = max(1, ALIGNMENT // itemsize)
    return -(-size // step) * step


def flat_layout(shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> tuple[dict[str, int], int]:
    """Return the start of each view in the flat vector, and the length of the vector, in elements."""
    starts, end = {}, 0
    for name, shape in shapes.items():
        starts[name] = end
        end += padded(math.prod(shape), itemsize)
    return starts, end
