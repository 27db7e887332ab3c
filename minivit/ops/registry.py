"""The registry of ops and of their kernels: faster implementations for one array library, each tested equal to its op.

An op is a reference forward and backward function in a file beside this one; the decorators `op` and `op_backward`
declare it. `kernels/` registers kernels for what is declared here, and for nothing else. The forward call asks each
kernel whether it covers the arguments. The class of the cache decides which backward function runs. An op without a
backward function, such as an optimiser's update, has kernels without one. `reference_only` runs the references alone.
`observe` shows every call of an op.

An op that returns a result takes NumPy arrays of any class and byte order (`arrays.native`); one that changes its
arguments in place refuses all but plain ones. Numbers that are too small for their dtype become zero in an op, whatever
`numpy.seterr` says of underflow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from minivit.arrays import library_name, namespace, native
from minivit.ops.interception import current_interception

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
    replaces : frozenset of str
        The ops that a kernel of a layer computes in its own way; it does not run where one of their kernels may not.
    """

    library: str
    covers: Callable[..., bool]
    forward: Callable[..., Any]
    backward: Callable[..., Any] = _no_backward
    cache: type | None = None
    replaces: frozenset[str] = frozenset()


_kernels: dict[str, list[Kernel]] = {}  # by the names that were declared
_arguments: dict[str, tuple[str, ...]] = {}  # the names of each op's arguments
# The names that run as references: for each active `reference_only` block of any thread, and in this thread alone.
# Blocks of several threads may overlap and end in any order.
_blocks: list[frozenset[str]] = []
_here: ContextVar[frozenset[str]] = ContextVar("here", default=frozenset())


def declare(name: str) -> None:
    """Allow kernels for `name`. The decorator `op` calls this, and so does the module of a layer with kernels.

    Raises
    ------
    ValueError
        The name is declared already.
    """
    if name in _kernels:
        raise ValueError(f"{name!r} is declared twice")
    _kernels[name] = []


def register_kernel(name: str, kernel: Kernel) -> None:
    """Register `kernel` for the op called `name`; the kernel registered last is tried first.

    Raises
    ------
    ValueError
        No op of this name was declared.
    """
    _expect_declared(name)
    _kernels[name].insert(0, kernel)


def _expect_declared(name: str) -> None:
    if name not in _kernels:
        raise ValueError(f"there is no op called {name!r}; the ops are {', '.join(sorted(_kernels))}")


def kernels_of(name: str) -> tuple[Kernel, ...]:
    """Return the kernels of an op."""
    return tuple(_kernels[name])


def find_kernel(name: str, *args: Any, **kwargs: Any) -> Kernel | None:
    """Return the kernel of `name` that covers the arguments, of which the op's first is an array, or None."""
    kernels = _kernels[name]
    disabled = disabled_kernels() if _blocks else _here.get()
    if not kernels or name in disabled:
        return None
    library = library_name(namespace(args[0] if args else kwargs[_arguments[name][0]]))
    for kernel in kernels:
        if kernel.library == library and disabled.isdisjoint(kernel.replaces) and kernel.covers(*args, **kwargs):
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
    in_place = reference.__annotations__["return"] in (None, "None")  # it would change the converted copies
    declare(name)
    code = reference.__code__
    _arguments[name] = code.co_varnames[: code.co_argcount]
    required = _arguments[name][: len(_arguments[name]) - len(reference.__defaults__ or ())]
    known = frozenset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        given: Any = args
        named: Any = kwargs
        if not in_place:
            given, named = [native(x) for x in args], {key: native(value) for key, value in kwargs.items()}
        with np.errstate(under="ignore"):
            # Otherwise the reference raises the TypeError that names the argument.
            is_valid = (
                len(given) <= len(_arguments[name])
                and known.issuperset(named)
                and (len(given) >= len(required) or all(argument in named for argument in required[len(given) :]))
            )
            kernel = find_kernel(name, *given, **named) if is_valid else None
            result: R = reference(*given, **named) if kernel is None else kernel.forward(*given, **named)
        for observation in _observations:
            observation.forward_ran(name, args, kwargs, result)
        return result

    @functools.wraps(reference)
    def forward(*args: P.args, **kwargs: P.kwargs) -> R:
        interception = current_interception()
        if interception is None:
            return run(*args, **kwargs)
        result: R = interception.op_forward(name, _arguments[name], run, args, kwargs)
        return result

    return forward


