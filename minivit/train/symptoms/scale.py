"""Values that are too large: a learning rate that explodes, and numbers on their way to NaN."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minivit.train.symptoms.common import Line, Watched, innermost, total_norm

_LARGE_RATIO = 0.2  # of an update and all matrices
_LARGE_RATIO_OF_ONE = 0.5
_RATIO_THAT_HURTS = 0.01  # if the loss has risen by _RISE
_RATIO_THAT_LASTS = 0.05  # at so many watched steps in a row:
_IN_A_ROW = 3
_RISE = 2.0
_GROWTH = 30.0  # of the norm of all matrices
_LARGEST = {"float16": 65504.0, "float32": 3.4e38, "float64": 1.8e308}  # bfloat16: as float32
_LARGE = 1e6  # from here on growth is watched


def rate(lines: Sequence[Line], watched: Watched) -> Iterator[tuple[str, str]]:
    """Compare updates with what they change: the matrices, whose scale the model determines."""
    line, first = lines[-1], lines[0]
    if (change := _change(line, watched)) is None:
        return
    ratio, names = change
    now = line["parameters"]
    name = max(names, key=lambda each: now[each]["ratio"])
    advice = f"the learning rate ({line['learning_rate']:.3g}) is likely too large; a smaller --lr, or a longer warmup"
    words = f"one step changes {name} by {100 * now[name]['ratio']:.0f} % of its norm, where 1 % is much: {advice}"
    changes = [_change(each, watched) for each in lines[-_IN_A_ROW:]]
    stays_large = len(lines) > _IN_A_ROW and all(each and each[0] > _RATIO_THAT_LASTS for each in changes)
    if ratio > _LARGE_RATIO or now[name]["ratio"] > _LARGE_RATIO_OF_ONE or stays_large:
        yield "rate", f"step {line['step']}: {words}"
    elif ratio > _RATIO_THAT_HURTS and line["loss"] > _RISE * first["loss"] + 0.5:
        rise = f"the loss is {line['loss']:.3g}, and was {first['loss']:.3g} at step {first['step']}"
        yield "rate", f"step {line['step']}: {rise}; {words}"
    else:
        begun = {each: first["parameters"][each]["value"] or math.inf for each in names}
        growth = {each: now[each]["value"] / begun[each] for each in names}
        if total_norm(now[each]["value"] for each in names) > _GROWTH * total_norm(begun.values()):
            name = max(growth, key=lambda each: growth[each])
            times = f"{growth[name]:,.0f} times as large as at step {first['step']}"
            yield "rate", f"step {line['step']}: {name} is {times}: {advice}"


def _change(line: Line, watched: Watched) -> tuple[float, list[str]] | None:
    """Return by which share of their norm a step changes the trained matrices, and which they are.

    A matrix that begins with zeros, and so changes by all of its norm, is left out until it has a usual size.
    """
    every = watched.model.parameters
    now = {name: of for name, of in line["parameters"].items() if every[name].decay}
    if any(of["value"] is None or of["update"] is None for of in now.values()):
        return None
    before = {name: _value_before(of) for name, of in now.items()}
    usual = total_norm(before.values()) / math.sqrt(sum(every[name].size for name in now) or 1)
    names = [name for name, norm in before.items() if norm > 0.5 * usual * math.sqrt(every[name].size)]
    names = [name for name in names if name in watched.trained and now[name]["ratio"]]
    if not names:
        return None
    return total_norm(now[each]["update"] for each in names) / total_norm(before[each] for each in names), names


def _value_before(of: Mapping[str, Any]) -> float:
    """Return the norm of a parameter before the step."""
    if of["update"] == 0:
        return float(of["value"])
    return float(of["update"] / of["ratio"]) if of["ratio"] else 0.0


def overflow(lines: Sequence[Line], watched: Watched) -> Iterator[tuple[str, str]]:
    """Values near the point at which they overflow, or on their way to it: NaN follows."""
    largest = _LARGEST.get(str(watched.dtype), _LARGEST["float32"])
    # Layer norm and the norm of all gradients square float32 and float64; kernels sum float16 in float32.
    is_half = str(watched.dtype) == "float16"
    limit, near = (largest, largest / 16.0) if is_half else (math.sqrt(largest), math.sqrt(largest) / 1e3)
    what = "overflows" if is_half else "the square overflows"
    kinds = [_magnitudes(line, is_half) for line in lines[-3:]]
    now, step = kinds[-1], lines[-1]["step"]
    advice = "NaN is to come: a smaller --lr, --clip-norm, or a look at the layers before it"
    if found := [name for name, size in now.items() if size is None or size >= near]:
        name = _first(found)
        reach = "are not finite any more" if now[name] is None else f"reach {now[name]:.2g}"
        yield "overflow", f"step {step}: {_said(name)} {reach}, and {what} at {limit:.2g}; {advice}"
        return
    if len(lines) < 3:
        return
    growing: dict[tuple[str, str], tuple[float, float]] = {}
    for name, size in now.items():
        sizes = [kind.get(name) for kind in kinds]
        if size is None or size < _LARGE or not all(sizes):
            continue
        factor = min(b / a for a, b in itertools.pairwise(sizes) if a and b)
        if factor >= 2.0 and (left := math.log(limit / size, factor)) <= 10.0:
            growing[name] = factor, left
    if growing:
        name = _first(list(growing))
        factor, left = growing[name]
        when = step + math.ceil(left * (step - lines[-2]["step"]))
        yield (
            "overflow",
            f"step {step}: {_said(name)} reach {now[name]:.2g} and grow {factor:.2g}-fold from one watched step to the "
            f"next; {what} at {limit:.2g}, by step {when:,} or so; {advice}",
        )


def _first(found: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return the quantity to name, of several that are large: that of the first layer, as far inside as it goes."""
    kind = found[0][0]
    return kind, innermost([name for each, name in found if each == kind])


def _said(quantity: tuple[str, str]) -> str:
    return f"the {quantity[0]} of {quantity[1]}"


def _magnitudes(line: Line, activations_only: bool) -> dict[tuple[str, str], float | None]:
    """Return the largest magnitude of each quantity of a line, by its kind and its layer, activations first.

    With float16 the parameters are float32, and the grad scaler looks after the gradients.
    """
    sizes: dict[tuple[str, str], float | None] = {}
    for name, of in line["activations"].items():
        sizes["results", name] = max(abs(of["min"]), abs(of["max"])) if of["finite"] else None
    if activations_only:
        return sizes
    for name, of in line["parameters"].items():
        sizes["values", name] = of["largest"]
    if line["gradient_norm"] is not None:
        for name, of in line["parameters"].items():
            sizes["gradients", name] = of["largest_gradient"]
    return sizes
