"""For each kind of the explorer's formulas: arrays, and what its op or layer makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.special import erf
from scipy.stats import norm

from minivit import layers, ops
from minivit.arrays import Array
from minivit.nn.config import ViTConfig
from minivit.nn.in_turn import backward_in_turn, forward_in_turn
from minivit.nn.layer import Layer
from minivit.nn.vit import ViT
from minivit.ops.sincos_positions import sincos_table
from minivit.random import as_key

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state
SIZES = {"B": 2, "N": 5, "H": 2, "K": 3, "D": 8, "C": 4}


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape)


class Passes:
    """Both passes of a layer or an op, for a formula that calls them."""

    def __init__(self, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        self.forward, self.backward = forward, backward
        self.cache: Any = None

    def __call__(self, *x: Array) -> Array:
        y, self.cache = self.forward(*x)
        return y

    def back(self, dy: Array) -> Any:
        return self.backward(dy, self.cache)


class Case:
    """Names that a formula may use, and the arrays that it must give."""

    def __init__(self, **names: Any) -> None:
        self.names: dict[str, Any] = names
        self.forward: dict[str, Array] = {}
        self.backward: dict[str, Array] = {}
        self.of_parts: dict[
            str, Array
        ] = {}  # gradients of the parameters of layers in a layer: a formula may give them

    def op(
        self,
        op: Callable[..., Any],
        arguments: dict[str, Array],
        *others: Any,
        y: str = "y",
        dy: str = "dy",
        dx: str = "",
    ) -> Case:
        """Run both passes of `op`; `y`, `dy` and `dx` are the names of results, by default those of the code."""
        backward: Callable[..., Any] = getattr(ops, f"{op.__name__}_backward")
        value, cache = op(*arguments.values(), *others)
        dvalue = self.names.setdefault(dy, normal(*value.shape))
        found = backward(dvalue, cache)
        gradients = found if isinstance(found, tuple) else (found,)
        self.names |= arguments
        self.forward[y] = value
        self.backward |= {dx or f"d{name}": g for name, g in zip(arguments, gradients, strict=False) if g is not None}
        return self

    def layer(self, layer: Layer, x: Array, *others: Any) -> Case:
        """Run both passes of `layer`: parameters are called weight, or weight_fc1 where they are of fc1."""
        layer.zero_grad()
        y, cache = layer.forward(x, *others)
        dy = normal(*y.shape)
        dx = layer.backward(dy, cache)
        members = {name: passes(member) for name, member in vars(layer).items() if isinstance(member, Layer)}
        self.names |= {"x": x, "dy": dy} | members
        self.forward["y"], self.backward["dx"] = y, dx
        for name, parameter in layer.parameters.items():
            plain = "_".join(reversed(name.rsplit(".", 1)))
            self.names[plain] = parameter.value
            (self.of_parts if "." in name else self.backward)[f"d{plain}"] = parameter.grad.copy()
        return self


def passes(layer: Layer) -> Passes:
    return Passes(layer.forward, layer.backward)


def random_layer(layer: Any) -> Any:
    """Give all parameters of a layer random values, so that none is 0 or 1."""
    layer.initialize(seed=0, dtype="float64")
    for parameter in layer.parameters.values():
        parameter.value[...] = normal(*parameter.shape)
    return layer


def every(*sizes: int) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, sizes))


def same(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def mean(x: Array) -> Array:
    return x.mean(-1, keepdims=True)


def softmax(x: Array) -> Array:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def heads(y: Array, H: int = SIZES["H"]) -> Array:
    """(B, N, H K) to (B, H, N, K)."""
    return y.reshape(*y.shape[:2], H, -1).swapaxes(1, 2)


def joined(y: Array) -> Array:
    """(B, H, N, K) to (B, N, H K)."""
    return y.swapaxes(1, 2).reshape(y.shape[0], y.shape[2], -1)


def split(columns: Array, parts: int = 3) -> list[Array]:
    return [heads(part) for part in np.split(columns, parts, axis=-1)]


def together(*parts: Array) -> Array:
    return np.concatenate([joined(part) for part in parts], axis=-1)


COMMON: dict[str, Any] = {
    **{"np": np, "erf": erf, "Phi": norm.cdf, "phi": norm.pdf, "every": every, "same": same, "mean": mean},
    **{"softmax": softmax, "heads": heads, "joined": joined, "split": split, "together": together},
    "rows": lambda x: x.reshape(len(x), -1, x.shape[-1]),
    **SIZES,
}


def drop_mask(*shape: int, rate: float = 0.25) -> Array:
    mask = (RNG.random(shape) >= rate) / (1 - rate)
    mask.flat[:2] = 0, 1 / (1 - rate)  # both occur
    return mask


def attention_case(op: Callable[..., Any], more: dict[str, Array]) -> Case:
    q, k, v = normal(3, 2, 2, 5, 3)
    mask = drop_mask(2, 2, 5, 5)
    case = Case(q=q, k=k, v=v, mask=mask, drel_pos=np.zeros((9, 3)))
    case.op(op, {"qkv": together(q, k, v)} | more, 2, mask)
    dqkv = case.backward.pop("dqkv")
    case.backward |= dict(zip(("dq", "dk", "dv"), split(dqkv), strict=True))
    return case


def cross_attention_case() -> Case:
    q, k, v = normal(1, 2, 3, 3), *normal(2, 2, 2, 5, 3)
    case = Case(k=k, v=v).op(ops.cross_attention, {"q_joined": joined(q), "kv": together(k, v)}, 2)
    case.names["q"] = q
    case.backward = {"dq": heads(case.backward["dq_joined"])} | dict(
        zip(("dk", "dv"), split(case.backward["dkv"], 2), strict=True)
    )
    return case


def gelu_case() -> Case:
    case = Case(dy=normal(2, 5, 8)).op(ops.gelu, {"x": normal(2, 5, 8)}, y="exact", dx="dexact")
    return case.op(ops.gelu, {"x": case.names["x"]}, "tanh", y="approximate", dx="dapproximate")


def patches_case() -> Case:
    case = Case(R=2, S=3, P=2, Q=1, Y=np.zeros((2, 6, 2, 1, 4)), dx=np.zeros((2, 4, 3, 4)))
    case.op(ops.patches, {"x": normal(2, 4, 3, 4)}, (2, 1))
    case.names["dY"] = case.names["dy"].reshape(case.names["Y"].shape)
    return case


def unfold_case() -> Case:
    sizes = {"R": 3, "V": 2, "P": 3, "Q": 2, "S": 2, "T": 3, "p": 1, "q": 0}
    case = Case(**sizes, Y=np.zeros((2, 6, 3, 2, 4)), dx=np.zeros((2, 5, 6, 4)))
    case.op(ops.unfold, {"x": normal(2, 5, 6, 4)}, (3, 2), (2, 3), (1, 0))
    case.names["dY"] = case.names["dy"].reshape(case.names["Y"].shape)
    return case


def embed_case() -> Case:
    case = Case(p=4, R=3, dx=np.zeros((2, 5, 8)), dreg_token=np.zeros((1, 3, 8)))
    arrays = {"x": normal(2, 5, 8), "pos_embed": normal(1, 9, 8)}
    return case.op(ops.embed, arrays | {"cls_token": normal(1, 1, 8), "reg_token": normal(1, 3, 8)})


def pool_case() -> Case:
    x = normal(2, 5, 8)
    case = Case(p=2, dtoken=np.zeros(x.shape), dmean=np.zeros(x.shape))
    case.op(ops.pool, {"x": x}, "token", 0, y="token", dx="dtoken")
    return case.op(ops.pool, {"x": x}, "avg", 2, y="mean", dx="dmean")


def grid_positions_case() -> Case:
    case = Case(R=3).op(ops.grid_positions, {"x": normal(2, 12, 8), "rows": normal(3, 8), "columns": normal(4, 8)})
    first, second = case.forward, case.backward
    halves = {"x": case.names["x"], "rows2": normal(3, 4), "columns2": normal(4, 4)}
    case.forward, case.backward = {}, {}
    case.op(ops.grid_positions, halves, True, y="y2")
    case.forward |= first
    case.backward |= second
    for arrays in (case.names, case.forward, case.backward):  # tokens as a grid
        arrays |= {name: a.reshape(2, 3, 4, 8) for name, a in arrays.items() if np.shape(a) == (2, 12, 8)}
    case.names["y2"] = np.zeros((2, 3, 4, 8))
    return case


def sincos_case() -> Case:
    powers = {"f": np.array([1, 1e-4]), "f_mae": np.array([1, 1e-2])}
    case = Case(R=2, t=np.zeros((8, 8)), **powers)
    return case.op(ops.sincos_positions, {"x": normal(2, 8, 8)}, (2, 4))


def cross_entropy_case() -> Case:
    labels = np.array([1, 3])
    case = Case(dloss=np.array(0.7), s=0.1, labels=np.eye(4)[labels])
    return case.op(ops.cross_entropy, {"logits": normal(2, 4)}, labels, 0.1, y="loss", dy="dloss")


def take_tokens_case() -> Case:
    index = np.array([[4, 0, 2], [1, 3, 4]])
    case = Case(index=index, M=3, y=np.zeros((2, 3, 8)), dx=np.zeros((2, 5, 8)))
    return case.op(ops.take_tokens, {"x": normal(2, 5, 8)}, index)


def fill_tokens_case() -> Case:
    index = np.array([[4, -1, 2, 4, 0], [-1, 3, -1, 1, 0]])
    case = Case(index=index, M=6, y=np.zeros((2, 5, 8)), dx=np.zeros((2, 6, 8)))
    return case.op(ops.fill_tokens, {"x": normal(2, 6, 8), "token": normal(1, 1, 8)}, index)


def token_cross_entropy_case() -> Case:
    labels = RNG.integers(0, 8, (2, 5))
    case = Case(labels=labels)
    return case.op(ops.token_cross_entropy, {"logits": normal(2, 5, 8)}, labels, y="loss", dy="dloss")


def drop_path_case() -> Case:
    x, layer = normal(6, 5, 8), layers.DropPath(0.5)
    mask = layer.mask(x.shape, 3, x.dtype)
    assert mask is not None
    return Case(mask=mask[:, 0, 0], rate=0.5, **{"B": 6}).layer(layer, x, 3)


def patch_dropout_case() -> Case:
    x, layer = normal(2, 5, 8), layers.PatchDropout(0.4, 1)
    key = as_key(3, 2, np)
    assert key is not None
    index = layer.index(key, 5)
    case = Case(index=index, M=index.shape[1], y=np.zeros((2, index.shape[1], 8)), dx=np.zeros(x.shape))
    return case.layer(layer, x, key)


def block_case() -> Case:
    def placed(dh: Array) -> Array:
        whole = np.zeros((2, 5, 8))
        whole[:, 1:3] = dh
        return whole

    block = random_layer(layers.EncoderBlock(8, 2, 16, init_values=0.1))
    return Case(Q=slice(1, 3), placed=placed).layer(block, normal(2, 5, 8), None, True, slice(1, 3))


def patch_embed_case() -> Case:
    patches = Passes(lambda x: ops.patches(x, (2, 3)), ops.patches_backward)
    return Case(patches=patches).layer(random_layer(layers.PatchEmbed((2, 3), 3, 8)), normal(2, 4, 6, 3))


def convolution_case() -> Case:
    unfold = Passes(lambda x: ops.unfold(x, (3, 3), (2, 2), (1, 1)), ops.unfold_backward)
    case = Case(unfold=unfold).layer(random_layer(layers.Convolution(3, 4, 2)), normal(2, 5, 6, 3))
    case.names["y_shape"] = case.forward["y"].shape
    return case


def conv_stem_case() -> Case:
    stem = random_layer(layers.ConvStem((4, 4), (3, 5), 3, 8))
    return Case(convs=[passes(unit) for unit in stem.convs]).layer(stem, normal(2, 8, 8, 3))


def max_pool_case() -> Case:
    images = normal(2, 5, 6, 3)
    case = Case(S=2, T=1, P=3, Q=2).op(ops.max_pool, {"x": images}, (3, 2), (2, 1))
    case.names |= {"y": np.zeros(case.forward["y"].shape), "dx": np.zeros(images.shape)}
    return case


def group_norm_case() -> Case:
    def groups(images: Array) -> Array:
        return images.reshape(len(images), -1, 2, images.shape[-1] // 2)

    arguments = {"x": normal(2, 3, 4, 6), "weight": normal(6), "bias": normal(6)}
    return Case(groups=groups).op(ops.group_norm, arguments, 2)


def std_convolution_case() -> Case:
    layer = random_layer(layers.StdConvolution(3, 4, 3, 2))
    unfold = Passes(lambda x: ops.unfold(x, (3, 3), (2, 2), ((1, 1), (0, 1))), ops.unfold_backward)
    standardize = Passes(lambda weight: ops.standardize(weight, layer.eps), ops.standardize_backward)
    case = Case(unfold=unfold, standardize=standardize).layer(layer, normal(2, 5, 6, 3))
    case.names["y_shape"] = case.forward["y"].shape
    return case


def bottleneck_case(kind: Callable[..., Any]) -> Case:
    block = random_layer(kind(8, 16, 2, True, 2))
    branch = Passes(
        lambda x: forward_in_turn(block._branch(), x, None, True),
        lambda dy, cache: backward_in_turn(block._branch(), dy, cache),
    )
    return Case(branch=branch).layer(block, normal(2, 4, 5, 8))


def stage_case() -> Case:
    stage = random_layer(layers.Stage(8, 16, 2, 2, num_groups=2))
    return Case(blocks=[passes(block) for block in stage.blocks]).layer(stage, normal(2, 4, 5, 8))


def resnet_features_case() -> Case:
    features = random_layer(layers.ResNetFeatures(3, (1, 1), True, 1 / 16, 2))
    return Case(stages=[passes(stage) for stage in features.stages]).layer(features, normal(2, 9, 8, 3))


def hybrid_embed_case() -> Case:
    patches = Passes(lambda x: ops.patches(x, (2, 1)), ops.patches_backward)
    return Case(patches=patches).layer(random_layer(layers.HybridEmbed((8, 4), (), 3, 8)), normal(1, 16, 8, 3))


def attention_pool_case() -> Case:
    cross = Passes(lambda q, kv: ops.cross_attention(q, kv, 2), ops.cross_attention_backward)
    return Case(cross_attention=cross).layer(random_layer(layers.AttentionPool(8, 2, 16)), normal(2, 5, 8))


def vit_case() -> Case:
    config = ViTConfig(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=4)
    model = random_layer(ViT(config))
    tokens = model.pos_embed.value, model.cls_token.value
    names = {
        "embed": Passes(lambda x: ops.embed(x, *tokens), lambda dy, cache: ops.embed_backward(dy, cache)[0]),
        "pool": Passes(lambda x: ops.pool(x, "token", 0), ops.pool_backward),
        "blocks": [passes(block) for block in model.blocks],
    }
    case = Case(**names).layer(model, normal(2, 8, 8, 3))
    for token in ("dpos_embed", "dcls_token"):
        del case.backward[token]  # in the formula of embed
    return case


def chain(*passes: Passes) -> Passes:
    """Return the passes of layers and ops in turn."""

    def forward(x: Array) -> tuple[Array, None]:
        for each in passes:
            x = each(x)
        return x, None

    def backward(dy: Array, _: None) -> Array:
        for each in reversed(passes):
            dy = each.back(dy)
        return dy

    return Passes(forward, backward)


def encoder_of(model: Any) -> Passes:
    """Return the encoder's blocks, for all tokens, and its norm."""
    encoder = model.encoder
    blocks = Passes(lambda x: encoder.encode(x, every=True), lambda dy, cache: encoder.encode_backward(dy, list(cache)))
    return chain(blocks, passes(encoder.norm))


