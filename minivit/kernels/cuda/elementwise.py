"""Elementwise passes: dropout, patches, tokens and pooling. Kernels of these ops.

For 16-bit arrays dpos_embed and dcls_token, which are sums over the batch, are float32.
"""

from __future__ import annotations

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.columns import column_sums
from minivit.kernels.cuda.runtime import acc_dtype, aligned, blocks, covers_dtype, launch
from minivit.ops.dropout import DropoutCache, check_dropout
from minivit.ops.patches import PatchesCache, check_patches
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient
from minivit.ops.tokens import EmbedCache, PoolCache, check_embed, check_pool

THREADS = 256
_MAX_BLOCKS = 4096  # blocks; in a larger array each computes several pieces


def covers_count(x: Array) -> bool:
    """Return whether there are kernels for the dtype of `x` and for its size, which must be below 2**31."""
    return covers_dtype(x) and x.size < 2**31


def grid_of_all(count: int, each: int = 1) -> tuple[int]:
    """Return the grid for `count` elements, of which a thread computes `each` at a time."""
    return (min(blocks(count, THREADS * each), _MAX_BLOCKS),)


def multiply(x: Array, mask: Array) -> Array:
    """Return ``x * mask`` for a mask of the shape of `x`, or (B, 1, ...)."""
    y = namespace(x).empty(x.shape, dtype=x.dtype)
    launch("elementwise", "dropout", x, grid_of_all(x.size), (THREADS,), aligned(x), aligned(mask), y, x.size,
           x.size // mask.size)  # fmt: skip
    return y


class CudaDropoutCache(DropoutCache):
    """The fields of the op's cache."""


def _covers_dropout(x: Array, mask: Array, *, keep: bool = True) -> bool:
    per_sample = mask.ndim > 0 and mask.shape == (len(x), *(1 for _ in x.shape[1:]))
    return covers_count(x) and (mask.shape == x.shape or per_sample)


def _dropout(x: Array, mask: Array, *, keep: bool = True) -> tuple[Array, CudaDropoutCache | None]:
    check_dropout(x, mask)
    return multiply(x, mask), CudaDropoutCache(mask, x.shape, x.dtype) if keep else None


def _dropout_backward(dy: Array, cache: CudaDropoutCache) -> Array:
    expect_gradient("dropout", dy, cache.shape, cache.dtype)
    return multiply(dy, cache.mask)


class CudaPatchesCache(PatchesCache):
    """The fields of the op's cache."""


def _covers_patches(x: Array, patch_size: tuple[int, int], *, keep: bool = True) -> bool:
    return covers_count(x)


def _permute(x: Array, y: Array, cache: PatchesCache, back: bool) -> Array:
    (_, _, width, C), (P, Q) = cache
    launch("elementwise", "patches", x, grid_of_all(x.size), (THREADS,), aligned(x), y, x.size, width // Q, P, Q, C,
           int(back))  # fmt: skip
    return y


def _patches(x: Array, patch_size: tuple[int, int], *, keep: bool = True) -> tuple[Array, CudaPatchesCache | None]:
    xp = check_patches(x, patch_size)
    B, height, width, C = x.shape
    P, Q = patch_size
    cache = CudaPatchesCache((B, height, width, C), (P, Q))
    y = xp.empty((B, height // P * (width // Q), P * Q * C), dtype=x.dtype)
    return _permute(x, y, cache, False), cache if keep else None


def _patches_backward(dy: Array, cache: CudaPatchesCache) -> Array:
    (B, height, width, C), (P, Q) = cache
    expect_gradient("patches", dy, (B, height // P * (width // Q), P * Q * C))
    return _permute(dy, namespace(dy).empty(cache.shape, dtype=dy.dtype), cache, True)


class CudaEmbedCache(EmbedCache):
    """The fields of the op's cache."""


def _covers_tokens(x: Array, *_: object, **__: object) -> bool:
    return covers_count(x)


def _covers_embed(
    x: Array,
    pos_embed: Array | None = None,
    cls_token: Array | None = None,
    reg_token: Array | None = None,
    *,
    keep: bool = True,
) -> bool:
    """Positions of all tokens and no register tokens: the embedding of most models."""
    if pos_embed is None or reg_token is not None:
        return False
    return covers_count(x) and (cls_token is None or pos_embed.shape[1:] != x.shape[1:])


def _embed(
    x: Array, pos_embed: Array, cls_token: Array | None = None, reg_token: None = None, *, keep: bool = True
) -> tuple[Array, CudaEmbedCache | None]:
    xp = check_embed(x, pos_embed, cls_token)
    shape = (len(x), pos_embed.shape[1], x.shape[2])
    y = xp.empty(shape, dtype=x.dtype)
    cls_token = None if cls_token is None else aligned(cls_token)
    launch("elementwise", "embed", x, grid_of_all(y.size), (THREADS,), aligned(x), aligned(pos_embed), cls_token, y,
           y.size, *shape[1:])  # fmt: skip
    return y, CudaEmbedCache(shape, cls_token is not None, 0, shape[1]) if keep else None


def _embed_backward(dy: Array, cache: CudaEmbedCache) -> tuple[Array, Array, Array | None, None]:
    B, N, D = cache.shape
    expect_gradient("embed", dy, cache.shape)
    sums = namespace(dy).empty((1, N, D), dtype=acc_dtype(dy.dtype))
    column_sums(aligned(dy).reshape(B, N * D), sums)
    return (dy[:, 1:], sums, sums[:, :1], None) if cache.has_cls_token else (dy, sums, None, None)


class CudaPoolCache(PoolCache):
    """The fields of the op's cache."""


def _pool(x: Array, mode: str, num_prefix_tokens: int, *, keep: bool = True) -> tuple[Array, CudaPoolCache | None]:
    xp, first, stop = check_pool(x, mode, num_prefix_tokens)
    B, N, D = x.shape
    y = xp.empty((B, D), dtype=x.dtype)
    launch("elementwise", "pool", x, grid_of_all(y.size), (THREADS,), aligned(x), y, y.size, N, D, first, stop)
    return y, CudaPoolCache((B, N, D), first, stop) if keep else None


def _pool_backward(dy: Array, cache: CudaPoolCache) -> Array:
    B, N, D = cache.shape
    expect_gradient("pool", dy, (B, D))
    dx = namespace(dy).empty(cache.shape, dtype=dy.dtype)
    launch("elementwise", "pool_backward", dy, grid_of_all(dx.size), (THREADS,), aligned(dy), dx, dx.size, N, D,
           cache.first, cache.stop)  # fmt: skip
    return dx


def register(library: str) -> None:
    """Register the kernels for the array library called `library`."""
    register_kernel("dropout", Kernel(library, _covers_dropout, _dropout, _dropout_backward, CudaDropoutCache))
    register_kernel("patches", Kernel(library, _covers_patches, _patches, _patches_backward, CudaPatchesCache))
    register_kernel("embed", Kernel(library, _covers_embed, _embed, _embed_backward, CudaEmbedCache))
    register_kernel("pool", Kernel(library, _covers_tokens, _pool, _pool_backward, CudaPoolCache))
