"""The layouts of vit_pytorch (lucidrains): ViT, SimpleViT, and SimpleViT with register tokens, since March 2021.

A state dict does not define the heads, the size of a patch, the pooling beside a class token, nor, for SimpleViT, the
size of images: heads of width 64 and 3 channels are assumed. Before 1.4 (August 2023) the norm of a branch was outside
it, and the final norm was part of the head, as `fc_norm` is here. Both layouts are read, and a model is written in that
of the versions that have it.

https://github.com/lucidrains/vit-pytorch, vit_pytorch/vit.py and simple_vit.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import numpy as np

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.vit import ViT
from minivit.weights.deduce import expect_axes, heads, image_pair, mlp_ratio, size_of_images, square, warn_of_assumed
from minivit.weights.entries import Entry, linear, norm, renamed, reshaped
from minivit.weights.layout import Layout, WeightsFile
from minivit.weights.preprocessing import imagenet_names

_PATCH = "to_patch_embedding"
_FIRST = "transformer.layers.0."
_HEAD_WIDTH, _CHANNELS, _IMAGE = 64, 3, 256  # the defaults of the models, and the images of their documentation


class VitPytorch(Layout):
    """ViT and SimpleViT of vit_pytorch."""

    name = "vit_pytorch"
    program = "vit_pytorch"
    family: ClassVar[Mapping[str, Any]] = {"act_layer": "gelu", "norm_eps": 1e-5}  # PyTorch's
    expresses: ClassVar[Mapping[str, Collection[Any] | None]] = {
        **dict.fromkeys(("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads")),
        **dict.fromkeys(("head_dim", "mlp_ratio", "proj_bias", "class_token", "reg_tokens", "fc_norm", "act_layer")),
        **dict.fromkeys(("norm_eps", "pool_include_prefix")),
        "embed_norm": ("both", "none"),
        "qkv_bias": (False,),
        "pos_embed": ("learn", "sincos_2d"),
        "global_pool": ("token", "avg"),
    }

    def recognises(self, names: Collection[str]) -> bool:
        """Return whether there are a projection of patches and a block of its names."""
        return f"{_PATCH}.1.weight" in names and any(name.startswith(_FIRST + "0.") for name in names)

    def prepare(self, tensors: dict[str, Array]) -> dict[str, Array]:
        """Return the tensors without the wrappers of 2021, and with class token and positions of the present shapes."""
        wrapped = re.compile(r"^(transformer\.layers\.\d+\.[01]\.)fn\.(norm|fn)\.")
        tensors = renamed(tensors, lambda name: wrapped.sub(r"\1\2.", name))
        if not _is_old(tensors):
            for name in {"cls_token", "pos_embedding"} & tensors.keys():
                value = tensors[name]
                tensors[name] = value[0] if value.ndim == 3 and len(value) == 1 else value
        return tensors

    def sizes(self, file: WeightsFile) -> dict[str, Any]:
        """Return the sizes that the shapes determine."""
        shapes = file.shapes
        old, simple = _is_old(shapes), _is_simple(shapes)
        names = _Names(old, simple, len(shapes.get(f"{_PATCH}.1.weight", ())) == 1)
        fc1, head = f"{_FIRST}{names.fc1}.weight", f"{names.head}.weight"
        proj, qkv = f"{names.patch}.weight", f"{_FIRST}{names.qkv}.weight"
        expected = [proj, qkv, fc1, *([head] if head in shapes else [])]
        expect_axes(file, self.program, shapes, dict.fromkeys(expected, 2))
        return {
            "embed_dim": shapes[proj][0],
            "num_classes": shapes.get(head, (0,))[0],
            "depth": len({match[1] for name in shapes if (match := re.match(r"transformer\.layers\.(\d+)\.", name))}),
            "hidden_dim": shapes[fc1][0],
        }

    def fields(self, file: WeightsFile, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the configuration, of which vit_pytorch's defaults are assumed."""
        sizes, shapes = self.sizes(file), file.shapes
        old, simple = _is_old(shapes), _is_simple(shapes)
        names = _Names(old, simple, len(shapes[f"{_PATCH}.1.weight"]) == 1)
        inner, D = shapes[f"{_FIRST}{names.qkv}.weight"][0] // 3, sizes["embed_dim"]
        known = given if f"{_FIRST}{names.proj}.weight" in shapes else {"num_heads": 1}  # which needs no projection
        count, heads_assumed = heads(file, inner, D, known, _HEAD_WIDTH)
        patch, patch_assumed = _patches(file, shapes[f"{names.patch}.weight"][1], given)
        tokens: int = (shapes.get("cls_token", (0,)) or (1,))[-2:][0]
        pool = given.get("global_pool", "token") if tokens else "avg"
        assumed: dict[str, Any] = {"num_heads": count["num_heads"]} if heads_assumed else {}
        assumed |= patch_assumed | ({"global_pool": pool} if tokens else {}) | dict(self.family)
        values = {name: value for name, value in sizes.items() if name != "hidden_dim"} | count | patch
        values |= {
            "mlp_ratio": mlp_ratio(sizes),
            "class_token": bool(tokens),
            "reg_tokens": (shapes.get("register_tokens") or (0,))[0],
            "embed_norm": "both" if names.normed else "none",
            "qkv_bias": f"{_FIRST}{names.qkv}.bias" in shapes,
            "proj_bias": f"{_FIRST}{names.proj}.bias" in shapes,
            "pos_embed": "sincos_2d" if simple else "learn",
            "global_pool": pool,
            "pool_include_prefix": pool == "avg" and bool(tokens),
            "fc_norm": old,
        }
        if simple:
            assumed["img_size"] = tuple(_IMAGE // side * side for side in patch["patch_size"])
            values["img_size"] = image_pair(given.get("img_size")) or assumed["img_size"]
        else:
            positions = shapes.get("pos_embedding", (0, 0))
            patches = positions[-2] - bool(tokens) if len(positions) > 1 else 0
            values["img_size"] = size_of_images(file, patches, patch["patch_size"], given.get("img_size"))
        warn_of_assumed(file, {k: v for k, v in assumed.items() if k not in given}, f"as {self.program} has by default")
        return assumed | values

    def metadata(self, file: WeightsFile) -> dict[str, Any]:
        """Return the names of 1,000 classes, ImageNet's."""
        return {"class_names": list(imagenet_names())} if self.sizes(file)["num_classes"] == 1000 else {}

    def entries(self, model: ViT) -> list[Entry]:
        """Return an entry for each parameter."""
        config = model.config
        D, old, simple = config.embed_dim, config.norms_pooled, config.pos_embed == "sincos_2d"
        names = _Names(old, simple, config.embed_norm == "both")
        ours = norm("patch_embed.patch_norm", f"{_PATCH}.1") | linear("patch_embed.proj", names.patch)
        ours |= norm("patch_embed.norm", f"{_PATCH}.3")
        N = config.num_tokens
        axis = (1,) if old else ()
        ours["cls_token"] = reshaped("cls_token", "cls_token", (1, 1, D), (*axis, 1, D))
        ours["reg_token"] = reshaped("reg_token", "register_tokens", (1, -1, D), (-1, D))
        ours["pos_embed"] = reshaped("pos_embed", "pos_embedding", (1, N, D), (*axis, N, D))
        if not config.class_token:
            ours["pos_embed"] = _beside_no_class_token(ours["pos_embed"], D)
        for i in range(config.depth):
            block, theirs = f"blocks.{i}.", f"transformer.layers.{i}."
            ours |= norm(f"{block}norm1", f"{theirs}0.norm") | norm(f"{block}norm2", theirs + names.norm2)
            ours |= linear(f"{block}attn.qkv", theirs + names.qkv) | linear(f"{block}attn.proj", theirs + names.proj)
            ours |= linear(f"{block}mlp.fc1", theirs + names.fc1) | linear(f"{block}mlp.fc2", theirs + names.fc2)
            if not simple and not config.proj_bias:
                ours[f"{block}attn.proj.weight"] = _no_projection(f"{block}attn.proj.weight", D)
        ours |= norm("norm", "transformer.norm") | norm("fc_norm", f"{names.base}.0") | linear("head", names.head)
        return [ours[name] for name in model.declared() if name in ours]

    def refusals(self, config: ViTConfig) -> list[str]:
        """Return what no version of vit_pytorch can express."""
        found = super().refusals(config)
        if found:
            return found
        old, simple = config.norms_pooled, config.pos_embed == "sincos_2d"
        pooling = f"global_pool={config.global_pool!r} with class_token={config.class_token}"
        if config.embed_norm == "none" and not old:
            found.append("embed_norm='none' with a final norm of the tokens (fc_norm=False)")
        if config.class_token and (
            simple or (config.global_pool == "avg" and not (old and config.pool_include_prefix))
        ):
            found.append(f"{pooling}, pos_embed={config.pos_embed!r} and fc_norm={config.fc_norm}")
        if not config.class_token and not simple and old:
            found.append(f"{pooling} and fc_norm={config.fc_norm}")
        if config.reg_tokens and not simple:
            found.append(f"reg_tokens={config.reg_tokens} with pos_embed={config.pos_embed!r}")
        if simple and not config.num_classes:
            found.append("num_classes=0 with pos_embed='sincos_2d'")
        without = simple or (config.num_heads == 1 and config.head_width == config.embed_dim)
        if config.proj_bias == without:
            found.append(f"proj_bias={config.proj_bias}")
        return found


class _Names:
    """The names of layers in the blocks and around them."""

    def __init__(self, old: bool, simple: bool, normed: bool) -> None:
        inside = "" if simple or not old else "fn."
        self.normed = normed  # norms before and after the projection of patches
        self.patch = f"{_PATCH}.{2 if normed else 1}"
        self.qkv = f"0.{inside}to_qkv"
        self.proj = f"0.{inside}to_out" + ("" if simple else ".0")
        self.norm2 = "1.norm" if inside else "1.net.0"
        self.fc1 = f"1.{inside}net.{0 if inside else 1}"
        self.fc2 = f"1.{inside}net.{3 if simple or inside else 4}"  # dropout lies between
        self.base = "linear_head" if simple else "mlp_head"
        self.head = f"{self.base}.1" if old else self.base


def _is_old(names: Collection[str]) -> bool:
    return any(f"{head}.0.weight" in names for head in ("mlp_head", "linear_head"))


def _is_simple(names: Collection[str]) -> bool:
    return any(f"linear_head{part}.weight" in names for part in ("", ".1"))


def _patches(file: WeightsFile, pixels: int, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `patch_size` and `in_chans` for so many numbers in a patch, and what of it was assumed."""
    size, channels = image_pair(given.get("patch_size")), given.get("in_chans", _CHANNELS)
    if size is not None:
        channels = pixels // (size[0] * size[1])
    elif type(channels) is int and channels > 0:
        size = image_pair(square(pixels // channels))
    if size is None or size[0] * size[1] * channels != pixels:
        raise UserError(
            f"{file.path} has patches of {pixels} numbers, which are not a square of {channels} channels; pass "
            "patch_size=... or in_chans=... to load_model, or --set"
        )
    found = {"patch_size": size, "in_chans": channels}
    return found, {} if "patch_size" in given else {name: found[name] for name in found if name not in given}


def _beside_no_class_token(positions: Entry, D: int) -> Entry:
    """Return the entry of the positions and of the class token of no numbers."""
    return Entry(
        positions.name,
        (*positions.theirs, "cls_token"),
        lambda values: positions.join(values[:1]),
        lambda value: [*positions.split(value), np.zeros((0, D), value.dtype)],
    )


def _no_projection(name: str, D: int) -> Entry:
    """Return the entry of the projection of a single head as wide as the model, which vit_pytorch leaves out."""

    def split(value: Array) -> list[Array]:
        if value.any() and not np.array_equal(value, np.eye(D)):
            raise UserError(f"the format 'vit_pytorch' has no projection {name} here, which has changed in this model")
        return []

    return Entry(name, (), lambda values: np.eye(D, dtype=np.float32), split)
