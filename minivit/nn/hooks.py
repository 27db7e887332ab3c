"""Hooks: functions that see, and may replace, what passes through a layer.

    handle = layer.register_forward_hook(f)     f(layer, x, y)     after the forward pass; returns None or another y
    handle = layer.register_backward_hook(f)    f(layer, dx, dy)   after the backward pass; returns None or another dx

`Layer` passes the forward and backward functions of each subclass through `with_forward_hooks` and
`with_backward_hooks`. As long as no layer has hooks and no observer is active, they cost one comparison. Otherwise the
outermost forward pass over a layer that has hooks in it, or over any layer while ops are observed, runs the references
of all ops; it calls the hooks, and tells the observer the name of the layer that calls an op.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, Self, TypeAlias

from minivit.arrays import Array
from minivit.ops.interception import current_interception
from minivit.ops.registry import current_layer, is_observed, reference_only_here

Hook: TypeAlias = Callable[[Any, Array, Array], Array | None]

_count = 0  # the number of hooks of all layers


def _count_down() -> None:
    global _count
    _count -= 1


class HookHandle:
    """A registered hook. `remove` removes it, and so does the end of a ``with`` block over the handle."""

    def __init__(self, handles: list[HookHandle], hook: Hook) -> None:
        global _count
        self.hook = hook
        self._handles = handles
        handles.append(self)
        _count += 1
        self._end = weakref.finalize(self, _count_down)  # also where the layer is dropped with its hooks

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        if self in self._handles:
            self._handles.remove(self)
            self._end()

    def __enter__(self) -> Self:
        """Return the handle."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the hook."""
        self.remove()


class Hookable(Protocol):
    """The part of `Layer` that this module uses."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Array, Any]:
        """Run the forward pass."""

    def backward(self, *args: Any, **kwargs: Any) -> Array:
        """Run the backward pass."""

    @property
    def hooks(self) -> LayerHooks:
        """The hooks of the layer."""

    @property
    def has_hooks(self) -> bool:
        """Whether the layer itself has hooks."""

    def named_layers(self) -> Iterator[tuple[str, Hookable]]:
        """Yield the layer and every layer in it, by name."""


class LayerHooks:
    """The hooks of one layer; its replicas share them."""

    def __init__(self, layer: Hookable) -> None:
        self._layer = weakref.ref(layer)  # no cycle: the memory of a model is freed when it is dropped
        self.forward: list[HookHandle] = []
        self.backward: list[HookHandle] = []

    def layer(self, replica: Hookable) -> Hookable:
        """Return the layer that the hooks were registered on, or `replica` if it is gone."""
        layer = self._layer()
        return replica if layer is None else layer


def is_watched(layer: Hookable) -> bool:
    """Return whether `layer` or a layer in it has hooks, or an observer is active."""
    return is_observed() or bool(_count and any(each.has_hooks for _, each in layer.named_layers()))


# The names of the layers in the current watched pass, by the layers' ids; None outside of such a pass.
_names: ContextVar[dict[int, str] | None] = ContextVar("names", default=None)


@contextmanager
def _watched_pass(layer: Hookable, x: Any) -> Iterator[None]:
    """Name the layers in `layer` while the block lasts, and run references."""
    # Arrays of 16 bits have no references: the kernels of single ops run, and only the kernel of a block does not.
    names = ("EncoderBlock",) if getattr(getattr(x, "dtype", None), "itemsize", 0) == 2 else ()
    token = _names.set({id(each): name for name, each in reversed(list(layer.named_layers()))})
    try:
        with reference_only_here(*names):
            yield
    finally:
        _names.reset(token)


@contextmanager
def _named(layer: Hookable, names: dict[int, str]) -> Iterator[None]:
    token = current_layer.set(names.get(id(layer), type(layer).__name__))
    try:
        yield
    finally:
        current_layer.reset(token)


def _replaced(handles: list[HookHandle], layer: Hookable, first: Array, second: Array, which: int) -> Array:
    """Call the hooks with `layer` and two arrays; return array number `which`, which each hook may replace.

    If there are hooks, a copy is returned: the caller may change it in place, and a hook may have kept the array. What
    is no array, as between layers of a user's own, is returned as it is, and cannot be replaced.
    """
    arrays = [first, second]
    for handle in list(handles):
        other: Any = handle.hook(layer, *arrays)
        if other is None:
            continue
        if not hasattr(arrays[which], "dtype"):
            raise TypeError(
                f"a hook of a {type(layer).__name__} returned a {type(other).__name__}; expected None, because what "
                f"it would replace is a {type(arrays[which]).__name__} and no array"
            )
        shape, dtype = arrays[which].shape, arrays[which].dtype
        if getattr(other, "shape", None) != shape or getattr(other, "dtype", None) != dtype:
            what = f"{other.dtype} {other.shape}" if hasattr(other, "dtype") else type(other).__name__
            raise TypeError(f"a hook of a {type(layer).__name__} returned {what}; expected None or {dtype} {shape}")
        arrays[which] = other
    return arrays[which].copy() if handles and hasattr(arrays[which], "dtype") else arrays[which]


_calls_hooks: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


def calls_hooks(function: Callable[..., Any]) -> bool:
    """Return whether `with_forward_hooks` or `with_backward_hooks` returned `function`."""
    return function in _calls_hooks


# The functions that these two return refer to one function of this module, so that a class of a notebook can be pickled
# by value.
def with_forward_hooks(inner: Callable[..., tuple[Array, Any]]) -> Callable[..., tuple[Array, Any]]:
    """Return a function that calls `inner`, the forward function of a layer class, and then the layer's hooks."""

    @functools.wraps(inner)
    def forward(self: Hookable, *args: Any, **kwargs: Any) -> tuple[Array, Any]:
        return _forward(forward, inner, self, args, kwargs)

    _calls_hooks.add(forward)
    return forward


