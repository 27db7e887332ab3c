"""Interception: an object through which every call of a layer and of an op of one thread passes.

`minivit.tracing` uses it to record and to change what flows through a model. `observe` of registry.py only shows the
calls of ops, and hooks see one layer each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Interception:
    """Runs every call as it is. A subclass reads or replaces what goes in and what comes out.

    In each function `run` takes the same arguments as the call and does what the call would have done.
    """

    def layer_forward(self, layer: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return what ``layer.forward(*args, **kwargs)`` returns: y and the cache."""
        return run(*args, **kwargs)

    def layer_backward(self, layer: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return what ``layer.backward(*args, **kwargs)`` returns: dx."""
        return run(*args, **kwargs)

    def op_forward(self, name: str, names: Sequence[str], run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return what the op called `name`, with arguments of `names`, returns: y and the cache, or y alone."""
        return run(*args, **kwargs)

    def op_backward(self, name: str, names: Sequence[str], run: Callable[..., Any], dy: Any, cache: Any) -> Any:
        """Return the gradients of the first arguments of `names`: one, or a tuple."""
        return run(dy, cache)


_interception: ContextVar[Interception | None] = ContextVar("interception", default=None)
current_interception = _interception.get


@contextmanager
def intercepted(interception: Interception) -> Iterator[None]:
    """Pass all calls of layers and ops in this thread through `interception` while the block lasts."""
    token = _interception.set(interception)
    try:
        yield
    finally:
        _interception.reset(token)
