"""What the rules of all symptoms share: a line of watch.jsonl, what is known of the run, and names in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from minivit.nn.model import Model
from minivit.tracing.names import ROOT
from minivit.train.recipe import Recipe

BLOCK = re.compile(r"(?:encoder\.)?blocks\.(\d+)\.")

Line = Mapping[str, Any]


class Watched(NamedTuple):
    """What `symptoms` needs to know of a run.

    Attributes
    ----------
    model : Model
        The model.
    trained : sequence of str
        The parameters that the optimiser updates.
    recipe : Recipe
        The recipe of the run.
    dtype : dtype
        That of the computation.
    """

    model: Model
    trained: Sequence[str]
    recipe: Recipe
    dtype: Any


def gradient_norm(line: Line, name: str) -> float | None:
    """Return the norm of the gradient of a parameter; None if it is not finite or there is none."""
    return line["parameters"][name]["gradient"] if name in line["parameters"] else None


def total_norm(norms: Iterable[float]) -> float:
    """Return the norm of all from the norms of parts."""
    return math.hypot(*norms)


def innermost(names: Sequence[str]) -> str:
    """Return the first of `names`, or the first of them that is inside it: layers stand before those inside them."""
    first = next((name for name in names if name != ROOT), ROOT)
    while inside := [name for name in names if name.startswith(f"{first}.")]:
        first = inside[0]
    return first


def listed(names: Sequence[str]) -> str:
    """Return names for a sentence: the first, and how many there are."""
    more = ", ".join(names[1:4]) + (", ..." if len(names) > 4 else "")
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more: {more})"
