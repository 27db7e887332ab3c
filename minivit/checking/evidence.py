"""What is known about a wrong gradient: the facts from which `minivit.checking.mistakes` recognises the mistake."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from minivit.arrays import Array, to_host
from minivit.checking.methods import EPS, NotAnalyticError, Probe

_LARGEST_CACHE = 40  # arrays
_LARGEST_ARRAY = 4096  # elements of an array that is compared with the gradient


@dataclass(frozen=True)
class Other:
    """Another gradient of the same backward pass: its name, the function of its array, and what backward returned."""

    name: str
    probe: Probe
    gradient: Array


@dataclass(frozen=True)
class Context:
    """What the check knows beside one gradient.

    Attributes
    ----------
    arrays
        The arguments, and the arrays in the cache that are not arguments, by name.
    cached
        The names in `arrays` that stand for arrays in the cache.
    others
        The other gradients.
    evaluate
        ``y = evaluate(changes)``: the result of forward with the arguments named in `changes` replaced.
    repaired
        Yields a name in the cache, an operation, and the gradients by the index of the array, for each array that
        forward changes in place: what backward returns with the values before.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()
    others: Sequence[Other] = ()
    evaluate: Callable[[Mapping[str, Array]], Array] | None = None
    repaired: Callable[[], Iterator[tuple[str, str, Array]]] = lambda: iter(())


@dataclass(frozen=True)
class Evidence:
    """A wrong gradient and its right values.

    Attributes
    ----------
    name
        The name of the argument; the gradient may belong to a part of it.
    probe, gradient
        The function of the array, and the gradient that backward returned.
    indices, true
        Flat indices of the elements that were measured, and the derivatives there.
    digits
        Relative accuracy of the derivatives.
    analytic
        Whether the complex step is possible.
    """

    name: str
    probe: Probe
    gradient: Array
    indices: Array
    true: Array
    digits: float
    analytic: bool
    rng: np.random.Generator
    context: Context

    @cached_property
    def claimed(self) -> Array:
        """The elements of the gradient that were measured."""
        return self.at(self.gradient)

    @cached_property
    def top(self) -> float:
        """The largest absolute derivative."""
        return float(np.max(np.abs(self.true), initial=0))

    @cached_property
    def error(self) -> float:
        """The largest error of an element that was measured, relative to the largest derivative."""
        return float(np.max(np.abs(self.claimed - self.true), initial=0)) / self.top

    @cached_property
    def truth(self) -> Array | None:
        """The right gradient, if every element was measured."""
        return self.true.reshape(self.gradient.shape) if self.indices.size == self.gradient.size else None

    @cached_property
    def difference(self) -> Array | None:
        """The gradient minus the right one, if every element was measured."""
        return None if self.truth is None else self.gradient - self.truth

    @cached_property
    def dy(self) -> Array:
        """The upstream gradient."""
        return self.probe.upstream

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """The float arrays that may occur in a formula of the gradient: dy, arguments, the cache, y."""
        arrays = {"dy": self.dy} | dict(self.context.arrays) | {"y": self.probe.y}
        return {name: a for name, a in arrays.items() if a.dtype.kind in "fb" and 1 < a.size <= _LARGEST_ARRAY}

    @cached_property
    def directions(self) -> list[Array]:
        """Three random directions."""
        return [self.rng.standard_normal(self.gradient.shape) for _ in range(3)]

    @cached_property
    def rates(self) -> list[Array]:
        """The derivative of y along each of the directions, of the shape of y."""
        return [self.probe.rates(d, self.analytic) for d in self.directions]

    @cached_property
    def claims(self) -> list[float]:
        """The derivative along each of the directions by the gradient that backward returned."""
        return [float(np.sum(self.gradient * d)) for d in self.directions]

    def at(self, whole: Array) -> Array:
        """Return the measured elements of an array of the gradient's shape."""
        return whole.ravel()[self.indices]

    def close(self, a: Any, b: Any, digits: float | None = None) -> bool:
        """Return whether two arrays agree, relative to the largest derivative."""
        tolerance = (self.digits if digits is None else digits) * self.top
        with np.errstate(all="ignore"):
            return bool(np.all(np.abs(a - b) <= tolerance))

    def multiple(self, values: Array, whole: Array) -> float | None:
        """Return the number c with values = c * whole at the measured elements, or None."""
        part = self.at(whole)
        square = float(np.vdot(part, part))
        if not np.isfinite(square) or square == 0:
            return None
        c = float(np.vdot(part, values)) / square
        return c if c and self.close(values, c * part) else None

    def from_upstream(self, v: Array) -> bool:
        """Return whether the gradient is what a right backward pass returns for `v` in place of dy."""
        return self.from_rates([v * rate for rate in self.rates])

    def from_rates(self, terms: Sequence[Array]) -> bool:
        """Return whether the sum of the terms is the derivative by the gradient, along each direction."""
        for claim, term in zip(self.claims, terms, strict=True):
            scale = max(float(np.sum(np.abs(term))), abs(claim))
            if not abs(float(np.sum(term)) - claim) <= self.digits * scale:
                return False
        return True


