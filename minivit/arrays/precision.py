"""The precisions of a training step, and the switch that lets float32 products round to TF32.

float32     products and everything else in float32
tf32        the operands of float32 products are rounded to 10 bits of mantissa for the tensor cores
bfloat16    arrays of 16 bits with 8 bits of mantissa; float32 sums, statistics, gradients and parameters
float16     the same with 11 bits of mantissa and a range of 6e-8 to 65504; the loss is scaled
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")

_tf32 = False


def tf32_allowed() -> bool:
    """Return whether float32 matrix products may currently round their operands to TF32."""
    return _tf32


@contextmanager
def tf32(allowed: bool = True) -> Iterator[None]:
    """Let float32 matrix products on a device round their operands to TF32, or forbid it, inside the block."""
    global _tf32
    before, _tf32 = _tf32, allowed
    try:
        yield
    finally:
        _tf32 = before
