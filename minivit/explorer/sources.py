"""The source lines of the forward and backward passes of layers and ops, for the page."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

from minivit.explorer.explained import PACKAGE, known_classes, known_ops, ops_called
from minivit.explorer.source_lines import AnyFunction, function_lines, functions_called, methods_called


class SourceLines(TypedDict):
    """The lines of a function that a pass runs: see `sources`."""

    name: str
    role: str
    file: str
    line: int
    text: str


def kind_of(cls: type) -> str:
    """Return the kind of a layer: the name of its class, with its module if minivit has another one of this name."""
    name = cls.__name__
    taken = name in known_ops() or known_classes().get(name, cls) is not cls
    return f"{cls.__module__}.{cls.__qualname__}" if taken else name


def sources(kinds: Iterable[str | type]) -> dict[str, list[SourceLines]]:
    """Return the source lines of both passes of layers and ops.

    Parameters
    ----------
    kinds : iterable of str or type
        Names of ops and of layers of minivit, and classes of layers, such as a user's own.

    Returns
    -------
    dict
        For each kind (of a class, `kind_of`) the lines of its methods or functions and of those that they call, a list
        of dicts: "name", such as "Linear.forward"; "role", "forward" or "backward"; "file", its path in the package, or
        the module of a user's class; "line", the first one; "text", without the docstring. What both passes call is
        listed with the first. The list is empty where the source cannot be read, and for a name that is unknown.
    """
    return {kind if isinstance(kind, str) else kind_of(kind): list(_sources(kind)) for kind in kinds}


def _sources(kind: str | type) -> Iterator[SourceLines]:
    cls = known_classes().get(kind) if isinstance(kind, str) else kind
    names = ops_called(cls) if cls else [str(kind)] if kind in known_ops() else []
    done: set[str] = set()
    for role in ("forward", "backward"):
        methods = [(f"{cls.__name__}.{name}", getattr(cls, name)) for name in methods_called(cls, role)] if cls else []
        for name, function in (*methods, *((f.__name__, f) for f in _functions(names, role))):
            lines = function_lines(function, name)
            if name not in done and lines.path:
                done.add(name)
                file = _file(lines.path, inspect.unwrap(function).__module__)
                yield {"name": name, "role": role, "file": file, "line": lines.first, "text": lines.source}


def _functions(names: Iterable[str], role: str) -> list[AnyFunction]:
    """Return the functions that run in a pass of these ops."""
    ops = [known_ops()[name] for name in names]
    if role == "backward":
        backward = [getattr(sys.modules[op.__module__], f"{op.__name__}_backward", None) for op in ops]
        ops = [op for op in backward if op is not None]
    return [*ops, *functions_called(ops)]


def _file(path: str, module: str) -> str:
    """Return the path of a file in the package, with the package's name, or the name of a module elsewhere."""
    inside = Path(path).is_relative_to(PACKAGE)
    return Path(path).relative_to(PACKAGE.parent).as_posix() if inside else module
