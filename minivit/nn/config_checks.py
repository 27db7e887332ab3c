"""The values that a `ViTConfig` may have: every function here raises UserError, which names the field, for others."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minivit.errors import UserError, did_you_mean
from minivit.nn.activations import MLP_ACTIVATIONS
from minivit.nn.hybrid_embed import feature_stride
from minivit.nn.initializers import SCHEMES
from minivit.nn.resnet import CHANNELS

CHOICES: dict[str, tuple[str, ...]] = {
    "act_layer": MLP_ACTIVATIONS,
    "embed_norm": ("none", "after", "both"),
    "pos_embed": ("learn", "none", "learn_2d", "learn_2d_concat", "relative", "sincos_2d", "sincos_2d_mae"),
    "pos_embed_layers": ("first", "each", "shared"),
    "global_pool": ("token", "avg", "map"),
    "representation_act": ("tanh", "relu"),
    "init": tuple(SCHEMES),
}
_AT_LEAST = {"in_chans": 1, "embed_dim": 1, "depth": 1, "num_heads": 1} | dict.fromkeys(
    ("num_classes", "head_dim", "reg_tokens", "representation_size"), 0
)
_LARGEST, _DEEPEST = 1 << 40, 10_000  # numbers in one parameter, blocks or convolutions
_FLAGS = (
    *("qkv_bias", "proj_bias", "mlp_bias", "qk_norm", "class_token", "no_embed_class", "pre_norm", "final_norm"),
    *("pool_include_prefix", "zero_head"),
)
_RATES = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")


def plain(value: Any) -> Any:
    """Return `value` with Python's numbers in place of NumPy's, also in a list, tuple or dict: files hold those."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value)) if type(value) in (tuple, list) else value
    return {name: plain(each) for name, each in value.items()} if type(value) is dict else value


def pair(name: str, value: Any) -> tuple[int, int]:
    """Return a number of pixels, or two of them, as (vertical, horizontal)."""
    sizes = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sizes) != 2 or not all(_is_count(size, 1) for size in sizes):
        raise UserError(f"{name} is {value!r}; expected pixels, one whole number or (height, width)")
    if max(sizes) > _LARGEST:
        raise UserError(f"{name} is {value!r:.60}: this model would be too large")
    return sizes[0], sizes[1]


def counts(name: str, value: Any) -> tuple[int, ...]:
    """Return whole numbers above 0, or one of them, as a tuple."""
    numbers = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not all(_is_count(number, 1) for number in numbers):
        raise UserError(f"{name} is {value!r}; expected a tuple of whole numbers above 0")
    if max(numbers, default=1) > _LARGEST:
        raise UserError(f"{name} is {value!r:.60}: this model would be too large")
    return numbers


def check_values(values: Mapping[str, Any]) -> None:
    """Check each field by itself; `values` are the fields by name."""
    for name, least in _AT_LEAST.items():
        if not _is_count(values[name], least):
            raise UserError(f"{name} is {values[name]!r}; expected a whole number of at least {least}")
        if values[name] > (_DEEPEST if name == "depth" else _LARGEST):
            raise UserError(f"{name} is {values[name]!r:.40}: this model would be too large")
    for name in _RATES:
        if not 0.0 <= _number(name, values[name]) < 1.0:
            raise UserError(f"{name} is {values[name]!r}; expected at least 0 and below 1")
    for name in ("mlp_ratio", "norm_eps"):
        if not 0.0 < _number(name, values[name]) < math.inf:
            raise UserError(f"{name} is {values[name]!r}; expected a number above 0")
    if not math.isfinite(_number("init_values", values["init_values"])):
        raise UserError(f"init_values is {values['init_values']!r}; expected a finite number")
    for name in _FLAGS:
        if not isinstance(values[name], bool):
            raise UserError(f"{name} is {values[name]!r}; expected True or False")
    if not (values["fc_norm"] is None or isinstance(values["fc_norm"], bool)):
        raise UserError(f"fc_norm is {values['fc_norm']!r}; expected True, False or None")
    for name, allowed in CHOICES.items():
        value = values[name]
        if value not in allowed:
            near = did_you_mean(value, allowed) if isinstance(value, str) else ""
            raise UserError(f"{name} is {value!r}; expected {' or '.join(map(repr, allowed))}{near and ';'}{near}")


