"""Kernels of the ops for CuPy: CUDA kernels and cuBLAS products, each tested equal to its op.

The kernels are the .cu files here; beside each stands the Python that launches it. `register` registers them all.
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
    softmax,
    step,
)

_MODULES = (
    attention, cross_entropy, elementwise, encoder_block, gelu, layer_norm, linear, optimizer, random, softmax, step,
)  # fmt: skip


def register(library: str) -> None:
    """Register every kernel for the array library called `library`."""
    for module in _MODULES:
        module.register(library)
