"""Look for state outside the cache.

State shows in four ways: a gradient changes after a forward pass at other arguments; a call overwrites an array that
was returned before; a forward pass changes an array in an attribute; after a change of the parameters a layer differs
from a new copy with the same values. The order in which a forward pass calls its layers is found here too.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minivit.arrays import Array, to_host
from minivit.checking.gradients import as_tuple, host_copy, same
from minivit.nn.structure import CONTAINERS, OWN, leaves, with_items

OVERWRITTEN = "backward returns the same array in each call, so the next call overwrites it: return a copy"

RESULT_OVERWRITTEN = "forward returns the same array in each call, so the next call overwrites it: return a copy"

READS_STATE = "backward differs after another forward pass: it reads state outside its cache"

CHANGED_BY_CALLS = "forward returns another result after a call with other arguments: it keeps state"

HIDDEN_BY_VALUES = (
    "gradients are right at these values of the parameters, and wrong after a small change of them: the layer keeps an "
    "array of earlier values, or values such as 1, 2 or an identity hide a mistake"
)

STORES_VALUES = (
    "the first forward pass stores numbers that it computed from the parameters, so a copy that is made later computes "
    "another function: make them parameters, or arrays that are set when the layer is made"
)

KEEPS_EARLIER_VALUES = (
    "the layer keeps an array that was computed from earlier values of the parameters, so its gradients are wrong "
    "after a step of an optimiser or in a copy of the layer: compute the array in each pass, and store it in the "
    "cache, not in an attribute"
)

CHANGED = 1 + 2.0**-10  # a factor of inputs, and of parameters, for other values in the domain of most functions
_ROUNDING = 1e5 * float(np.finfo(np.float64).eps)  # two runs of the same computation differ less


def with_other_parameters(points: Sequence[Array], num_inputs: int) -> list[Array]:
    """Return `points` with other values of the parameters, the arrays after the inputs.

    Each element has a factor of its own: an array that was computed from a parameter may not depend on its scale.
    """
    rng = np.random.default_rng(0)

    def moved(a: Array) -> Array:
        around = np.where(a == 0, np.sqrt(np.mean(np.square(a))), a) if a.size else a
        return a + (CHANGED - 1) * rng.uniform(0.5, 1.0, a.shape) * around

    return [*points[:num_inputs], *map(moved, points[num_inputs:])]


def other_arguments(points: Sequence[Array], num_inputs: int) -> Iterator[list[Array]]:
    """Yield other arguments of a forward pass: other values of the inputs, then fewer or more samples.

    A function may refuse any of them.

    Parameters
    ----------
    points
        The inputs, and the parameters after them, which stay as they are.
    num_inputs
        How many of `points` are inputs.
    """
    inputs, parameters = list(points[:num_inputs]), points[num_inputs:]

    def with_inputs(others: Sequence[Array]) -> list[Array]:
        return [np.array(a) for a in (*others, *parameters)]

    def floats(change: Callable[[Array], Array]) -> list[Array]:
        return with_inputs([change(a) if a.dtype.kind == "f" else a for a in inputs])

    if any(a.dtype.kind == "f" for a in inputs):
        yield floats(lambda a: a * a.dtype.type(CHANGED))
        yield floats(lambda a: np.roll(a, 1))
        yield floats(np.negative)
    if any(a.dtype.kind != "f" for a in inputs):
        yield with_inputs([a if a.dtype.kind == "f" else _other_whole_numbers(a) for a in inputs])
    lengths = [a.shape[0] if a.ndim else -1 for a in inputs]
    samples = lengths[0] if lengths else -1
    if samples > 0:
        yield with_inputs([_resized(inputs[0]), *inputs[1:]])
        if samples in lengths[1:]:
            yield with_inputs([_resized(a) if n == samples else a for a, n in zip(inputs, lengths, strict=True)])


def _other_whole_numbers(a: Array) -> Array:
    rolled = np.roll(a, 1)
    if a.ndim == 0 or not np.array_equal(rolled, a):
        return rolled  # a single number, such as a kernel size, stays: a loop over another may not end
    return ~a if a.dtype.kind == "b" else np.where(a > 1, a - 1, a + 1).astype(a.dtype)


def _resized(a: Array) -> Array:
    """Return the first sample alone, or a single sample twice."""
    return a[:1] if len(a) > 1 else np.concatenate([a, a])


def first_finding(calls: Iterator[Callable[[], Any]], find: Callable[[], str]) -> str:
    """Return what other forward passes change, or an empty string.

    Parameters
    ----------
    calls
        The other forward passes; a call may raise.
    find
        Is called after each of them, runs the backward pass, and returns a finding or an empty string.
    """
    for call in calls:
        # Forward may refuse these arguments; until then it may have stored some of them.
        with np.errstate(all="ignore"), warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            call()
        try:
            if words := find():
                return words
        except Exception as error:
            return (
                f"backward raises {type(error).__name__} after another forward pass, {error}: it reads state outside "
                "its cache"
            )
    return ""


def overwrites_results(first: Any, second: Any, gradients: Sequence[Any], again: Callable[[], Any]) -> bool:
    """Return whether the next call of a backward pass overwrites the arrays that it returned before.

    Parameters
    ----------
    first, second
        What two calls returned.
    gradients
        Copies of what the first call returned.
    again
        Calls backward with another upstream gradient.
    """
    kept = as_tuple(first)
    pairs = list(zip(kept, as_tuple(second), strict=False))
    if not any(isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.shares_memory(a, b) for a, b in pairs):
        return False
    try:
        again()
    except Exception:  # another upstream gradient is refused
        return False
    return not all(map(same, map(host_copy, kept), gradients))


def differ(ours: Sequence[Any], others: Sequence[Any]) -> bool:
    """Return whether the results of two copies of a layer, y and then the gradients, differ by more than rounding.

    Errors are relative to at least 1e-3 of the norm of all gradients: one of them may be rounding alone.
    """
    pairs = [
        (a, b)
        for a, b in zip(ours, others, strict=True)
        if all(isinstance(c, np.ndarray) and c.dtype.kind == "f" and np.all(np.isfinite(c)) for c in (a, b))
    ]
    norms = [float(np.linalg.norm(a)) for a, _ in pairs]
    floor = 1e-3 * math.hypot(*norms[1:])
    errors = [float(np.linalg.norm(a - b)) if a.shape == b.shape else np.inf for a, b in pairs]
    return any(e > _ROUNDING * max(n, floor) for e, n in zip(errors, norms, strict=True))


def attribute_arrays(layer: Any, kinds: tuple[type, ...]) -> dict[str, Any]:
    """Return the arrays, objects of `kinds`, in the attributes of a layer and of those in it, by name.

    They may be in lists, tuples and dicts.
    """
    named: dict[str, Any] = {}
    for prefix, part in _layers(layer):
        for name, value in _own_attributes(part):
            named.update(leaves(f"{prefix}.{name}", value, kinds))
    return named


def with_own_arrays(layer: Any, kinds: tuple[type, ...]) -> Any:
    """Return `layer`, a copy of another one, with copies of the arrays in its attributes, which both had in common."""
    known: dict[int, Any] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, kinds):
            return known.setdefault(id(value), copy.copy(value))
        return with_items(value, copied) if isinstance(value, CONTAINERS) else value

    for _, part in _layers(layer):
        held = {name: value for name, value in _own_attributes(part) if any(leaves(name, value, kinds))}
        vars(part).update({name: copied(value) for name, value in held.items()})
    return layer


def _layers(layer: Any) -> list[tuple[str, Any]]:
    return list(layer.named_layers("self")) if hasattr(layer, "named_layers") else [("self", layer)]


def _own_attributes(layer: Any) -> list[tuple[str, Any]]:
    """Return the attributes of one layer that do not follow from others."""
    left = OWN | getattr(layer, "_derived", frozenset())
    return [(name, value) for name, value in getattr(layer, "__dict__", {}).items() if name not in left]


def changed_arrays(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return which arrays in attributes forward changed, in words, or an empty string."""
    names = [
        name
        for name, a in before.items()
        if name in after
        and a.dtype.kind in "fciub"
        and (after[name].shape, after[name].dtype) == (a.shape, a.dtype)
        and not np.array_equal(to_host(after[name]), to_host(a), equal_nan=a.dtype.kind in "fc")
    ]
    if not names:
        return ""
    return f"forward changes {', '.join(names)}: a layer keeps no state between its passes"


def order_of_calls(layer: Any, forward: Callable[[], Any]) -> dict[str, int]:
    """Call `forward`, which runs `layer`, and return the places of the inner layers in the order in which they end.

    Of a layer that is called several times it is the last place.
    """
    names: list[str] = []

    def note(name: str, *_: Any) -> None:
        names.append(name)

    with contextlib.ExitStack() as hooks:
        for name, part in layer.named_layers():
            hooks.enter_context(part.register_forward_hook(functools.partial(note, name)))
        forward()
    return {name: place for place, name in enumerate(names) if name}
