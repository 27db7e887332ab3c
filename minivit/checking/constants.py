"""Arrays whose elements are all equal, such as scales of 1 and biases of 0, which hide mistakes in a backward pass.

A factor of 1 or a term of 0 that backward forgets changes no gradient. No gradient passes through a matrix of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minivit.arrays import Array, namespace, to_backend, to_host
from minivit.checking.arguments import copied, layer_dtype

_NOISE = 0.1  # relative to the value of all elements


def without_constants(layer: Any) -> tuple[Any, str]:
    """Return a copy with random values in place of constant parameters, and words about them; or the layer.

    The values are near the given ones and farther from zero, except those in place of a matrix of zeros.
    """
    return _with_noise(layer, [name for name, p in layer.parameters.items() if _constant(p.value) is not None])


def without_zeros(model: Any) -> tuple[Any, str]:
    """Return a copy with random values in place of weight matrices of zeros, and words about them; or the model.

    No gradient passes through a matrix of zeros, so there would be none to see before it.
    """
    zero = [name for name, p in model.parameters.items() if p.value.ndim == 2 and not to_host(p.value).any()]
    return _with_noise(model, zero)


def _with_noise(layer: Any, names: Sequence[str]) -> tuple[Any, str]:
    if not names:
        return layer, ""
    layer = copied(layer, layer_dtype(layer))
    numbers: dict[float, str] = {0.0: "zeros", 1.0: "ones"}
    first = float(to_host(layer.parameters[names[0]].value).flat[0])
    for k, name in enumerate(names):
        value = layer.parameters[name].value
        number = float(to_host(value).flat[0])
        random = np.random.default_rng([k, *b"zeros"]).standard_normal(value.shape)
        if value.ndim == 2 and number == 0:
            random *= value.shape[0] ** -0.5
        else:  # a variance of 0 must not become negative
            random = _NOISE * (number or 1.0) * np.abs(random)
        value[...] += to_backend(random.astype(value.dtype), namespace(value))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return layer, f", with random values for the {numbers.get(first, 'equal numbers')} of {names[0]}{more}"


def constant_arguments(names: Sequence[str], arrays: Sequence[Array]) -> str:
    """Return what a check at arguments with equal elements cannot find, in words, or an empty string."""
    numbers = {name: number for name, a in zip(names, arrays, strict=True) if (number := _constant(a)) is not None}
    found = [f"{name} is {numbers[name]:g} everywhere: {_hidden(name, numbers[name])} would pass" for name in numbers]
    return "; ".join([*found, "check at random values"]) if found else ""


def one_sample(names: Sequence[str], arrays: Sequence[Array], has_parameters: bool) -> str:
    """Return what a check of a layer with a batch of one cannot find, in words, or an empty string.

    The gradients of the parameters are sums over the samples of the first input.
    """
    if not has_parameters or not arrays or arrays[0].ndim < 2 or len(arrays[0]) != 1:
        return ""
    return f"{names[0]} has one sample: a mean in place of a sum over the samples would pass; check with two or more"


def _hidden(name: str, number: float) -> str:
    mistakes = {0.0: f"a missing term {name}", 1.0: f"a missing factor {name}"}
    return mistakes.get(number, f"another order of the elements of {name}")


def _constant(value: Any) -> float | None:
    """Return the number that all elements of a float array are equal to; of one element only 0 or 1; or None."""
    a = to_host(value)
    if a.dtype.kind != "f" or a.size == 0 or not np.all(np.isfinite(a)) or np.ptp(a) != 0:
        return None
    number = float(a.flat[0])
    return number if a.size > 1 or number in (0, 1) else None
