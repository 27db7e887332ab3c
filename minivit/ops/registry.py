"""Rivals: other implementations of an op, for one array library, each proved equal to it.

An op is a reference forward and backward in a file beside this one. `kernels/` may register a rival pair for it. The
forward call asks each rival whether it covers the arguments; the backward call goes where the class of the cache says.
Without any rival the reference runs, and `reference_only` runs it alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from minivit.arrays import library_name, namespace

P = ParamSpec("P")
R = TypeVar("R")
Dy = TypeVar("Dy")
Cache = TypeVar("Cache")


@dataclass(frozen=True)
class Rival:
    """A forward and backward pair that may stand in for an op on one array library."""

    library: str
    covers: Callable[..., bool]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    cache: type


_rivals: dict[str, list[Rival]] = {}
_enabled = True


def op(reference: Callable[P, R]) -> Callable[P, R]:
    """Make `reference` an op: it runs unless a registered rival covers the arguments."""
    rivals = _rivals.setdefault(reference.__name__, [])

    @functools.wraps(reference)
    def forward(*args: P.args, **kwargs: P.kwargs) -> R:
        if rivals and _enabled:
            library = library_name(namespace(args[0] if args else next(iter(kwargs.values()))))
            for rival in rivals:
                if rival.library == library and rival.covers(*args, **kwargs):
                    result: R = rival.forward(*args, **kwargs)
                    return result
        return reference(*args, **kwargs)

    return forward


def op_backward(reference: Callable[[Dy, Cache], R]) -> Callable[[Dy, Cache | None], R]:
    """Make `reference` the backward pass of the op ``NAME`` that its name ``NAME_backward`` says."""
    rivals = _rivals.setdefault(reference.__name__.removesuffix("_backward"), [])

    @functools.wraps(reference)
    def backward(dy: Dy, cache: Cache | None) -> R:
        if cache is None:
            raise ValueError(f"{reference.__name__} needs a cache, but the forward pass ran with keep=False")
        for rival in rivals:
            if type(cache) is rival.cache:
                result: R = rival.backward(dy, cache)
                return result
        return reference(dy, cache)

    return backward


def register_rival(name: str, rival: Rival) -> None:
    """Let `rival` compete for the op called `name`; the last registered is asked first."""
    if name not in _rivals:
        raise ValueError(f"there is no op called {name!r}; the ops are {', '.join(sorted(_rivals))}")
    _rivals[name].insert(0, rival)


def rivals_of(name: str) -> tuple[Rival, ...]:
    """Return the rivals of an op."""
    return tuple(_rivals[name])


@contextmanager
def reference_only() -> Iterator[None]:
    """Run every op as its reference, in all threads, while the block lasts."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before
