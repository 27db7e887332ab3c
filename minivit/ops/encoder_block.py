"""`EncoderBlock`, a layer that has kernels, as `ConvStem` has: its name in the registry, and what a kernel reads of it.

Kernels import `ops` and never `nn`, so what they read is typed by protocols. The formulas are in
`minivit/nn/encoder_block.py` and docs/derivations/residual.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from minivit.arrays import Array
from minivit.ops.registry import declare

declare("EncoderBlock")

# ``qkv, queries = gather(qkv, queries)``: from some tokens of an image to all of them.
Gather: TypeAlias = Callable[[Array, slice], tuple[Array, slice]]


class ParameterLike(Protocol):
    """A parameter of a layer."""

    shape: tuple[int, ...]

    @property
    def value(self) -> Array:
        """The tensor."""

    def add_grad(self, dvalue: Array) -> None:
        """Add `dvalue`, of the parameter's shape, to the gradient."""

    def add_product(self, a: Array, b: Array) -> None:
        """Add ``a @ b``, of the parameter's shape, to the gradient."""

    def claim_grad(self) -> tuple[Array, bool]:
        """Return the gradient, and whether the caller must add to it (True) or overwrite it (False)."""


class LinearLike(Protocol):
    """A linear map."""

    @property
    def weight(self) -> ParameterLike:
        """The matrix (in, out)."""

    @property
    def bias(self) -> ParameterLike:
        """The bias (out,)."""


class NormLike(Protocol):
    """A layer norm."""

    @property
    def weight(self) -> ParameterLike:
        """The scale (D,)."""

    @property
    def bias(self) -> ParameterLike:
        """The shift (D,)."""

    @property
    def eps(self) -> float:
        """The number that is added to the variance."""


class AttentionLike(Protocol):
    """Multi-head self-attention."""

    @property
    def num_heads(self) -> int:
        """H, the number of heads."""

    @property
    def qkv(self) -> LinearLike:
        """The linear map from tokens to queries, keys and values."""

    @property
    def proj(self) -> LinearLike:
        """The linear map of the heads' results."""


class GELULike(Protocol):
    """GELU."""

    @property
    def approximate(self) -> str:
        """The form: "none" or "tanh"."""


class MLPLike(Protocol):
    """Two linear maps with GELU between them."""

    @property
    def fc1(self) -> LinearLike:
        """The first linear map (D, F)."""

    @property
    def act(self) -> GELULike:
        """The activation."""

    @property
    def fc2(self) -> LinearLike:
        """The second linear map (F, D)."""


class BlockLike(Protocol):
    """A pre-norm Transformer block."""

    @property
    def norm1(self) -> NormLike:
        """The norm before attention."""

    @property
    def attn(self) -> AttentionLike:
        """The attention."""

    @property
    def norm2(self) -> NormLike:
        """The norm before the MLP."""

    @property
    def mlp(self) -> MLPLike:
        """The MLP."""
