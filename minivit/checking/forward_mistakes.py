"""Recognise the mistake behind a wrong result of a forward pass, beside the right one.

Each function tests one kind of mistake against the numbers, as in `minivit.checking.mistakes`, and returns a sentence
or "". Those of a gradient that need no derivative apply to a result too: a factor, the right numbers at other places.
The others run our forward pass with one argument changed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.checking.differences import constant_term, whole_term
from minivit.checking.evidence import Evidence
from minivit.checking.factors import constant_factor, varying_factor
from minivit.checking.heads import other_attentions
from minivit.checking.mistakes import few_digits, low_precision
from minivit.checking.places import one_place, one_range, reordered

Evaluate = Callable[[Mapping[str, Any]], Array]
_EPS = (0.0, 1e-3, 1e-5, 1e-6, 1e-8, 1e-12)


def recognise_result(e: Evidence, evaluate: Evaluate, settings: Mapping[str, Any]) -> str:
    """Return a sentence about a wrong result, or "".

    Parameters
    ----------
    e
        The result of mine as `gradient`, that of ours as `true`.
    evaluate
        ``y = evaluate(changes)``: ours, with arguments of any name replaced.
    settings
        The arguments of ours that are not arrays, by name.
    """
    hypotheses: list[Callable[[Evidence], str]] = [
        low_precision,
        constant_factor,
        lambda e: _other_arguments(e, evaluate, settings),
        one_range,
        reordered,
        varying_factor,
        lambda e: _beside_a_term(e, evaluate),
        whole_term,
        constant_term,
        one_place,
        few_digits,
    ]
    for hypothesis in hypotheses:
        try:
            with np.errstate(all="ignore"):
                sentence = hypothesis(e)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            continue
        if sentence:
            words = sentence.replace("the difference from the derivative", "the difference from ours")
            return words.replace("the derivative", "our y").replace("the gradient is transposed", "y is transposed")
    return ""


def _other_arguments(e: Evidence, evaluate: Evaluate, settings: Mapping[str, Any]) -> str:
    """The result of ours for other arguments: without one, with a factor, transposed, or with another setting."""
    arrays = {name: a for name, a in e.context.arrays.items() if name not in e.context.cached}
    if "qkv" in arrays and "num_heads" in settings:
        for words, y in other_attentions(arrays["qkv"], settings["num_heads"]):
            if y.shape == e.gradient.shape and e.close(e.at(y), e.claimed):
                return words
    tries = itertools.chain(_other_settings(settings), _changed(arrays, settings))
    for changes, words in tries:
        try:
            y = evaluate(changes)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            continue
        if y.shape == e.gradient.shape and e.close(e.at(y), e.claimed):
            return words
    return ""


def _beside_a_term(e: Evidence, evaluate: Evaluate) -> str:
    """A factor of all of the result but one term, such as the bias."""
    e = dataclasses.replace(e, digits=1e-5)  # an eps beside the variance
    for name, a in e.context.arrays.items():
        if a.dtype.kind != "f" or name in e.context.cached:
            continue
        rest = e.at(evaluate({name: np.zeros_like(a)}))
        factor = e.multiple(e.claimed - (e.true - rest), rest)
        if factor is None or not np.any(e.true - rest):
            continue
        words = f"{factor:.6g} times our y, beside the term of {name}"
        for n in e.gradient.shape:
            if n > 1 and math.isclose(factor * factor, (n - 1) / n, rel_tol=1e-4):
                return f"{words}: a variance with n - 1 = {n - 1} in place of n = {n}"
        return words
    return ""


def _other_settings(settings: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for name, value in settings.items():
        others: tuple[Any, ...] = ()
        if isinstance(value, bool):
            others = (not value,)
        elif isinstance(value, int):
            others = (1, value - 1, value + 1)
        elif isinstance(value, float):
            others = _EPS
        elif isinstance(value, str):
            others = ("none", "tanh", "token", "avg")
        elif isinstance(value, np.ndarray):
            yield {name: None}, f"this is our y without {name}"
            yield {name: np.ones_like(value)}, f"this is our y with ones as {name}: the factor {name} is missing"
            yield {name: 1 - value}, f"this is our y with {name} inverted"
        yield from (({name: x}, f"this is our y with {name} = {x!r}") for x in others if x != value)


def _changed(arrays: Mapping[str, Array], settings: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield changes of one array and the words for each, the most likely first."""
    lengths = _lengths(arrays, settings)
    for name, a in arrays.items():
        if a.dtype.kind != "f":
            for step in (1, -1):
                yield (
                    {name: a + step},
                    f"this is our y for {name} {'+' if step > 0 else '-'} 1: the indices are shifted",
                )
            continue
        yield {name: np.zeros_like(a)}, f"this is our y without {name}: the term with {name} is missing"
        yield {name: np.ones_like(a)}, f"this is our y with ones as {name}: the factor {name} is missing"
        if a.ndim > 1 and a.shape[-1] == a.shape[-2] > 1:
            words = f"this is our y with {name} transposed: a transpose of {name} is missing or extra"
            yield {name: a.swapaxes(-1, -2)}, words
        parts = 3 if name == "qkv" else 2 if name == "kv" else 1
        pieces = np.split(a, parts, axis=-1) if a.ndim and a.shape[-1] % parts == 0 else [a]
        named = ("q", "k", "v")[3 - parts :] if parts > 1 else (name,)
        for order in itertools.permutations(range(len(pieces))):
            if order != tuple(range(len(pieces))):
                as_read = ", ".join(named[k] for k in order)
                words = f"this is our y with the parts of {name} in another order: {as_read} are read as"
                yield {name: np.concatenate([pieces[k] for k in order], axis=-1)}, f"{words} {', '.join(named)}"
        for k, part in enumerate(named[: len(pieces)]):
            scaled: dict[float, str] = {}
            for n in lengths:
                scaled.setdefault(math.sqrt(n), f"the scale 1/sqrt({n}) is missing")
                scaled.setdefault(1 / math.sqrt(n), f"a scale 1/sqrt({n}) is extra")
                scaled.setdefault(float(n), f"the scale 1/{n} is missing")
                scaled.setdefault(1 / n, f"a scale 1/{n} is extra")
                if "num_heads" in settings:  # 1/sqrt(D) in place of 1/sqrt(K), and other lengths
                    width = lengths[0]
                    scaled.setdefault(math.sqrt(width / n), f"the scale is 1/sqrt({n}), ours is 1/sqrt({width})")
            for factor, reason in {-1.0: "a sign is flipped", **scaled}.items():
                changed = [piece * factor if j == k else piece for j, piece in enumerate(pieces)]
                words = f"this is our y with {factor:.6g} times {part}: {reason}"
                yield {name: np.concatenate(changed, axis=-1) if a.ndim else a * factor}, words


def _lengths(arrays: Mapping[str, Array], settings: Mapping[str, Any]) -> list[int]:
    """Return the lengths that a scale may have: the width of a head first, then the axes of the arrays."""
    found: list[int] = []
    heads = settings.get("num_heads")
    for name, a in arrays.items():
        parts = 3 if name == "qkv" else 1
        if heads and a.ndim == 3 and a.shape[-1] % (parts * heads) == 0:
            found += [a.shape[-1] // (parts * heads), a.shape[-1] // parts]
        found += a.shape
    found += [value for value in settings.values() if isinstance(value, int) and not isinstance(value, bool)]
    return [n for n in dict.fromkeys(map(int, found)) if n > 1]
