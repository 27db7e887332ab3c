"""Which matrix products an op does, and what they take alone.

Ops are called on arrays of a subclass of NumPy's that notes every product, so whatever an op does is what is counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array
from minivit.arrays.shared import shared_zeros
from minivit.engine.machine import single_threaded_blas
from minivit.engine.worker_pool import Barrier, WorkerPool


class Operand(NamedTuple):
    """The shape of a factor, and whether its last two axes are stored the other way round."""

    shape: tuple[int, ...]
    transposed: bool

    def array(self, dtype: str) -> Array:
        """Return numbers in this shape and order, without gaps between them."""
        if not self.transposed:
            return np.full(self.shape, 0.5, dtype)
        return np.full((*self.shape[:-2], self.shape[-1], self.shape[-2]), 0.5, dtype).swapaxes(-1, -2)


class Product(NamedTuple):
    """A matrix product ``a @ b``."""

    a: Operand
    b: Operand
    dtype: str

    @property
    def flops(self) -> int:
        """2 for each multiply-add."""
        stack = np.broadcast_shapes(self.a.shape[:-2], self.b.shape[:-2])
        return 2 * int(np.prod((*stack, *self.a.shape[-2:], self.b.shape[-1]), dtype=np.int64))

    @property
    def is_of_matrices(self) -> bool:
        """Whether none of the factors is a vector, with which `matmul` only sums or scales."""
        return min(len(self.a.shape), len(self.b.shape)) > 1 and self.b.shape[-1] > 1


class Notes:
    """The matrix products that were noted; `noting` makes an op's arguments note theirs here."""

    def __init__(self) -> None:
        self.products: list[Product] = []

    def noting(self, x: Any) -> Any:
        """Return `x`, an array or a cache of arrays, with every array seen as one that notes."""
        if isinstance(x, np.ndarray):
            array = x.view(_NotingArray)
            array.notes = self
            return array
        if isinstance(x, tuple):
            parts = map(self.noting, x)
            return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
        return x


def plain(x: Any) -> Any:
    """Return what `noting` returns as it was."""
    if isinstance(x, tuple):
        parts = map(plain, x)
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    return x.view(np.ndarray) if isinstance(x, _NotingArray) else x


class _NotingArray(np.ndarray[Any, Any]):
    notes: Notes

    def __array_finalize__(self, source: Any) -> None:
        if isinstance(source, _NotingArray):
            self.notes = source.notes

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if ufunc is np.matmul:
            product = Product(_operand(inputs[0]), _operand(inputs[1]), str(self.dtype))
            if product.is_of_matrices:
                self.notes.products.append(product)
        arguments = {key: plain(value) for key, value in kwargs.items()}
        result = getattr(ufunc, method)(*map(plain, inputs), **arguments)
        return kwargs["out"][0] if kwargs.get("out") else self.notes.noting(result)


def _operand(x: Array) -> Operand:
    by_columns = x.ndim > 1 and x.shape[-2] > 1 and abs(x.strides[-1]) > abs(x.strides[-2])
    return Operand(x.shape, by_columns)


def _seconds(product: Product) -> float:
    a, b = product.a.array(product.dtype), product.b.array(product.dtype)
    out = a @ b
    times = []
    for _ in range(max(5, min(200, int(2e8 / product.flops)))):
        begun = time.perf_counter()
        np.matmul(a, b, out=out)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def seconds_alone(products: Sequence[Product], workers: int) -> dict[Product, float]:
    """Return the seconds of each product while `workers` do it at once, each with single-threaded BLAS."""
    seconds = shared_zeros((workers, len(products)), np.float64)

    def work(number: int, job: None, barrier: Barrier | None) -> None:
        seconds[number] = [_seconds(product) for product in products]

    with single_threaded_blas():
        if workers == 1:
            work(0, None, None)
        else:
            pool = WorkerPool(workers, work)
            pool.run(None)
            pool.close()
    return dict(zip(products, map(float, seconds.mean(axis=0)), strict=True))
