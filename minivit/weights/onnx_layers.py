"""A model as an ONNX graph: normalised images (B, C, height, width) to logits, for any number B of images.

Each kind of layer has a function that adds its nodes to the graph and returns the name of their result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from minivit import ops
from minivit.arrays import Array
from minivit.nn.activations import GELU, QuickGELU, ReLU, Tanh
from minivit.nn.attention import Attention
from minivit.nn.attention_pool import AttentionPool
from minivit.nn.bottleneck import Bottleneck, Downsample
from minivit.nn.conv_stem import ConvStem, ConvUnit
from minivit.nn.dropout import Dropout, DropPath
from minivit.nn.encoder_block import EncoderBlock
from minivit.nn.group_norm import GroupNorm
from minivit.nn.hidden_head import HiddenHead
from minivit.nn.hybrid_embed import HybridEmbed
from minivit.nn.identity import Identity
from minivit.nn.layer import Layer
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.layer_scale import LayerScale
from minivit.nn.linear import Linear
from minivit.nn.mlp import MLP
from minivit.nn.parameters import Parameter
from minivit.nn.patch_embed import PatchEmbed
from minivit.nn.resnet import ResNetFeatures, Stage, Stem
from minivit.nn.std_convolution import MaxPool, StdConvolution
from minivit.nn.vit import ViT
from minivit.ops.unfold import Pair
from minivit.weights.onnx_graph import Graph

INPUT, OUTPUT = "images", "logits"


def onnx_model(vit: ViT) -> Any:
    """Return the graph (a ``ModelProto``) of a float32 model on the host that consists of minivit's own layers."""
    config = vit.config
    graph = Graph()
    result = _vit(vit, graph)
    images = INPUT, ["batch", config.in_chans, config.height, config.width]
    return graph.proto(result, images, (OUTPUT, ["batch", config.num_outputs]))


def _vit(vit: ViT, graph: Graph) -> str:
    config = vit.config
    x = nodes_of_layer(vit.patch_embed, graph, INPUT, "patch_embed")
    x = _embedded(vit, graph, x)
    x = nodes_of_layer(vit.norm_pre, graph, x, "norm_pre")
    for i, block in enumerate(vit.blocks):
        if (positions := vit.later_positions(i)) is not None:
            x = graph.node("Add", x, graph.constant(positions.value))
        x = nodes_of_layer(block, graph, x, f"blocks.{i}")
    x = nodes_of_layer(vit.norm, graph, x, "norm")
    if vit.attn_pool is not None:
        x = nodes_of_layer(vit.attn_pool, graph, graph.piece(x, 1, config.first_pooled, config.num_tokens), "attn_pool")
    elif config.global_pool == "token":
        x = graph.reshape(graph.piece(x, 1, 0, 1), 0, config.embed_dim)
    else:
        x = graph.piece(x, 1, config.first_pooled, config.num_tokens)
        x = graph.node("ReduceMean", x, graph.constant([1]), keepdims=0)
    for name in ("fc_norm", "pre_logits", "head"):
        x = nodes_of_layer(getattr(vit, name), graph, x, name)
    return x


def _embedded(vit: ViT, graph: Graph, x: str) -> str:
    """Return the tokens with class and register tokens in front, and positions."""
    prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    positions = None
    if isinstance(vit.pos_embed, Parameter):
        positions = vit.pos_embed.value
    elif isinstance(vit.pos_embed, Layer):  # it adds positions to patch tokens; applied to zeros it gives the positions
        zeros = np.zeros((1, vit.config.num_patches, vit.config.embed_dim), np.float32)
        positions = vit.pos_embed(zeros)
    of_patches = positions is not None and positions.shape[1] == vit.config.num_patches
    if of_patches:
        x = graph.node("Add", x, graph.constant(positions, "pos_embed"))
    if prefix:
        before = graph.constant(np.concatenate([token.value for token in prefix], axis=1), "prefix_tokens")
        x = graph.node("Concat", graph.repeated(before, x), x, axis=1)
    if positions is not None and not of_patches:
        x = graph.node("Add", x, graph.constant(positions, "pos_embed"))
    return x


