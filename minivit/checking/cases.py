"""The table of cases: every op and every layer as a function of float arrays, with its backward pass.

`minivit gradcheck` and the tests of ops, layers, kernels and array libraries all use this table. A case derives its
other arguments (heads, labels, masks, keys) from the shapes of its float arrays and creates them in the same array
library, so that it runs on any device.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from minivit import ops
from minivit.arrays import Array, library_name, namespace, real_dtype, to_backend, to_host
from minivit.nn.activations import GELU, QuickGELU, ReLU, Tanh
from minivit.nn.attention import Attention
from minivit.nn.attention_pool import AttentionPool
from minivit.nn.bottleneck import Bottleneck, Downsample, PreActBottleneck
from minivit.nn.config import ViTConfig
from minivit.nn.conv_stem import Convolution, ConvStem, ConvUnit
from minivit.nn.corrupted import SimMIM
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
from minivit.nn.mae import MAE
from minivit.nn.masked_patches import MaskedPatches
from minivit.nn.mlp import MLP
from minivit.nn.patch_dropout import PatchDropout
from minivit.nn.patch_embed import PatchEmbed
from minivit.nn.positions import GridPositions, SinCosPositions
from minivit.nn.resnet import ResNet, ResNetFeatures, Stage, Stem
from minivit.nn.std_convolution import MaxPool, StdConvolution
from minivit.nn.vit import ViT
from minivit.random import Key

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Callable[..., dict[str, Shape]]
Forward: TypeAlias = Callable[..., tuple[Array, Any]]
Backward: TypeAlias = Callable[[Array, Any], tuple[Array, ...]]

PATCH_SIZE = (2, 3)


@dataclass(frozen=True)
class Case:
    """A differentiable function at random points of any size.

    Attributes
    ----------
    name : str
        Name of the case. It begins with the name of the op's file or of the layer's class.
    op : str
        Name of the function in `minivit.ops`, or of the layer's class.
    forward : callable
        ``y, cache = forward(*arrays, first=0, keep=True)``. `first` is the index of the first sample; it determines
        labels, masks and keys.
    backward : callable
        ``gradients = backward(dy, cache)``, a tuple in the order of the arrays.
    shapes : callable
        ``shapes(**sizes)`` returns a dict from array names to shapes. The default sizes are distinct primes.
    """

    name: str
    op: str
    forward: Forward
    backward: Backward
    shapes: Shapes

    def __str__(self) -> str:
        return self.name

    @property
    def sizes(self) -> dict[str, int]:
        """The adjustable sizes and their defaults, such as ``{"B": 2, "N": 5, "D": 7}``."""
        return {name: size.default for name, size in inspect.signature(self.shapes).parameters.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays."""
        return tuple(self.shapes())

    @property
    def batched(self) -> tuple[bool, ...]:
        """For each array, whether its first axis is the batch."""
        return tuple(shape[0] == 1009 for shape in self.shapes(B=1009).values())

    def on(self, backend: str) -> Case:
        """Return a case that moves the arrays to `backend` and moves the results back to the host."""

        def forward(*arrays: Array, **options: Any) -> tuple[Array, Any]:
            y, cache = self.forward(*(to_backend(x, backend) for x in arrays), **options)
            return to_host(y), cache

        def backward(dy: Array, cache: Any) -> tuple[Array, ...]:
            return tuple(to_host(dx) for dx in self.backward(to_backend(dy, backend), cache))

        return replace(self, name=f"{self.name}-{backend}", forward=forward, backward=backward)

    def make(self, seed: int, dtype: Any, sizes: Mapping[str, int] | None = None) -> tuple[Array, ...]:
        """Return random NumPy arrays of `dtype`: standard normal, weight matrices divided by sqrt(number of rows)."""
        generator = np.random.default_rng(seed)
        arrays = []
        for name, shape in self.shapes(**sizes or {}).items():
            scale = shape[0] ** -0.5 if name.endswith("weight") and len(shape) == 2 else 1.0
            arrays.append((generator.standard_normal(shape) * scale).astype(dtype))
        return tuple(arrays)


