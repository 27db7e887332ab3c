"""What the norms of a trace by depth say: where activations or gradients vanish, explode or stop, in sentences.

|dy| of a layer is less than 1e-3, or more than 1e3, of that of the next layer towards the loss
|dy| of the first block is less than 1e-4, or more than 1e4, of that of the last one
the same for the root mean square of y, in the order of the forward pass
a norm is exactly 0, or a number is not finite
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from minivit.tracing.table import Row

STEP = 1e3  # from one layer to the next
WHOLE = 1e4  # from the first layer to the last


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes
    ----------
    layer : str
        The layer where it begins.
    kind : str
        "vanishes", "explodes", "is zero" or "is not finite".
    quantity : str
        "y" or "dy".
    words : str
        A sentence.
    """

    layer: str
    kind: str
    quantity: str
    words: str


def diagnose(rows: Sequence[Row]) -> list[Finding]:
    """Return what is wrong with the activations, then with the gradients, of rows in the order of the forward pass.

    Layers whose result is much smaller than that of the others, such as a head, are left out of the comparison of
    norms.
    """
    largest = max((row.y.size for row in rows), default=0)
    deep = [row for row in rows if row.y.size >= largest / 2]
    forward = _along(rows, deep, "y")
    backward = _along(rows[::-1], [row for row in deep[::-1] if row.dy is not None], "dy")
    return [*forward, *backward]


def healthy(rows: Sequence[Row]) -> str:
    """Return the sentence for a trace in which nothing was found."""
    known = [row.dy.norm for row in rows if row.dy is not None]
    if not known:
        return f"Activations are finite and of similar size in all {len(rows)} layers."
    return f"The gradient reaches every layer: |dy| is between {min(known):.3g} and {max(known):.3g}."


class _Words(NamedTuple):
    """How sentences speak of a quantity."""

    subject: str
    be: str
    verbs: dict[str, str]  # by kind
    size: str
    neighbour: str


_WORDS = {
    "y": _Words(
        "Activations",
        "are",
        {"vanishes": "vanish", "explodes": "explode"},
        "the root mean square of y",
        "the layer before it",
    ),
    "dy": _Words(
        "The gradient",
        "is",
        {"vanishes": "vanishes", "explodes": "explodes"},
        "|dy|",
        "the next layer towards the loss",
    ),
}


def _along(rows: Sequence[Row], deep: Sequence[Row], quantity: str) -> Iterator[Finding]:
    """Yield the first finding about a quantity, in the order of the pass that computes it."""
    words = _WORDS[quantity]
    for row in rows:
        found = row.y if quantity == "y" else row.dy
        if found is not None and not found.finite:
            text = f"{words.subject} {words.be} not finite from {row.name} on: {quantity} has NaN or infinity there."
            yield Finding(row.name, "is not finite", quantity, text)
            return
    sizes = [row.y.rms if quantity == "y" else row.dy.norm if row.dy is not None else 0.0 for row in deep]
    if 0.0 in sizes:
        k = sizes.index(0.0)
        before, whose, units = "", "its weights", "its units"
        if quantity == "dy" and k:  # a layer's own weights act on dx
            before = f"; the layer before it in this pass is {deep[k - 1].name}"
        elif quantity == "dy":
            whose, units = "the weights of a layer between it and the loss", "the units of that layer"
        text = (
            f"{words.subject} {words.be} exactly 0 from {deep[k].name} on{before}: {whose} may be zero, or {units} "
            "inactive."
        )
        yield Finding(deep[k].name, "is zero", quantity, text)
        return
    for k in range(1, len(deep)):
        if kind := _kind(sizes[k] / sizes[k - 1], STEP):
            text = (
                f"{words.subject} {words.verbs[kind]} at {deep[k].name}: {words.size} is {sizes[k]:.3g} there and "
                f"{sizes[k - 1]:.3g} at {deep[k - 1].name}, {words.neighbour}."
            )
            yield Finding(deep[k].name, kind, quantity, text)
            return
    if len(deep) > 2 and (kind := _kind(sizes[-1] / sizes[0], WHOLE)):
        each = math.exp(math.log(sizes[-1] / sizes[0]) / (len(deep) - 1))
        text = (
            f"{words.subject} {words.verbs[kind]} by depth: {words.size} is {sizes[0]:.3g} at {deep[0].name} and "
            f"{sizes[-1]:.3g} at {deep[-1].name}, {each:.3g} times in each layer."
        )
        yield Finding(deep[-1].name, kind, quantity, text)


def _kind(ratio: float, limit: float) -> str:
    return "vanishes" if ratio < 1 / limit else "explodes" if ratio > limit else ""
