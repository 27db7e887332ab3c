"""A layer with parameters as a plain function of arrays, which is what can be checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minivit.arrays import to_host
from minivit.checking.function import MISSING, Case, align, as_tuple, same
from minivit.checking.verdict import Place

Run = Callable[..., tuple[Any, Any]]
RunBack = Callable[[Any, Any, Any], Any]


class LayerCase(Case):
    """The case of a layer: a function of its inputs and then of its parameters, run on copies of the layer.

    Parameters
    ----------
    layer
        Has ``parameters``, ``zero_grad()`` and ``astype(dtype)``; it is left as it is.
    inputs, names
        The arrays that come first, and what they are called.
    run, run_back
        ``y, cache = run(copy, *inputs)`` and ``dinputs = run_back(copy, dy, cache)``.
    """

    def __init__(self, layer: Any, inputs: Sequence[Any], names: Sequence[str], run: Run, run_back: RunBack) -> None:
        self.layer, self.run_layer, self.run_layer_back = layer, run, run_back
        self.inputs = [x.dtype for x in inputs]
        self.by_dtype: dict[np.dtype[Any], Any] = {}
        self.replaced: list[str] = []
        parameters = layer.parameters
        self.places = [Place("", name, k) for k, name in enumerate(names)]
        for k, (name, parameter) in enumerate(parameters.items(), start=len(inputs)):
            self.places.extend(parts_of(name, k, parameter))
        values = [parameter.value for parameter in parameters.values()]
        super().__init__(self._forward, self._backward, (*inputs, *values), (*names, *parameters))

    def _forward(self, *arrays: Any) -> tuple[Any, Any]:
        dtype = np.result_type(*(a.dtype for a in arrays if a.dtype.kind in "fc"))
        if dtype not in self.by_dtype:
            self.by_dtype[dtype] = self.layer.astype(dtype)
        copy = self.by_dtype[dtype]
        for parameter, value in zip(copy.parameters.values(), arrays[len(self.inputs) :], strict=True):
            parameter.value[...] = value
        y, cache = self.run_layer(copy, *arrays[: len(self.inputs)])
        return y, (copy, cache)

    def _backward(self, dy: Any, state: Any) -> tuple[Any, ...]:
        copy, cache = state
        copy.zero_grad()
        returned = align(as_tuple(self.run_layer_back(copy, dy, cache)), self.inputs)
        dinputs = [_kept(returned.get(k)) for k in range(len(self.inputs))]
        gradients = [_kept(parameter.grad) for parameter in copy.parameters.values()]
        self.run_layer_back(copy, dy, cache)
        pairs = zip(copy.parameters.items(), gradients, strict=True)
        self.replaced = [name for (name, parameter), once in pairs if not same(to_host(parameter.grad), 2 * once)]
        return (*dinputs, *gradients)

    @property
    def findings(self) -> tuple[str, ...]:
        """What the layer broke, beyond what any pair of functions can break."""
        words = "backward sets gradients, or changes its cache, instead of adding to them: "
        return (words + ", ".join(self.replaced),) if self.replaced else ()


def parts_of(name: str, array: int, parameter: Any) -> list[Place]:
    """Return the place of a parameter, or those of its named parts along the last axis."""
    layer, _, last = name.rpartition(".")
    parts = tuple(getattr(parameter, "parts", ()))
    if not parts:
        return [Place(layer, last, array)]
    width, rest = divmod(parameter.value.shape[-1], len(parts))
    if rest:
        raise ValueError(f"{name} has the parts {parts}, which do not divide its last axis in {parameter.value.shape}")
    slices = [slice(k * width, (k + 1) * width) for k in range(len(parts))]
    return [Place(layer, f"{last}[{part}]", array, (..., where)) for part, where in zip(parts, slices, strict=True)]


def _kept(gradient: Any) -> Any:
    return gradient if gradient is None or gradient is MISSING else np.array(to_host(gradient))