@functools.singledispatch
def nodes_of_layer(layer: Layer, graph: Graph, x: str, name: str) -> str:
    """Add the nodes of a layer called `name` to its input `x`, and return the name of the result."""
    raise TypeError(f"{name} is a {type(layer).__name__}, which cannot be exported to ONNX")


@nodes_of_layer.register(Identity)
@nodes_of_layer.register(Dropout)
@nodes_of_layer.register(DropPath)
def _(layer: Layer, graph: Graph, x: str, name: str) -> str:
    return x


@nodes_of_layer.register
def _(layer: Linear, graph: Graph, x: str, name: str) -> str:
    y = graph.node("MatMul", x, graph.constant(layer.weight.value, f"{name}.weight"))
    return y if layer.bias is None else graph.node("Add", y, graph.constant(layer.bias.value, f"{name}.bias"))


@nodes_of_layer.register
def _(layer: LayerNorm, graph: Graph, x: str, name: str) -> str:
    weight, bias = (graph.constant(getattr(layer, part).value, f"{name}.{part}") for part in ("weight", "bias"))
    return graph.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=layer.eps)


@nodes_of_layer.register
def _(layer: LayerScale, graph: Graph, x: str, name: str) -> str:
    return graph.node("Mul", x, graph.constant(layer.gamma.value, f"{name}.gamma"))


@nodes_of_layer.register
def _(layer: GELU, graph: Graph, x: str, name: str) -> str:
    return graph.node("Gelu", x, approximate=layer.approximate)


@nodes_of_layer.register
def _(layer: QuickGELU, graph: Graph, x: str, name: str) -> str:
    return graph.node("Mul", x, graph.node("Sigmoid", graph.scaled(x, 1.702)))


@nodes_of_layer.register
def _(layer: ReLU, graph: Graph, x: str, name: str) -> str:
    return graph.node("Relu", x)


@nodes_of_layer.register
def _(layer: Tanh, graph: Graph, x: str, name: str) -> str:
    return graph.node("Tanh", x)


@nodes_of_layer.register
def _(layer: MLP, graph: Graph, x: str, name: str) -> str:
    return _in_turn(graph, layer, ("fc1", "act", "fc2"), x, name)


@nodes_of_layer.register
def _(layer: HiddenHead, graph: Graph, x: str, name: str) -> str:
    return _in_turn(graph, layer, ("fc", "act"), x, name)


@nodes_of_layer.register
def _(layer: EncoderBlock, graph: Graph, x: str, name: str) -> str:
    for norm, branch, scale in (("norm1", "attn", "ls1"), ("norm2", "mlp", "ls2")):
        x = graph.node("Add", x, _in_turn(graph, layer, (norm, branch, scale), x, name))
    return x


