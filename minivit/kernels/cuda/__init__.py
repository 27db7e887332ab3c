"""Rivals of the ops for CuPy: CUDA kernels and cuBLAS products, each proved equal to its op.

The kernels are the .cu files here; beside each stands the Python that launches it. `register` lets them all compete.
"""

from minivit.kernels.cuda import (
    attention,
    cross_entropy,
    elementwise,
    encoder_block,
    gelu,
    guard,
    layer_norm,
    linear,
    optimizer,
    random,
    softmax,
)

_RIVALS = (
    attention, cross_entropy, elementwise, encoder_block, gelu, guard, layer_norm, linear, optimizer, random, softmax,
)  # fmt: skip


def register(library: str) -> None:
    """Let every kernel compete on the array library called `library`."""
    for rival in _RIVALS:
        rival.register(library)
