"""The tracer: records what passes through the layers and ops of one pass, and applies the interventions.

What is recorded is what flows on. Where an intervention changes an activation, the record has the changed activation
and its gradient; the op or layer before it gets the gradient behind the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.nn.layer import Layer
from minivit.ops.interception import Interception
from minivit.ops.softmax import SoftmaxCache
from minivit.tracing.interventions import Interventions
from minivit.tracing.names import matches, root_of
from minivit.tracing.quantities import ATTENTION, Part, inside, parts_of_argument, parts_of_result
from minivit.tracing.record import Record
from minivit.tracing.snapshots import Snapshot, Snapshots


@dataclass(eq=False)
class _Call:
    """A call of a layer or an op."""

    name: str  # "fc" for the first call of the layer fc, "fc_2" for the second
    plain: str  # "fc" for each of them
    kind: str
    record: Record | None  # None where it is not wanted
    layer: _Call | None  # the layer itself, or the layer that calls the op
    parent: _Call | None  # the layer or op that calls it
    ops: set[str] = field(default_factory=set)  # the ops that a layer called
    sharing: list[_Call] = field(default_factory=list)  # those that have what is inside this op
    left_out: list[str] = field(default_factory=list)  # arguments that are parameters, where they are not recorded
    cache: Any = None  # the reference's, where the caller has another
    num_heads: int = 0


_Sites: TypeAlias = list[tuple[_Call, str]]  # all names of one value: quantities of layers and ops
_NONE: Mapping[str, Part] = MappingProxyType({})


class Tracer(Interception):
    """Records one pass.

    Parameters
    ----------
    layer : Layer
        The outermost layer.
    at : sequence of str
        Patterns of the names that are recorded.
    snapshots : Snapshots
        What is kept of an array.
    interventions : Interventions
    """

    def __init__(self, layer: Layer, at: Sequence[str], snapshots: Snapshots, interventions: Interventions) -> None:
        self.names: list[str] = []  # of all calls, in the order of the forward pass
        self.plain_names: set[str] = set()  # those that stand for all calls of a layer or op
        self.records: dict[str, Record] = {}
        self.root = root_of([name for name, _ in layer.named_layers()])
        self.layers = [(name or self.root, each) for name, each in layer.named_layers()]
        self._layer_names = {id(each): name for name, each in reversed(self.layers)}
        self._owners = {name: id(each) for name, each in self.layers}
        self._with_parameters = {id(each) for _, each in self.layers if each.declared()}
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}
        # Statistics of a parameter and its gradient are those of the layer alone; they are the largest arrays.
        parameters = layer.parameters.values() if snapshots.statistics else ()
        self._left_out = {id(parameter.value) for parameter in parameters}
        self._at, self._snapshots, self._interventions = at, snapshots, interventions
        self._running: list[_Call] = []
        self._going_back: list[_Call] = []
        self._calls: dict[tuple[Any, int], list[_Call]] = {}  # by layer or op, and the id of the cache

    def layer_forward(self, layer: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record x and y of a layer."""
        name = self._layer_names.get(id(layer), type(layer).__name__)
        with self._call(name, type(layer).__name__, id(layer)) as call:
            args, kwargs = _with_first(args, kwargs, lambda x: self._seen([(call, "x")], x))
            result = run(*args, **kwargs)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"forward of {name} ({call.kind}) returned a {type(result).__name__}; expected (y, cache)")
        y, cache = result
        y = self._seen([(call, "y")], y)
        self._calls.setdefault((id(layer), id(cache)), []).append(call)
        return y, cache

    def layer_backward(self, layer: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record dy and dx of a layer."""
        call = self._called(id(layer), args[1] if len(args) > 1 else kwargs.get("cache"))
        if call is None:
            return run(*args, **kwargs)
        args, kwargs = _with_first(args, kwargs, lambda dy: self._gradient([(call, "y")], dy))
        with self._backward(call):
            dx = run(*args, **kwargs)
        return self._gradient([(call, "x")], dx)

    def op_forward(self, name: str, names: Sequence[str], run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record the arguments and the result of an op, and what is inside it."""
        given = dict(zip(names, args, strict=False)) | kwargs
        with self._call(name, name) as call:
            call.num_heads = given.get("num_heads", 0)
            for argument in [each for each in names if _is_array(given.get(each))]:
                if id(given[argument]) in self._left_out:
                    call.left_out.append(argument)
                    continue
                given[argument] = self._seen(_argument(call, argument, names), given[argument], _parts(call, argument))
                if call.record is not None:
                    call.record.argument_names.append(argument)
            result = run(**given)
        y, cache = result if isinstance(result, tuple) else (result, None)
        changed = self._seen(_result(call), y, parts_of_result(name, call.num_heads))
        if changed is not y and name == "softmax" and cache is not None:
            # Attention reads the weights for dv from this cache, and the softmax its own.
            call.cache, cache = cache, SoftmaxCache(changed)
        for quantity, value in inside(name, y, cache).items():
            self._put([(each, quantity) for each in call.sharing], value)
        if cache is not None:
            self._calls.setdefault((name, id(cache)), []).append(call)
        return (changed, cache) if isinstance(result, tuple) else changed

    def op_backward(self, name: str, names: Sequence[str], run: Callable[..., Any], dy: Any, cache: Any) -> Any:
        """Record the gradients of the result and the arguments of an op."""
        call = self._called(name, cache)
        if call is None:
            return run(dy, cache)
        if _is_array(dy):
            dy = self._gradient(_result(call), dy, parts_of_result(name, call.num_heads))
        else:
            dy = float(self._gradient(_result(call), np.asarray(dy)))  # a number: the gradient of the loss
        with self._backward(call):
            returned = run(dy, cache if call.cache is None else call.cache)
        gradients = list(returned) if isinstance(returned, tuple) else [returned]
        for i, argument in enumerate(names[: len(gradients)]):
            if gradients[i] is not None and argument not in call.left_out:
                sites = _argument(call, argument, names)
                gradients[i] = self._gradient(sites, gradients[i], _parts(call, argument))
        return tuple(gradients) if isinstance(returned, tuple) else gradients[0]

    def _seen(self, sites: _Sites, value: Array, parts: Mapping[str, Part] = _NONE, prefix: str = "") -> Array:
        """Apply the interventions to a value and then to its parts, record it and its parts, and return it.

        A value with parts is that of an op. All quantities get the `prefix` "d" where they are gradients.
        """
        if not _is_array(value):  # what a layer of a user's own may take or return
            return value
        if self._interventions:
            value = self._interventions.applied(_named(sites, prefix), value)
        for name, part in parts.items() if self._interventions else ():
            inner = _named([(call, name) for call in sites[0][0].sharing], prefix)
            if self._interventions.of(inner):
                value = value.copy()
                part(value)[...] = self._interventions.applied(inner, part(value))
        for name, part in parts.items():
            if not name.startswith("heads"):
                self._put([(call, prefix + name) for call in sites[0][0].sharing], part(value), again=False)
        self._put([(call, prefix + quantity) for call, quantity in sites], value)
        return value

    def _gradient(self, sites: _Sites, gradient: Array, parts: Mapping[str, Part] = _NONE) -> Array:
        """Do what `_seen` does with the gradient of a value; return that of the value before the interventions."""
        if not _is_array(gradient):
            return gradient
        gradient = self._seen(sites, gradient, parts, "d")
        if not self._interventions:
            return gradient
        for name, part in parts.items():
            inner = _named([(call, name) for call in sites[0][0].sharing])
            if self._interventions.of(inner):
                gradient = gradient.copy()
                part(gradient)[...] = self._interventions.derivative(inner, part(gradient))
        return self._interventions.derivative(_named(sites), gradient)

    def _put(self, sites: _Sites, value: Array, again: bool = True) -> None:
        made: dict[str, Snapshot] = {}  # saturated units are counted for some quantities alone
        for call, quantity in sites:
            if call.record is not None and quantity not in call.record.quantities:
                kind = self._snapshots.kind(quantity)
                if kind not in made:
                    made[kind] = self._snapshots.of(value, quantity, again)
                call.record.put(quantity, made[kind], value)

    @contextmanager
    def _call(self, name: str, kind: str, owner: int | None = None) -> Iterator[_Call]:
        """Enter a call of the layer with the id `owner`, or of an op; `name` is the layer's, or the op's own."""
        is_op = owner is None
        parent = self._running[-1] if self._running else None
        layer = None if parent is None else parent.layer
        outer = layer if is_op and layer is not None and layer.name != self.root else None
        unique = self._unique(f"{outer.name}.{name}" if outer else name, owner)
        plain = f"{outer.plain}.{name}" if outer else name
        if self._owners.get(plain, owner) != owner:  # another layer's
            plain = unique
        self.names.append(unique)
        self.plain_names.add(plain)
        record = None
        if any(matches(plain, pattern) or matches(unique, pattern) for pattern in self._at):
            record = self.records[unique] = Record(unique, kind, is_op, self._snapshots.statistics)
            record.has_parameters = owner in self._with_parameters
        call = _Call(unique, plain, kind, record, layer, parent)
        call.layer = layer if is_op else call
        if is_op:
            self._share(call)
        self._running.append(call)
        try:
            yield call
        finally:
            self._running.pop()

    def _unique(self, name: str, owner: int | None) -> str:
        """Return `name`, or a name with a number, that no other call and no other layer has."""
        unique = name
        while unique in self._taken or self._owners.get(unique, owner) != owner:
            number = self._counts[name] = self._counts.get(name, 1) + 1
            unique = f"{name}_{number}"
        self._taken.add(unique)
        return unique

    @contextmanager
    def _backward(self, call: _Call) -> Iterator[None]:
        self._going_back.append(call)
        try:
            yield
        finally:
            self._going_back.pop()

    @staticmethod
    def _share(call: _Call) -> None:
        """Decide who has what is inside an op: the op and, for the first of its kind, the layer that calls it."""
        if call.parent is not None and _is_inside_attention(call):
            call.sharing = call.parent.sharing
            return
        call.sharing = [call]
        if call.layer is not None and call.kind not in call.layer.ops:
            call.layer.ops.add(call.kind)
            call.sharing = [call, call.layer]

    def _called(self, what: Any, cache: Any) -> _Call | None:
        """Return the last call that returned `cache` and had no backward pass yet, or None.

        Several calls of a layer may return no cache. Of these it is the one whose caller goes back now; a call without
        a record where several were made by this caller.
        """
        calls = self._calls.get((what, id(cache)), [])
        if len(calls) < 2 or not (cache is None or (isinstance(cache, tuple) and not cache)):
            return calls.pop() if calls else None
        caller = self._going_back[-1] if self._going_back else None
        alike = [call for call in calls if call.parent is caller] or calls
        if len(alike) == 1:
            calls.remove(alike[0])
            return alike[0]
        return self._any_of(alike)

    def _any_of(self, calls: list[_Call]) -> _Call:
        """Return a call without a record in place of `calls`, which cannot be told apart.

        Raises
        ------
        UserError
            An intervention would change the gradient of some of them alone.
        """
        sites = [[_named([(call, quantity)], prefix) for quantity in "xy" for prefix in ("", "d")] for call in calls]
        changes = [[id(change) for each in of_call for change in self._interventions.of(each)] for of_call in sites]
        if any(each != changes[0] for each in changes):
            names = ", ".join(call.name for call in calls)
            raise UserError(
                f"{names} are calls of one layer, whose forward pass returns no cache: their gradients cannot be told "
                f"apart, so that all are changed, as {calls[0].plain!r}, or none"
            )
        return replace(calls[0], record=None, sharing=[])


def _is_inside_attention(call: _Call) -> bool:
    return call.kind == "softmax" and call.parent is not None and call.parent.kind in ATTENTION


def _argument(call: _Call, argument: str, names: Sequence[str]) -> _Sites:
    """Return all names of an argument of an op."""
    sites = [(call, argument)]
    if argument == names[0] and argument != "x":
        sites.append((call, "x"))
    return [*sites, *((each, "scores") for each in call.sharing)] if _is_inside_attention(call) else sites


def _result(call: _Call) -> _Sites:
    """Return all names of the result of an op."""
    inside_attention = _is_inside_attention(call)
    return [(call, "y"), *((each, "weights") for each in call.sharing if inside_attention)]


def _parts(call: _Call, argument: str) -> dict[str, Part]:
    return parts_of_argument(call.kind, argument, call.num_heads)


def _named(sites: _Sites, prefix: str = "") -> tuple[tuple[str, str], ...]:
    names = ((each, quantity) for call, quantity in sites for each in dict.fromkeys((call.plain, call.name)))
    return tuple((name, prefix + quantity) for name, quantity in names)


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and not isinstance(value, np.generic)


def _with_first(args: Any, kwargs: Any, change: Callable[[Array], Array]) -> tuple[Any, Any]:
    """Return the arguments of a pass with its input, or the gradient of its result, changed."""
    if args:
        return (change(args[0]) if _is_array(args[0]) else args[0], *args[1:]), kwargs
    name = next((each for each in ("x", "dy") if each in kwargs), next(iter(kwargs), None))
    if name is None or not _is_array(kwargs[name]):
        return args, kwargs
    return args, {**kwargs, name: change(kwargs[name])}
