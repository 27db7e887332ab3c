"""The queries, keys and values of an attention op by head, for the mistakes that `compare` recognises in its gradients.

In the layout (B, H, N, K), the gradients of attention are products of few arrays, which the formulas of
`minivit.checking.formulas` find: ``dv = weights.T @ dy``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minivit.arrays import Array, to_host
from minivit.checking.evidence import arrays_in
from minivit.checking.function import CheckedFunction
from minivit.checking.methods import Probe

THIRDS = {"qkv": ("q", "k", "v"), "kv": ("k", "v")}  # named parts of the last axis of an op's argument


@dataclass(frozen=True)
class HeadView:
    """One part of ``qkv``, or its gradient, (B, N, D), as (B, H, N, K).

    Attributes
    ----------
    num_heads, shape
        H, and the shape of the part.
    """

    num_heads: int
    shape: tuple[int, ...]

    def __call__(self, a: Array) -> Array:
        """Return an array (B, N, D) by head."""
        return a.reshape(*a.shape[:2], self.num_heads, -1).transpose(0, 2, 1, 3)

    def probe(self, probe: Probe) -> Probe:
        """Return the function of the part by head, with its result by head."""

        def evaluate(part: Array) -> Array:
            moved = np.array(probe.x, dtype=np.result_type(probe.x, part))
            moved[probe.where] = part.transpose(0, 2, 1, 3).reshape(self.shape)
            return self(probe.evaluate(moved))

        return Probe(evaluate, self(probe.x[probe.where]), self(probe.y), self(probe.upstream))

    def arrays(self, ours: CheckedFunction, named: Mapping[str, Array]) -> dict[str, Array]:
        """Return q, k and v, what our op caches, and what else is known, by name."""
        arrays: dict[str, Array] = {}
        for name, value in zip(ours.names, ours.points, strict=True):
            parts = THIRDS.get(name, ())
            if parts:
                pieces = np.split(value, len(parts), axis=-1)
                arrays |= {part: np.array(self(piece)) for part, piece in zip(parts, pieces, strict=True)}
        for name, value in arrays_in(ours.cache_at(ours.points)):
            if value.ndim == 4:
                arrays["weights" if name.endswith("softmax.y") else name] = np.asarray(to_host(value))
        new = {name: a for name, a in named.items() if not any(_equal(a, b) for b in arrays.values())}
        return arrays | new


def other_attentions(qkv: Array, num_heads: int) -> Iterator[tuple[str, Array]]:
    """Yield wrong forms of self-attention in words, and their results (B, N, D) for `qkv` (B, N, 3 D)."""
    B, N, columns = qkv.shape
    K = columns // (3 * num_heads)
    parts = qkv.reshape(B, N, 3, num_heads, K).transpose(2, 0, 3, 1, 4)

    def merged(y: Array) -> Array:
        return y.transpose(0, 2, 1, 3).reshape(B, N, num_heads * K)

    def attended(q: Array, k: Array, v: Array) -> Array:
        return _softmax(q @ k.swapaxes(-1, -2) * K**-0.5, -1) @ v

    q, k, v = parts
    scores = q @ k.swapaxes(-1, -2) * K**-0.5
    weights = _softmax(scores, -1)
    yield "the softmax is over the queries, not over the keys", merged(_softmax(scores, -2) @ v)
    yield "the softmax is over all heads, queries and keys", merged(_softmax(scores, (-1, -2, -3)) @ v)
    yield "the softmax is missing", merged(scores @ v)
    yield "the weights are transposed", merged(weights.swapaxes(-1, -2) @ v)
    yield "the weights are not normalised", merged(np.exp(scores) @ v)
    causal = np.where(np.tri(N, dtype=bool), scores, -np.inf)
    yield "a token attends to those before it alone, as under a causal mask", merged(_softmax(causal, -1) @ v)
    yield "the heads are joined by a reshape without the transposition", (weights @ v).reshape(B, N, num_heads * K)
    by_head = qkv.reshape(B, N, num_heads, 3, K).transpose(3, 0, 2, 1, 4)
    yield "the columns of qkv are read head by head; they are q, then k, then v", merged(attended(*by_head))
    reshaped = qkv.reshape(B, N, 3, num_heads * K).transpose(2, 0, 1, 3).reshape(3, B, num_heads, N, K)
    yield "the heads are split by a reshape without the transposition", merged(attended(*reshaped))
    turned = qkv.reshape(B, N, 3, K, num_heads).transpose(2, 0, 4, 1, 3)
    yield "a head is read from every H-th column; its K columns are together", merged(attended(*turned))


def _softmax(scores: Array, axis: Any) -> Array:
    e = np.exp(scores - scores.max(axis=axis, keepdims=True))
    whole: Array = e / e.sum(axis=axis, keepdims=True)
    return whole


def _equal(a: Array, b: Array) -> bool:
    """Return whether two arrays are equal up to rounding: mine and ours."""
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-9, atol=1e-12)