def op_backward(reference: Callable[[Dy, Cache], R]) -> Callable[[Dy, Cache | None], R]:
    """Make `reference`, called ``NAME_backward``, the backward function of the op ``NAME``."""
    name = reference.__name__.removesuffix("_backward")
    if name not in _kernels:
        raise ValueError(f"{reference.__name__} belongs to no op: declare {name!r} with @op before it")

    def run(dy: Dy, cache: Cache) -> R:
        kernel = kernel_of_cache(name, cache)
        dy = native(dy)
        with np.errstate(under="ignore"):
            gradients: R = reference(dy, cache) if kernel is None else kernel.backward(dy, cache)
        for observation in _observations:
            observation.backward_ran(dy, cache, gradients)
        return gradients

    @functools.wraps(reference)
    def backward(dy: Dy, cache: Cache | None) -> R:
        if cache is None:
            raise ValueError(f"{reference.__name__} needs a cache, but the forward pass ran with keep=False")
        interception = current_interception()
        if interception is None:
            return run(dy, cache)
        gradients: R = interception.op_backward(name, _arguments[name], run, dy, cache)
        return gradients

    return backward


def disabled_kernels() -> frozenset[str]:
    """Return the names whose kernels are disabled now in this thread."""
    return _here.get().union(*_blocks)


def follow_caller(disabled: frozenset[str]) -> None:
    """In a worker process, disable the kernels of `disabled` and no others, and remove all observers."""
    _blocks[:] = [disabled]
    _here.set(frozenset())
    _observations.clear()


def runs_references_only() -> bool:
    """Return whether no kernel runs now, as under `reference_only` without names."""
    return len(disabled_kernels()) == len(_kernels)


@contextmanager
def reference_only(*names: str) -> Iterator[None]:
    """Run every op, or those of `names`, as its reference, in all threads, while the block lasts.

    `names` may also be "EncoderBlock" and "ConvStem", layers with kernels of their own: such a layer then calls its
    inner layers, as it does where the kernel of an op that its own kernel replaces is disabled.
    Without names, the last block of a model computes all tokens too, and not the class token alone (`ViT.queries`).

    Raises
    ------
    ValueError
        There is no op or layer of such a name.
    """
    for name in names:
        _expect_declared(name)
    block = frozenset(names or _kernels)
    _blocks.append(block)
    try:
        yield
    finally:
        _blocks.remove(block)


@contextmanager
def reference_only_here(*names: str) -> Iterator[None]:
    """Do what `reference_only` does, in this thread alone: a hook does not change the bits of other threads."""
    token = _here.set(_here.get() | frozenset(names or _kernels))
    try:
        yield
    finally:
        _here.reset(token)


class OpCall(NamedTuple):
    """A call of an op.

    Attributes
    ----------
    layer : str or None
        The dotted name of the layer that called it, as in `Layer.named_layers` of the outermost layer, which is "";
        None outside of any layer.
    op : str
        The name of the op, such as "softmax".
    args, kwargs
        Its arguments.
    result : Any
        A copy of the result, without the cache.
    cache : Any
        The cache for the backward function, or None.
    """

    layer: str | None
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    cache: Any


OnForward = Callable[[OpCall], None]
OnBackward = Callable[[OpCall, Any, Any], None]

current_layer: ContextVar[str | None] = ContextVar("current_layer", default=None)  # set by the layers while observed


class _Observation:
    """One `observe` block: its functions, and its calls by the cache that they returned."""

    def __init__(self, on_forward: OnForward, on_backward: OnBackward | None) -> None:
        self._on_forward, self._on_backward = on_forward, on_backward
        self._calls: dict[int, OpCall] = {}  # by the id of the cache; the call keeps the cache alive

    def forward_ran(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> None:
        result, cache = returned if isinstance(returned, tuple) else (returned, None)
        call = OpCall(current_layer.get(), name, args, kwargs, _copied(result), cache)
        if cache is not None:
            self._calls[id(cache)] = call
        self._on_forward(call)

    def backward_ran(self, dy: Any, cache: Any, gradients: Any) -> None:
        call = self._calls.get(id(cache))
        if call is not None and self._on_backward is not None:
            self._on_backward(call, dy, _copied(gradients))


def _copied(result: Any) -> Any:
    """Return copies of arrays, because layers may overwrite the originals later."""
    if isinstance(result, tuple):
        return tuple(map(_copied, result))
    return result if result is None else result.copy()


_observations: list[_Observation] = []


def is_observed() -> bool:
    """Return whether an `observe` block is active."""
    return bool(_observations)


@contextmanager
def observe(on_forward: OnForward, on_backward: OnBackward | None = None) -> Iterator[None]:
    """Call a function after every call of an op, in every thread of this process, while the block lasts.

    The references run, as under `reference_only`, so that an op inside an op is seen too: softmax inside attention.

    Parameters
    ----------
    on_forward : callable
        ``on_forward(call)`` with an `OpCall`, after the forward function. It must not change an argument or the cache.
    on_backward : callable, optional
        ``on_backward(call, dy, gradients)`` after the backward function: the call whose cache it read, the upstream
        gradient, and a copy of the gradients that it returned. It is called only if the forward function was observed
        in this block too.

    Notes
    -----
    Every call that returned a cache is kept until the block ends, and so are its arrays.
    """
    observation = _Observation(on_forward, on_backward)
    with reference_only():
        _observations.append(observation)
        try:
            yield
        finally:
            _observations.remove(observation)
