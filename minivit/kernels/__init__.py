"""Rivals of the ops for one array library, each proved equal to its op. Without this folder only the speed changes.

The files here are for NumPy, those in cuda/ for CuPy, imported when CuPy is first asked for.
"""

import importlib

from minivit.arrays import when_registered
from minivit.kernels import attention, encoder_block, gelu, layer_norm

__all__ = ["attention", "encoder_block", "gelu", "layer_norm"]


def _register_cuda() -> None:
    importlib.import_module("minivit.kernels.cuda").register("cupy")


when_registered("cupy", _register_cuda)
