"""Kernels: faster implementations of what `ops` declares. Without this package everything works, but slower.

The kernels in numpy/ are registered when minivit is imported, those in cuda/ when CuPy is first used.
"""

import importlib

from minivit.arrays import when_registered
from minivit.kernels import numpy

__all__ = ["numpy"]


def _register_cuda() -> None:
    importlib.import_module("minivit.kernels.cuda").register("cupy")


when_registered("cupy", _register_cuda)
