"""A Vision Transformer in plain PyTorch, with timm's names and shapes of weights (class token, exact GELU).

`config` has the sizes of `minivit.ViTConfig`. This file imports PyTorch alone, for the sake of `benchmarks.startup`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        D, F = config.embed_dim, config.hidden_dim
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(D, eps=config.norm_eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(D, 3 * D), "proj": nn.Linear(D, D)})
        self.norm2 = nn.LayerNorm(D, eps=config.norm_eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(D, F), "fc2": nn.Linear(F, D)})

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).view(B, N, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        heads = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D)
        x = x + self.attn["proj"](heads)
        return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))


class PatchEmbed(nn.Module):
    """Patches cut by views and projected by one matrix product; the weight has the shape of timm's convolution."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.size = config.patch_height, config.patch_width
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, self.size, self.size)

    def forward(self, x: Tensor) -> Tensor:
        B, C, height, width = x.shape
        P, Q = self.size
        x = x.view(B, C, height // P, P, width // Q, Q).permute(0, 2, 4, 1, 3, 5).reshape(B, -1, C * P * Q)
        return functional.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class PlainViT(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, config.embed_dim))
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.head = nn.Linear(config.embed_dim, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x)[:, 0]))