def masked_case(kind: Callable[..., Any]) -> Case:
    """Return the case of a model that corrupts patch tokens, in evaluation."""
    config = ViTConfig(img_size=8, patch_size=2, in_chans=1, embed_dim=8, depth=1, num_heads=2, num_classes=0)
    model = random_layer(kind(ViT(config)))
    x, encoder = normal(2, 8, 8, 1), model.encoder
    _, masks = model.key(None, x)
    order = model.order(masks)
    masked = order[:, : model.num_masked]
    positions = Passes(encoder.embed_patches, encoder.embed_patches_backward)
    names: dict[str, Any] = {
        "patch_embed": passes(encoder.patch_embed),
        "fill": Passes(
            lambda p: ops.fill_tokens(p, model.mask_token.value, model.corruption(masks, order)),
            ops.fill_tokens_backward,
        ),
        "encode": chain(positions, encoder_of(model)),
        "take": Passes(lambda h: ops.take_tokens(h, masked + 1), ops.take_tokens_backward),
        "pixels": Passes(lambda x: model.pixels(x, masked, True), model.pixels_backward),
        "error": Passes(lambda q, t: ops.pixel_error(q, t, 1), ops.pixel_error_backward),
    }
    if kind is layers.MaskedPatches:
        labels = model.colours(model.pixels(x, masked, True)[0])
        names["error"] = Passes(lambda q: ops.token_cross_entropy(q, labels), ops.token_cross_entropy_backward)
    case = Case(**names).layer(model, x)
    case.names |= names
    return case


