"""What is inside an op besides its arguments and its result, and the parts of these that have names of their own.

attention           q, k, v (B, H, N, K): columns of qkv, by head; scores (B, H, N, N), after the scale;
                    weights: the softmax of the scores; heads.0, ...: the result of one head, before `proj`
layer_norm          x_hat, inv_std
activations         slope: dy/dx of each element
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from minivit.arrays import Array
from minivit.ops.attention import heads
from minivit.ops.gelu import GELUCache
from minivit.ops.layer_norm import LayerNormCache
from minivit.ops.quick_gelu import QuickGELUCache

ATTENTION = ("attention", "relative_attention", "cross_attention")

# A function from an array to a view of the part.
Part: TypeAlias = Callable[[Array], Array]


def parts_of_argument(op: str, argument: str, num_heads: int) -> dict[str, Part]:
    """Return the named parts of an argument of attention, or of its gradient."""
    if op not in ATTENTION:
        return {}
    names = {"qkv": ("q", "k", "v"), "q": ("q",), "kv": ("k", "v")}.get(argument, ())
    return {name: _part(i, num_heads, len(names)) for i, name in enumerate(names)}


def parts_of_result(op: str, num_heads: int) -> dict[str, Part]:
    """Return the result of each head, a part of attention's result (B, M, H K) or of its gradient."""
    return {f"heads.{i}": _head(i, num_heads) for i in range(num_heads)} if op in ATTENTION else {}


def _part(i: int, num_heads: int, count: int) -> Part:
    return lambda x: heads(x, num_heads, count)[i]


def _head(i: int, num_heads: int) -> Part:
    return lambda y: y.reshape(*y.shape[:2], num_heads, -1)[:, :, i]


def inside(op: str, y: Array, cache: Any) -> Mapping[str, Array]:
    """Return what an op computed on the way to its result, from its cache, unless a kernel made it."""
    if cache is None:
        return {}
    if isinstance(cache, LayerNormCache):
        return {"x_hat": cache.x_hat, "inv_std": cache.inv_std}
    if isinstance(cache, GELUCache | QuickGELUCache):
        return {"slope": cache.slope}
    if op == "relu":
        return {"slope": (y.real > 0).astype(y.dtype)}
    return {"slope": 1.0 - y * y} if op == "tanh" else {}
