"""The layer `ConvStem`, which has kernels: its name in the registry, and what a kernel reads of it.

Kernels import `ops` and never `nn`, so what they read is typed by protocols. The formulas are in
`minivit/nn/conv_stem.py` and docs/derivations/embeddings.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from minivit.ops.encoder_block import LinearLike, NormLike, ParameterLike
from minivit.ops.registry import declare

declare("ConvStem")


class ConvolutionLike(Protocol):
    """A 3 x 3 convolution with a padding of 1."""

    @property
    def weight(self) -> ParameterLike:
        """The matrix (9 C, O), in the order row, column, channel."""

    @property
    def stride(self) -> tuple[int, int]:
        """The vertical and the horizontal distance between windows."""


class ConvUnitLike(Protocol):
    """A convolution, layer norm over the channels, and ReLU."""

    @property
    def conv(self) -> ConvolutionLike:
        """The convolution."""

    @property
    def norm(self) -> NormLike:
        """The layer norm."""


class ConvStemLike(Protocol):
    """Convolutions, then a projection to tokens."""

    @property
    def convs(self) -> Sequence[ConvUnitLike]:
        """The convolutions; the first have a stride of 2, the others of 1."""

    @property
    def proj(self) -> LinearLike:
        """The projection."""
