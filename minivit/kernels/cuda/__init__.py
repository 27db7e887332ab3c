"""Kernels of the ops for CuPy: CUDA kernels and cuBLAS products, each tested equal to its op.

The CUDA sources are the .cu files; the Python module beside each one launches it. `register` registers all kernels.
"""

from minivit.kernels.cuda import (
    attention,
    cross_entropy,
    elementwise,
    encoder_block,
    gelu,
    layer_norm,
    linear,
    optimizer,
    random,
    sixteen_bits,
    softmax,
    step,
)

# The kernel registered last is tried first, so those of `sixteen_bits` run where no other one does.
_MODULES = (
    sixteen_bits, attention, cross_entropy, elementwise, encoder_block, gelu, layer_norm, linear, optimizer, random,
    softmax, step,
)  # fmt: skip


def register(library: str) -> None:
    """Register every kernel for the array library called `library`."""
    for module in _MODULES:
        module.register(library)
