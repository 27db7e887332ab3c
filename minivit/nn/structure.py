"""What a layer is made of: the parameters and layers in its attributes, and whether they are still the same.

Attributes of layers may be set, and lists and dicts of layers changed in place, at any time. `Structure` is what a tree
of layers held when it was last looked at. `Structure.is_current` takes microseconds, so that `Layer.parameters`, an
engine and an optimiser can ask at each step.
"""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from minivit.arrays import namespace, on_device_of
from minivit.errors import UserError
from minivit.nn.parameters import Parameter
from minivit.nn.store import FlatStore, dtype_and_place, flat_layout, zero_vector

# Attributes of `Layer` itself.
OWN = frozenset({"_parameters", "_hooks", "_structure", "_whole"})

CONTAINERS = (list, tuple, dict)  # of layers and parameters; isinstance takes twice as long for a union

_changes = 0


def count_change() -> None:
    """Note that an attribute of some layer was set, or that parameters were bound to another store."""
    global _changes
    _changes += 1


def structure_version() -> int:
    """Return a number that changes when an attribute of any layer is set: values derived from layers are then stale."""
    return _changes


def leaves(name: str, value: Any, kinds: tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the objects of `kinds` in an attribute, in lists, tuples and dicts too, under their dotted names."""
    if isinstance(value, kinds):
        yield name, value
    elif isinstance(value, CONTAINERS):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from leaves(f"{name}.{key}", item, kinds)


def with_items(container: Any, change: Callable[[Any], Any]) -> Any:
    """Return a list, tuple or dict, or one of a class derived from these, with each item changed."""
    kind = type(container)
    if isinstance(container, dict):
        items = {key: change(item) for key, item in container.items()}
        if kind is dict:
            return items
        other = copy.copy(container)
        other.update(items)
        return other
    changed = [change(item) for item in container]
    if isinstance(container, tuple):
        return kind(*changed) if hasattr(kind, "_fields") else kind(changed)
    if kind is list:
        return changed
    other = copy.copy(container)
    other[:] = changed
    return other


class Structure:
    """The attributes of `layer` and of all layers, objects of `layer_class`, in it, as they are now."""

    def __init__(self, layer: Any, layer_class: type[Any]) -> None:
        self._version = _changes
        self._containers: list[tuple[list[Any] | dict[Any, Any], list[Any]]] = []
        self._items: list[Any] = []
        self._layer_class = layer_class
        self._add(layer)

    def is_current(self) -> bool:
        """Return whether nothing was set or changed in place since."""
        return self._version == _changes and all(_same(_content(now), then) for now, then in self._containers)

    def equals(self, other: Structure | None) -> bool:
        """Return whether `other` has the same layers and parameters with the same attributes."""
        return (
            other is not None and len(self._items) == len(other._items) and all(map(_equal, self._items, other._items))
        )

    def _add(self, value: Any) -> None:
        if isinstance(value, self._layer_class):
            self._items.append(weakref.ref(value))  # no cycle, since the layer holds its structure
            for name, item in list(vars(value).items()):
                if name not in OWN and name not in value._derived:
                    self._items.append(name)
                    self._add(item)
        elif isinstance(value, Parameter):
            self._items.append(value)
        elif isinstance(value, CONTAINERS):
            content = _content(value)
            if not isinstance(value, tuple):
                self._containers.append((value, content))
            self._items.append(len(content))
            for item in content:
                self._add(item)
        else:
            self._items.append(_remembered(value))


def _content(container: Any) -> list[Any]:
    return [*container, *container.values()] if isinstance(container, dict) else list(container)


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)


def _remembered(value: Any) -> Any:
    """Return a plain value itself, and a weak reference to any other: an array is not kept alive."""
    if isinstance(value, _PLAIN):
        return value
    try:
        return weakref.ref(value)
    except TypeError:
        return value


def _equal(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, _PLAIN) and type(one) is type(other) and bool(one == other))


def empty_store(declared: Mapping[str, Parameter], dtype: np.dtype[Any], xp: Any) -> tuple[dict[str, int], FlatStore]:
    """Return where each of `declared` starts in a new store of the array library `xp`, and that store, of zeros."""
    starts, length = flat_layout({name: parameter.shape for name, parameter in declared.items()}, dtype.itemsize)
    return starts, FlatStore(zero_vector(length, dtype, xp))


def gathered(declared: Mapping[str, Parameter]) -> tuple[FlatStore, dict[str, int]]:
    """Return a new store with the values and gradients of `declared`, and where each of them starts in it.

    Raises
    ------
    UserError
        A parameter has no value yet, or the parameters differ in dtype or device.
    """
    first, names = next(iter(declared.values())), list(declared)
    without = [name for name in names if not declared[name].has_value]
    if without:
        known = next((declared[name].store.values.dtype for name in names if declared[name].has_value), None)
        dtype = "" if known is None else f"dtype={known.name!r}"
        raise UserError(
            f"{without[0]} has no value yet: call initialize({dtype}) on the layer that holds it, or on the outermost "
            "layer to give all parameters new values"
        )
    kinds = {name: dtype_and_place(parameter.store.values) for name, parameter in declared.items()}
    usual = max(kinds.values(), key=list(kinds.values()).count)
    other = [name for name, kind in kinds.items() if kind != usual]
    if other:
        raise UserError(
            f"{other[0]} is {' on '.join(kinds[other[0]])} and the other parameters are {' on '.join(usual)}: convert "
            f"the layer that holds it with astype({usual[0]!r}) or to({usual[1]!r})"
        )
    values = first.store.values
    starts, length = flat_layout({name: parameter.shape for name, parameter in declared.items()}, values.dtype.itemsize)
    with on_device_of(values):
        store = FlatStore(zero_vector(length, values.dtype, namespace(values)))
        for name, parameter in declared.items():
            span = slice(starts[name], starts[name] + parameter.size)
            store.values[span] = parameter.value.reshape(-1)
            if parameter.store.has_gradients:
                store.gradients[span] = parameter.grad.reshape(-1)
    return store, starts
