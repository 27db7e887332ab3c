"""Several backward passes on one cache, their upstream gradient, and what a difference between them means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minivit.arrays import Array, to_backend, to_host
from minivit.checking.gradients import as_tuple, host_copy

FACTOR = -4.0  # a power of 2: a pass that is linear in dy makes the same rounding errors, times this factor

NOT_LINEAR = (
    "backward of -4 * dy is not -4 times that of dy: its cache keeps a gradient, or it clips or rounds dy, or adds "
    "what does not depend on dy"
)

IGNORES_DY = (
    "backward of -4 * dy is not -4 times that of dy, but the same: it does not multiply by dy, or its cache keeps a "
    "gradient"
)

_LARGEST_ERROR = 1e5  # units in the last place of the norm of all gradients


class BackwardPasses:
    """Backward passes on one cache.

    Attributes
    ----------
    dy
        The upstream gradient, on the host.
    returned
        What the first two passes returned.
    writes_to_dy
        Whether one of them changed its upstream gradient.
    """

    def __init__(self, backward: Callable[[Any, Any], Any], cache: Any, dy: Array, library: Any) -> None:
        self.backward, self.cache, self.dy, self.library = backward, cache, dy, library
        self.returned: list[Any] = []
        self.writes_to_dy = False

    def __call__(self, factor: float = 1.0) -> tuple[Any, ...]:
        """Return copies of the gradients for `factor` * dy."""
        dy = np.asarray(factor * self.dy, self.dy.dtype)
        passed = to_backend(np.array(dy), self.library)
        returned = self.backward(passed, self.cache)
        self.returned = [*self.returned, returned][:2]
        copies = tuple(map(host_copy, as_tuple(returned)))
        self.writes_to_dy |= not np.array_equal(to_host(passed), dy)
        return copies


def are_multiples(gradients: Sequence[Any], others: Sequence[Any], dtype: np.dtype[Any]) -> bool:
    """Return whether `others` are `FACTOR` times the gradients, up to rounding in `dtype`.

    The error is relative to the norm of all gradients together: one of them may be rounding alone.
    """
    pairs = [
        (FACTOR * a.astype(np.float64), b)
        for a, b in zip(gradients, others, strict=False)
        if _is_float(a) and _is_float(b) and a.shape == b.shape and np.all(np.isfinite(a))
    ]
    error = math.hypot(*(float(np.linalg.norm(a - b)) for a, b in pairs))
    whole = math.hypot(*(float(np.linalg.norm(a)) for a, _ in pairs))
    return error <= _LARGEST_ERROR * float(np.finfo(dtype).eps) * whole


def _is_float(a: Any) -> bool:
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"


def written(what: str, names: Sequence[str], before: Sequence[Array], after: Sequence[Array]) -> str:
    """Return the finding that the pass `what` changes arguments, whose values are `before` and `after`, or ""."""
    changed = [name for name, a, b in zip(names, before, after, strict=True) if not np.array_equal(a, b)]
    if not changed:
        return ""
    advice = f"compute `{changed[0]} = {changed[0]} - ...` instead of `{changed[0]} -= ...`"
    return f"{what} writes to its arguments ({', '.join(changed)}): {advice}"


def differs(changed: Sequence[str]) -> str:
    """Return the finding that a second pass differs; `changed` are the arrays in the cache that the first changed."""
    cause = "backward writes to its cache, is random, or keeps state"
    if changed:
        parts = ", ".join(name for name in changed if name != "the cache")
        cause = f"backward writes to its cache{f': it changes {parts}' if parts else ''}"
    return f"a second backward pass on the same cache differs: {cause}"


def random_upstream(seed: int, shape: tuple[int, ...]) -> Array:
    """Return a random gradient of a result of `shape`: other numbers than those that users draw with the same seed.

    With their numbers, `dy` could equal an argument, and a gradient that exchanges the two would pass.
    """
    return np.random.default_rng([seed, *b"upstream"]).standard_normal(shape)


def given_upstream(upstream: Any, y: Array) -> Array:
    """Return an upstream gradient of the caller's as float64, or raise if it cannot be that of `y`."""
    given = np.asarray(to_host(upstream), np.float64)
    if given.shape != y.shape:
        raise ValueError(f"upstream has shape {given.shape}; expected that of the result of forward, {y.shape}")
    if not np.all(np.isfinite(given)):
        raise ValueError("upstream holds NaN or infinity; gradients are checked at finite values")
    return given
