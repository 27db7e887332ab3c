"""timm's Vision Transformer of the same sizes."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch

from minivit.nn.config import ViTConfig


def timm_vit(config: ViTConfig) -> Any:
    """Return timm's model, in timm's first values."""
    from tests.conformance.torchvision_operators import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        import_torchvision()
        from timm.models.vision_transformer import VisionTransformer
    return VisionTransformer(
        img_size=config.img_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        num_classes=config.num_classes,
        global_pool=config.global_pool,
        class_token=config.class_token,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        norm_layer=partial(torch.nn.LayerNorm, eps=config.norm_eps),
        act_layer=partial(torch.nn.GELU, approximate="tanh" if config.act_layer == "gelu_tanh" else "none"),
    )