def _forward(
    outer: Callable[..., Any], inner: Callable[..., tuple[Array, Any]], layer: Hookable, args: Any, kwargs: Any
) -> tuple[Array, Any]:
    # Where a subclass calls the function of its base class, only the outer call runs the hooks and is intercepted.
    if type(layer).forward is not outer:
        return inner(layer, *args, **kwargs)
    interception = current_interception()
    if interception is None:
        return _with_hooks(inner, layer, args, kwargs)

    def run(*args: Any, **kwargs: Any) -> tuple[Array, Any]:
        return _with_hooks(inner, layer, args, kwargs)

    result: tuple[Array, Any] = interception.layer_forward(layer, run, args, kwargs)
    return result


def _with_hooks(inner: Callable[..., tuple[Array, Any]], layer: Hookable, args: Any, kwargs: Any) -> tuple[Array, Any]:
    if not (_count or is_observed()):
        return inner(layer, *args, **kwargs)
    x = args[0] if args else kwargs.get("x", next(iter(kwargs.values()), None))
    names = _names.get()
    if names is None:
        if not is_watched(layer):
            return inner(layer, *args, **kwargs)
        with _watched_pass(layer, x):
            return _with_hooks(inner, layer, args, kwargs)
    with _named(layer, names):
        y, cache = inner(layer, *args, **kwargs)
    if layer.has_hooks:
        y = _replaced(layer.hooks.forward, layer.hooks.layer(layer), x, y, 1)
    return y, cache


def with_backward_hooks(inner: Callable[..., Array]) -> Callable[..., Array]:
    """Return a function that calls `inner`, the backward function of a layer class, and then the layer's hooks."""

    @functools.wraps(inner)
    def backward(self: Hookable, *args: Any, **kwargs: Any) -> Array:
        return _backward(backward, inner, self, args, kwargs)

    _calls_hooks.add(backward)
    return backward


def _backward(outer: Callable[..., Any], inner: Callable[..., Array], layer: Hookable, args: Any, kwargs: Any) -> Array:
    if type(layer).backward is not outer:
        return inner(layer, *args, **kwargs)
    interception = current_interception()
    if interception is None:
        return _with_backward_hooks(inner, layer, args, kwargs)

    def run(*args: Any, **kwargs: Any) -> Array:
        return _with_backward_hooks(inner, layer, args, kwargs)

    dx: Array = interception.layer_backward(layer, run, args, kwargs)
    return dx


def _with_backward_hooks(inner: Callable[..., Array], layer: Hookable, args: Any, kwargs: Any) -> Array:
    dx = inner(layer, *args, **kwargs)
    if _count and layer.has_hooks:
        dy = args[0] if args else kwargs.get("dy", next(iter(kwargs.values())))
        dx = _replaced(layer.hooks.backward, layer.hooks.layer(layer), dx, dy, 0)
    return dx
