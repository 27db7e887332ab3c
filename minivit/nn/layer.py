"""`Layer`: the base class of every layer and of the model: parameters, a forward pass and a backward pass.

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

The layer keeps nothing between the two passes: the cache holds all that `backward` reads.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from minivit import arrays
from minivit.arrays import Array, dtype_named, library_name, namespace, on_device_of, to_backend, to_host
from minivit.errors import UserError
from minivit.nn.cost import Cost
from minivit.nn.describe import described, no_attribute
from minivit.nn.hooks import Hook, HookHandle, LayerHooks, calls_hooks, with_backward_hooks, with_forward_hooks
from minivit.nn.parameters import Parameter, Parameters, initial_value
from minivit.nn.state_dict import checked_state
from minivit.nn.store import FlatStore, padded
from minivit.nn.structure import (
    CONTAINERS,
    OWN,
    Structure,
    count_change,
    empty_store,
    gathered,
    leaves,
    with_items,
)
from minivit.random import Key, checked_seed


class Layer:
    """Parameters, and a forward and a backward pass that use them.

    A subclass sets its parameters and inner layers as attributes, alone or in lists, tuples and dicts.

    A layer or a parameter may be replaced at any time, and lists of layers changed in place: the next use of
    `parameters` finds what is there. Copies and pickles have the same values, and no hooks; those of an inner layer
    hold the values of the whole model, and the result of `astype` its own alone.
    """

    is_shown = True  # in the representation of the layer that holds it
    _derived: frozenset[str] = frozenset()  # attributes computed from others: a new value is no change of the layer

    _parameters: Parameters | None = None
    _structure: Structure | None = None  # for which `_parameters` was made
    _whole = False  # whether `_parameters` has everything in its store
    _hooks: LayerHooks | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # These are the class's own functions, or those of a mixin.
        if not calls_hooks(cls.forward):
            cls.forward = with_forward_hooks(cls.forward)  # type: ignore[method-assign]  # it replaces a method
        if not calls_hooks(cls.backward):
            cls.backward = with_backward_hooks(cls.backward)  # type: ignore[method-assign]  # as above

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("forward", "backward"):
            raise TypeError(
                f"{name} of a {type(self).__name__} cannot be replaced on an object: use register_{name}_hook to read "
                "or replace its result, or write a subclass"
            )
        held = vars(self).get(name)
        kind = Layer if isinstance(held, Layer) else Parameter
        no_parameter = value is None and kind is Parameter  # a model may do without one, such as its class token
        if isinstance(held, Layer | Parameter) and not isinstance(value, kind) and not no_parameter:
            what = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
            hint = f"; values are set by {name}.value[...] = array" if kind is Parameter else ""
            raise UserError(
                f"{name} of {type(self).__name__} holds a {kind.__name__} and cannot become "
                f"{'None' if value is None else what}; expected another minivit.{kind.__name__}{hint}"
            )
        count_change()
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        count_change()
        object.__delattr__(self, name)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(no_attribute(self, name))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the hooks out of a copy, and say so."""
        if self.has_hooks:
            warnings.warn(f"a copy of a {type(self).__name__} has none of its hooks", UserWarning, stacklevel=2)
        return {name: value for name, value in vars(self).items() if name not in OWN or name == "_whole"}

    def __repr__(self) -> str:
        return described(self)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the layer's result for `x`, and the cache that `backward` reads, or None with ``keep=False``.

        ``rng=None`` means evaluation, without dropout.
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

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost of a forward pass for one image, which enters this layer as an array of `shape`."""
        return Cost()

    def result(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the result for one image, which enters this layer as an array of `shape`."""
        return shape

    @property
    def hooks(self) -> LayerHooks:
        """The hooks of this layer."""
        if self._hooks is None:
            object.__setattr__(self, "_hooks", LayerHooks(self))
        assert self._hooks is not None
        return self._hooks

    @property
    def has_hooks(self) -> bool:
        """Whether this layer itself has hooks."""
        return self._hooks is not None and bool(self._hooks.forward or self._hooks.backward)

    def register_forward_hook(self, hook: Hook) -> HookHandle:
        """Call ``hook(layer, x, y)`` after each forward pass of this layer.

        Parameters
        ----------
        hook : callable
            Takes the layer, its input and its result; returns None, or an array of the same shape and dtype that
            replaces the result.

        Returns
        -------
        HookHandle
            Its ``remove()`` removes the hook; so does the end of a ``with`` block over it.

        Notes
        -----
        A forward pass over a layer with hooks in it runs the references of all ops and no kernels, and the last block
        of a model computes all tokens: the bits are those of `ops.reference_only`. 16-bit arrays have no references:
        there only the kernel of the encoder block is left out.
        """
        return HookHandle(self.hooks.forward, hook)

    def register_backward_hook(self, hook: Hook) -> HookHandle:
        """Call ``hook(layer, dx, dy)`` after each backward pass of this layer.

        `dx` is the gradient of the layer's input, `dy` that of its result. The hook returns None, or an array that
        replaces `dx`. Register it before the forward pass: kernels that ran without hooks call none in their
        backward pass. See `register_forward_hook`.
        """
        return HookHandle(self.hooks.backward, hook)

    def _members(self) -> Iterator[tuple[str, Parameter | Layer]]:
        for name, value in list(vars(self).items()):  # a copy, since another thread may register a hook
            if isinstance(value, _MEMBERS):
                yield name, value
            elif isinstance(value, CONTAINERS) and name not in OWN and name not in self._derived:
                yield from leaves(name, value, _MEMBERS)

    def named_layers(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """Yield every layer in this one, itself first, under its dotted name."""
        found: list[tuple[str, Layer]] = [(prefix, self)]
        while found:
            name, layer = found.pop()
            yield name, layer
            start = f"{name}." if name else ""
            inner = [(start + each, member) for each, member in layer._members() if isinstance(member, Layer)]
            found += reversed(inner)

    def declared(self) -> dict[str, Parameter]:
        """Return the parameters of this layer and of those in it by name, whether or not they have values."""
        named: dict[str, Parameter] = {}
        known: set[int] = set()
        for prefix, layer in self.named_layers():
            for name, member in layer._members():
                if isinstance(member, Parameter) and id(member) not in known:
                    known.add(id(member))
                    named[f"{prefix}.{name}" if prefix else name] = member
        return named

    def _copied(self, parameters: Mapping[int, Parameter], share_hooks: bool = False) -> Self:
        """Return a copy of the tree of layers, with `parameters` in place of its own, by the ids of those replaced."""
        known: dict[int, Any] = dict(parameters)

        def copied(member: Any) -> Any:
            if isinstance(member, Parameter | Layer) and id(member) in known:
                return known[id(member)]
            if isinstance(member, Layer):
                layer = known[id(member)] = object.__new__(type(member))
                for name, value in vars(member).items():
                    if name not in OWN:
                        object.__setattr__(layer, name, copied(value))
                if share_hooks:
                    object.__setattr__(layer, "_hooks", member.hooks)
                return layer
            return with_items(member, copied) if isinstance(member, CONTAINERS) else member

        other: Self = copied(self)
        return other

    def _bind(self, declared: Mapping[str, Parameter], starts: Mapping[str, int], store: FlatStore) -> None:
        """Make all parameters, `declared`, views of `store`."""
        for name, parameter in declared.items():
            parameter.bind(store, name, starts[name])
        for _, layer in self.named_layers():
            vars(layer).update(_parameters=None, _structure=None, _whole=False)
        count_change()
        parameters, structure = Parameters(declared, store, self), Structure(self, Layer)
        vars(self).update(_parameters=parameters, _structure=structure, _whole=True)

    def initialize(self, seed: Any = 0, dtype: Any = "float32", backend: str = "numpy") -> Self:
        """Give all parameters their initial values, functions of `seed` and their names alone; return the layer.

        Parameters
        ----------
        seed : int, np.random.Generator or None
            At least 0, or a generator that a seed is drawn from; None leaves all values at zero, to be loaded.
        dtype : dtype
            The dtype of all parameters, and so of the layer's input and result.
        backend : str
            "numpy", "cupy" or, for device 1, "cupy:1", which becomes the current device of this thread.
        """
        dtype = _checked(dtype)
        seed = None if seed is None else checked_seed(seed)
        self._adapt()
        xp = arrays.backend(backend)
        declared = self.declared()
        starts, store = empty_store(declared, dtype, xp)
        if seed is not None:
            for name, parameter in declared.items():
                span = slice(starts[name], starts[name] + parameter.size)
                store.values[span] = initial_value(parameter, name, seed, dtype, xp).reshape(-1)
        self._bind(declared, starts, store)
        return self

    @property
    def parameters(self) -> Parameters:
        """The parameters of this layer and of those in it, by name.

        If layers or parameters were replaced, added or removed, the values and gradients of all move to a new store.

        Raises
        ------
        UserError
            A parameter has no value yet, or they differ in dtype or device.
        """
        known, structure = self._parameters, self._structure
        if known is None or structure is None or not structure.is_current():
            known = self._found()
        return known

    def _found(self) -> Parameters:
        """Look at all layers again, and return the parameters."""
        known, structure = self._parameters, Structure(self, Layer)
        if (
            known is None
            or not structure.equals(self._structure)
            or any(not p.has_value or p.store is not known.store for p in known.values())
        ):
            self._adapt()
            declared = self.declared()
            bound = [parameter for parameter in declared.values() if parameter.has_value]
            store = bound[0].store if bound else FlatStore(np.zeros(0, np.float32))
            used = sum(padded(parameter.size, store.values.itemsize) for parameter in bound)
            whole = used == len(store.values)
            together = len(bound) == len(declared) and all(parameter.store is store for parameter in bound)
            if not together or (self._whole and not whole):
                store, starts = gathered(declared)
                self._bind(declared, starts, store)
                return self.parameters
            known, structure = Parameters(declared, store, self), Structure(self, Layer)
            vars(self).update(_whole=whole)
        vars(self).update(_parameters=known, _structure=structure)
        return known

    def _adapt(self) -> None:
        """Update what is computed from the inner layers, after some of them were replaced."""

    def zero_grad(self) -> None:
        """Set the gradients of this layer's parameters to zero."""
        with on_device_of(self.parameters.store.values):
            for parameter in self.parameters.values():
                parameter.grad[...] = 0

    def replica(self, values: Array | None = None) -> Self:
        """Return a replica: the same values, or the flat vector `values`, and gradients of its own.

        It has the same hooks, which are called with the layers of the original.
        """
        named = self.parameters
        starts = {name: parameter.span.start for name, parameter in named.items()}
        store = FlatStore(named.store.values if values is None else values)
        copies = {id(parameter): parameter.without_value() for parameter in named.values()}
        replica = self._copied(copies, share_hooks=True)
        replica._bind(dict(zip(named, copies.values(), strict=True)), starts, store)
        return replica

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
        named = self.parameters
        with on_device_of(named.store.values):
            values = [parameter.value.astype(dtype, copy=False) for parameter in named.values()]
        copies = {id(parameter): parameter.without_value() for parameter in named.values()}
        moved, declared = self._copied(copies), dict(zip(named, copies.values(), strict=True))
        moved._adapt()
        moved._bind(declared, *empty_store(declared, _checked(dtype), arrays.backend(backend_name)))
        for parameter, value in zip(declared.values(), values, strict=True):
            parameter.value[...] = to_backend(value, backend_name)
        return moved

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all values by name, on the host, in minivit's own layout."""
        with on_device_of(self.parameters.store.values):
            return {name: to_host(parameter.value).copy() for name, parameter in self.parameters.items()}

    @np.errstate(under="ignore")
    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Set all values from `state`, which has this layer's names and shapes.

        Raises
        ------
        UserError
            A name is missing or unknown, or a shape differs; nothing is changed then.
        TypeError
            A value is not an array of numbers, or is complex and this layer is not; nothing is changed then.
        """
        named = self.parameters
        store = named.store.values
        state = checked_state(state, named, store.dtype)
        with on_device_of(store):
            for name, parameter in named.items():
                value = parameter.value
                value[...] = to_backend(np.asarray(to_host(state[name]), dtype=value.dtype), namespace(store))


@functools.lru_cache(maxsize=64)  # asking takes as long as a small op
def arguments_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a function by name."""
    return dict(inspect.signature(function).parameters)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function takes an argument of this name, also as one of any name."""
    arguments = arguments_of(function)
    return name in arguments or any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())


_MEMBERS = (Parameter, Layer)
_DTYPES = ("float32", "float64", "complex128", "float16", "bfloat16")  # optimisers refuse those of 16 bits


def _checked(dtype: Any) -> np.dtype[Any]:
    """Return `dtype` as a NumPy dtype, or raise UserError if parameters cannot have it."""
    known = dtype_named(dtype) if isinstance(dtype, str) else None if dtype is None else np.dtype(dtype)
    if known is None or known.name not in _DTYPES or not known.isnative:
        raise UserError(
            f"a model's dtype is {dtype!r}; expected 'float32' or 'float64', or complex128 for checks "
            "(for 16 bits, Engine(model, precision='bfloat16') keeps the parameters in float32)"
        )
    return known
