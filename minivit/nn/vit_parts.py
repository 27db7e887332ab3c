"""The layers and parameters of a `ViT`, each as a configuration defines it.

The types are those of the usual layers, to which a model's attributes are declared. An `Identity`, or None for
parameters, takes the place of a part that the configuration leaves out.
"""

from __future__ import annotations

from typing import cast

from minivit.nn.attention_pool import AttentionPool
from minivit.nn.config import ViTConfig
from minivit.nn.conv_stem import ConvStem
from minivit.nn.encoder_block import EncoderBlock
from minivit.nn.hidden_head import HiddenHead
from minivit.nn.hybrid_embed import HybridEmbed
from minivit.nn.identity import Identity
from minivit.nn.initializers import scheme_named, zeros
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.linear import Linear
from minivit.nn.parameters import Parameter
from minivit.nn.patch_embed import PatchEmbed
from minivit.nn.positions import GridPositions, SinCosPositions


def patch_embed(config: ViTConfig) -> PatchEmbed:
    """Return the map of images to patch tokens, a `ConvStem` or `HybridEmbed` if the configuration has one."""
    patch, D = (config.patch_height, config.patch_width), config.embed_dim
    C, init, eps = config.in_chans, config.init, config.norm_eps
    if config.conv_stem:
        return cast(PatchEmbed, ConvStem(patch, config.conv_stem, C, D, init, eps))
    bias = not config.pre_norm  # as in timm
    if config.resnet:
        return cast(PatchEmbed, HybridEmbed(patch, config.resnet_depths, C, D, init, bias))
    return PatchEmbed(patch, C, D, init, config.stride, config.embed_norm, eps, bias)


def class_token(config: ViTConfig) -> Parameter | None:
    """Return the class token (1, 1, D)."""
    return Parameter((1, 1, config.embed_dim), scheme_named(config.init).cls_token) if config.class_token else None


def register_tokens(config: ViTConfig) -> Parameter | None:
    """Return the R register tokens (1, R, D)."""
    R = config.reg_tokens
    return Parameter((1, R, config.embed_dim), scheme_named(config.init).reg_token) if R else None


def positions(config: ViTConfig) -> Parameter:
    """Return the learned positions of a sequence, (1, N, D), or the layer that adds those of a grid."""
    kind, D = config.pos_embed, config.embed_dim
    if kind == "learn":
        return _learned(config, config.num_patches if config.no_embed_class else config.num_tokens)
    found: object = None
    if kind.startswith("learn_2d"):
        found = GridPositions(config.grid, D, kind == "learn_2d_concat", config.init)
    if kind.startswith("sincos"):
        found = SinCosPositions(config.grid, D, "mae" if kind == "sincos_2d_mae" else "simple")
    return cast(Parameter, found)


def later_positions(config: ViTConfig) -> list[Parameter]:
    """Return the positions (1, N, D) that are added before all blocks but the first, if each has its own."""
    later = config.depth - 1 if config.pos_embed_layers == "each" else 0
    return [_learned(config, config.num_tokens) for _ in range(later)]


def _learned(config: ViTConfig, count: int) -> Parameter:
    return Parameter((1, count, config.embed_dim), scheme_named(config.init).pos_embed)


def encoder_block(config: ViTConfig, i: int) -> EncoderBlock:
    """Return block `i`, from 0."""
    return EncoderBlock(
        config.embed_dim,
        config.num_heads,
        config.hidden_dim,
        eps=config.norm_eps,
        act_layer=config.act_layer,
        attn_drop_rate=config.attn_drop_rate,
        proj_drop_rate=config.proj_drop_rate,
        drop_path_rate=config.drop_path_rate * i / max(1, config.depth - 1),
        init=config.init,
        mlp_bias=config.mlp_bias,
        init_values=config.init_values,
        head_dim=config.head_dim,
        qkv_bias=config.qkv_bias,
        proj_bias=config.proj_bias,
        qk_norm=config.qk_norm,
        num_tokens=config.num_tokens if config.pos_embed == "relative" else 0,
    )


def layer_norm(config: ViTConfig, present: bool) -> LayerNorm:
    """Return a layer norm of tokens or of the pooled vector, if it is `present`."""
    return LayerNorm(config.embed_dim, config.norm_eps) if present else cast(LayerNorm, Identity())


def attention_pool(config: ViTConfig) -> AttentionPool | None:
    """Return the layer that pools the tokens, which the pooling of `ops.pool` does not need."""
    if config.global_pool != "map":
        return None
    return AttentionPool(
        config.embed_dim, config.num_heads, config.hidden_dim, config.norm_eps, config.act_layer, config.init
    )


def hidden_head(config: ViTConfig) -> HiddenHead | Identity:
    """Return the hidden layer before the head."""
    R = config.representation_size
    return HiddenHead(config.embed_dim, R, config.representation_act, config.init) if R else Identity()


def head(config: ViTConfig) -> Linear:
    """Return the map to the logits."""
    scheme = scheme_named(config.init)
    if not config.num_classes:
        return cast(Linear, Identity())
    weight = zeros if config.zero_head else scheme.head_weight
    return Linear(config.representation_size or config.embed_dim, config.num_classes, weight, scheme.bias)