def mae_case() -> Case:
    config = ViTConfig(img_size=8, patch_size=2, in_chans=1, embed_dim=8, depth=1, num_heads=2, num_classes=0)
    model = random_layer(layers.MAE(ViT(config)))
    x, encoder = normal(2, 8, 8, 1), model.encoder
    order = model.order(model.key(None, x)[1])
    masked, seen = order[:, : model.num_masked], order[:, model.num_masked :]
    kept = np.concatenate([np.zeros((2, 1), int), seen + 1], axis=1)
    positions = np.concatenate([np.zeros((1, 4)), sincos_table((4, 4), 4, "mae")])
    index = np.full((2, 17), -1)
    index[np.arange(2)[:, None], kept] = np.arange(kept.shape[1])
    names: dict[str, Any] = {
        "embed": Passes(encoder.embed, encoder.embed_backward),
        "see": Passes(lambda x: ops.take_tokens(x, kept), ops.take_tokens_backward),
        "encode": encoder_of(model),
        "fill": Passes(lambda p: ops.fill_tokens(p, model.mask_token.value, index), ops.fill_tokens_backward),
        "decode": chain(
            Passes(lambda p: (p + positions, None), lambda dy, _: dy),
            *map(passes, model.decoder_blocks),
            Passes(lambda h: ops.take_tokens(h, masked + 1), ops.take_tokens_backward),
            passes(model.decoder_norm),
        ),
        "pixels": Passes(lambda x: model.pixels(x, masked, True), model.pixels_backward),
        "error": Passes(ops.pixel_error, ops.pixel_error_backward),
    }
    case = Case(**names).layer(model, x)
    case.names |= names
    return case


