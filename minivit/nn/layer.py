"""`Layer`: what every layer and the whole model are: parameters, a forward pass and a backward pass.

A layer of your own declares its parameters as attributes and wires ops (docs/your_own_layer.md):

    class Scale(Layer):
        def __init__(self, dim):
            self.weight = Parameter((dim,), initializers.ones)

        def forward(self, x, rng=None, keep=True):
            return x * self.weight.value, x if keep else None

        def backward(self, dy, cache):
            self.weight.add_grad((dy * cache).sum(axis=tuple(range(dy.ndim - 1))))
            return dy * self.weight.value

    layer = Scale(7).initialize(seed=0, dtype="float64")

Nothing is kept in the layer between the two passes: the cache holds it all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from minivit.arrays import Array, backend, dtype_named, library_name, namespace, on_device_of, to_backend, to_host
from minivit.errors import UserError, counted
from minivit.nn.parameters import FlatStore, Parameter, Parameters, first_value, plan, zeros
from minivit.random import Key


class Layer:
    """Parameters and wiring. Subclasses set both as attributes, alone or in lists, tuples and dicts."""

    _parameters: Parameters | None = None

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the layer's result for `x`, and the cache that `backward` reads, or None with ``keep=False``.

        ``rng=None`` means evaluation: nothing random happens.
        """
        raise NotImplementedError

    def backward(self, dy: Array, cache: Any) -> Array:
        """Add to the gradients of all parameters for the gradient `dy` of the result, and return that of `x`."""
        raise NotImplementedError

    def kept(self, cache: Any) -> Any:
        """Return `cache`, or raise ValueError where the forward pass kept none."""
        if cache is None:
            raise ValueError(f"{type(self).__name__}.backward needs a cache, but the forward pass ran with keep=False")
        return cache

    def __call__(self, x: Array) -> Array:
        """Return the layer's result for `x` in evaluation."""
        return self.forward(x, keep=False)[0]

    def _members(self) -> Iterator[tuple[str, Parameter | Layer]]:
        for name, value in vars(self).items():
            if name != "_parameters":
                yield from _leaves(name, value)

    def named_layers(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """Yield every layer in this one, itself first, under its dotted name."""
        yield prefix, self
        for name, member in self._members():
            if isinstance(member, Layer):
                yield from member.named_layers(f"{prefix}.{name}" if prefix else name)

    def _declared(self) -> dict[str, Parameter]:
        named: dict[str, Parameter] = {}
        for prefix, layer in self.named_layers():
            for name, member in layer._members():
                if isinstance(member, Parameter) and all(member is not known for known in named.values()):
                    named[f"{prefix}.{name}" if prefix else name] = member
        return named

    def _twin(self, known: dict[int, Any]) -> Self:
        """Return a copy of the tree of layers with the parameters of `known`, by the id of what they replace."""
        if id(self) in known:
            twin: Self = known[id(self)]
            return twin
        twin = known[id(self)] = copy.copy(self)

        def replaced(member: Any) -> Any:
            if isinstance(member, Parameter):
                if id(member) not in known:
                    raise _strangers(self)
                return known[id(member)]
            if isinstance(member, Layer):
                return member._twin(known)
            if isinstance(member, dict):
                return {key: replaced(item) for key, item in member.items()}
            return type(member)(map(replaced, member)) if type(member) in (list, tuple) else member

        for name, member in vars(self).items():
            setattr(twin, name, replaced(member))
        twin._parameters = None  # they are those of another store
        return twin

    def _on_store(self, declared: Mapping[str, Parameter], starts: Mapping[str, int], store: FlatStore) -> Self:
        bound = {name: parameter.bound(store, name, starts[name]) for name, parameter in declared.items()}
        twin = self._twin({id(declared[name]): parameter for name, parameter in bound.items()})
        twin._parameters = Parameters(bound, store)
        return twin

    def initialize(self, seed: int | None = 0, dtype: Any = "float32", backend: str = "numpy") -> Self:
        """Give all parameters their first values, functions of `seed` and their names alone; return the layer.

        Parameters
        ----------
        seed : int or None
            Not negative; None leaves all values at zero, to be loaded.
        dtype : dtype
            Of all parameters, and so of what the layer takes and returns.
        backend : str
            "numpy", "cupy" or, for device 1, "cupy:1", which becomes the current device of this thread.
        """
        twin = _initialized(self, seed, dtype, backend)
        vars(self).clear()
        vars(self).update(vars(twin))
        return self

    @property
    def parameters(self) -> Parameters:
        """The parameters of this layer and of those in it, by name."""
        if self._parameters is None:
            declared = self._declared()
            stores = [parameter.store for parameter in declared.values()]
            if any(store is not stores[0] for store in stores):
                raise _strangers(self)
            self._parameters = Parameters(declared, stores[0] if stores else FlatStore(np.zeros(0, np.float32)))
        return self._parameters

    def zero_grad(self) -> None:
        """Set the gradients of this layer's parameters to zero."""
        with on_device_of(self.parameters.store.values):
            for parameter in self.parameters.values():
                parameter.grad[...] = 0

    def replica(self, values: Array | None = None) -> Self:
        """Return a copy with gradients of its own, on the same values or on the flat vector `values`."""
        named = self.parameters
        starts = {name: parameter.span.start for name, parameter in named.items()}
        return self._on_store(named, starts, FlatStore(named.store.values if values is None else values))

    def astype(self, dtype: Any) -> Self:
        """Return a copy with its parameters converted to `dtype`."""
        values = self.parameters.store.values
        with on_device_of(values):
            return self._moved(dtype, library_name(namespace(values)))

    def to(self, backend_name: str) -> Self:
        """Return a copy with its parameters on the backend "numpy", "cupy" or, for device 1, "cupy:1".

        The device becomes the current one of this thread.
        """
        return self._moved(self.parameters.store.values.dtype, backend_name)

    def _moved(self, dtype: Any, backend_name: str) -> Self:
        with on_device_of(self.parameters.store.values):
            values = {name: parameter.value.astype(dtype, copy=False) for name, parameter in self.parameters.items()}
        twin = _initialized(self, None, dtype, backend_name)
        for name, value in values.items():
            twin.parameters[name].value[...] = to_backend(value, backend_name)
        return twin

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all values by name, on the host, in minivit's own layout."""
        with on_device_of(self.parameters.store.values):
            return {name: to_host(parameter.value).copy() for name, parameter in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Set all values from `state`, which has this layer's names and shapes.

        Raises
        ------
        UserError
            A name is missing or unknown, or a shape differs; nothing is changed then.
        """
        named = self.parameters
        if np.ndim(state.get("patch_embed.proj.weight", 0)) == 4:
            raise UserError("these are weights in timm's layout; minivit.load_model reads them from their file")
        for name, value in state.items():
            if name in named and np.shape(value) != named[name].shape:
                raise UserError(f"{name} has shape {np.shape(value)}; this model has {named[name].shape}")
        missing = [name for name in named if name not in state]
        unknown = [name for name in state if name not in named]
        if missing or unknown:
            words = [counted(what, names) for what, names in (("missing", missing), ("unknown", unknown)) if names]
            raise UserError(f"the weights belong to another model: {' and '.join(words)}")
        store = named.store.values
        with on_device_of(store):
            for name, parameter in named.items():
                value = parameter.value
                value[...] = to_backend(np.asarray(to_host(state[name]), dtype=value.dtype), namespace(store))


PASSES = ("forward", "backward")
_DTYPES = ("float32", "float64", "complex128", "float16", "bfloat16")  # those of 16 bits have no optimiser


def watched(layer: Layer) -> bool:
    """Return whether somebody has replaced the passes of this one object, perhaps to look on."""
    return not vars(layer).keys().isdisjoint(PASSES)


def untouched(layer: Layer, kind: type[Layer]) -> bool:
    """Return whether `layer` is of this very class, and not `watched`."""
    return type(layer) is kind and not watched(layer)


def _strangers(layer: Layer) -> RuntimeError:
    return RuntimeError(
        f"the layers in this {type(layer).__name__} were initialised one by one and share no store: "
        "call initialize() on the layer that holds them"
    )


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Parameter | Layer]]:
    """Yield the parameters and layers in an attribute, in lists, tuples and dicts too, under their dotted names."""
    if isinstance(value, Parameter | Layer):
        yield name, value
    elif isinstance(value, list | tuple | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(f"{name}.{key}", item)


def _checked(dtype: Any) -> np.dtype[Any]:
    """Return the dtype that parameters can have, or raise UserError."""
    known = dtype_named(dtype) if isinstance(dtype, str) else None if dtype is None else np.dtype(dtype)
    if known is None or known.name not in _DTYPES or not known.isnative:
        raise UserError(
            f"a model's dtype is {dtype!r}; expected 'float32' or 'float64', or complex128 for checks "
            "(for 16 bits, Engine(model, precision='bfloat16') keeps the parameters in float32)"
        )
    return known


def _initialized(layer: Any, seed: int | None, dtype: Any, backend_name: str) -> Any:
    dtype = _checked(dtype)
    xp = backend(backend_name)
    declared = layer._declared()
    starts, length = plan({name: parameter.shape for name, parameter in declared.items()}, dtype.itemsize)
    store = FlatStore(zeros(length, dtype, xp))
    twin = layer._on_store(declared, starts, store)
    if seed is not None:
        for name, parameter in twin._parameters.items():
            parameter.value[...] = first_value(parameter, name, seed, dtype, xp)
    return twin