@nodes_of_layer.register
def _(layer: Attention, graph: Graph, x: str, name: str) -> str:
    H, width = layer.num_heads, layer.proj.weight.shape[0]
    qkv = graph.reshape(nodes_of_layer(layer.qkv, graph, x, f"{name}.qkv"), 0, 0, 3, H, width // H)
    parts = graph.nodes_of("Split", 3, qkv, axis=2, num_outputs=3)
    q, k, v = (graph.transpose(graph.reshape(part, 0, 0, H, width // H), 0, 2, 1, 3) for part in parts)
    if layer.q_norm is not None and layer.k_norm is not None:
        q = nodes_of_layer(layer.q_norm, graph, q, f"{name}.q_norm")
        k = nodes_of_layer(layer.k_norm, graph, k, f"{name}.k_norm")
    relative = None
    if layer.rel_pos is not None:
        i = np.arange((layer.rel_pos.shape[0] + 1) // 2)
        places = graph.constant(i[:, None] - i + i[-1], "relative_places")  # the same in all blocks
        vectors = graph.node("Gather", graph.constant(layer.rel_pos.value, f"{name}.rel_pos"), places)  # (N, N, K)
        relative = graph.node("Einsum", q, vectors, equation="bhik,ijk->bhij")
    return nodes_of_layer(layer.proj, graph, _attended(graph, q, k, v, H, width // H, relative), f"{name}.proj")


@nodes_of_layer.register
def _(layer: AttentionPool, graph: Graph, x: str, name: str) -> str:
    H, D = layer.num_heads, layer.latent.shape[-1]
    latent = graph.repeated(graph.constant(layer.latent.value, f"{name}.latent"), x)
    q = nodes_of_layer(layer.q, graph, latent, f"{name}.q")
    k, v = graph.nodes_of("Split", 2, nodes_of_layer(layer.kv, graph, x, f"{name}.kv"), axis=2, num_outputs=2)
    q, k, v = (graph.transpose(graph.reshape(part, 0, 0, H, D // H), 0, 2, 1, 3) for part in (q, k, v))
    h = nodes_of_layer(layer.proj, graph, _attended(graph, q, k, v, H, D // H), f"{name}.proj")
    branch = nodes_of_layer(layer.mlp, graph, nodes_of_layer(layer.norm, graph, h, f"{name}.norm"), f"{name}.mlp")
    return graph.reshape(graph.node("Add", h, branch), 0, D)


def _attended(graph: Graph, q: str, k: str, v: str, H: int, K: int, relative: str | None = None) -> str:
    """Return the attention (B, M, H K) of queries, keys and values (B, H, tokens, K)."""
    scores = graph.node("MatMul", q, graph.transpose(k, 0, 1, 3, 2))
    scores = scores if relative is None else graph.node("Add", scores, relative)
    weights = graph.node("Softmax", graph.scaled(scores, K**-0.5), axis=-1)
    return graph.reshape(graph.transpose(graph.node("MatMul", weights, v), 0, 2, 1, 3), 0, 0, H * K)


@nodes_of_layer.register
def _(layer: PatchEmbed, graph: Graph, x: str, name: str) -> str:
    if layer.patch_norm is None:
        x = _projected(graph, x, layer.proj, layer.patch_size, layer.stride, f"{name}.proj")
    else:
        fan_in = layer.proj.weight.shape[0]
        patches = _convolved(graph, x, np.eye(fan_in), layer.patch_size, layer.stride, f"{name}.patches")
        x = nodes_of_layer(layer.patch_norm, graph, _tokens(graph, patches, fan_in), f"{name}.patch_norm")
        x = nodes_of_layer(layer.proj, graph, x, f"{name}.proj")
    return x if layer.norm is None else nodes_of_layer(layer.norm, graph, x, f"{name}.norm")


@nodes_of_layer.register
def _(layer: ConvStem, graph: Graph, x: str, name: str) -> str:
    for i, unit in enumerate(layer.convs):
        x = nodes_of_layer(unit, graph, x, f"{name}.convs.{i}")
    return nodes_of_layer(layer.proj, graph, _tokens(graph, x, layer.proj.weight.shape[0]), f"{name}.proj")


@nodes_of_layer.register
def _(layer: ConvUnit, graph: Graph, x: str, name: str) -> str:
    conv = layer.conv
    x = _convolved(graph, x, conv.weight.value, (3, 3), conv.stride, f"{name}.conv", pads=[1] * 4)
    x = nodes_of_layer(layer.norm, graph, graph.transpose(x, 0, 2, 3, 1), f"{name}.norm")
    return nodes_of_layer(layer.act, graph, graph.transpose(x, 0, 3, 1, 2), f"{name}.act")


@nodes_of_layer.register
def _(layer: HybridEmbed, graph: Graph, x: str, name: str) -> str:
    x = nodes_of_layer(layer.backbone, graph, x, f"{name}.backbone")
    return _projected(graph, x, layer.proj, layer.patch_size, layer.patch_size, f"{name}.proj")


@nodes_of_layer.register
def _(layer: ResNetFeatures, graph: Graph, x: str, name: str) -> str:
    parts = [(layer.stem, "stem"), *((stage, f"stages.{i}") for i, stage in enumerate(layer.stages))]
    for part, called in (*parts, (layer.norm, "norm"), (layer.act, "act")):
        x = nodes_of_layer(part, graph, x, f"{name}.{called}")
    return x


@nodes_of_layer.register
def _(layer: Stem, graph: Graph, x: str, name: str) -> str:
    return _in_turn(graph, layer, ("conv", "norm", "act", "pool"), x, name)


@nodes_of_layer.register
def _(layer: Stage, graph: Graph, x: str, name: str) -> str:
    for i, block in enumerate(layer.blocks):
        x = nodes_of_layer(block, graph, x, f"{name}.blocks.{i}")
    return x


@nodes_of_layer.register
def _(layer: Bottleneck, graph: Graph, x: str, name: str) -> str:
    shortcut = nodes_of_layer(layer.downsample, graph, x, f"{name}.downsample")
    branch = "conv1", "norm1", "act1", "conv2", "norm2", "act2", "conv3", "norm3"
    return graph.node("Relu", graph.node("Add", _in_turn(graph, layer, branch, x, name), shortcut))


@nodes_of_layer.register
def _(layer: Downsample, graph: Graph, x: str, name: str) -> str:
    return _in_turn(graph, layer, ("conv", "norm"), x, name)


def _in_turn(graph: Graph, layer: Layer, parts: Sequence[str], x: str, name: str) -> str:
    for part in parts:
        x = nodes_of_layer(getattr(layer, part), graph, x, f"{name}.{part}")
    return x


@nodes_of_layer.register
def _(layer: StdConvolution, graph: Graph, x: str, name: str) -> str:
    weight, _ = ops.standardize(layer.weight.value, layer.eps, keep=False)
    size, stride = (layer.kernel, layer.kernel), (layer.stride, layer.stride)
    return _convolved(graph, x, weight, size, stride, name, auto_pad="SAME_UPPER")


@nodes_of_layer.register
def _(layer: GroupNorm, graph: Graph, x: str, name: str) -> str:
    groups, (C,) = layer.num_groups, layer.weight.shape
    flat = graph.reshape(x, 0, groups, -1)
    one, zero = graph.constant(np.ones(groups, np.float32)), graph.constant(np.zeros(groups, np.float32))
    normed = graph.node("InstanceNormalization", flat, one, zero, epsilon=layer.eps)
    like = graph.node("Reshape", normed, graph.node("Shape", x))
    weight, bias = (getattr(layer, part).value.reshape(C, 1, 1) for part in ("weight", "bias"))
    scaled = graph.node("Mul", like, graph.constant(weight, f"{name}.weight"))
    return graph.node("Add", scaled, graph.constant(bias, f"{name}.bias"))


@nodes_of_layer.register
def _(layer: MaxPool, graph: Graph, x: str, name: str) -> str:
    size, stride = (layer.kernel, layer.kernel), (layer.stride, layer.stride)
    return graph.node("MaxPool", x, kernel_shape=size, strides=stride, auto_pad="SAME_UPPER")


def _projected(graph: Graph, x: str, proj: Linear, size: Pair, stride: Pair, name: str) -> str:
    """Return the tokens (B, N, D) of patches of `size`: their projection is a convolution."""
    weight = proj.weight.value
    x = _tokens(graph, _convolved(graph, x, weight, size, stride, name), weight.shape[1])
    return x if proj.bias is None else graph.node("Add", x, graph.constant(proj.bias.value, f"{name}.bias"))


def _convolved(graph: Graph, x: str, weight: Array, size: Pair, stride: Pair, name: str, **padding: Any) -> str:
    """Return the convolution (B, O, rows, columns) of `x` by `weight` (kernel height * kernel width * C, O).

    `padding` is an attribute of the node, none by default.
    """
    kernel = weight.reshape(*size, -1, weight.shape[1]).transpose(3, 2, 0, 1)
    return graph.node("Conv", x, graph.constant(kernel, f"{name}.weight"), strides=stride, **padding)


def _tokens(graph: Graph, x: str, width: int) -> str:
    """Return features (B, D, rows, columns) as tokens (B, N, D)."""
    return graph.transpose(graph.reshape(x, 0, width, -1), 0, 2, 1)
