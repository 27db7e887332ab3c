"""Kernels: faster implementations of what `ops` declares. Without this folder only the speed changes.

Those in numpy/ are registered with minivit, those in cuda/ when CuPy is first asked for.
"""

import importlib

from minivit.arrays import when_registered
from minivit.kernels import numpy

__all__ = ["numpy"]


def _register_cuda() -> None:
    importlib.import_module("minivit.kernels.cuda").register("cupy")


when_registered("cupy", _register_cuda)