def attention_layer_case() -> Case:
    return Case(mask=1.0).layer(random_layer(layers.Attention(6, 2)), normal(2, 5, 6))


x = normal(2, 5, 8)
CASES: dict[str, Callable[[], Case]] = {
    "linear": lambda: Case().op(ops.linear, {"x": x, "weight": normal(8, 3), "bias": normal(3)}),
    "layer_norm": lambda: Case().op(ops.layer_norm, {"x": x, "weight": normal(8), "bias": normal(8)}),
    "softmax": lambda: Case().op(ops.softmax, {"x": x}),
    "attention": lambda: attention_case(ops.attention, {}),
    "cross_attention": cross_attention_case,
    "relative_attention": lambda: attention_case(ops.relative_attention, {"rel_pos": normal(9, 3)}),
    "gelu": gelu_case,
    "quick_gelu": lambda: Case().op(ops.quick_gelu, {"x": x}),
    "relu": lambda: Case().op(ops.relu, {"x": x}),
    "tanh": lambda: Case().op(ops.tanh, {"x": x}),
    "dropout": lambda: Case(rate=0.25).op(ops.dropout, {"x": x, "mask": drop_mask(2, 5, 8)}),
    "layer_scale": lambda: Case().op(ops.layer_scale, {"x": x, "gamma": normal(8)}),
    "patches": patches_case,
    "unfold": unfold_case,
    "embed": embed_case,
    "pool": pool_case,
    "grid_positions": grid_positions_case,
    "sincos_positions": sincos_case,
    "take_tokens": take_tokens_case,
    "fill_tokens": fill_tokens_case,
    "pixel_error": lambda: Case(S=40).op(
        ops.pixel_error, {"x": normal(2, 5, 8), "target": normal(2, 5, 8)}, y="loss", dy="dloss"
    ),
    "token_cross_entropy": token_cross_entropy_case,
    "cross_entropy": cross_entropy_case,
    "Identity": lambda: Case().layer(layers.Identity(), x),
    "DropPath": drop_path_case,
    "PatchDropout": patch_dropout_case,
    "MLP": lambda: Case().layer(random_layer(layers.MLP(8, 6)), x),
    "HiddenHead": lambda: Case().layer(random_layer(layers.HiddenHead(8, 6)), normal(2, 8)),
    "Attention": attention_layer_case,
    "EncoderBlock": block_case,
    "PatchEmbed": patch_embed_case,
    "Convolution": convolution_case,
    "ConvUnit": lambda: Case().layer(random_layer(layers.ConvUnit(3, 4, 2)), normal(2, 5, 6, 3)),
    "ConvStem": conv_stem_case,
    "AttentionPool": attention_pool_case,
    "group_norm": group_norm_case,
    "max_pool": max_pool_case,
    "standardize": lambda: Case().op(ops.standardize, {"weight": normal(7, 3)}),
    "StdConvolution": std_convolution_case,
    "Downsample": lambda: Case().layer(random_layer(layers.Downsample(8, 6, 2, True, 3)), normal(2, 4, 5, 8)),
    "Bottleneck": lambda: bottleneck_case(layers.Bottleneck),
    "PreActBottleneck": lambda: bottleneck_case(layers.PreActBottleneck),
    "Stage": stage_case,
    "Stem": lambda: Case().layer(random_layer(layers.Stem(3, 4, num_groups=2)), normal(2, 9, 8, 3)),
    "ResNetFeatures": resnet_features_case,
    "ResNet": lambda: Case().layer(
        random_layer(layers.ResNet(5, (1,), width_factor=1 / 16, num_groups=2)), normal(2, 12, 9, 3)
    ),
    "HybridEmbed": hybrid_embed_case,
    "SimMIM": lambda: masked_case(layers.SimMIM),
    "MaskedPatches": lambda: masked_case(layers.MaskedPatches),
    "MAE": mae_case,
    "ViT": vit_case,
}


def case_of(kind: str) -> Case:
    """Return the case of a kind, the same whatever cases were made before."""
    RNG.bit_generator.state = START
    return CASES[kind]()