def check_patches(image: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]) -> None:
    """Check that patches, `stride` apart, cover images; all sizes are (vertical, horizontal) in pixels."""
    (height, width), (P, Q), (S, R) = image, patch, stride
    sizes = f"images of {height} x {width} pixels", f"patches of {P} x {Q}"
    if stride == patch:
        if height % P or width % Q:
            raise UserError(f"{sizes[0]} cannot be cut into {sizes[1]}; choose a patch_size that divides img_size")
        return
    if S > P or R > Q:
        raise UserError(f"patch_stride {stride} leaves pixels out; expected at most patch_size")
    if (height - P) % S or (width - Q) % R or height < P or width < Q:
        raise UserError(f"{sizes[0]} cannot be cut into {sizes[1]} every {S} x {R} pixels; choose another stride")


def check_conv_stem(channels: tuple[int, ...], patch: tuple[int, int]) -> None:
    """Check that convolutions lead to tokens, each of a patch of (P, Q) pixels; `channels` are those of each."""
    if len(channels) > _DEEPEST:
        raise UserError(f"conv_stem has {len(channels):,} convolutions: this model would be too large")
    halvings = patch[0].bit_length() - 1
    if patch[0] != patch[1] or patch[0] != 1 << halvings:
        raise UserError(f"the convolutions of conv_stem halve the image; patch_size {patch} must be (2**n, 2**n)")
    if len(channels) < halvings:
        raise UserError(
            f"conv_stem {channels} has {len(channels)} convolutions; patch_size {patch[0]} takes at least {halvings}, "
            "each of stride 2"
        )


def check_resnet(depths: tuple[int, ...], patch: tuple[int, int]) -> None:
    """Check that patches of `patch` pixels are patches of the features of a ResNet with stages of these `depths`."""
    if len(depths) > len(CHANNELS) or sum(depths) > _DEEPEST:
        raise UserError(f"resnet is {depths!r:.60}; expected the numbers of blocks of at most {len(CHANNELS)} stages")
    stride = feature_stride(depths)
    if patch[0] % stride or patch[1] % stride:
        raise UserError(
            f"a pixel of the features of resnet {depths} stands for {stride} pixels; patch_size {patch} must be a "
            "multiple of that"
        )


def check_sizes(embed_dim: int, mlp_ratio: float, widths: Sequence[int], rows: Sequence[int]) -> None:
    """Check that each parameter could be stored; `widths` are of layers, `rows` of tables and layers."""
    if embed_dim * mlp_ratio >= _LARGEST:
        raise UserError(f"mlp_ratio is {mlp_ratio!r:.40} and embed_dim {embed_dim}: this model would be too large")
    widest = max(embed_dim, int(embed_dim * mlp_ratio), *widths)
    if (numbers := widest * max(widest, *rows)) >= _LARGEST:
        raise UserError(
            f"this model would be too large: with layers up to {widest:,} wide and {rows[0]:.3g} tokens, one of its "
            f"parameters could have {numbers:.3g} numbers"
        )


def check_positions(kind: str, layers: str, embed_dim: int, no_embed_class: bool, drops_patches: bool) -> None:
    """Check that the positions, `pos_embed` and `pos_embed_layers`, can be computed with the other fields."""
    if kind != "learn" and (no_embed_class or layers != "first"):
        raise UserError("no_embed_class and pos_embed_layers belong to pos_embed 'learn'")
    if layers != "first" and (no_embed_class or drops_patches):
        raise UserError(
            f"pos_embed_layers {layers!r} adds a position to every token of every block; leave out no_embed_class and "
            "patch_drop_rate"
        )
    if kind == "relative" and drops_patches:
        raise UserError("patch_drop_rate changes distances between tokens; pos_embed 'relative' cannot be used with it")
    part = {"learn_2d_concat": 2, "sincos_2d": 4, "sincos_2d_mae": 4}.get(kind, 1)
    if embed_dim % part or (kind == "sincos_2d" and embed_dim < 8):
        least = f", at least {2 * part}" if kind == "sincos_2d" else ""
        raise UserError(f"pos_embed {kind!r} needs an embed_dim that is a multiple of {part}{least}")


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > sys.float_info.max:
        raise UserError(f"{name} is {value!r:.40}; expected a number")
    return value
