"""A layer under check, as a function of its inputs and parameters."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minivit.arrays import Array, to_backend, to_host
from minivit.checking.arguments import accepted, copied, layer_dtype
from minivit.checking.backward_passes import BackwardPasses
from minivit.checking.function import CheckedFunction
from minivit.checking.gradients import align, as_tuple, host_copy, miscounted, result_of, same
from minivit.checking.state import (
    OVERWRITTEN,
    attribute_arrays,
    changed_arrays,
    differ,
    order_of_calls,
    other_arguments,
    overwrites_results,
    with_other_parameters,
    with_own_arrays,
)
from minivit.checking.verdict import Place
from minivit.nn.layer import Layer
from minivit.random import Key

LayerForward = Callable[..., tuple[Any, Any]]
LayerBackward = Callable[[Any, Any, Any], Any]


class CheckedLayer(CheckedFunction):
    """A layer as a function of its inputs followed by its parameters, evaluated on copies of the layer.

    Parameters
    ----------
    layer
        Has ``parameters``, ``zero_grad()`` and ``astype(dtype)``; it is not changed.
    inputs, names
        The inputs of the layer, which are converted to its dtype, and their names.
    layer_forward, layer_backward
        ``y, cache = layer_forward(copy, *inputs)`` and ``dinputs = layer_backward(copy, dy, cache)``.
    key
        The key of all passes; if it is not None, `layer_forward` gets it as ``rng=key``.
    """

    def __init__(
        self,
        layer: Any,
        inputs: Sequence[Any],
        names: Sequence[str],
        layer_forward: LayerForward,
        layer_backward: LayerBackward,
        key: Key | None = None,
    ) -> None:
        self.layer, self.layer_forward, self.layer_backward = layer, layer_forward, layer_backward
        inputs = accepted(names, inputs, layer_dtype(layer))
        self.inputs = [x.dtype for x in inputs]
        self.key = key
        self.by_dtype: dict[np.dtype[Any], Any] = {}
        self._changed: list[str] = []  # what the passes change of the layer, in words
        self._findings: dict[np.dtype[Any], list[str]] = {}  # of the first backward pass
        parameters = layer.parameters
        self.places = [Place("", name, k) for k, name in enumerate(names)]
        for k, (name, parameter) in enumerate(parameters.items(), start=len(inputs)):
            self.places.extend(places_of(name, k, parameter))
        values = [parameter.value for parameter in parameters.values()]
        super().__init__(self._forward, self._backward, (*inputs, *values), (*names, *parameters))
        self.num_inputs = len(inputs)
        self._arrays = (np.ndarray, self.library.ndarray)

    def _forward(self, *arrays: Any) -> tuple[Any, Any]:
        dtype = np.result_type(*(a.dtype for a in arrays if a.dtype.kind in "fc"))
        first = dtype not in self.by_dtype
        copy = self.by_dtype[dtype] = self._copy(dtype) if first else self.by_dtype[dtype]
        values = arrays[len(self.inputs) :]
        for parameter, value in zip(copy.parameters.values(), values, strict=True):
            parameter.value[...] = value
        options = {} if self.key is None else {"rng": self.key}
        inputs = arrays[: len(self.inputs)]
        returned = self.layer_forward(copy, *inputs, **options)
        y, cache = result_of(returned, f"forward of {type(copy).__name__}")
        if first and dtype.kind == "f":
            self._note_changed_values("forward", copy, values)
            if isinstance(copy, Layer):
                self._note_state(copy, functools.partial(self.layer_forward, copy, *inputs, **options))
        return y, (copy, cache)

    def _copy(self, dtype: np.dtype[Any]) -> Any:
        """Return a new copy of the layer."""
        converted = copied(self.layer, dtype)
        # The parameters of a class of another kind may be views of its arrays.
        return with_own_arrays(converted, self._arrays) if isinstance(converted, Layer) else converted

    def _note_changed_values(self, what: str, copy: Any, values: Sequence[Any]) -> None:
        """Note which parameters of the copy the pass `what` set to others than `values`."""
        named = zip(copy.parameters.items(), values, strict=True)
        names = [name for (name, p), value in named if not np.array_equal(to_host(p.value), to_host(value))]
        if names:
            words = "only an optimiser changes the values of parameters"
            self._changed.append(f"{what} changes {', '.join(names)}: {words}")

    def _note_state(self, copy: Layer, forward: Callable[[], Any]) -> None:
        """Note which arrays in attributes of the copy a second call of `forward` changes, and the order of its layers.

        Results that are only kept to be looked at, and tables, are the same after a second call.
        """
        before = {name: a.copy() for name, a in attribute_arrays(copy, self._arrays).items()}
        self.order = order_of_calls(copy, forward)
        if words := changed_arrays(before, attribute_arrays(copy, self._arrays)):
            self._changed.append(words)

    def _other_calls(self, points: Sequence[Array]) -> Iterator[Callable[[], Any]]:
        key, samples = self.key, len(points[0]) if self.inputs and points[0].ndim else 0

        def call(key: Key | None, others: Sequence[Array]) -> None:
            before, self.key = self.key, key
            try:
                self._call(others)
            finally:
                self.key = before

        for others in other_arguments(points, self.num_inputs):
            of_samples = key is not None and samples and len(key.sample_ids) == samples != len(others[0])
            yield functools.partial(call, _resized_key(key, len(others[0])) if key and of_samples else key, others)
        if key is not None:
            yield functools.partial(call, replace(key, step=key.step + 1), points)

    def _violations(
        self, points: Sequence[Array], result: Any, y: Array, backward: BackwardPasses, gradients: tuple[Any, ...]
    ) -> Iterator[str]:
        found = list(super()._violations(points, result, y, backward, gradients))
        yield from found
        if not found and not self.findings and y.dtype == np.float64:
            self.copies_differ = self._copies_differ(points, backward)

    def _copies_differ(self, points: Sequence[Array], backward: BackwardPasses) -> bool:
        """Return whether the copy in use differs from a new one after the values of the parameters change.

        It does not count if the two differ at the earlier values too, as layers with random tables do.
        """
        moved = with_other_parameters(points, self.num_inputs)
        dtype = np.dtype(np.float64)
        used = self.by_dtype[dtype]

        def results(copy: Any, points: Sequence[Array]) -> list[Any]:
            self.by_dtype[dtype] = copy
            y, cache = self._call([np.array(a) for a in points])
            return [y, *BackwardPasses(self.backward, cache, backward.dy, self.library)()]

        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return differ(results(used, moved), results(self._copy(dtype), moved)) and not differ(
                    results(used, points), results(self._copy(dtype), points)
                )
        except Exception:  # these values are refused
            return False
        finally:
            self.by_dtype[dtype] = used
            self._call(points)

    def evaluation_differs(self, evaluate: Callable[..., Any]) -> bool:
        """Return whether ``evaluate(copy, *inputs)``, the layer without a cache, returns another result.

        It is compared after a small change of the parameters too, because it may keep an array of earlier values.
        """

        def differs(points: Sequence[Array]) -> bool:
            y, (copy, _) = self._forward(*(to_backend(np.array(a), self.library) for a in points))
            inputs = [to_backend(np.array(a), self.library) for a in points[: len(self.inputs)]]
            other = np.asarray(to_host(evaluate(copy, *inputs)))
            return other.shape != y.shape or not np.allclose(other, to_host(y), rtol=1e-9, atol=1e-12, equal_nan=True)

        if differs(self.points):
            return True
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return differs(with_other_parameters(self.points, self.num_inputs))
            except Exception:  # these values are refused
                return False

    def user_cache(self, cache: Any) -> Any:
        """Return the layer's own part of the cache."""
        return cache[1]

    def _backward(self, dy: Any, state: Any) -> tuple[Any, ...]:
        copy, cache = state
        copy.zero_grad()
        values = [np.array(to_host(parameter.value)) for parameter in copy.parameters.values()]
        given = dy.copy()  # backward may write to dy
        first = self.layer_backward(copy, dy, cache)
        self._note_changed_values("backward", copy, values)
        copies = tuple(map(host_copy, as_tuple(first)))
        returned = align(copies, self.inputs)
        dinputs = [returned.get(k) for k in range(len(self.inputs))]
        gradients = [host_copy(parameter.grad) for parameter in copy.parameters.values()]
        if dy.dtype not in self._findings:
            try:
                self._findings[dy.dtype] = self._contracts(copy, given, cache, first, copies, gradients)
            except Exception as error:
                words = f"a second backward pass on the same cache raises {type(error).__name__}: {error}"
                self._findings[dy.dtype] = [words]
        return (*dinputs, *gradients)

    def _contracts(
        self, copy: Any, dy: Any, cache: Any, first: Any, copies: Sequence[Any], gradients: Sequence[Any]
    ) -> list[str]:
        """Return the contracts of layers that `layer_backward` violates, after it returned `first`."""
        findings = [words] if (words := self._miscounted(first)) else []
        second = self.layer_backward(copy, dy.copy(), cache)
        pairs = zip(copy.parameters.items(), gradients, strict=True)
        wrong = [name for (name, parameter), once in pairs if not same(to_host(parameter.grad), 2 * once)]
        if wrong:
            words = "backward sets gradients, or changes its cache, instead of adding to them"
            findings.append(f"{words}: {', '.join(wrong)}")
        if overwrites_results(first, second, copies, lambda: self.layer_backward(copy, -dy, cache)):
            findings.append(OVERWRITTEN)
        return findings

    def _miscounted(self, returned: Any) -> str:
        if len(self.inputs) == 1 and isinstance(returned, tuple | list) and (returned or self.inputs[0].kind == "f"):
            kind = f"{type(returned).__name__} of {len(returned)}"
            return f"backward returns a {kind}; expected one array, the gradient of {self.names[0]}"
        return miscounted(returned, self.inputs, "input")

    @property
    def findings(self) -> tuple[str, ...]:
        """The violated contracts that apply to layers only, such as adding to the gradients of parameters."""
        words = [*self._changed, *itertools.chain.from_iterable(self._findings.values())]
        return tuple(dict.fromkeys(filter(None, words)))


def _resized_key(key: Key, samples: int) -> Key:
    return replace(key, sample_ids=key.sample_ids[np.arange(samples) % len(key.sample_ids)])


def places_of(name: str, array: int, parameter: Any) -> list[Place]:
    """Return the place of a parameter, or one place for each of its named parts along the last axis."""
    layer, _, last = name.rpartition(".")
    place, parts = Place(layer, last, array), tuple(getattr(parameter, "parts", ()))
    if not parts:
        return [place]
    *_, length = parameter.value.shape
    if length % len(parts):
        raise ValueError(f"{name} has the parts {parts}, which do not divide its last axis in {parameter.value.shape}")
    return place.split(parts, length)
