"""`compare`: a user's forward and backward pass beside ours, quantity by quantity, on the same numbers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from minivit.arrays import Array, to_host
from minivit.checking.comparison import Comparison, Quantity, SameOrNot
from minivit.checking.evidence import Context, Evidence, Other, accuracy_for, arrays_in, named_arrays
from minivit.checking.forward_mistakes import recognise_result
from minivit.checking.function import Passes
from minivit.checking.gradients import NOTHING_RETURNED, flaw
from minivit.checking.heads import THIRDS, HeadView
from minivit.checking.methods import NotAnalyticError, Probe
from minivit.checking.mistakes import recognise
from minivit.checking.pairing import Sides, sides_of
from minivit.checking.settings import settings_of
from minivit.checking.verdict import SCALE_FLOOR, Place
from minivit.engine.machine import single_threaded_blas
from minivit.ops.registry import reference_only_here

_DIGITS, _LEAST_DIGITS = 1e-9, 1e-13  # relative accuracy to which the numbers must fit a mistake
_LARGEST = 65536  # elements of an array whose mistake is looked for


@np.errstate(under="ignore")
def compare(mine: Any, ours: Any, *arrays: Any, seed: int = 0, tolerance: float = 1e-10, **settings: Any) -> Comparison:
    """Run your forward and backward functions beside ours, and point at the first quantity that differs.

    Both run in float64 with the same arguments and the same random upstream gradient, ours without kernels.

    Parameters
    ----------
    mine
        Two functions, ``(forward, backward)``, or an object with both: ``y, cache = forward(*arrays)``, and
        ``gradients = backward(dy, cache)`` in the order of the arrays, as in `gradcheck`. Or a layer, if `ours` is one:
        it is run with the values of our parameters, which have the same names.
    ours
        An op, such as ``minivit.ops.attention``, or a layer, such as ``minivit.layers.LayerNorm(8).initialize()``. Two
        functions beside a layer take its inputs, or its inputs and its parameters in their order.
    arrays
        The arguments of `ours`: arrays, and settings such as the number of heads. float32 arrays are converted; mine
        is run with them once more, for the dtypes of its results.
    seed
        Seed of the upstream gradient.
    tolerance
        The largest error of quantities that are the same; see `Quantity.error`.
    settings
        Further arguments of `ours` by name, such as ``num_heads=4``. Mine gets those that its forward function takes.

    Returns
    -------
    Comparison
        ``bool(comparison)``, ``comparison.first``, ``print(comparison)``.

    Raises
    ------
    TypeError
        `mine` or `ours` has not both functions, or cannot be called with these arguments.
    ValueError
        An array, or the result of ours, holds NaN or infinity, or the result is empty.
    """
    options = settings_of({"seed": seed, "tolerance": tolerance})
    with single_threaded_blas(), reference_only_here():
        sides = sides_of(mine, ours, arrays, settings)
        return _compare(sides, options.seed, options.tolerance)


def _compare(sides: Sides, seed: int, tolerance: float) -> Comparison:
    ours = sides.ours.run(sides.ours.points, seed)
    title = f"{sides.title}, in float64"
    if not ours.y.size:
        raise ValueError(f"the result of ours has no elements, shape {ours.y.shape}: there is nothing to compare")
    # Copies: a forward pass that writes to its arguments would change those of ours, and of the caller.
    copies = {name: np.array(point) for name, point in zip(sides.mine.names, sides.mine.points, strict=True)}
    mine_y = sides.mine.evaluate_with(copies)
    y = _quantity("y", mine_y, ours.y, float(np.linalg.norm(ours.y)), tolerance)
    if mine_y.shape != ours.y.shape or not np.all(np.isfinite(mine_y)):
        left = (
            Quantity(_gradient_name(place.full_name), (), 0.0, None, None, None, "not compared")
            for place in sides.places
        )
        return Comparison(title, (y, *left), (), tolerance)
    mine = sides.mine.run([np.array(point) for point in sides.mine.points], seed)
    findings = list(mine.findings)
    if (
        sides.places
        and all(gradient is None for gradient in mine.gradients.values())
        and NOTHING_RETURNED not in findings
    ):
        findings.append("backward returns no gradient at all: is its return statement missing?")
    if any(a.dtype == np.float32 for a in sides.ours.given):
        low = sides.mine.run([np.array(a) for a in sides.mine.given], seed)
        findings += [f"in float32: {words}" for words in low.findings if words not in findings]
        for k, gradient in low.gradients.items():
            if getattr(gradient, "dtype", None) not in (None, sides.mine.given[k].dtype):
                findings.append(f"in float32: d{sides.mine.names[k]} is {gradient.dtype}")
    cached: tuple[Quantity, ...] = ()
    if y.verdict == "DIFFERS":
        y = replace(y, note=_why_result(sides, mine, ours))
        cached = tuple(_cached(sides, y.note, tolerance))
    gradients = tuple(_gradients(sides, mine, ours, tolerance, explained=y.verdict == "same"))
    advice = ""
    if y.verdict == "DIFFERS":
        advice = "Begin with the forward pass: the gradients are those of another function than ours."
    return Comparison(title, (*cached, y, *gradients), tuple(findings), tolerance, advice)


def _quantity(name: str, mine: Any, ours: Array, scale: float, tolerance: float, words: str = "") -> Quantity:
    """Return the comparison of one array; `scale` is what its error is relative to."""
    if not words and getattr(mine, "shape", None) != ours.shape:
        words = f"yours has the shape {getattr(mine, 'shape', None)}, ours {ours.shape}"
        if mine.shape == ours.shape[::-1] and mine.ndim > 1:
            words += "; looks transposed"
    if words:
        return Quantity(name, ours.shape, np.inf, None, None, None, "DIFFERS", words)
    if not ours.size:
        return Quantity(name, ours.shape, 0.0, None, None, None, "same")
    gaps = np.abs(mine - ours)
    worst = np.argmax(np.where(np.isnan(gaps), np.inf, gaps))
    index = tuple(int(k) for k in np.unravel_index(worst, ours.shape))
    gap = float(gaps[index])
    error = 0.0 if gap == 0 else gap / scale if scale > 0 and np.isfinite(gap) else np.inf
    verdict: SameOrNot = "same" if error <= tolerance else "DIFFERS"
    return Quantity(name, ours.shape, error, index, float(mine[index]), float(ours[index]), verdict)


def _cached(sides: Sides, note: str, tolerance: float) -> Iterator[Quantity]:
    """Yield the arrays in the cache of mine that have the name and the shape of one in ours; `note` is about y."""
    mine, ours = (
        {
            _last(name): np.asarray(to_host(value))
            for name, value in arrays_in(side.cache_at(side.points))
            if _last(name)
        }
        for side in (sides.mine, sides.ours)
    )
    arguments = {*sides.ours.names}
    for name, value in ours.items():
        if name in mine and name not in arguments and mine[name].shape == value.shape and value.dtype.kind == "f":
            quantity = _quantity(name, mine[name], value, float(np.linalg.norm(value)), tolerance)
            why = f"of y: {note}" if note and quantity.verdict == "DIFFERS" else ""
            yield replace(quantity, note=why) if why else quantity


def _last(name: str) -> str:
    """Return the name of a field or a key in a cache, or "" for a number in a tuple."""
    last = name.rpartition("[")[2].strip("]'\"") if name.endswith("]") else name.rpartition(".")[2]
    return last if last.isidentifier() else ""


def _gradients(sides: Sides, mine: Passes, ours: Passes, tolerance: float, explained: bool) -> Iterator[Quantity]:
    total = float(np.sqrt(sum(np.sum(np.square(gradient)) for gradient in ours.gradients.values())))
    wrong: dict[str, str] = {}
    for place in sides.places:
        name = sides.ours.names[place.array]
        k = list(sides.mine.names).index(name)
        whole, right = mine.gradients[k], ours.gradients[place.array]
        words = flaw(whole, right, ours.y)
        if whole is None:
            yield Quantity(
                _gradient_name(place.full_name), right[place.where].shape, 0.0, None, None, None, "not compared", words
            )
            continue
        part = right[place.where]
        scale = max(float(np.linalg.norm(part)), SCALE_FLOOR * total)
        if words:
            if wrong.setdefault(name, words) == words:
                yield _quantity(_gradient_name(name), whole, right, scale, tolerance, words)
            continue
        quantity = _quantity(_gradient_name(place.full_name), whole[place.where], part, scale, tolerance)
        if quantity.verdict == "DIFFERS" and explained:
            quantity = replace(quantity, note=_why_gradient(sides, mine, ours, place))
        yield quantity


def _gradient_name(name: str) -> str:
    """Return ``dweight`` for weight, and ``norm.dweight`` for norm.weight."""
    layer, _, last = name.rpartition(".")
    return f"{layer}.d{last}" if layer else f"d{last}"


def _why_result(sides: Sides, mine: Passes, ours: Passes) -> str:
    """Return the mistake in the forward pass of mine, or ""."""
    if ours.y.size > _LARGEST:
        return ""
    arguments = dict(zip(sides.ours.names, sides.ours.points, strict=True))
    first = sides.ours.points[sides.ours.floats[0]]
    probe = Probe(functools.partial(sides.ours.evaluate, sides.ours.floats[0]), first, ours.y, np.zeros_like(ours.y))
    evidence = Evidence(
        "y",
        probe,
        np.asarray(mine.y, np.float64),
        np.arange(ours.y.size),
        ours.y.ravel(),
        _DIGITS,
        True,
        np.random.default_rng(0),
        Context(arguments),
    )
    return recognise_result(evidence, sides.evaluate, sides.settings)


def _why_gradient(sides: Sides, mine: Passes, ours: Passes, place: Place) -> str:
    """Return the mistake in one gradient of mine, or "": ours are the derivatives that `recognise` needs."""
    right = ours.gradients[place.array][place.where]
    if right.size > _LARGEST:
        return ""

    def probe(other: Place) -> Probe:
        k = other.array
        return Probe(
            functools.partial(sides.ours.evaluate, k), sides.ours.points[k], ours.y, ours.upstream, other.where
        )

    def gradient(other: Place) -> Array | None:
        whole = mine.gradients[list(sides.mine.names).index(sides.ours.names[other.array])]
        return None if flaw(whole, sides.ours.points[other.array], ours.y) else whole[other.where]

    this, rng = probe(place), np.random.default_rng(0)
    others = [
        Other(_gradient_name(other.full_name), probe(other), values)
        for other in sides.places
        if other != place and (values := gradient(other)) is not None
    ]
    arguments = dict(zip(sides.ours.names, sides.ours.points, strict=True))
    named = named_arrays(arguments, sides.mine.cache_at(sides.mine.points), ours.y)
    k = list(sides.mine.names).index(sides.ours.names[place.array])
    repaired = functools.partial(sides.mine.repaired, k, ours.upstream)
    context = Context(*named, others, sides.ours.evaluate_with, repaired)
    try:
        this.rates(rng.standard_normal(right.shape), True)
        analytic = True
    except NotAnalyticError:
        analytic = False
    claimed = gradient(place)
    assert claimed is not None

    def mistake(probe: Probe, claimed: Array, right: Array, context: Context) -> str:
        indices, digits = np.arange(right.size), accuracy_for(claimed, right, largest=_DIGITS, least=_LEAST_DIGITS)
        return recognise(Evidence(place.name, probe, claimed, indices, right.ravel(), digits, analytic, rng, context))

    words = mistake(this, claimed, right, context)
    heads = sides.settings.get("num_heads")
    if words or heads is None or place.name.partition("[")[0] not in THIRDS:
        return words
    by_head = HeadView(heads, right.shape)
    arrays = by_head.arrays(sides.ours, named[0])
    return mistake(by_head.probe(this), by_head(claimed), by_head(right), Context(arrays, frozenset(arrays)))
