"""A pair of functions under check: one forward and backward pass, with checks of the contracts between them.

The contracts: forward and backward write neither to their arguments nor to dy; a second backward pass on the same cache
returns the same gradients, also after forward passes at other points; backward is linear in dy; each call returns its
result, or its first gradient, in a new array (later gradients may be those of a layer's parameters); every float array
gets a finite gradient of its own shape and dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minivit.arrays import Array, namespace, to_backend, to_host
from minivit.checking.arguments import accepted
from minivit.checking.backward_passes import (
    FACTOR,
    IGNORES_DY,
    NOT_LINEAR,
    BackwardPasses,
    are_multiples,
    differs,
    given_upstream,
    random_upstream,
    written,
)
from minivit.checking.evidence import arrays_in
from minivit.checking.gradients import (
    NOTHING_RETURNED,
    align,
    as_tuple,
    host_copy,
    miscounted,
    other_dtype,
    result_of,
    same,
)
from minivit.checking.state import (
    CHANGED_BY_CALLS,
    OVERWRITTEN,
    READS_STATE,
    RESULT_OVERWRITTEN,
    first_finding,
    other_arguments,
    overwrites_results,
)
from minivit.checking.watched import Watched, watch

Forward = Callable[..., tuple[Any, Any]]
Backward = Callable[[Any, Any], Any]

RANDOM = "forward returns another result for the same arguments: fix its randomness to check it"


@dataclass(frozen=True)
class Passes:
    """The results of one forward and one backward pass.

    Attributes
    ----------
    y, upstream
        The result of forward, and the upstream gradient.
    gradients
        What backward returned, by the index of the float array.
    findings
        The violated contracts, in words.
    """

    y: Array
    upstream: Array
    gradients: dict[int, Any]
    findings: tuple[str, ...]


class CheckedFunction:
    """A forward and a backward function, and the arrays at which they are checked.

    The functions are called with arrays of the library of `arrays`; all attributes are host arrays.
    """

    def __init__(self, forward: Forward, backward: Backward, arrays: Sequence[Any], names: Sequence[str]) -> None:
        arrays = accepted(names, arrays)
        self.forward, self.backward, self.library = forward, backward, namespace(*arrays)
        self.names = names
        self.given = [to_host(a) for a in arrays]
        self.floats = [k for k, a in enumerate(self.given) if a.dtype.kind == "f"]
        if not self.floats:
            raise TypeError(
                "none of the arguments is an array of floats, so there is no gradient to check; convert those that "
                "have a gradient: x.astype('float64')"
            )
        self.points = self._cast(np.float64)
        self._complex_points: list[Array] = []
        self._writes = False  # whether the functions write to their arguments
        self._shape: tuple[int, ...] = ()  # of the result
        self.num_inputs = len(arrays)  # the arrays after them are parameters
        self.moves_parameters = False  # whether the gradients of a layer are verified at other parameters too
        self.copies_differ = False  # whether a used copy of a layer differs from a new one at other parameters
        self.order: dict[str, int] = {}  # places of the inner layers in the forward pass, if they are known

    @property
    def findings(self) -> tuple[str, ...]:
        """The violated contracts that `run` does not return."""
        return ()

    def evaluate(self, k: int, value: Array, points: Sequence[Array] | None = None) -> Array:
        """Return forward's result with array `k` replaced by `value`; if complex, all float arrays become complex.

        The other arrays are those of `points`, by default the given ones. The result is NaN at a real value that
        forward refuses: the value is not in the domain of the function.
        """
        is_complex = np.iscomplexobj(value)
        if points is not None:
            points = [a.astype(np.complex128) if is_complex and a.dtype.kind == "f" else a for a in points]
        elif is_complex:
            points = self._complex_points = self._complex_points or self._cast(np.complex128)
        points = list(self.points if points is None else points)
        points[k] = value
        if is_complex:
            return self._call(points)[0]
        try:
            return self._call(points)[0]
        except Exception:
            return np.full(self._shape, np.nan)

    def evaluate_with(self, changes: Mapping[str, Array]) -> Array:
        """Return forward's result with the arguments of these names replaced; if one is complex, all floats are."""
        is_complex = any(np.iscomplexobj(value) for value in changes.values())
        points = self._cast(np.complex128 if is_complex else np.float64)
        for name, value in changes.items():
            k = list(self.names).index(name)
            points[k] = np.asarray(value, points[k].dtype)
        return self._call(points)[0]

    def cache_at(self, points: Sequence[Array]) -> Any:
        """Return the cache of a new forward pass."""
        return self.user_cache(self._call([np.array(point) for point in points])[1])

    def user_cache(self, cache: Any) -> Any:
        """Return the cache that the checked code made, out of the one of `forward`."""
        return cache

    def repaired(self, k: int, dy: Array) -> Iterator[tuple[str, str, Array]]:
        """Yield the gradient if an array in the cache that forward changed in place is set back to its earlier values.

        Yields
        ------
        name, operation, gradient
            The name of the array in the cache, what changed it, and the gradient of array `k`.
        """
        if self.library is not np or self._writes:
            return
        try:
            (_, cache), changes = watch(self.forward, self.points)
            for name, array in arrays_in(self.user_cache(cache)):
                now = array.view(np.ndarray)
                for change in changes:
                    if change.before.shape != now.shape or not np.shares_memory(change.array, now):
                        continue
                    kept = np.array(now)
                    now[...] = change.before
                    returned = self._align(as_tuple(self.backward(np.array(dy), cache)), [])[k]
                    now[...] = kept
                    yield name, change.operation, np.array(returned)
        except Exception:  # forward does not take arrays of a subclass: nothing is known
            return
        finally:
            Watched.changes = []

    def run(self, points: Sequence[Array], seed: int, upstream: Any = None, contracts: bool = True) -> Passes:
        """Run forward, and backward with `upstream` or a random gradient, and check the `contracts` if True."""
        dtype = np.result_type(*(points[k].dtype for k in self.floats))
        points, before, findings = list(points), [np.array(point) for point in points], list[str]()
        result, cache = self._forward_pass(points)
        y = np.array(to_host(result))
        if y.dtype.kind != "f":
            raise TypeError(f"forward must return an array of floats for arrays of {dtype}, got {y.dtype}")
        if not np.all(np.isfinite(y)):
            raise ValueError("forward returns NaN or infinity here; gradients are checked where it is finite")
        if y.dtype != dtype:
            findings.append(other_dtype(y.dtype, dtype, dict(zip(self.names, (a.dtype for a in points), strict=True))))
        self._shape = y.shape
        writes = written("forward", self.names, before, points)
        upstream = random_upstream(seed, y.shape) if upstream is None else given_upstream(upstream, y)
        backward = BackwardPasses(self.backward, cache, np.asarray(upstream, y.dtype), self.library)
        gradients = backward()
        if not contracts:
            return Passes(y, upstream, self._align(gradients, findings), ())
        writes = writes or written("backward", self.names, before, points)
        if backward.returned[0] is None:
            findings.append(NOTHING_RETURNED)
        if writes:  # the cache may hold an argument, so that restored values change it
            findings.append(writes)
            self._writes = True
            for point, value in zip(points, before, strict=True):
                point[...] = value
        else:
            findings += self._violations(points, result, y, backward, gradients)
        if backward.writes_to_dy:
            findings.append("backward writes to dy")
        return Passes(y, upstream, self._align(gradients, findings), tuple(findings))

    def _violations(
        self, points: Sequence[Array], result: Any, y: Array, backward: BackwardPasses, gradients: tuple[Any, ...]
    ) -> Iterator[str]:
        """Yield the contracts that further passes violate; the first one of backward may cause the others.

        Parameters
        ----------
        result, y
            What forward returned for `points`, and a copy of it.
        backward, gradients
            The backward passes on the same cache, and what the first one returned.
        """
        if not np.array_equal(self._call(points)[0], y):
            yield RANDOM
            return
        kept = np.array(to_host(result))

        def after_another() -> str:
            if not np.array_equal(to_host(result), kept):
                return RESULT_OVERWRITTEN
            return "" if all(map(same, gradients, backward())) else READS_STATE

        try:
            if not all(map(same, gradients, backward())):
                yield differs(self._changed_in_cache(points, backward.dy))
            elif overwrites_results(
                # The later ones may be the gradients of a layer's parameters, which each call sets anew.
                as_tuple(backward.returned[0])[:1],
                as_tuple(backward.returned[1])[:1],
                gradients[:1],
                lambda: backward(-1.0),
            ):
                yield OVERWRITTEN
            elif not are_multiples(gradients, others := backward(FACTOR), backward.dy.dtype):
                yield IGNORES_DY if all(map(same, gradients, others)) else NOT_LINEAR
            else:
                yield from filter(None, [first_finding(self._other_calls(points), after_another)])
                if not np.array_equal(self._call(points)[0], y):
                    yield CHANGED_BY_CALLS
        except Exception as error:
            yield f"a second backward pass on the same cache raises {type(error).__name__}: {error}"

    def _changed_in_cache(self, points: Sequence[Array], dy: Array) -> list[str]:
        """Return the names of the arrays in a new cache that a backward pass changes."""
        cache = self._call(points)[1]
        named = [(name, array, host_copy(array)) for name, array in arrays_in(self.user_cache(cache))]
        BackwardPasses(self.backward, cache, dy, self.library)()
        return [name for name, array, before in named if not np.array_equal(to_host(array), before)]

    def _other_calls(self, points: Sequence[Array]) -> Iterator[Callable[[], Any]]:
        """Yield forward passes at other arguments, which may be refused."""
        for others in other_arguments(points, self.num_inputs):
            yield functools.partial(self._call, others)

    def _cast(self, dtype: Any) -> list[Array]:
        return [np.asarray(a, dtype) if a.dtype.kind == "f" else a for a in self.given]

    def _call(self, points: Sequence[Array]) -> tuple[Array, Any]:
        y, cache = self._forward_pass(points)
        return np.array(to_host(y)), cache  # a copy: forward may return the same array in each call

    def _forward_pass(self, points: Sequence[Array]) -> tuple[Any, Any]:
        """Return what forward returns, on its device."""
        own = [np.array(point) for point in points] if self._writes else points
        return result_of(self.forward(*(to_backend(point, self.library) for point in own)))

    def _align(self, gradients: tuple[Any, ...], findings: list[str]) -> dict[int, Any]:
        dtypes = [a.dtype for a in self.given]
        if NOTHING_RETURNED not in findings:
            findings += filter(None, [miscounted(gradients, dtypes, "array")])
        return align(gradients, dtypes)
