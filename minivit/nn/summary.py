"""What a model costs: parameters, floating-point operations and memory, layer by layer, from its configuration alone.

    flops    of one image's forward pass: 2 for each multiply-add of a matrix product, nothing for the rest; as papers
             count them, all tokens in the last block too, where the model computes the class token alone
    memory   bytes that the forward pass of training keeps for the backward pass, on NumPy, for each image of a batch

Nothing is allocated, so the largest model is as quick as the smallest. The tests hold the formulas against parameters
and caches of real models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minivit.nn.config import ViTConfig


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs; `parameters` is a count, `flops` and `memory` (bytes) are for one image."""

    name: str
    parameters: int
    flops: int
    memory: int


@dataclass(frozen=True)
class Summary:
    """What a model costs.

    Attributes
    ----------
    layers
        In the order of the forward pass; a block counts as four: norm1, attn, norm2, mlp, each with the dropout and
        stochastic depth that follow it.
    """

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def flops(self) -> int:
        """Floating-point operations of an image's forward pass; a step of training takes three times as many."""
        return sum(layer.flops for layer in self.layers)

    @property
    def memory(self) -> int:
        """Bytes that the forward pass keeps for the backward pass, for each image of a batch."""
        return sum(layer.memory for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        totals = {"parameters": self.parameters, "flops": self.flops, "memory": self.memory}
        return totals | {"layers": [asdict(layer) for layer in self.layers]}


def summarize(config: ViTConfig, dtype: Any = "float32") -> Summary:
    """Return what the model of `config` costs, trained in `dtype`."""
    itemsize = np.dtype(dtype).itemsize
    return Summary(tuple(LayerCost(name, p, 2 * m, itemsize * kept) for name, p, m, kept in _layers(config)))


def _layers(config: ViTConfig) -> Iterator[tuple[str, int, int, int]]:
    """Yield each layer's name, parameters, multiply-adds and kept numbers; dropout keeps a mask where it drops."""
    D, N, F, H, C = config.embed_dim, config.num_tokens, config.hidden_dim, config.num_heads, config.num_classes
    patches = config.num_patches
    pixels = config.patch_height * config.patch_width * config.in_chans

    yield "patch_embed", pixels * D + D, patches * pixels * D, patches * pixels
    tokens = (N + int(config.class_token)) * D
    yield "tokens", tokens, 0, N * D if config.pos_drop_rate else 0
    for i in range(config.depth):
        # A class-token head wants that token alone of the last block (ViT.queries).
        M = 1 if config.global_pool == "token" and i == config.depth - 1 else N
        proj_mask = M * D if config.proj_drop_rate else 0
        hidden_mask = M * F if config.proj_drop_rate else 0
        path_mask = 1 if config.drop_path_rate and i else 0
        # A block in which something is dropped also keeps what its norms give (kernels/encoder_block.py).
        normed = int(bool(config.attn_drop_rate or config.proj_drop_rate or path_mask))
        yield f"blocks.{i}.norm1", 2 * D, 0, N * D + N
        # The exponentials of the scores and the inverse of their sums; or the weights of each head and their mask.
        weights = H * M * N + (H * N * N if config.attn_drop_rate else H * M)
        # What it takes, qkv, the weights of each head, and what the heads gathered.
        kept = normed * N * D + 3 * N * D + weights + M * D + proj_mask + path_mask
        yield f"blocks.{i}.attn", 4 * D * D + 4 * D, 4 * N * D * D + 2 * N * N * D, kept
        yield f"blocks.{i}.norm2", 2 * D, 0, M * D + M
        # What it takes, GELU's slope, and what GELU gives.
        kept = normed * M * D + M * F + M * F + hidden_mask + proj_mask + path_mask
        yield f"blocks.{i}.mlp", 2 * D * F + F + D, 2 * N * D * F, kept
    yield "norm" if config.global_pool == "token" else "fc_norm", 2 * D, 0, D + 1
    yield "head", D * C + C, D * C, D + (D if config.drop_rate else 0)
