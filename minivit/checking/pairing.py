"""How `compare` calls a user's functions and ours with the same arguments."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minivit.arrays import to_backend, to_host
from minivit.checking.arguments import argument_names, check_layer, fixed_key
from minivit.checking.constants import without_constants
from minivit.checking.function import CheckedFunction
from minivit.checking.gradients import as_tuple
from minivit.checking.heads import THIRDS
from minivit.checking.layer import CheckedLayer
from minivit.checking.verdict import Place


@dataclass(frozen=True)
class Sides:
    """Mine and ours as functions of arrays, the gradients to compare, and ours with other settings.

    Attributes
    ----------
    places
        One for each gradient, or named part of a gradient, with the index of its array in `ours`.
    settings
        The arguments of ours that are not arrays, by name.
    evaluate
        ``y = evaluate(changes)``: the result of ours with arguments of any name replaced.
    """

    mine: CheckedFunction
    ours: CheckedFunction
    title: str
    places: Sequence[Place]
    evaluate: Callable[[Mapping[str, Any]], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)


def is_layer(thing: Any) -> bool:
    """Return whether `thing` is a layer, which has parameters."""
    return hasattr(thing, "parameters") and hasattr(thing, "forward") and not isinstance(thing, type)


def pair_of(thing: Any, what: str) -> tuple[Callable[..., Any], Callable[..., Any], str]:
    """Return the forward function, the backward function and the name of a pair, an op, or an object with both.

    Raises
    ------
    TypeError
        `thing` is none of them.
    """
    if isinstance(thing, tuple | list) and len(thing) == 2 and all(map(callable, thing)):
        return thing[0], thing[1], getattr(thing[0], "__name__", "forward")
    if isinstance(thing, type):
        check_layer(thing)
    if callable(getattr(thing, "forward", None)) and callable(getattr(thing, "backward", None)):
        return thing.forward, thing.backward, getattr(thing, "__name__", type(thing).__name__)
    name = getattr(thing, "__name__", "")
    if inspect.isfunction(thing) and thing.__module__.startswith("minivit."):
        backward = getattr(sys.modules[thing.__module__], f"{name}_backward", None)
        if backward is not None:
            return thing, backward, f"ops.{name}"
        raise TypeError(f"{what} is the op {name}, which has no backward function to compare with")
    got = f"the function {name}" if inspect.isfunction(thing) else f"a {type(thing).__name__}"
    raise TypeError(
        f"{what} is {got}; expected two functions, (forward, backward), with y, cache = forward(*arrays) and "
        "gradients = backward(dy, cache), or an object with both"
        + (", or an op such as minivit.ops.attention, or a layer" if what == "ours" else "")
    )


def sides_of(mine: Any, ours: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sides:
    """Return both sides for the arguments of `compare`."""
    if is_layer(ours):
        return _beside_layer(mine, ours, args, dict(kwargs))
    if is_layer(mine):
        check_layer(mine)
        if mine.parameters:
            raise TypeError(f"mine is a {type(mine).__name__} with parameters; compare it with a layer of ours")
    forward, backward, title = pair_of(ours, "ours")
    my_forward, my_backward, my_title = pair_of(mine, "mine")
    signature = inspect.signature(forward)
    try:
        values = dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise TypeError(f"{title}({', '.join(signature.parameters)}) got other arguments: {error}") from None
    lists = {name for name, value in values.items() if isinstance(value, list)}
    values = {name: np.asarray(value) if name in lists else value for name, value in values.items()}
    values = {name: _float64(value) for name, value in values.items()}
    given = dict(signature.bind(*args, **kwargs).arguments)
    floats = [name for name, value in values.items() if _kind(value) == "f"]
    names = _with_gradient(forward, backward, values, floats)
    names = [name for name, value in values.items() if name in names or _kind(value) in ("i", "u", "b")]
    call = _Call.of(tuple(values), args, kwargs, names, my_forward, my_title)

    def ours_forward(*arrays: Any) -> Any:
        return forward(**values | dict(zip(names, arrays, strict=True)))

    def mine_forward(*arrays: Any) -> Any:
        # The constants of mine have the precision of its arrays, which are once more those that were given.
        low = any(getattr(a, "dtype", None) == np.float32 for a in arrays)
        return call(my_forward, (given if low else values) | dict(zip(names, arrays, strict=True)))

    def evaluate(changes: Mapping[str, Any]) -> Any:
        moved = {name: to_backend(a, right.library) if isinstance(a, np.ndarray) else a for name, a in changes.items()}
        return to_host(forward(**{**values, **moved})[0])

    arrays = [given[name] for name in names]
    left = CheckedFunction(mine_forward, my_backward, arrays, names)
    right = CheckedFunction(ours_forward, lambda dy, cache: _present(backward(dy, cache)), arrays, names)
    places = [place for k in right.floats for place in _places(names[k], k, right.given[k].shape)]
    settings = {name: value for name, value in values.items() if name not in names}
    return Sides(left, right, f"{my_title} beside {title}", places, evaluate, settings)


def _places(name: str, array: int, shape: tuple[int, ...]) -> list[Place]:
    place, parts = Place("", name, array), THIRDS.get(name, ())
    return [place] if not parts or shape[-1] % len(parts) else place.split(parts, shape[-1])


def _float64(value: Any) -> Any:
    return value.astype(np.float64) if _kind(value) == "f" and value.ndim else value


def _kind(value: Any) -> str:
    return value.dtype.kind if hasattr(value, "dtype") and hasattr(value, "shape") else ""


def _with_gradient(forward: Any, backward: Any, values: Mapping[str, Any], floats: list[str]) -> list[str]:
    """Return the names of the float arrays that ours has gradients for: the first ones."""
    y, cache = forward(**values)
    return floats[: len(_present(backward(y * 0 + 1, cache)))]


def _present(gradients: Any) -> tuple[Any, ...]:
    """Return the gradients without those of arguments that are None."""
    return tuple(gradient for gradient in as_tuple(gradients) if gradient is not None)


@dataclass(frozen=True)
class _Call:
    """The names of the arguments that a function is called with: by position, and by keyword."""

    positional: tuple[str, ...]
    keyword: tuple[str, ...]

    @staticmethod
    def of(
        bound: tuple[str, ...],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        arrays: Sequence[str],
        function: Any,
        title: str,
    ) -> _Call:
        """Return the call that `function` accepts: as given, all by position, or the arrays alone."""
        given = _Call(bound[: len(args)], tuple(kwargs))
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return given
        known = tuple(name for name in kwargs if name in signature.parameters and name not in arrays)
        tries = [given, _Call(given.positional, known), _Call(bound, ()), _Call(tuple(arrays), known)]
        for call in [*tries, _Call(tuple(arrays), ())]:
            try:
                signature.bind(*call.positional, **dict.fromkeys(call.keyword))
            except TypeError:
                continue
            return call
        takes = ", ".join(signature.parameters)
        raise TypeError(f"{title}({takes}) cannot be called with ({', '.join(bound)}), as ours is")

    def __call__(self, function: Any, values: Mapping[str, Any]) -> Any:
        return function(*(values[name] for name in self.positional), **{name: values[name] for name in self.keyword})


def _beside_layer(mine: Any, ours: Any, inputs: Sequence[Any], kwargs: dict[str, Any]) -> Sides:
    """Return both sides for a layer: a function of its inputs and its parameters, whose values mine gets."""
    check_layer(ours)
    ours, filled = without_constants(ours) if is_layer(mine) else (ours, "")  # functions may read ours itself
    title = f"{type(ours).__name__}{filled}"
    key = fixed_key(kwargs.pop("rng", None), inputs)
    names = argument_names(ours.forward, len(inputs))

    def forward(layer: Any, *arrays: Any, **options: Any) -> Any:
        return layer.forward(*arrays, **kwargs, **options)

    def backward(layer: Any, dy: Any, cache: Any) -> Any:
        return layer.backward(dy, cache)

    right = CheckedLayer(ours, inputs, names, forward, backward, key)
    arrays, all_names = right.given, right.names
    if is_layer(mine):
        check_layer(mine)
        shapes = [{name: p.value.shape for name, p in layer.parameters.items()} for layer in (mine, ours)]
        if shapes[0] != shapes[1]:
            raise TypeError(
                f"the parameters of mine are {shapes[0] or 'none'}, those of ours {shapes[1] or 'none'}; they need the "
                "same names and shapes, because mine is run with the values of ours"
            )
        left: CheckedFunction = CheckedLayer(mine, inputs, names, forward, backward, key)
        my_title = type(mine).__name__
        order = [list(all_names).index(name) for name in left.names]
        left.given, left.points = [arrays[k] for k in order], [right.points[k] for k in order]
    else:
        my_forward, my_backward, my_title = pair_of(mine, "mine")
        takes = _Call.of(tuple(all_names), arrays, {}, names, my_forward, my_title)
        used = len(takes.positional)
        left = CheckedFunction(my_forward, my_backward, arrays[:used], all_names[:used])
    places = [place for place in right.places if place.array < len(arrays) and all_names[place.array] in left.names]
    return Sides(left, right, f"{my_title} beside {title}", places, right.evaluate_with)
