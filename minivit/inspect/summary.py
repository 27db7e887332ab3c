"""What a model costs: parameters, floating-point operations and memory, layer by layer, from its configuration alone.

    flops    of one image's forward pass: 2 for each multiply-add of a matrix product, nothing for the rest
    memory   bytes that one image's forward pass keeps for the backward pass, parameters not counted

Nothing is allocated, so the largest model is as quick as the smallest. The tests hold the formulas against parameters
and caches of real models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minivit.config import ViTConfig


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
        """Bytes that an image's forward pass keeps for the backward pass."""
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
    proj_mask = N * D if config.proj_drop_rate else 0
    hidden_mask = N * F if config.proj_drop_rate else 0
    attn_mask = H * N * N if config.attn_drop_rate else 0

    yield "patch_embed", pixels * D + D, patches * pixels * D, patches * pixels
    tokens = (N + int(config.class_token)) * D
    yield "tokens", tokens, 0, N * D if config.pos_drop_rate else 0
    for i in range(config.depth):
        path_mask = 1 if config.drop_path_rate and i else 0
        norm = 2 * D, 0, N * D + N
        # What it takes, qkv, the weights of each head, and what the heads gathered.
        kept = N * D + 3 * N * D + H * N * N + N * D + attn_mask + proj_mask + path_mask
        yield f"blocks.{i}.norm1", *norm
        yield f"blocks.{i}.attn", 4 * D * D + 4 * D, 4 * N * D * D + 2 * N * N * D, kept
        yield f"blocks.{i}.norm2", *norm
        # What it takes, GELU's slope, and what GELU gives.
        kept = N * D + N * F + N * F + hidden_mask + proj_mask + path_mask
        yield f"blocks.{i}.mlp", 2 * D * F + F + D, 2 * N * D * F, kept
    yield "norm" if config.global_pool == "token" else "fc_norm", 2 * D, 0, D + 1
    yield "head", D * C + C, D * C, D + (D if config.drop_rate else 0)
