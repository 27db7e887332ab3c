"""The source lines of functions and methods, and of the functions that they call."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeAlias

# Not `FunctionType`: what a decorator returns is a function too.
AnyFunction: TypeAlias = Callable[..., Any]
# Functions in these files check arguments or choose a kernel; they compute nothing.
_BESIDE = ("minivit.ops.shapes", "minivit.ops.registry")


@dataclass(frozen=True)
class Function:
    """A function or method, with the lines of its file.

    Attributes
    ----------
    name
        Its name; a method's begins with its class.
    path
        The path of its file, or "" where there is none.
    first, last
        Its lines, from 1; 0 where there is no file.
    source
        The lines without the docstring.
    """

    name: str
    path: str
    first: int
    last: int
    source: str


@functools.lru_cache(maxsize=1024)  # a page asks for each several times
def function_lines(function: AnyFunction, name: str) -> Function:
    """Return the lines of `function`; where they cannot be read, such as those of a shell, a comment says so."""
    function = inspect.unwrap(function)
    try:
        lines, first = inspect.getsourcelines(function)
        path = inspect.getsourcefile(function) or ""
        source = textwrap.dedent("".join(lines))
        node = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError):
        return Function(name, "", 0, 0, "# the source cannot be read")
    shown = source.splitlines()
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
        del shown[node.body[0].lineno - 1 : node.body[0].end_lineno]
    return Function(name, path, first, first + len(lines) - 1, "\n".join(shown))


@functools.lru_cache(maxsize=1024)
def tree_of(thing: type | AnyFunction) -> ast.AST:
    """Return the syntax tree of a function or class, empty where the source cannot be read."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing))))
    except (OSError, TypeError, SyntaxError):
        return ast.Module([], [])


def functions_called(functions: Iterable[AnyFunction]) -> list[FunctionType]:
    """Return the functions of `minivit.ops` that `functions` call, and those that these call, in the order of calls.

    Left out are ops, which have an entry of their own, and functions that check arguments.
    """
    found: list[FunctionType] = []
    for function in functions:
        _add_called(inspect.unwrap(function), found)
    return found


def _add_called(function: AnyFunction, found: list[FunctionType]) -> None:
    for node in ast.walk(tree_of(function)):
        value = getattr(function, "__globals__", {}).get(node.id) if isinstance(node, ast.Name) else None
        if isinstance(value, FunctionType) and value is not function and value not in found and _computes(value):
            found.append(value)
            _add_called(value, found)


def _computes(function: FunctionType) -> bool:
    """Return whether `function` is a part of an op, and no op itself."""
    ours = function.__module__.startswith("minivit.ops.") and function.__module__ not in _BESIDE
    return ours and not hasattr(function, "__wrapped__") and not function.__name__.startswith("check_")


def methods_called(cls: type, method: str) -> Iterator[str]:
    """Yield `method` and the names of the methods of `cls` that it calls, and those that these call, each once."""
    names, done = [method], set[str]()
    while names:
        name = names.pop(0)
        function = inspect.getattr_static(cls, name, None)
        if name in done or not isinstance(function, FunctionType) or not _is_shown(function):
            continue
        done.add(name)
        yield name
        nodes = ast.walk(tree_of(function))
        names += [n.attr for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self"]


def _is_shown(function: FunctionType) -> bool:
    """Return whether a method is of a layer's passes: `Layer.kept` is of all, a kernel takes the place of a pass."""
    name = function.__name__
    return function.__module__ != "minivit.nn.layer" and not name.startswith("check_") and name != "_kernel"
