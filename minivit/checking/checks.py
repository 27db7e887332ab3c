"""The gradient check: `gradcheck` for a pair of functions, `gradcheck_layer`, and `gradcheck_model` with its loss.

Each gradient is verified in float64 by the complex step along random directions and by the order of the Taylor
remainder, or by central differences if the code is not analytic. float32 gradients are then compared with the float64
ones. The report explains each wrong gradient.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

from minivit import ops
from minivit.arrays import Array
from minivit.checking.function import Backward, CheckedFunction, Forward, flaw
from minivit.checking.layer import CheckedLayer
from minivit.checking.methods import Probe
from minivit.checking.report import Report, Row
from minivit.checking.verdict import Method, Place, Settings, compare_float32, explained, verify
from minivit.engine.machine import single_threaded_blas

__all__ = ["Options", "Report", "Row", "gradcheck", "gradcheck_layer", "gradcheck_model"]


class Options(TypedDict, total=False):
    """The options of every check; see `gradcheck`."""

    seed: int
    tolerance: float
    method: Method
    directions: int
    central_tolerance: float
    float32_tolerance: float
    on_row: Callable[[Row, int], None]


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
        The point at which to check: float64 or float32 arrays. float32 arrays are checked in float64; their float32
        gradients are then compared with the float64 ones, in further rows.
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
    settings = Settings(**options)
    names = _argument_names(forward, len(arrays)) if names is None else names
    if len(names) != len(arrays):
        raise ValueError(f"got {len(names)} names for {len(arrays)} arrays; give one name for each")
    title = f"gradient check of {getattr(forward, '__name__', type(forward).__name__)}"
    places = [Place("", name, k) for k, name in enumerate(names)]
    return _check(title, CheckedFunction(forward, backward, arrays, names), places, settings)


def gradcheck_layer(
    layer: Any, *inputs: Any, rng: Any = None, names: Sequence[str] | None = None, **options: Unpack[Options]
) -> Report:
    """Check one layer: the gradients of its inputs and of each of its parameters.

    The check runs copies of the layer and does not change it. A parameter with named parts has one row for each part.

    Parameters
    ----------
    layer
        Has ``y, cache = layer.forward(*inputs, rng=rng)``, ``layer.backward(dy, cache)``, ``parameters``,
        ``zero_grad()`` and ``astype(dtype)``.
    inputs
        Arguments of forward, of the layer's dtype.
    rng
        None for evaluation, or a Key for training mode, which gives the same dropout masks in every pass.
    names, options
        As for `gradcheck`.
    """
    names = _argument_names(layer.forward, len(inputs)) if names is None else names
    title = f"gradient check of {type(layer).__name__}"

    def forward(copy: Any, *arrays: Any) -> tuple[Any, Any]:
        y, cache = copy.forward(*arrays, rng=rng)
        return y, cache

    def backward(copy: Any, dy: Any, cache: Any) -> Any:
        return copy.backward(dy, cache)

    checked = CheckedLayer(layer, inputs, names, forward, backward)
    return _check(title, checked, checked.places, Settings(**options))


def gradcheck_model(model: Any, images: Any, labels: Any, rng: Any = None, **options: Unpack[Options]) -> Report:
    """Check a model with its cross-entropy loss: the gradients of the images and of every parameter.

    Parameters
    ----------
    model
        As for `gradcheck_layer`. A float32 model is checked on a float64 copy, and its float32 gradients are then
        compared with the float64 ones.
    images
        (B, height, width, C), of the model's dtype.
    labels
        (B,) integers or (B, C) floats.
    rng
        None for evaluation, or a Key for training mode.
    options
        As for `gradcheck`.
    """

    def forward(copy: Any, images: Any) -> tuple[Any, Any]:
        logits, cache = copy.forward(images, rng=rng)
        targets = labels.astype(logits.real.dtype) if labels.dtype.kind == "f" else labels
        loss, loss_cache = ops.cross_entropy(logits, targets)
        return loss, (cache, loss_cache)

    def backward(copy: Any, dloss: Any, caches: Any) -> Any:
        cache, loss_cache = caches
        return copy.backward(ops.cross_entropy_backward(dloss, loss_cache), cache)

    title = f"gradient check of {type(model).__name__} with cross-entropy, {len(images)} images"
    with single_threaded_blas():  # the products are small, and the report is the same for any number of cores
        checked = CheckedLayer(model, (images,), ("images",), forward, backward)
        return _check(title, checked, checked.places, Settings(**options))


def _check(title: str, checked: CheckedFunction, places: Sequence[Place], settings: Settings) -> Report:
    """Verify the gradients of `places` in float64, then compare those of float32 arrays."""
    high = checked.run(checked.points, settings.seed)
    flaws = {k: flaw(gradient, checked.points[k], high.y) for k, gradient in high.gradients.items()}
    sound = [high.gradients[k] for k, words in flaws.items() if not words]
    total = float(np.sqrt(sum(float(np.sum(np.square(gradient))) for gradient in sound)))
    places = [place for place in places if place.array in checked.floats]
    low_places = [place for place in places if checked.given[place.array].dtype == np.float32]
    findings = list(high.findings)
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        settings.on_row(row, len(places) + len(low_places))

    probes: dict[int, tuple[Probe, Array]] = {}
    for number, place in enumerate(places):
        k, point = place.array, checked.points[place.array]
        part = point[place.where]
        if flaws[k] or part.size == 0:
            add(place.unmeasured(part.shape, flaws[k], high.gradients[k], settings.method))
        else:
            probe = Probe(functools.partial(checked.evaluate, k), point, high.y, high.upstream, place.where)
            probes[number] = probe, high.gradients[k][place.where]
            add(verify(*probes[number], total, place, settings))
    wrong = [number for number, row in enumerate(rows) if row.verdict == "FAILED"]
    for number in wrong:
        # A wrong gradient makes all earlier ones wrong, so only the failing layer nearest to the loss is explained.
        if number in probes and rows[number].layer == rows[wrong[-1]].layer:
            rows[number] = explained(rows[number], *probes[number], settings)
    if low_places:
        points = [np.array(a) for a in checked.given]
        low = checked.run(points, settings.seed)
        findings += [f"in float32: {finding}" for finding in low.findings if finding not in findings]
        for place in low_places:
            k = place.array
            words = flaws[k] or flaw(low.gradients[k], points[k], low.y)
            if words or points[k].size == 0:
                add(place.unmeasured(points[k][place.where].shape, words, low.gradients[k], "float32"))
            else:
                pair = low.gradients[k][place.where], high.gradients[k][place.where]
                add(compare_float32(*pair, total, place, settings))
    findings += checked.findings if isinstance(checked, CheckedLayer) else ()
    advice = ""
    if len({rows[number].layer for number in wrong}) > 1:
        last = rows[wrong[-1]]
        advice = f"Begin with {last.layer or last.name}: it is nearest to the output and may cause the other errors."
    elif total == 0 and not wrong:
        advice = "Every gradient is zero here, which verifies little: check at another point."
    return Report(title, tuple(rows), tuple(findings), settings.tolerance, advice)


def _argument_names(function: Callable[..., Any], count: int) -> list[str]:
    """Return the names of the first `count` arguments of a function; "argument 2" for one without a known name."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    return [*names, *(f"argument {k}" for k in range(len(names), count))]
