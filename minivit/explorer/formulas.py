"""The formulas of layers and ops, forward and backward, typeset as MathML: `formulas.json`.

The file has LaTeX by kind, and the MathML that `make formulas` makes of it. A kind whose value is a string has the
formulas of that kind. tests/formulas.txt says in NumPy what each line of LaTeX means.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import TypedDict

from minivit.explorer.explained import known_classes
from minivit.explorer.sources import kind_of


class Latex(TypedDict):
    """The lines of both passes."""

    forward: list[str]
    backward: list[str]


class Formula(TypedDict):
    """The formulas of a kind: see `formulas`."""

    page: str | None
    latex: Latex
    forward: list[str]
    backward: list[str]


@functools.cache
def known_formulas() -> Mapping[str, Formula]:
    """Return all formulas by kind."""
    read = json.loads(files("minivit.explorer").joinpath("formulas.json").read_text(encoding="utf-8"))
    return {kind: read[value] if isinstance(value, str) else value for kind, value in read.items()}


def formulas(kinds: Iterable[str | type]) -> dict[str, Formula]:
    """Return the formulas of layers and ops.

    Parameters
    ----------
    kinds : iterable of str or type
        Names of ops and of layers of minivit, and classes of layers, such as a user's own.

    Returns
    -------
    dict
        For each kind (of a class, `kind_of`) that has formulas a dict: "forward" and "backward", lists of lines in
        MathML; "latex", the same lines in LaTeX; "page", the derivation in the source of minivit, or None. A class that
        inherits both passes of a layer of minivit has the formulas of that layer.
    """
    named = ((kind, kind) if isinstance(kind, str) else (kind_of(kind), _same_passes(kind)) for kind in kinds)
    known = known_formulas()
    return {key: known[kind] for key, kind in named if kind in known}


def _same_passes(cls: type) -> str:
    """Return the name of the layer of minivit whose forward and backward passes `cls` has, or ""."""
    for base in cls.__mro__:
        passes = [getattr(cls, role, None) is getattr(base, role, None) for role in ("forward", "backward")]
        if known_classes().get(base.__name__) is base and all(passes):
            return base.__name__
    return ""
