"""Parameters: one flat vector of values, one flat vector of gradients, and named views into both.

The optimiser, the gradient norm, the sum over micro-batches and checkpoints are operations on whole vectors, while a
layer sees a `Parameter` with a `value` and a `grad` of its own shape. Views start at multiples of 256 bytes; the gaps
between them are zero in both vectors and stay so. Two stores may share one value vector, each with gradients of its
own: the replicas of a model have such stores.
"""

from __future__ import annotations

import copy
import math
import pickle
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import numpy as np

from minivit.arrays import Array, namespace, to_backend
from minivit.errors import UserError, did_you_mean
from minivit.nn.store import FlatStore, kind_of, padded

Initializer: TypeAlias = Callable[[np.random.Generator, tuple[int, ...]], Array]


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
        """Leave out the views, which the copy makes anew, and an initialiser that cannot be pickled."""
        init = self.init
        try:
            pickle.dumps(init)
        except Exception as error:  # a lambda, or what a user's own class raises
            if self._store is None:
                raise UserError(
                    f"a parameter of shape {self.shape} has no value yet and an initialiser that cannot be pickled "
                    f"({init!r}): call initialize() first, or use a function of a module"
                ) from error
            init = LostInitializer(self.name)
        return {**vars(self), "init": init, "_value": (None, None), "_grad": (None, None)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        """Return a copy with the same initialiser; it views the copy of the store."""
        other = memo[id(self)] = copy.copy(self)
        other._store = copy.deepcopy(self._store, memo)
        return other

    def __copy__(self) -> Parameter:
        """Return a second view of the same values."""
        other = object.__new__(type(self))
        vars(other).update(vars(self), _value=(None, None), _grad=(None, None))
        return other

    def __repr__(self) -> str:
        kind = "no value yet" if self._store is None else kind_of(self._store.values)
        return f"Parameter({self.name or 'unnamed'}, shape={self.shape}, {kind})"

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    def without_value(self) -> Parameter:
        """Return a new parameter with the same declaration and no value."""
        return Parameter(self.shape, self.init, decay=self.decay, parts=self.parts)

    def bind(self, store: FlatStore, name: str, start: int) -> None:
        """Set the name, and make this parameter a view of `store` from element `start` on."""
        self.name, self.span, self._store = name, slice(start, start + self.size), store
        self._generation = 0

    @property
    def has_value(self) -> bool:
        """Whether the parameter is part of a store: `Layer.initialize` was called."""
        return self._store is not None

    @property
    def store(self) -> FlatStore:
        """The store that this parameter views."""
        if self._store is None:
            raise UserError("this parameter has no value yet: call initialize() on the layer that holds it")
        return self._store

    @property
    def value(self) -> Array:
        """The tensor: a view that can be written to but not rebound."""
        values = self.store.values
        if self._value[0] is not values:
            self._value = values, values[self.span].reshape(self.shape)
        view: Any = self._value[1]
        return view

    @value.setter
    def value(self, new: Array) -> None:
        if new is not self._value[1]:  # the end of an update in place, such as ``value *= 0.5``
            raise AttributeError(f"write into the value: {self.name or 'parameter'}.value[...] = array")

    @property
    def grad(self) -> Array:
        """The gradient: a view that can be written to but not rebound."""
        grad = self._gradient()
        if self._generation != self.store.generation:
            grad[...] = 0
            self._generation = self.store.generation
        return grad

    @grad.setter
    def grad(self, new: Array) -> None:
        if new is not self._grad[1]:
            name = self.name or "parameter"
            raise AttributeError(f"add to the gradient: {name}.add_grad(array); to set it: {name}.grad[...] = array")

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
        grad, add = self.claim_grad()
        if add:
            grad += a @ b
        else:
            namespace(a, b).matmul(a, b, out=grad)

    def claim_grad(self) -> tuple[Array, bool]:
        """Return the gradient, and whether the caller must add to it (True) or overwrite it (False)."""
        add = self._generation == self.store.generation
        self._generation = self.store.generation
        return self._gradient(), add


class Parameters(Mapping[str, Parameter]):
    """The parameters of a layer and of all layers in it, by name: its own first, then those of each layer in turn.

    The object stays the same until a layer or one of its attributes is replaced.
    """

    def __init__(self, named: Mapping[str, Parameter], store: FlatStore, layer: Any = None) -> None:
        self._named = dict(named)
        self._gaps: list[slice] | None = None
        self._layer = None if layer is None else weakref.ref(layer)
        self.store = store

    @property
    def layer(self) -> Any:
        """The layer that these are the parameters of, or None once it is gone."""
        return None if self._layer is None else self._layer()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the layer."""
        return {**vars(self), "_layer": None}

    def __repr__(self) -> str:
        lines = [f"  {name}: {parameter.shape}" for name, parameter in self.items()]
        if len(lines) > _SHOWN:
            lines[_SHOWN // 2 : -_SHOWN // 2] = [f"  ... {len(lines) - _SHOWN} more ..."]
        return "\n".join([f"Parameters: {len(self)} with {self.count:,} numbers, {kind_of(self.store.values)}", *lines])

    def __call__(self) -> Parameters:
        """Raise TypeError, because `parameters` is not a method."""
        raise TypeError("`parameters` is a mapping of names, not a method: use it without parentheses")

    def __getitem__(self, name: str) -> Parameter:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def matching(self, *patterns: str) -> dict[str, Parameter]:
        """Return the parameters whose names match one of `patterns`, such as "head.*" or "blocks.[0-5].*".

        An optimiser of these alone leaves the others as they are: ``AdamW(model.parameters.matching("head.*"))``.

        Raises
        ------
        UserError
            A pattern matches no name.
        """
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in self):
                near = did_you_mean(pattern, [*self, *{name.partition(".")[0] + ".*" for name in self if "." in name}])
                raise UserError(f"{pattern!r} matches no parameter;{near} the names are those of model.parameters")
        found = [name for name in self if any(fnmatchcase(name, pattern) for pattern in patterns)]
        return {name: self[name] for name in found}

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


_SHOWN = 20  # parameters in a repr


class LostInitializer:
    """Replaces an initialiser that could not be pickled. The parameter keeps its values."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Raise UserError: the initialiser was lost when the model was pickled."""
        raise UserError(
            f"the initialiser of {self.name} could not be pickled with the model; to initialise a copy of it anew, "
            "make the initialiser a function of a module"
        )


def initial_value(parameter: Parameter, name: str, seed: int, dtype: Any, xp: Any) -> Array:
    """Return the initial value of a parameter: a function of the seed and the name alone, for any array library."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    value = np.asarray(parameter.init(generator, parameter.shape))
    if value.shape != parameter.shape:
        raise ValueError(f"{name}: its initialiser returned shape {value.shape}; expected {parameter.shape}")
    return to_backend(value.astype(dtype), xp)
