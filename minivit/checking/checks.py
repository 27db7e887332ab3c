"""The gradient check: `gradcheck` for a pair of functions, `gradcheck_layer`, and `gradcheck_model` with its loss.

Each gradient is verified in float64 by the complex step along random directions and by the order of the Taylor
remainder, or by central differences if the code is not analytic. float32 gradients are then compared with the float64
ones. The report explains each wrong gradient.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from minivit import ops
from minivit.checking.arguments import (
    argument_names,
    check_functions,
    check_layer,
    check_takes_key,
    fixed_first,
    fixed_key,
    taken_by_layer,
)
from minivit.checking.constants import without_constants
from minivit.checking.function import RANDOM, Backward, CheckedFunction, Forward
from minivit.checking.gradients import result_of
from minivit.checking.layer import CheckedLayer
from minivit.checking.report import Report, Row
from minivit.checking.settings import Options, settings_of
from minivit.checking.verdict import Place
from minivit.checking.verification import checked_report
from minivit.engine.machine import single_threaded_blas
from minivit.errors import count_of
from minivit.random import Key, RngLike

__all__ = ["Options", "Report", "Row", "gradcheck", "gradcheck_layer", "gradcheck_model"]


@np.errstate(under="ignore")  # the steps of the checks are tiny
def gradcheck(
    forward: Forward,
    backward: Backward,
    *arrays: Any,
    names: Sequence[str] | None = None,
    **options: Unpack[Options],
) -> Report:
    """Check that `backward` is the gradient of `forward` at `arrays`.

    Parameters
    ----------
    forward
        ``y, cache = forward(*arrays)`` with one real array `y`.
    backward
        ``gradients = backward(dy, cache)`` in the order of the arrays: one array or a tuple. Arrays of integers and
        booleans have no gradient and may be left out. None in place of a gradient means that it is not computed; its
        row is skipped.
    arrays
        The point at which to check: float64 or float32 arrays; lists and numbers are converted. float32 arrays are
        checked in float64; their float32 gradients are then compared with the float64 ones, in further rows. If both
        dtypes are given, all floats are rounded to float32 first.
    names
        The names of the arrays in the table; the parameter names of `forward` by default.
    seed : int, default 0
        Seed of the upstream gradient and of the directions.
    tolerance : float, default 1e-11
        Largest relative error by the complex step; see `Row.error`.
    method : {"auto", "complex", "taylor", "central"}
        "auto" uses the complex step and the Taylor slope, and central differences if `forward` is not analytic; any
        other value uses that method only.
    directions : int, default 3
        Number of random directions for each array.
    central_tolerance, float32_tolerance : float, default 1e-6 and 1e-4
        Largest relative error by central differences, and of float32 gradients against float64 ones.
    upstream : Array, optional
        The gradient of the result, of its shape, at which `backward` is checked; random by default.
    on_row
        Called with each row as soon as it is computed, and with the total number of rows, for a progress bar.

    Returns
    -------
    Report
        ``report.passed``, ``report.max_error``, ``print(report)``. A wrong gradient does not raise; its row fails.

    Raises
    ------
    TypeError
        An argument is not an array of floats, integers or booleans, or forward does not return ``y, cache``.
    ValueError
        An array or the result holds NaN or infinity, the number of names is wrong, or the method is unknown.
    """
    check_functions(forward, backward)
    settings = settings_of(options, fixed_first(forward, len(arrays), options))
    names = argument_names(forward, len(arrays)) if names is None else names
    if len(names) != len(arrays):
        raise ValueError(f"got {len(names)} names for {len(arrays)} arrays; give one name for each")
    title = f"gradient check of {getattr(forward, '__name__', type(forward).__name__)}"
    places = [Place("", name, k) for k, name in enumerate(names)]
    return checked_report(title, CheckedFunction(forward, backward, arrays, names), places, settings)


@np.errstate(under="ignore")
def gradcheck_layer(
    layer: Any,
    *inputs: Any,
    rng: RngLike = None,
    names: Sequence[str] | None = None,
    parameters: Sequence[str] | str | None = None,
    keep_constants: bool = False,
    **options: Unpack[Options],
) -> Report:
    """Check one layer: the gradients of its inputs and of each of its parameters.

    The check runs copies of the layer and does not change it. A parameter with named parts has one row for each part.
    Parameters whose elements are all equal, such as scales of 1 and biases of 0, get random values near them in the
    copy, because a missing factor of 1 or term of 0 would pass; the title of the report says so.

    Parameters
    ----------
    layer
        Has ``y, cache = layer.forward(*inputs, rng=rng)``, ``layer.backward(dy, cache)``, ``parameters``,
        ``zero_grad()`` and ``astype(dtype)``.
    inputs
        Arguments of forward; floats are converted to the dtype of the layer's parameters.
    rng
        None for evaluation; for training mode a Key, a seed or a NumPy generator. All passes have the same masks.
    parameters
        Names of the parameters whose gradients are checked, or one name; all by default.
    keep_constants
        True: check at the layer's own values, also where all elements of a parameter are equal.
    names, options
        As for `gradcheck`.
    """
    check_layer(layer)
    check_takes_key(layer)
    given = argument_names(layer.forward, len(inputs))
    settings = settings_of(options, taken_by_layer(layer, options, given[-1] if given else ""))
    known = list(layer.parameters)
    parameters = [parameters] if isinstance(parameters, str) else parameters
    unknown = [name for name in parameters or () if name not in known]
    if unknown:
        raise ValueError(f"the layer has no parameter {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    names = given if names is None else names
    if len(names) != len(inputs):
        raise ValueError(f"got {len(names)} names for {len(inputs)} inputs; give one name for each")
    key = fixed_key(rng, inputs)
    layer, filled = (layer, "") if keep_constants else without_constants(layer)
    title = f"gradient check of {type(layer).__name__}{filled}"

    def forward(copy: Any, *arrays: Any, rng: Key | None = None) -> tuple[Any, Any]:
        result: tuple[Any, Any] = copy.forward(*arrays, rng=rng)
        return result

    def backward(copy: Any, dy: Any, cache: Any) -> Any:
        return copy.backward(dy, cache)

    checked = CheckedLayer(layer, inputs, names, forward, backward, key)
    checked.moves_parameters = not keep_constants
    wanted = known if parameters is None else parameters
    places = [p for p in checked.places if p.array < len(names) or known[p.array - len(names)] in wanted]
    with _advice_on_constants(filled):
        report = checked_report(title, checked, places, settings)
    if "keep" in inspect.signature(layer.forward).parameters and RANDOM not in report.findings:
        without = functools.partial(_without_cache, rng=key)
        if checked.evaluation_differs(without):
            words = "forward returns another result with keep=False, as in evaluation, than with keep=True"
            report = replace(report, findings=(*report.findings, words))
    return report


def _without_cache(copy: Any, *inputs: Any, rng: Any) -> Any:
    what = f"forward of {type(copy).__name__}, with keep=False,"
    return result_of(copy.forward(*inputs, rng=rng, keep=False), what)[0]


@np.errstate(under="ignore")
def gradcheck_model(
    model: Any,
    images: Any,
    labels: Any,
    rng: RngLike = None,
    keep_constants: bool = False,
    **options: Unpack[Options],
) -> Report:
    """Check a model with its cross-entropy loss: the gradients of the images and of every parameter.

    Parameters
    ----------
    model
        As for `gradcheck_layer`. A float32 model is checked on a float64 copy, and its float32 gradients are then
        compared with the float64 ones. Parameters whose elements are all equal get random values in a copy, as in
        `gradcheck_layer`: a weight matrix of zeros, as a new head is, would make all gradients before it zero.
    images
        (B, height, width, C), converted to the model's dtype.
    labels
        (B,) integers or (B, C) floats.
    rng, keep_constants
        As for `gradcheck_layer`.
    options
        As for `gradcheck`.
    """
    check_layer(model)
    check_takes_key(model)
    settings = settings_of(options, taken_by_layer(model, options))
    key = fixed_key(rng, (images,))
    labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
    model, filled = (model, "") if keep_constants else without_constants(model)

    def forward(copy: Any, images: Any, rng: Key | None = None) -> tuple[Any, Any]:
        logits, cache = result_of(copy.forward(images, rng=rng), f"forward of {type(copy).__name__}")
        targets = labels.astype(logits.real.dtype) if labels.dtype.kind == "f" else labels
        loss, loss_cache = ops.cross_entropy(logits, targets)
        return loss, (cache, loss_cache)

    def backward(copy: Any, dloss: Any, caches: Any) -> Any:
        cache, loss_cache = caches
        return copy.backward(ops.cross_entropy_backward(dloss, loss_cache), cache)

    title = f"gradient check of {type(model).__name__} with cross-entropy, {count_of(len(images), 'image')}{filled}"
    with single_threaded_blas():  # the products are small, and the report is the same for any number of cores
        checked = CheckedLayer(model, (images,), ("images",), forward, backward, key)
        checked.moves_parameters = not keep_constants
        with _advice_on_constants(filled):
            return checked_report(title, checked, checked.places, settings)


@contextmanager
def _advice_on_constants(filled: str) -> Iterator[None]:
    """Say in an error of the block that parameters have random values; `filled` says so in the title."""
    try:
        yield
    except ValueError as error:
        if not filled or "NaN or infinity" not in str(error):
            raise
        raise ValueError(f"{error}. The check ran{filled.removeprefix(',')}: keep_constants=True keeps them") from error
