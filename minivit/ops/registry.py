"""The registry of ops and of their kernels: faster implementations for one array library, each tested equal to its op.

An op is a reference forward and backward function in a file beside this one; the decorators `op` and `op_backward`
declare it. `kernels/` registers kernels for what is declared here, and for nothing else. The forward call asks each
kernel whether it covers the arguments. The class of the cache decides which backward function runs. An op without a
backward function, such as an optimiser's update, has kernels without one. `reference_only` runs the references alone.
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


def _no_backward(*_: Any) -> Any:
    raise TypeError("this op has no backward function")


@dataclass(frozen=True)
class Kernel:
    """An implementation of an op for one array library.

    Attributes
    ----------
    library : str
        The name of the array library.
    covers : callable
        Takes what the op takes and returns whether the kernel computes it.
    forward, backward : callable
        As the op's own; `backward` is left out where the op has none.
    cache : type, optional
        The class of the kernel's cache, which no other kernel and no op uses.
    """

    library: str
    covers: Callable[..., bool]
    forward: Callable[..., Any]
    backward: Callable[..., Any] = _no_backward
    cache: type | None = None


_kernels: dict[str, list[Kernel]] = {}  # by the names that were declared
_set_aside: frozenset[str] = frozenset()  # names that run as their reference


def declare(name: str) -> None:
    """Let kernels register for `name`: the decorator `op` does so, and the one layer that has kernels.

    Raises
    ------
    ValueError
        The name is declared already.
    """
    if name in _kernels:
        raise ValueError(f"{name!r} is declared twice")
    _kernels[name] = []


def find_kernel(name: str, *args: Any, **kwargs: Any) -> Kernel | None:
    """Return the kernel of `name` that covers the arguments, of which the first is an array, or None."""
    kernels = _kernels[name]
    if not kernels or name in _set_aside:
        return None
    library = library_name(namespace(args[0] if args else next(iter(kwargs.values()))))
    for kernel in kernels:
        if kernel.library == library and kernel.covers(*args, **kwargs):
            return kernel
    return None


def kernel_of_cache(name: str, cache: Any) -> Kernel | None:
    """Return the kernel of `name` that made `cache`, or None where the reference did."""
    for kernel in _kernels[name]:
        if type(cache) is kernel.cache:
            return kernel
    return None


def op(reference: Callable[P, R]) -> Callable[P, R]:
    """Make `reference` an op: it runs unless a registered kernel covers the arguments."""
    name = reference.__name__
    declare(name)

    @functools.wraps(reference)
    def forward(*args: P.args, **kwargs: P.kwargs) -> R:
        kernel = find_kernel(name, *args, **kwargs)
        if kernel is None:
            return reference(*args, **kwargs)
        result: R = kernel.forward(*args, **kwargs)
        return result

    return forward


def op_backward(reference: Callable[[Dy, Cache], R]) -> Callable[[Dy, Cache | None], R]:
    """Make `reference` the backward pass of the op ``NAME`` that its name ``NAME_backward`` says."""
    name = reference.__name__.removesuffix("_backward")
    if name not in _kernels:
        raise ValueError(f"{reference.__name__} is the backward function of no op called {name!r}")

    @functools.wraps(reference)
    def backward(dy: Dy, cache: Cache | None) -> R:
        if cache is None:
            raise ValueError(f"{reference.__name__} needs a cache, but the forward pass ran with keep=False")
        kernel = kernel_of_cache(name, cache)
        if kernel is None:
            return reference(dy, cache)
        result: R = kernel.backward(dy, cache)
        return result

    return backward


def register_kernel(name: str, kernel: Kernel) -> None:
    """Register `kernel` for the op called `name`; the last registered is asked first.

    Raises
    ------
    ValueError
        No op of this name was declared.
    """
    if name not in _kernels:
        raise ValueError(f"there is no op called {name!r}; the ops are {', '.join(sorted(_kernels))}")
    _kernels[name].insert(0, kernel)


def kernels_of(name: str) -> tuple[Kernel, ...]:
    """Return the kernels of an op."""
    return tuple(_kernels[name])


def set_aside() -> frozenset[str]:
    """Return the names whose kernels do not run now."""
    return _set_aside


def set_aside_these(names: frozenset[str]) -> None:
    """Let the kernels of `names` and no others be set aside, in a process that does what another one asks."""
    global _set_aside
    _set_aside = names


@contextmanager
def reference_only(*names: str) -> Iterator[None]:
    """Run every op, or those of `names`, as its reference, in all threads, while the block lasts.

    In `names` a layer that has kernels, "EncoderBlock", stands for its wiring of other layers.
    """
    global _set_aside
    before, _set_aside = _set_aside, _set_aside | frozenset(names or _kernels)
    try:
        yield
    finally:
        _set_aside = before
