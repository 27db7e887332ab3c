"""Sums over the rows of a matrix, as biases and other parameters get them from a batch.

Each block adds some rows, then the blocks are added: a fixed order, so that the bits are the same each time.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.runtime import MOST_BLOCKS, TALL, WARP, acc_dtype, blocks, launch, pack

_TALLER = 32  # warps of a block that adds up blocks
_MOST = 1024  # blocks that sum rows, some 8 for each of an H100's or H200's processors


class Grid(NamedTuple):
    """Blocks of kernels in which each lane keeps to its columns."""

    across: int
    down: int

    @property
    def block(self) -> tuple[int, int]:
        """Lanes and warps of each block."""
        return WARP, TALL


def grid_of(rows: int, columns: int, dtype: object, together: int | None = None, sums: bool = False) -> Grid:
    """Return the blocks for a matrix, of whose columns so many lie `together`; few of them where each `sums`."""
    width = pack(dtype) if (together or columns) % pack(dtype) == 0 else 1
    across = blocks(columns, WARP * width)
    most = max(1, _MOST // across) if sums else MOST_BLOCKS
    return Grid(across, min(blocks(rows, TALL), most))


def column_sums(x: Array, out: Array, add: bool = False) -> None:
    """Set `out` (columns,), of the dtype that sums have, to the sums of `x` (rows, columns), or add them."""
    rows, columns = x.shape
    grid = grid_of(rows, columns, x.dtype, sums=True)
    partial = namespace(x).empty((grid.down, columns), dtype=acc_dtype(x.dtype))
    launch("columns", "column_sums", x, grid, grid.block, x, partial, rows, columns)
    column_totals(partial, out, add)


def column_totals(partial: Array, out: Array, add: bool = False) -> None:
    """Set `out` (columns,) to the sums of `partial` (blocks, columns), whose rows may lie apart, or add them."""
    count, columns = partial.shape
    stride = partial.strides[0] // partial.itemsize
    launch("columns", "column_totals", partial, (blocks(columns, WARP),), (WARP, _TALLER), partial, out, count, columns,
           stride, int(add))  # fmt: skip