def accuracy_for(claimed: Array, true: Array, largest: float, least: float) -> float:
    """Return how closely a mistake must fit the numbers, relative to the largest derivative.

    It is 1 percent of the error of the gradient, between `least` and `largest`. A looser fit would explain any error.
    """
    top = float(np.max(np.abs(true), initial=0))
    error = float(np.max(np.abs(claimed - true), initial=0))
    return float(np.clip(0.01 * error / top, least, largest)) if 0 < top < np.inf else largest


def digits_beside(a: float, b: float) -> int:
    """Return the number of digits that shows the difference between two numbers, at least 6."""
    gap = abs(a - b) / max(abs(a), abs(b), np.finfo(np.float64).tiny)
    return int(np.clip(3 - np.log10(max(gap, EPS)), 6, 17)) if np.isfinite(gap) else 6


def arrays_in(value: Any, name: str = "the cache", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each array in a cache: in tuples, lists, dicts and dataclasses."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = zip(value._fields, value, strict=True)
        inside = [(f"{_stem(name)}.{key}", part) for key, part in parts]
    elif isinstance(value, tuple | list):
        inside = [(f"{_stem(name)}[{k}]", part) for k, part in enumerate(value)]
    elif isinstance(value, dict):
        inside = [(f"{_stem(name)}[{key!r}]", part) for key, part in value.items()]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = [(f"{_stem(name)}.{key.name}", getattr(value, key.name)) for key in dataclasses.fields(value)]
    else:
        if hasattr(value, "dtype") and hasattr(value, "shape") and value.dtype.kind in "fb":
            yield name, value
        return
    if depth < 4:
        for count, (key, part) in enumerate(inside):
            if count < _LARGEST_CACHE:
                yield from arrays_in(part, key, depth + 1)


def _stem(name: str) -> str:
    return name.removeprefix("the ")


def named_arrays(arguments: Mapping[str, Array], cache: Any, y: Array) -> tuple[dict[str, Array], frozenset[str]]:
    """Return the arguments and copies of the other arrays in a cache by name, and the names of those in the cache."""
    named = dict(arguments)
    for name, value in arrays_in(cache):
        try:
            a = np.array(to_host(value))
        except TypeError:
            continue
        if len(named) < _LARGEST_CACHE and not any(np.array_equal(a, b) for b in (*named.values(), y)):
            named[name] = a
    return named, frozenset(named) - frozenset(arguments)


def rates_or_none(probe: Probe, d: Array, analytic: bool) -> Array | None:
    """Return the derivative of y along `d`, or None if it cannot be measured."""
    try:
        rates = probe.rates(d, analytic)
    except (NotAnalyticError, ArithmeticError, ValueError, IndexError, TypeError):
        return None
    return rates if np.all(np.isfinite(rates)) else None
