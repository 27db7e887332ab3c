"""Parameters: one flat vector of values, one flat vector of gradients, and named views into both.

The optimiser, the gradient norm, the sum over micro-batches and checkpoints are operations on whole vectors, while a
layer sees a `Parameter` with a `value` and a `grad` of its own shape. Views start at multiples of 256 bytes; the gaps
between them are zero in both vectors and stay so. Two stores may share one value vector, each with gradients of its
own: the replicas of a model have such stores.

On a host whose processes can fork, both vectors are in shared memory: worker processes view the model's own vectors,
and see every value that is written to them, through whichever view. Any other forked process gets its own copies.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias
from weakref import WeakSet

import numpy as np

from minivit.arrays import Array, namespace, on_device_of, to_backend
from minivit.arrays.shared import is_shared, is_worker_starting, shared_zeros

Initializer: TypeAlias = Callable[[np.random.Generator, tuple[int, ...]], Array]

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


class Parameter:
    """A named trainable tensor.

    Parameters
    ----------
    shape : tuple of int
        The shape of the tensor.
    init : callable
        ``init(generator, shape)`` returns its initial value, a host array of any floating dtype.
    decay : bool
        Whether weight decay applies to it: True for matrices, False for biases, norms, tokens and positions.
    parts : tuple of str
        Names of equal parts along the last axis, such as ``("q", "k", "v")``, for checks and reports.
    """

    def __init__(
        self, shape: tuple[int, ...], init: Initializer, *, decay: bool = False, parts: tuple[str, ...] = ()
    ) -> None:
        self.shape = tuple(shape)
        self.init = init
        self.decay = decay
        self.parts = parts
        self.name = ""
        self.span = slice(0, 0)
        self._store: FlatStore | None = None
        self._value: tuple[Array | None, Array | None] = None, None  # the flat vector, and the view of it
        self._grad: tuple[Array | None, Array | None] = None, None
        self._generation = 0  # the store's, when something was last added

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the views: the copy makes its own, of the copied vectors."""
        return {**vars(self), "_value": (None, None), "_grad": (None, None)}

    def __repr__(self) -> str:
        return f"Parameter({self.name or 'unnamed'}, shape={self.shape})"

    @property
    def size(self) -> int:
        """The number of its elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def copied(self) -> Parameter:
        """Return a new parameter with the same declaration and no value."""
        return Parameter(self.shape, self.init, decay=self.decay, parts=self.parts)

    def bind(self, store: FlatStore, name: str, start: int) -> None:
        """Set the name, and make this parameter a view of `store` from element `start` on."""
        self.name, self.span, self._store = name, slice(start, start + self.size), store
        self._generation = 0

    @property
    def store(self) -> FlatStore:
        """The store that this parameter views."""
        if self._store is None:
            raise RuntimeError("this parameter has no value yet: call initialize() on the layer that holds it")
        return self._store

    @property
    def value(self) -> Array:
        """The tensor: a view that can be written to but not rebound."""
        values = self.store.values
        if self._value[0] is not values:
            self._value = values, values[self.span].reshape(self.shape)
        view: Any = self._value[1]
        return view

    @property
    def grad(self) -> Array:
        """The gradient: a view that can be written to but not rebound."""
        grad = self._gradient()
        if self._generation != self.store.generation:
            grad[...] = 0
            self._generation = self.store.generation
        return grad

    def _gradient(self) -> Array:
        gradients = self.store.gradients
        if self._grad[0] is not gradients:
            self._grad = gradients, gradients[self.span].reshape(self.shape)
        view: Any = self._grad[1]
        return view

    def add_grad(self, dvalue: Array) -> None:
        """Add `dvalue`, which has the parameter's own shape, to the gradient."""
        grad = self._gradient()
        if dvalue.shape != grad.shape:
            raise ValueError(f"{self.name}: a gradient of shape {dvalue.shape} was added to a {grad.shape} parameter")
        if self._generation == self.store.generation:
            grad += dvalue
        else:
            grad[...] = dvalue
            self._generation = self.store.generation

    def add_product(self, a: Array, b: Array) -> None:
        """Add ``a @ b``, of the parameter's own shape, to the gradient; the first product overwrites it."""
        grad, add = self.receive()
        if add:
            grad += a @ b
        else:
            namespace(a, b).matmul(a, b, out=grad)

    def receive(self) -> tuple[Array, bool]:
        """Return the gradient, and whether the caller must add to it (True) or overwrite it (False)."""
        add = self._generation == self.store.generation
        self._generation = self.store.generation
        return self._gradient(), add


class Parameters(Mapping[str, Parameter]):
    """The parameters of a layer and of all layers in it, by name: its own first, then those of each layer in turn."""

    def __init__(self, named: Mapping[str, Parameter], store: FlatStore) -> None:
        self._named = dict(named)
        self._gaps: list[slice] | None = None
        self.store = store

    def __getitem__(self, name: str) -> Parameter:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def complete_gradients(self) -> Array:
        """Return the flat gradient vector; it is zero where nothing was added since `FlatStore.forget_gradients`."""
        for parameter in self.values():
            parameter.grad  # noqa: B018 - reading it sets the old numbers to zero
        return self.store.gradients

    def clear_gaps(self) -> None:
        """Set the gaps between the views of the gradient vector to zero; a user may have written to them."""
        gradients = self.store.gradients
        if self._gaps is None:
            ends = [parameter.span.stop for parameter in self.values()]
            gaps = [slice(end, padded(end, gradients.dtype.itemsize)) for end in ends]
            self._gaps = [gap for gap in gaps if gap.stop > gap.start]
        for gap in self._gaps:
            gradients[gap] = 0

    @property
    def count(self) -> int:
        """The number of elements of all parameters, without the gaps between views."""
        return sum(parameter.size for parameter in self.values())


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
        end += padded(int(np.prod(shape, dtype=np.int64)), itemsize)
    return starts, end


def initial_value(parameter: Parameter, name: str, seed: int, dtype: Any, xp: Any) -> Array:
    """Return the initial value of a parameter: a function of the seed and the name alone, for any array library."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    value = np.asarray(parameter.init(generator, parameter.shape))
    if value.shape != parameter.shape:
        raise ValueError(f"{name}: its initialiser returned shape {value.shape}; expected {parameter.shape}")
    return to_backend(value.astype(dtype), xp)
