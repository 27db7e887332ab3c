"""Statistics of a step by layer: of its parameters, from the flat vectors, and of activations.

    of a parameter p        value        |p|, the L2 norm after the step
                            gradient     |g|, before clipping
                            update       |p - p_before|
                            ratio        |p - p_before| / |p_before|
                            largest      max |p_i|
                            largest_gradient    max |g_i|
    of a layer's result     norm, mean, std, min, max, zeros (the share of exact zeros), finite; `saturated` of
                            activations and attention, as in `minivit.tracing.Statistics`

Numbers are rounded to six digits; None stands for one that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from minivit import tracing
from minivit.arrays import Array, namespace, on_device_of, to_host
from minivit.engine.machine import single_threaded_blas
from minivit.nn.model import Model

Statistics: TypeAlias = dict[str, float | None]

_OF_PARAMETERS = ("value", "gradient", "update", "before", "largest", "largest_gradient")
_OF_ACTIVATIONS = ("norm", "mean", "std", "min", "max", "zeros")


@np.errstate(all="ignore")
def parameter_statistics(model: Model, before: Array, loss_scale: float = 1.0) -> dict[str, Statistics]:
    """Return the statistics of every parameter after a step, by name.

    Parameters
    ----------
    model : Model
        Its gradients are those of the step.
    before : Array
        The flat vector of parameters before the step.
    loss_scale : float
        A factor of the gradients.
    """
    values, gradients = model.parameters.store.values, model.parameters.store.gradients
    xp = namespace(values)
    rows, names = [], []
    with on_device_of(values):
        for name, parameter in model.parameters.items():
            if not parameter.size:
                continue
            p, g, old = (vector[parameter.span] for vector in (values, gradients, before))
            norms, largest = zip(*(_norm_and_largest(v) for v in (p, g, p - old, old)), strict=True)
            rows.append(xp.stack([*norms, *largest[:2]]))
            names.append(name)
        table = to_host(xp.stack(rows)).astype(np.float64)
    table[:, [1, 5]] /= loss_scale
    found: dict[str, Statistics] = {}
    for name, row in zip(names, table, strict=True):
        statistics = dict(zip(_OF_PARAMETERS, map(_rounded, row.tolist()), strict=True))
        statistics.pop("before")
        found[name] = statistics | {"ratio": _rounded(row[2] / row[3] if row[3] else math.inf)}
    return found


def _norm_and_largest(v: Array) -> tuple[Array, Array]:
    """Return the L2 norm and the largest magnitude of a vector, 0-d; no square overflows."""
    xp = namespace(v)
    largest = xp.abs(v).max()
    scaled = v / xp.where(largest > 0.0, largest, xp.ones_like(largest))
    return largest * xp.sqrt((scaled * scaled).sum()), largest


@np.errstate(all="ignore")
def activation_statistics(model: Model, images: Array) -> dict[str, dict[str, Any]]:
    """Return the statistics of the results of all layers in evaluation, by name; the model is not changed.

    Parameters
    ----------
    model : Model
        The model. Its hooks are called, since they may replace results.
    images : Array
        (B, height, width, C), of the dtype of the model: statistics of a run in 16 bits are those in float32.
    """
    values = model.parameters.store.values
    with on_device_of(values), single_threaded_blas():
        trace = tracing.trace(model, images, statistics=True, backward=False)
    found: dict[str, dict[str, Any]] = {}
    for record in trace:
        if record.is_op:
            continue
        of = record.statistics
        row: dict[str, Any] = {name: _rounded(getattr(of["y"], name)) for name in _OF_ACTIVATIONS}
        found[record.name] = row | {"finite": of["y"].finite}
        for name in ("slope", "weights"):
            if name in of and of[name].saturated is not None:
                found[record.name]["saturated"] = _rounded(of[name].saturated or 0.0)
    return found


def total(statistics: Iterable[Mapping[str, Any]], name: str) -> float | None:
    """Return the norm of all parameters together from their norms called `name`; None if one is not finite."""
    norms = [each[name] for each in statistics]
    return None if None in norms else _rounded(math.hypot(*norms))


def _rounded(x: float) -> float | None:
    return float(f"{x:.6g}") if math.isfinite(x) else None
