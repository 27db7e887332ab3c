"""Adam and AdamW over the whole flat vector in one pass, and its norm: kernels of `adam_step` and `gradient_norm`.

Every parameter starts at a multiple of 256 bytes. A table of the learning rate and weight decay of each 256 bytes
therefore represents all groups, however many there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.elementwise import THREADS, grid_of_all
from minivit.kernels.cuda.runtime import WARP, blocks, is_aligned, launch, pack
from minivit.ops.registry import Kernel, register_kernel

_BLOCK_BYTES = 256
_MOST_TABLES = 8
_tables: dict[tuple[Any, ...], tuple[Array, Array, Array]] = {}


def _covers(values: Array, gradients: Array, m: Array, v: Array, groups: tuple[Any, ...], **options: Any) -> bool:
    block = _BLOCK_BYTES // values.itemsize
    vectors = all(x.dtype == values.dtype and x.shape == values.shape for x in (gradients, m, v))
    starts = [group.span.start for group in groups]
    ends = [*starts[1:], values.size]
    apart = all(group.span.stop <= end for group, end in zip(groups, ends, strict=True))
    aligned = all(map(is_aligned, (values, gradients, m, v)))
    whole = values.size % block == 0 and all(start % block == 0 for start in starts)
    return values.dtype.name in ("float32", "float64") and values.size > 0 and vectors and apart and aligned and whole


def _table(values: Array, groups: tuple[Any, ...]) -> tuple[Array, Array, Array]:
    """Return the learning rate, the decay and the end of the group of each block, copied to the device once."""
    key = type(values), str(values.device), values.dtype, values.size, groups
    if key not in _tables:
        block = _BLOCK_BYTES // values.itemsize
        lr, decay = np.zeros((2, values.size // block), values.dtype)
        stops = np.zeros(values.size // block, np.int64)
        for group in groups:
            covered = slice(group.span.start // block, blocks(group.span.stop, block))
            lr[covered], decay[covered], stops[covered] = group.lr, group.weight_decay, group.span.stop
        while len(_tables) >= _MOST_TABLES:
            del _tables[next(iter(_tables))]
        xp = namespace(values)
        _tables[key] = xp.asarray(lr), xp.asarray(decay), xp.asarray(stops)
    return _tables[key]


def _step(
    values: Array,
    gradients: Array,
    m: Array,
    v: Array,
    groups: tuple[Any, ...],
    *,
    lr_scale: float,
    betas: tuple[float, float],
    eps: float,
    steps: int,
    decoupled: bool,
    factor: Array | None = None,
) -> None:
    namespace(values, gradients, m, v)
    corrections = [1.0 / (1.0 - beta**steps) for beta in betas]
    launch("optimizer", "adam", values, grid_of_all(values.size, pack(values.dtype)), (THREADS,), values, gradients, m,
           v, *_table(values, groups), float(lr_scale), *map(float, betas), float(eps), *corrections, int(decoupled),
           factor, values.size)  # fmt: skip


def _covers_norm(gradients: Array) -> bool:
    whole = gradients.size > 0 and gradients.size % pack(gradients.dtype) == 0
    return gradients.dtype.name in ("float32", "float64") and whole and is_aligned(gradients)


def _norm(gradients: Array) -> Array:
    xp = namespace(gradients)
    grid = grid_of_all(gradients.size, pack(gradients.dtype))
    partial, norm = xp.empty(grid, dtype=gradients.dtype), xp.empty((), dtype=gradients.dtype)
    launch("optimizer", "squares", gradients, grid, (THREADS,), gradients, partial, gradients.size)
    launch("optimizer", "root_of_sum", gradients, (1,), (WARP,), partial, norm, len(partial))
    return norm


def register(library: str) -> None:
    """Register the kernels for `library`."""
    register_kernel("adam_step", Kernel(library, _covers, _step))
    register_kernel("gradient_norm", Kernel(library, _covers_norm, _norm))
