"""The arrays that a gradient check accepts: what is converted, and what is refused in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np

from minivit.arrays import namespace, to_host
from minivit.random import Key, RngLike, as_key

_CHECKED = (np.dtype("float64"), np.dtype("float32"))


def accepted(names: Sequence[str], arrays: Sequence[Any], dtype: Any = None) -> list[Any]:
    """Return the arguments of a check as native arrays of one floating dtype; integers and booleans stay as they are.

    Lists, numbers, matrices and arrays of the other byte order are converted. Floats become `dtype`; if it is None,
    they become float32 where float32 and float64 are mixed.

    Raises
    ------
    TypeError
        An argument cannot be checked: another dtype, a masked array, or not an array. The message names it.
    ValueError
        An argument holds NaN or infinity.
    """
    converted = [_array(name, a) for name, a in zip(names, arrays, strict=True)]
    floats = [a.dtype for a in converted if a.dtype.kind == "f"]
    dtype = np.dtype(dtype) if dtype is not None else min(floats, key=lambda d: d.itemsize, default=None)
    result = []
    for name, a in zip(names, converted, strict=True):
        with np.errstate(over="ignore"):  # an overflow is reported below
            a = a if a.dtype.kind != "f" or a.dtype == dtype else a.astype(dtype)
        if not np.all(np.isfinite(to_host(a))):
            where = "" if a.dtype == dtype else f" in {dtype}"
            raise ValueError(f"{name} holds NaN or infinity{where}; gradients are checked at finite values")
        result.append(a)
    return result


def _array(name: str, a: Any) -> Any:
    if isinstance(a, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; fill its gaps first: {name}.filled(0)")
    if isinstance(a, Number) and not isinstance(a, np.generic):
        a = np.asarray(a)
    elif isinstance(a, list | tuple):
        if any(hasattr(part, "shape") for part in a):
            raise TypeError(f"{name} is a {type(a).__name__} of arrays; pass the arrays one by one, not in a sequence")
        try:
            a = np.asarray(a)
        except ValueError as error:
            raise TypeError(f"{name} is a {type(a).__name__} that makes no array: {error}") from None
    if isinstance(a, np.ndarray | np.generic):
        a = np.asarray(a)
        a = a if a.dtype.isnative else a.astype(a.dtype.newbyteorder("="))
    if not hasattr(a, "dtype") or a.dtype.kind in "fiub":  # the others are refused below
        try:
            namespace(a)
        except TypeError as error:
            if a is not None and not isinstance(a, str):
                raise TypeError(f"{name}: {error}") from None
            setting = f"{name}={a!r}" if name.isidentifier() else repr(a)
            advice = f"if it is a setting, fix it first: `lambda x: f(x, {setting})`"
            raise TypeError(f"{name}: {error}; {advice}") from None
    if a.dtype not in _CHECKED and a.dtype.kind not in "iub":
        remedy = f": pass {name}.astype('float64')" if a.dtype.kind == "f" else ""
        raise TypeError(f"{name} is {a.dtype}; gradients are checked for float64 and float32 arrays{remedy}")
    return a


def check_functions(forward: Any, backward: Any) -> None:
    """Raise TypeError unless both are functions; the message says which check is meant for a layer."""
    if not callable(forward) or hasattr(forward, "parameters"):
        if hasattr(forward, "forward") and hasattr(forward, "backward"):
            raise TypeError(
                f"gradcheck takes two functions, got a {type(forward).__name__}; for a layer, call "
                "gradcheck_layer(layer, *inputs), for a model, gradcheck_model(model, images, labels)"
            )
        raise TypeError(f"forward is a {type(forward).__name__}; expected a function y, cache = forward(*arrays)")
    if not callable(backward):
        raise TypeError(
            f"backward is a {type(backward).__name__}; expected a function: gradcheck(forward, backward, *arrays) "
            "with gradients = backward(dy, cache), and the arrays one by one"
        )


def fixed_key(rng: RngLike, inputs: Sequence[Any]) -> Key | None:
    """Return one key for all passes; for a seed or a NumPy generator, with as many samples as the first input."""
    if rng is None or isinstance(rng, Key):
        return rng
    shape = np.shape(inputs[0]) if inputs else ()
    return as_key(rng, shape[0] if shape else 0, namespace(inputs[0]) if inputs and hasattr(inputs[0], "dtype") else np)


def check_layer(layer: Any) -> None:
    """Raise TypeError unless `layer` has what the check of a layer needs."""
    if isinstance(layer, type):
        raise TypeError(f"got the class {layer.__name__}; expected a layer: {layer.__name__}(...).initialize()")
    needed = ("forward", "backward", "zero_grad", "astype")
    missing = [name for name in needed if not hasattr(layer, name)]
    if missing:
        raise TypeError(
            f"a {type(layer).__name__} is not a layer: it lacks {', '.join(missing)}; derive it from minivit.Layer, or "
            "check two functions with gradcheck(forward, backward, *arrays)"
        )


def copied(layer: Any, dtype: Any) -> Any:
    """Return a copy of a layer in `dtype`, or raise TypeError if the copy has the arrays of the layer itself."""
    copy = layer.astype(dtype)
    pairs = zip(layer.parameters.values(), copy.parameters.values(), strict=False)
    if any(isinstance(p.value, np.ndarray) and np.may_share_memory(p.value, q.value) for p, q in pairs):
        raise TypeError(f"{type(layer).__name__}.astype returns the layer's own arrays; it must return a copy")
    return copy


def check_takes_key(layer: Any) -> None:
    """Raise TypeError unless the forward pass of a layer takes ``rng=``."""
    try:
        parameters = inspect.signature(layer.forward).parameters
    except (TypeError, ValueError):
        return
    if "rng" not in parameters and not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        raise TypeError(
            f"forward of {type(layer).__name__} takes ({', '.join(parameters)}) and no rng; a layer has "
            "forward(x, rng=None, keep=True)"
        )


def fixed_first(forward: Callable[..., Any], count: int, options: Mapping[str, Any]) -> dict[str, str]:
    """Return advice on those of `options` that are arguments of `forward`, which is called with `count` arrays."""
    try:
        takes = inspect.signature(forward).parameters
    except (TypeError, ValueError):
        return {}
    names = argument_names(forward, count)
    arrays = ", ".join(names) if all(map(str.isidentifier, names)) else "*arrays"
    name = getattr(forward, "__name__", "forward").replace("<lambda>", "forward")
    return {
        key: f"it is an argument of {name}; fix it first: `lambda {arrays}: {name}({arrays}, {key}={value!r})`"
        for key, value in options.items()
        if key in takes
    }


def taken_by_layer(layer: Any, options: Mapping[str, Any], last: str = "") -> dict[str, str]:
    """Return advice on those of `options` that are arguments of the forward pass of a layer.

    Parameters
    ----------
    last
        The name of the last input, after which others can be passed; "" if none can.
    """
    try:
        takes = inspect.signature(layer.forward).parameters
    except (TypeError, ValueError):
        return {}
    advice = {}
    for key, value in options.items():
        if key == "keep" and key in takes:
            advice[key] = "leave it out: both passes are checked"
        elif key in takes and value is takes[key].default:
            advice[key] = "leave it out: this is the default of forward"
        elif key in takes and last and takes[key].kind == inspect.Parameter.POSITIONAL_OR_KEYWORD and _is_array(value):
            advice[key] = f"it is an argument of forward; pass it after {last}, by position"
        elif key in takes:
            advice[key] = "it is an argument of forward; check two functions, or a subclass whose forward sets it"
    return advice


def _is_array(value: Any) -> bool:
    return isinstance(value, list) or (hasattr(value, "dtype") and hasattr(value, "shape"))


def argument_names(function: Callable[..., Any], count: int) -> list[str]:
    """Return the names of the first `count` arguments of a function; "argument 2" for one without a known name."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    return [*names, *(f"argument {k}" for k in range(len(names), count))]


def layer_dtype(layer: Any) -> np.dtype[Any] | None:
    """Return the dtype of a layer's parameters, or None for a layer without parameters.

    Raises
    ------
    TypeError
        The parameters have a dtype that is not checked.
    """
    for name, parameter in layer.parameters.items():
        value = parameter.value
        if value.dtype not in _CHECKED and value.dtype.kind not in "iub":
            raise TypeError(
                f"{name} is {value.dtype}; gradients are checked for float64 and float32 layers: "
                "pass layer.astype('float32')"
            )
        if value.dtype in _CHECKED:
            return np.dtype(value.dtype)
    return None
