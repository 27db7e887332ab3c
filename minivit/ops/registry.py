"""Rivals: other implementations of an op, for one array library, each proved equal to it.

An op is a reference forward and backward in a file beside this one. `kernels/` may register a rival pair for it. The
forward call asks each rival whether it covers the arguments; the backward call goes where the class of the cache says.
A `routine` is a function without a backward pass, such as an optimiser's update, and its rival a function alone.
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


class _Nothing:
    """What a routine keeps for a backward pass."""


def _none(*_: Any) -> Any:
    raise TypeError("a routine has no backward pass")


@dataclass(frozen=True)
class Rival:
    """A forward and backward pair that may stand in for an op on one array library; for a routine, `forward` alone."""

    library: str
    covers: Callable[..., bool]
    forward: Callable[..., Any]
    backward: Callable[..., Any] = _none
    cache: type = _Nothing


_rivals: dict[str, list[Rival]] = {}
_set_aside: frozenset[str] = frozenset()  # names that run as their reference


def open_to_rivals(name: str) -> None:
    """Let rivals register for what is called `name`: an op, or a layer that asks `find_rival` itself."""
    _rivals.setdefault(name, [])


def find_rival(name: str, *args: Any, **kwargs: Any) -> Rival | None:
    """Return the rival of `name` that covers the arguments, of which the first is an array, or None."""
    rivals = _rivals[name]
    if not rivals or name in _set_aside:
        return None
    library = library_name(namespace(args[0] if args else next(iter(kwargs.values()))))
    for rival in rivals:
        if rival.library == library and rival.covers(*args, **kwargs):
            return rival
    return None


def rival_of_cache(name: str, cache: Any) -> Rival | None:
    """Return the rival of `name` that made `cache`, or None where the reference did."""
    for rival in _rivals[name]:
        if type(cache) is rival.cache:
            return rival
    return None


def op(reference: Callable[P, R]) -> Callable[P, R]:
    """Make `reference` an op: it runs unless a registered rival covers the arguments."""
    name = reference.__name__
    open_to_rivals(name)

    @functools.wraps(reference)
    def forward(*args: P.args, **kwargs: P.kwargs) -> R:
        rival = find_rival(name, *args, **kwargs)
        if rival is None:
            return reference(*args, **kwargs)
        result: R = rival.forward(*args, **kwargs)
        return result

    return forward


def op_backward(reference: Callable[[Dy, Cache], R]) -> Callable[[Dy, Cache | None], R]:
    """Make `reference` the backward pass of the op ``NAME`` that its name ``NAME_backward`` says."""
    name = reference.__name__.removesuffix("_backward")
    open_to_rivals(name)

    @functools.wraps(reference)
    def backward(dy: Dy, cache: Cache | None) -> R:
        if cache is None:
            raise ValueError(f"{reference.__name__} needs a cache, but the forward pass ran with keep=False")
        rival = rival_of_cache(name, cache)
        if rival is None:
            return reference(dy, cache)
        result: R = rival.backward(dy, cache)
        return result

    return backward


def routine(reference: Callable[P, R]) -> Callable[P, R]:
    """Make `reference`, which has no backward pass, give way to a rival that covers the arguments."""
    return op(reference)


def register_rival(name: str, rival: Rival) -> None:
    """Let `rival` compete for the op called `name`; the last registered is asked first."""
    if name not in _rivals:
        raise ValueError(f"there is no op called {name!r}; the ops are {', '.join(sorted(_rivals))}")
    _rivals[name].insert(0, rival)


def rivals_of(name: str) -> tuple[Rival, ...]:
    """Return the rivals of an op."""
    return tuple(_rivals[name])


def set_aside() -> frozenset[str]:
    """Return the names whose rivals do not run now."""
    return _set_aside


def set_aside_these(names: frozenset[str]) -> None:
    """Let the rivals of `names` and no others be set aside, in a process that does what another one asks."""
    global _set_aside
    _set_aside = names


@contextmanager
def reference_only(*names: str) -> Iterator[None]:
    """Run every op, or those of `names`, as its reference, in all threads, while the block lasts.

    In `names` a layer that has rivals, "EncoderBlock", stands for its wiring of other layers.
    """
    global _set_aside
    before, _set_aside = _set_aside, _set_aside | frozenset(names or _rivals)
    try:
        yield
    finally:
        _set_aside = before
