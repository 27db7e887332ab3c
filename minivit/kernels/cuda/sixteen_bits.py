"""16 bits for the ops that have no CUDA source: they compute in float32 and round their results.

Such an op, or form of an op, runs as its reference on CuPy in float32 and float64. CuPy's own operations on 16-bit
arrays round every intermediate result, and sum in 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minivit import ops
from minivit.arrays import Array
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient

# By op, which of its gradients are sums over the batch: these stay float32, as those of the other kernels do.
SUMS: dict[str, tuple[int, ...]] = {
    "cross_attention": (),
    "embed": (1, 2, 3),
    "fill_tokens": (1,),
    "grid_positions": (1, 2),
    "group_norm": (1, 2),
    "layer_scale": (1,),
    "max_pool": (),
    "pixel_error": (),
    "quick_gelu": (),
    "relative_attention": (1,),
    "relu": (),
    "sincos_positions": (),
    "standardize": (),
    "take_tokens": (),
    "tanh": (),
    "token_cross_entropy": (),
    "unfold": (),
}


LOSSES = ("pixel_error", "token_cross_entropy")  # stay float32 too: their digits choose the best epoch


class SixteenBitCache(NamedTuple):
    """What the backward pass reads."""

    cache: Any  # of the op in float32
    dtype: Any  # of x and its gradient


def _has_16_bits(x: Any) -> bool:
    return getattr(x, "dtype", None) is not None and x.dtype.name in ("bfloat16", "float16")


def _single(x: Any) -> Any:
    return x.astype(np.float32) if _has_16_bits(x) else x


def _covers(x: Array, *args: Any, **options: Any) -> bool:
    return _has_16_bits(x)


def _kernel(library: str, name: str) -> Kernel:
    op: Callable[..., Any] = getattr(ops, name)
    op_backward: Callable[..., Any] = getattr(ops, f"{name}_backward")

    def forward(x: Array, *args: Any, **options: Any) -> tuple[Array, SixteenBitCache | None]:
        given = {option: _single(value) for option, value in options.items()}
        y, cache = op(_single(x), *map(_single, args), **given)
        return y if name in LOSSES else y.astype(x.dtype), None if cache is None else SixteenBitCache(cache, x.dtype)

    def backward(dy: Array, cache: SixteenBitCache) -> Any:
        expected = np.dtype(np.float32) if name in LOSSES else cache.dtype
        expect_gradient(name, dy, dy.shape, expected)  # the op itself checks the shape
        gradients = op_backward(_single(dy), cache.cache)
        if not isinstance(gradients, tuple):
            return gradients.astype(cache.dtype)
        return tuple(g if g is None or i in SUMS[name] else g.astype(cache.dtype) for i, g in enumerate(gradients))

    return Kernel(library, _covers, forward, backward, SixteenBitCache)


def register(library: str) -> None:
    """Register the kernels for the array library called `library`."""
    for name in SUMS:
        register_kernel(name, _kernel(library, name))