def num_heads(D: int) -> int:
    """Return the largest divisor of D up to its square root: 3 for the default width of 21."""
    return max(H for H in range(1, math.isqrt(D) + 1) if D % H == 0)


def grid_of(N: int) -> tuple[int, int]:
    """Return rows and columns of N patches: (3, 5) for the default number of 15."""
    return num_heads(N), N // num_heads(N)


def sample_key(x: Array, first: int) -> Key:
    """Return the key of the samples `first`, `first` + 1, ... of the batch `x`."""
    xp = namespace(x)
    return Key(seed=6, step=2, sample_ids=xp.arange(first, first + x.shape[0], dtype=xp.uint32), place="case")


def _heads(qkv: Array, first: int) -> int:
    return num_heads(qkv.shape[-1] // 3)


def _mask(shape_of: Callable[[Shape], Shape]) -> Callable[[Array, int], Array]:
    return lambda x, first: ops.keep_mask(sample_key(x, first), shape_of(x.shape), 0.3, x.dtype)


def _kept_tokens(x: Array, first: int) -> Array:
    """Return the indices of half of the tokens of each image, in random order."""
    order: Array = namespace(x).argsort(sample_key(x, first).bits(x.shape[:2]), axis=1, kind="stable")
    return order[:, : (x.shape[1] + 1) // 2]


def _filled_tokens(x: Array, first: int) -> Array:
    """Return (B, N + 1) indices of tokens: some occur twice, and about a third of the entries are -1 (no token)."""
    xp = namespace(x)
    bits = sample_key(x, first).bits((len(x), x.shape[1] + 1))
    index: Array = xp.where(bits % 3 == 0, -1, (bits >> 8).astype(xp.int64) % x.shape[1])
    return index


def _token_labels(x: Array, first: int) -> Array:
    labels: Array = (sample_key(x, first).bits(x.shape[:2]) >> 8).astype(namespace(x).int64) % x.shape[2]
    return labels


def _labels(x: Array, first: int) -> Array:
    labels: Array = namespace(x).arange(first, first + x.shape[0]) * 5 % x.shape[1]
    return labels


def _soft_targets(x: Array, first: int) -> Array:
    """Return targets that do not sum to 1 over the classes and have 8 bits, which every dtype represents exactly."""
    targets: Array = (sample_key(x, first).bits(x.shape) >> 24).astype(real_dtype(x.dtype))
    targets *= 2.0**-8
    return targets


def _op(name: str, op: str, shapes: Shapes, *rest: Any) -> Case:
    """Return the case of an op; its arguments are the arrays, then `rest`: values, or functions of (x, first)."""

    def forward(*arrays: Array, first: int = 0, keep: bool = True) -> tuple[Array, Any]:
        others = [other(arrays[0], first) if callable(other) else other for other in rest]
        result: tuple[Array, Any] = getattr(ops, op)(*arrays, *others, keep=keep)
        return result

    def backward(dy: Array, cache: Any) -> tuple[Array, ...]:
        gradients = getattr(ops, f"{op}_backward")(dy, cache)
        return tuple(g for g in gradients if g is not None) if isinstance(gradients, tuple) else (gradients,)

    return Case(name, op, forward, backward, shapes)


@functools.lru_cache(maxsize=256)
def _template(build: Callable[[Shape], Layer], shape: Shape, dtype: str, backend: str) -> Layer:
    return build(shape).initialize(0, dtype, backend)


def _layer(name: str, inputs: Shapes, build: Callable[[Shape], Layer], random: bool = False, **options: Any) -> Case:
    """Return the case of the layer ``build(x.shape)`` as a function of `x` and the layer's parameters.

    `random` passes a key as `rng`; `options` are further arguments of the layer's forward pass.
    """

    def forward(x: Array, *values: Array, first: int = 0, keep: bool = True) -> tuple[Array, Any]:
        template = _template(build, x.shape, x.dtype.name, library_name(namespace(x)))
        layer = template.replica(template.parameters.store.values.copy())
        for parameter, value in zip(layer.parameters.values(), values, strict=True):
            parameter.value[...] = value
        y, cache = layer.forward(x, sample_key(x, first) if random else None, keep, **options)
        return y, (layer, cache) if keep else cache

    def backward(dy: Array, cache: Any) -> tuple[Array, ...]:
        layer, layer_cache = cache
        layer.zero_grad()
        dx = layer.backward(dy, layer_cache)
        return dx, *(parameter.grad.copy() for parameter in layer.parameters.values())

    @functools.wraps(inputs)
    def shapes(**sizes: int) -> dict[str, Shape]:
        x = inputs(**sizes)["x"]
        return {"x": x} | {name: p.shape for name, p in _template(build, x, "float64", "numpy").parameters.items()}

    return Case(name, name.partition("-")[0], forward, backward, shapes)


def _tokens(B: int = 2, N: int = 5, D: int = 7) -> dict[str, Shape]:
    return {"x": (B, N, D)}


def _pair(B: int = 2, N: int = 5, D: int = 7) -> dict[str, Shape]:
    return {"x": (B, N, D), "target": (B, N, D)}


def _grid_tokens(B: int = 2, N: int = 15, D: int = 7) -> dict[str, Shape]:
    return {"x": (B, N, 4 * (D + 1))}  # a width that halves and quarters


def _images(B: int = 2, rows: int = 5, columns: int = 7, C: int = 11) -> dict[str, Shape]:
    return {"x": (B, rows * PATCH_SIZE[0], columns * PATCH_SIZE[1], C)}


def _some_patches(B: int = 2, rows: int = 1, columns: int = 3) -> dict[str, Shape]:
    return {"x": (B, (rows + 1) * PATCH_SIZE[0], columns * PATCH_SIZE[1], 1)}  # two patches at least


def _grouped_images(B: int = 2, rows: int = 5, columns: int = 7, C: int = 2) -> dict[str, Shape]:
    return {"x": (B, rows, columns, 3 * C), "weight": (3 * C,), "bias": (3 * C,)}


def _features(B: int = 2, rows: int = 5, columns: int = 3, C: int = 1) -> dict[str, Shape]:
    return {"x": (B, rows, columns, 8 * C)}


def _qkv(B: int = 2, N: int = 5, D: int = 21) -> dict[str, Shape]:
    return {"qkv": (B, N, 3 * D)}


def _relative(B: int = 2, N: int = 5, D: int = 21) -> dict[str, Shape]:
    return {"qkv": (B, N, 3 * D), "rel_pos": (2 * N - 1, D // num_heads(D))}


def _cross(B: int = 2, M: int = 3, N: int = 5, D: int = 21) -> dict[str, Shape]:
    return {"q": (B, M, D), "kv": (B, N, 2 * D)}


def _shared_query(B: int = 2, N: int = 5, D: int = 21) -> dict[str, Shape]:
    return {"q": (1, 1, D), "kv": (B, N, 2 * D)}


def _logits(B: int = 5, C: int = 7) -> dict[str, Shape]:
    return {"logits": (B, C)}


_weights_mask = _mask(lambda s: (s[0], num_heads(s[2] // 3), s[1], s[1]))  # s: the shape of qkv
_wide_tokens = functools.partial(_tokens, D=21)
_cells = functools.partial(_images, rows=2, columns=4, C=3)  # 4 x 12 pixels
_few_patches = functools.partial(_images, rows=1, columns=3, C=5)


_SIMPLE: dict[str, Any] = {"embed_dim": 8, "pos_embed": "sincos_2d", "embed_norm": "both", "qkv_bias": False}
_SIMPLE |= {"class_token": False, "global_pool": "avg", "fc_norm": False, "init_values": 0.3}
_MAP: dict[str, Any] = {"global_pool": "map", "reg_tokens": 2, "no_embed_class": True, "pre_norm": True}
_MAP |= {"qk_norm": True}
_ONE = {**_SIMPLE, "depth": 1, "num_classes": 0}


def _vit(shape: Shape, drop: float = 0.0, **fields: Any) -> ViT:
    _, height, width, C = shape
    rates = dict.fromkeys(("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"), drop)
    sizes = {"embed_dim": 6, "depth": 2, "num_heads": 2, "mlp_ratio": 11 / 6, "num_classes": 7, "in_chans": C}
    config = ViTConfig(img_size=(height, width), patch_size=PATCH_SIZE, **sizes | rates | fields)
    return ViT.without_values(config)  # `_template` gives it values


def _attention(shape: Shape, **options: Any) -> Layer:
    return Attention(shape[-1], num_heads(shape[-1]), head_dim=5, **options)


def _block(shape: Shape, drop: float = 0.0, **options: Any) -> Layer:
    D = shape[-1]
    rates: dict[str, Any] = dict.fromkeys(("attn_drop_rate", "proj_drop_rate", "drop_path_rate"), drop)
    return EncoderBlock(D, num_heads(D), D + 2, **rates, **options)


def _resnet(C: int, **options: Any) -> Layer:
    return ResNetFeatures(C, (1, 1), width_factor=1 / 16, num_groups=2, eps=0.1, **options)


OPS: tuple[Case, ...] = (
    _op("linear", "linear", lambda B=2, N=5, I=7, O=11: {"x": (B, N, I), "weight": (I, O), "bias": (O,)}),  # noqa: E741 - I and O of the op
    _op("linear-plain", "linear", lambda B=2, N=5, I=7, O=11: {"x": (B, N, I), "weight": (I, O)}),  # noqa: E741 - as above
    _op("layer_norm", "layer_norm", lambda B=2, N=5, D=7: {"x": (B, N, D), "weight": (D,), "bias": (D,)}),
    _op("gelu", "gelu", _tokens),
    _op("gelu-tanh", "gelu", _tokens, "tanh"),
    _op("quick_gelu", "quick_gelu", _tokens),
    _op("relu", "relu", _tokens),
    _op("tanh", "tanh", _tokens),
    _op("layer_scale", "layer_scale", lambda B=2, N=5, D=7: {"x": (B, N, D), "gamma": (D,)}),
    _op("softmax", "softmax", _tokens),
    _op("attention", "attention", _qkv, _heads),
    _op("attention-mask", "attention", _qkv, _heads, _weights_mask),
    _op("attention-queries", "attention", _qkv, _heads, None, slice(-3, None)),
    _op("relative_attention", "relative_attention", _relative, _heads),
    _op("relative_attention-mask", "relative_attention", _relative, _heads, _weights_mask),
    _op("relative_attention-queries", "relative_attention", _relative, _heads, None, slice(-3, None)),
    _op("cross_attention", "cross_attention", _cross, lambda q, first: num_heads(q.shape[-1])),
    _op("cross_attention-shared", "cross_attention", _shared_query, lambda q, first: num_heads(q.shape[-1])),
    _op("dropout", "dropout", _tokens, _mask(lambda s: s)),
    _op("dropout-path", "dropout", _tokens, _mask(lambda s: (s[0], 1, 1))),
    _op("patches", "patches", _images, PATCH_SIZE),
    _op("unfold", "unfold", _images, (3, 2), (2, 1), (1, 1)),
    _op("unfold-stride", "unfold", _images, PATCH_SIZE, (1, 2)),
    _op("unfold-gaps", "unfold", _images, (2, 1), (3, 2), (0, 1)),
    _op("unfold-sides", "unfold", _images, (3, 2), (2, 2), ((0, 1), (1, 0))),
    _op("max_pool", "max_pool", _images, PATCH_SIZE, (2, 1)),
    _op("max_pool-padding", "max_pool", _images, (3, 3), (2, 1), ((1, 2), (2, 1))),
    _op("group_norm", "group_norm", _grouped_images, 3),
    _op("standardize", "standardize", lambda B=2, I=7, O=5: {"weight": (B, I, O)}, 0.3),  # noqa: E741 - I and O of the op
    _op("take_tokens", "take_tokens", _tokens, _kept_tokens),
    _op("fill_tokens", "fill_tokens", lambda B=2, N=5, D=7: {"x": (B, N, D), "token": (1, 1, D)}, _filled_tokens),
    _op("pixel_error", "pixel_error", _pair),
    _op("pixel_error-absolute", "pixel_error", _pair, 1),
    _op("token_cross_entropy", "token_cross_entropy", _tokens, _token_labels),
    _op(
        "grid_positions",
        "grid_positions",
        lambda B=2, R=3, C=5, D=7: {"x": (B, R * C, D), "rows": (R, D), "columns": (C, D)},
    ),
    _op(
        "grid_positions-concat",
        "grid_positions",
        lambda B=2, R=3, C=5, D=7: {"x": (B, R * C, 2 * D), "rows": (R, D), "columns": (C, D)},
        True,
    ),
    _op("sincos_positions", "sincos_positions", _grid_tokens, lambda x, first: grid_of(x.shape[1])),
    _op("sincos_positions-mae", "sincos_positions", _grid_tokens, lambda x, first: grid_of(x.shape[1]), "mae"),
    _op("tokens-embed", "embed", lambda B=2, N=5, D=7: {"x": (B, N, D), "pos_embed": (1, N, D)}),
    _op(
        "tokens-embed-cls",
        "embed",
        lambda B=2, N=5, D=7: {"x": (B, N, D), "pos_embed": (1, N + 1, D), "cls_token": (1, 1, D)},
    ),
    _op(
        "tokens-embed-patches",
        "embed",
        lambda B=2, N=5, D=7: {"x": (B, N, D), "pos_embed": (1, N, D), "cls_token": (1, 1, D)},
    ),
    _op(
        "tokens-embed-registers",
        "embed",
        lambda B=2, N=5, R=3, D=7: {
            "x": (B, N, D),
            "pos_embed": (1, 1 + R + N, D),
            "cls_token": (1, 1, D),
            "reg_token": (1, R, D),
        },
    ),
    _op(
        "tokens-embed-registers-patches",
        "embed",
        lambda B=2, N=5, R=3, D=7: {
            "x": (B, N, D),
            "pos_embed": (1, N, D),
            "cls_token": (1, 1, D),
            "reg_token": (1, R, D),
        },
    ),
    _op("tokens-pool-token", "pool", _tokens, "token", 1),
    _op("tokens-pool-avg", "pool", _tokens, "avg", 0),
    _op("tokens-pool-avg-cls", "pool", lambda B=2, N=5, D=7: {"x": (B, N + 1, D)}, "avg", 1),
    _op("cross_entropy", "cross_entropy", _logits, _labels),
    _op("cross_entropy-smooth", "cross_entropy", _logits, _labels, 0.2),
    _op("cross_entropy-soft", "cross_entropy", _logits, _soft_targets),
)

LAYERS: tuple[Case, ...] = (
    _layer("Linear", _tokens, lambda x: Linear(x[-1], x[-1] + 4)),
    _layer("Linear-plain", _tokens, lambda x: Linear(x[-1], x[-1] + 4, bias=False)),
    _layer("Identity", _tokens, lambda x: Identity()),
    _layer("LayerNorm", _tokens, lambda x: LayerNorm(x[-1])),
    _layer("GELU", _tokens, lambda x: GELU()),
    _layer("GELU-tanh", _tokens, lambda x: GELU("tanh")),
    _layer("QuickGELU", _tokens, lambda x: QuickGELU()),
    _layer("ReLU", _tokens, lambda x: ReLU()),
    _layer("Tanh", _tokens, lambda x: Tanh()),
    _layer("LayerScale", _tokens, lambda x: LayerScale(x[-1])),
    _layer("HiddenHead", _tokens, lambda x: HiddenHead(x[-1], x[-1] + 4)),
    _layer("HiddenHead-relu", _tokens, lambda x: HiddenHead(x[-1], x[-1] + 4, "relu")),
    _layer("Dropout", _tokens, lambda x: Dropout(0.3), random=True),
    _layer("DropPath", _tokens, lambda x: DropPath(0.3), random=True),
    _layer("MLP", _tokens, lambda x: MLP(x[-1], x[-1] + 4)),
    _layer("MLP-drop", _tokens, lambda x: MLP(x[-1], x[-1] + 4, "gelu_tanh", 0.3), random=True),
    _layer("Attention", _wide_tokens, lambda x: Attention(x[-1], num_heads(x[-1]))),
    _layer("Attention-drop", _wide_tokens, lambda x: Attention(x[-1], num_heads(x[-1]), 0.3, 0.3), random=True),
    _layer("AttentionPool", _wide_tokens, lambda x: AttentionPool(x[-1], num_heads(x[-1]), x[-1] + 2)),
    _layer("Attention-norm", _wide_tokens, lambda x: _attention(x, qk_norm=True, qkv_bias=False, proj_bias=False)),
    _layer("Attention-relative", _wide_tokens, lambda x: _attention(x, num_tokens=x[1])),
    _layer("EncoderBlock", _wide_tokens, _block),
    _layer("EncoderBlock-scale", _wide_tokens, lambda x: _block(x, act_layer="quick_gelu", init_values=0.3)),
    _layer("EncoderBlock-plain", _wide_tokens, lambda x: _block(x, mlp_bias=False, qkv_bias=False)),
    _layer("EncoderBlock-drop", _wide_tokens, lambda x: _block(x, 0.3, act_layer="gelu_tanh"), random=True),
    _layer("EncoderBlock-queries", _wide_tokens, _block, queries=slice(-3, None)),
    _layer("EncoderBlock-queries-drop", _wide_tokens, lambda x: _block(x, 0.3), random=True, queries=slice(-3, None)),
    _layer("PatchEmbed", _images, lambda x: PatchEmbed(PATCH_SIZE, x[-1], 13)),
    _layer("PatchEmbed-stride", _images, lambda x: PatchEmbed(PATCH_SIZE, x[-1], 13, stride=(1, 2), norm="after")),
    _layer("PatchEmbed-norms", _images, lambda x: PatchEmbed(PATCH_SIZE, x[-1], 13, norm="both")),
    _layer("Convolution", _images, lambda x: Convolution(x[-1], 13)),
    _layer("Convolution-stride", _images, lambda x: Convolution(x[-1], 13, 2)),
    _layer("ConvUnit", _images, lambda x: ConvUnit(x[-1], 13)),
    _layer("ConvStem", _images, lambda x: ConvStem((2, 2), (3, 5), x[-1], 13)),
    _layer("ConvStem-strides", _cells, lambda x: ConvStem((4, 4), (7, 11, 5), x[-1], 13)),
    _layer("GroupNorm", _features, lambda x: GroupNorm(x[-1], 2)),
    _layer("StdConvolution", _images, lambda x: StdConvolution(x[-1], 13, 3, 2)),
    _layer("StdConvolution-pixels", _images, lambda x: StdConvolution(x[-1], 13, 1)),
    _layer("StdConvolution-half", _images, lambda x: StdConvolution(x[-1], 13, 3, 2, "half", 0.1)),
    _layer("MaxPool", _images, lambda x: MaxPool()),
    _layer("MaxPool-zeros", _images, lambda x: MaxPool(padding="half")),
    _layer("Downsample", _features, lambda x: Downsample(x[-1], 6, 2, True, 3)),
    _layer("Bottleneck", _features, lambda x: Bottleneck(x[-1], x[-1], num_groups=2, eps=0.1)),
    _layer("Bottleneck-first", _features, lambda x: Bottleneck(x[-1], 16, 2, True, 2)),
    _layer("PreActBottleneck", _features, lambda x: PreActBottleneck(x[-1], x[-1], num_groups=2, eps=0.1)),
    _layer("PreActBottleneck-first", _features, lambda x: PreActBottleneck(x[-1], 16, 2, True, 2)),
    _layer("Stage", _features, lambda x: Stage(x[-1], 32, 2, 1, num_groups=1, eps=0.1)),
    _layer("ResNetFeatures", _few_patches, lambda x: _resnet(x[-1])),
    _layer("ResNetFeatures-preact", _few_patches, lambda x: _resnet(x[-1], preact=True, padding="half")),
    _layer("ResNet", _few_patches, lambda x: ResNet(5, (1,), x[-1], width_factor=1 / 16, num_groups=2, eps=0.1)),
    _layer("HybridEmbed", _cells, lambda x: HybridEmbed((4, 4), (), x[-1], 5)),
    _layer("Stem", _few_patches, lambda x: Stem(x[-1], 4, num_groups=2, eps=0.1)),
    _layer("GridPositions", _grid_tokens, lambda x: GridPositions(grid_of(x[1]), x[-1])),
    _layer("GridPositions-concat", _grid_tokens, lambda x: GridPositions(grid_of(x[1]), x[-1], concat=True)),
    _layer("SinCosPositions", _grid_tokens, lambda x: SinCosPositions(grid_of(x[1]), x[-1])),
    _layer("SinCosPositions-mae", _grid_tokens, lambda x: SinCosPositions(grid_of(x[1]), x[-1], "mae")),
    _layer("PatchDropout", _tokens, lambda x: PatchDropout(0.3, int(x[1] > 1)), random=True),
    _layer("SimMIM", _some_patches, lambda x: SimMIM(_vit(x, depth=1, num_classes=0)), random=True),
    _layer("MaskedPatches", _some_patches, lambda x: MaskedPatches(_vit(x, depth=1, num_classes=0)), random=True),
    _layer("MaskedPatches-pixels", _some_patches, lambda x: MaskedPatches(_vit(x, **_ONE), "pixels"), random=True),
    _layer("MAE", _some_patches, lambda x: MAE(_vit(x, depth=1, num_classes=0), 0.75, 4, 1, 1), random=True),
    _layer("MAE-norm", _some_patches, lambda x: MAE(_vit(x, 0.3, **_ONE), 0.6, 4, 2, 2, 5, True), random=True),
    _layer("ViT-token", _few_patches, _vit),
    _layer("ViT-token-drop", _few_patches, lambda x: _vit(x, 0.3, act_layer="gelu_tanh"), random=True),
    _layer("ViT-avg", _few_patches, lambda x: _vit(x, act_layer="gelu_tanh", global_pool="avg", class_token=False)),
    _layer("ViT-simple", _few_patches, lambda x: _vit(x, **_SIMPLE)),
    _layer("ViT-map", _few_patches, lambda x: _vit(x, **_MAP)),
    _layer("ViT-each", _few_patches, lambda x: _vit(x, pos_embed_layers="each", representation_size=5)),
    _layer("ViT-shared", _few_patches, lambda x: _vit(x, pos_embed_layers="shared", num_classes=0)),
    _layer("ViT-grid", _few_patches, lambda x: _vit(x, pos_embed="learn_2d", patch_drop_rate=0.4), random=True),
    _layer("ViT-avg-drop", _few_patches, lambda x: _vit(x, 0.3, global_pool="avg"), random=True),
)

CASES = OPS + LAYERS
