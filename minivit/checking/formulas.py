"""Recognise a wrong gradient as another formula: a product, a sum, or the derivative of another activation.

The formulas are made of dy, the arguments and the cache. Both the gradient and the derivative are looked up among them,
up to a constant factor; a sentence names the first, and the second if it is among them too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from minivit.arrays import Array
from minivit.checking.evidence import Evidence
from minivit.ops.erf import erf

_MOST = 4000  # formulas that are tried
_SQRT_2_PI = math.sqrt(2 / math.pi)


def _gelu_erf(x: Array) -> Array:
    return 0.5 * (1 + erf(x / math.sqrt(2))) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh(x: Array) -> Array:
    t = np.tanh(_SQRT_2_PI * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * _SQRT_2_PI * (1 + 3 * 0.044715 * x * x)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _gelu_sigmoid(x: Array) -> Array:
    s = _sigmoid(1.702 * x)
    return s + 1.702 * x * s * (1 - s)


# Functions of an array that occur as a factor in backward passes, simple ones first.
FACTORS: dict[str, Callable[[Array], Array]] = {
    "{}": lambda x: x,
    "(1 - {})": lambda x: 1 - x,
    "{0} * (1 - {0})": lambda x: x * (1 - x),
    "(1 - {0}^2)": lambda x: 1 - x * x,
    "{0}^2": np.square,
    "1 / {}": lambda x: 1 / x,
    "({} > 0)": lambda x: (x > 0).astype(float),
    "sign({})": np.sign,
    "exp({})": np.exp,
    "the derivative of GELU (erf) at {}": _gelu_erf,
    "the derivative of GELU (tanh) at {}": _gelu_tanh,
    "the derivative of GELU (sigmoid) at {}": _gelu_sigmoid,
    "the derivative of tanh at {}": lambda x: 1 - np.tanh(x) ** 2,
    "the derivative of the sigmoid at {}": lambda x: _sigmoid(x) * (1 - _sigmoid(x)),
    "the derivative of SiLU at {}": lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))),
    "the derivative of softplus at {}": _sigmoid,
}


def other_formula(e: Evidence) -> str:
    """Return the formula of the gradient, if it is one of those known here, and the one of the derivative."""
    if e.gradient.size < 2 or np.count_nonzero(e.claimed) < 2:
        return ""
    claimed, true, shape = "", "", e.gradient.shape
    offsets = [("", np.zeros(1)), *([("dy + ", e.at(e.dy))] if e.dy.shape == shape else [])]
    for name, value in islice(_formulas(e), _MOST):
        if value.shape != e.gradient.shape:
            if value.ndim != e.gradient.ndim or any(n not in (1, m) for n, m in zip(value.shape, shape, strict=True)):
                continue
            value = np.broadcast_to(value, shape)
        if not np.all(np.isfinite(value)):
            continue
        for past, offset in offsets:
            claimed = claimed or _named(e, e.claimed - offset, name, value, past)
            true = true or _named(e, e.true - offset, name, value, past)
        if claimed and true:
            break
    if not claimed:
        return ""
    return f"backward returns {claimed}{f', the derivative is {true}' if true else ''}{_reason(claimed, true)}"


def _reason(claimed: str, true: str) -> str:
    """Return what distinguishes two formulas."""
    if true and claimed.replace(".T", "") == true.replace(".T", ""):
        return ": a matrix is not transposed"
    for found in re.finditer(r"gradient of softmax (.*?) for (.*)\)", true):
        a, d = found.groups()
        if f"{d} * {a}" in claimed:
            return ": softmax's row sum is missing"
        return "" if a in claimed else ": the backward pass of softmax is missing"
    return ""


def _named(e: Evidence, values: Array, name: str, whole: Array, past: str) -> str:
    c = e.multiple(values, whole)
    if c is None:
        return ""
    return past + (name if abs(c - 1) <= 10 * e.digits else f"{c:.6g} * {name}")


def _formulas(e: Evidence) -> Iterator[tuple[str, Array]]:
    """Yield formulas and their values, simple ones first."""
    shape, arrays = e.gradient.shape, dict(e.arrays)
    factors = {name: a for name, a in arrays.items() if name != "dy"}
    for name, d in _upstream(e.dy, factors, len(shape)):
        yield name, d
        if d.ndim >= len(shape):
            yield from _sums(name, d, shape)
        inner = f"({name})" if " * " in name and not name.startswith("(gradient") else name
        for other, a in factors.items():
            yield from _products(inner, d, other, a, shape)


def _upstream(dy: Array, factors: dict[str, Array], ndim: int) -> Iterator[tuple[str, Array]]:
    """Yield dy, its products with an argument, and these times a function of an array of their shape."""
    bases = [("dy", dy)]
    for name, a in factors.items():
        if a.ndim >= 2 and dy.ndim >= 2:
            bases += [(f"(dy @ {name}{t})", p) for t, p in _matmuls(dy, a)]
    for axis in range(ndim if dy.ndim == ndim - 1 > 0 else 0):
        bases.append((f"(dy along axis {axis})", np.expand_dims(dy, axis)))
    yield from bases
    for words, function in FACTORS.items():
        for base, d in bases:
            for name, a in (*factors.items(), ("dy", dy)):
                whole = a.shape == d.shape or (d.ndim == a.ndim == ndim)
                if whole or (words == "{}" and a.ndim <= d.ndim):
                    try:
                        yield f"{base} * {words.format(name)}", d * function(a)
                    except ValueError:  # the shapes do not fit
                        continue
    for base, d in bases:
        for name, a in factors.items():
            if a.shape == d.shape and a.ndim and np.all(a >= 0) and np.allclose(a.sum(-1), 1, rtol=1e-9):
                row = np.sum(d * a, axis=-1, keepdims=True)
                yield f"(gradient of softmax {name} for {base})", a * (d - row)


def _matmuls(left: Array, a: Array) -> Iterator[tuple[str, Array]]:
    turned = a.swapaxes(-1, -2)
    for words, right in (("", a), (".T", turned)):
        if left.shape[-1] == right.shape[-2] and right.shape[:-2] in ((), left.shape[:-2]):
            yield words, left @ right


def _sums(name: str, d: Array, shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    lead = d.ndim - len(shape)
    if lead and d.shape[lead:] == shape:
        yield f"sum({name})", d.sum(axis=tuple(range(lead)))
        yield f"mean({name})", d.mean(axis=tuple(range(lead)))
    if d.ndim == len(shape):
        axes = tuple(k for k in range(d.ndim) if shape[k] == 1 != d.shape[k])
        if axes:
            yield f"sum({name})", d.sum(axis=axes, keepdims=True)


def _products(name: str, d: Array, other: str, a: Array, shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    """Yield the products of `d` with an array that have the gradient's number of axes."""
    if len(shape) < 2 or a.ndim < 2 or d.ndim < 2:
        return
    if d.ndim == len(shape):
        for t, p in _matmuls(d, a):
            yield f"{name} @ {other}{t}", p
        if d.shape[:-2] == a.shape[:-2]:
            for t, p in _matmuls(d.swapaxes(-1, -2), a):
                yield f"{name}.T @ {other}{t}", p
            for t, p in _matmuls(a, d):
                yield f"{other} @ {name}{t}", p
            for t, p in _matmuls(a.swapaxes(-1, -2), d):
                yield f"{other}.T @ {name}{t}", p
    elif len(shape) == 2 and a.shape[:-1] == d.shape[:-1]:
        left, right = a.reshape(-1, a.shape[-1]), d.reshape(-1, d.shape[-1])
        yield f"{other}.T @ {name}", left.T @ right
        yield f"{name}.T @ {other}", right.T @ left
