"""Conversion from and to timm's layout, which has the same names and PyTorch's shapes.

    weights of linear layers  minivit (in, out)     timm (out, in)
    patch_embed.proj.weight   minivit (P P C, D)    timm (D, C, P, P), the weight of a convolution
    everything else           the same

A patch is flattened in the order row, column, channel. Without a configuration, the shapes determine the sizes.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.errors import UserError, counted
from minivit.nn.config import ViTConfig
from minivit.nn.presets import PRESETS
from minivit.nn.vit import ViT

_PATCH = "patch_embed.proj.weight"
_FIELDS = {field.name for field in dataclass_fields(ViTConfig)}
# Arguments of timm's model that do not matter in evaluation, or that change the names of the weights.
_HARMLESS = {"qkv_bias", "proj_bias", "final_norm", "pos_embed", "weight_init", "fix_init", "patch_drop_rate"}
_HARMLESS |= {"dynamic_img_size", "strict_img_size"}
# Architectures of timm that are Vision Transformers with exact GELU, eps 1e-6 and the usual number of heads.
_PLAIN = re.compile(r"(vit|deit)_(tiny|small|base|large|huge)_patch(8|14|16|32)_\d{3}")  # names of timm
_HEADS = {config.embed_dim: config.num_heads for name, config in PRESETS.items() if _PLAIN.fullmatch(name)}


def exported(name: str, value: Array, config: ViTConfig) -> Array:
    """Return the value or the gradient of the parameter `name` in timm's shape."""
    if name == _PATCH:
        value = value.reshape(config.patch_height, config.patch_width, config.in_chans, config.embed_dim)
        return value.transpose(3, 2, 0, 1)
    return _transposed(value)


def imported(path: Path, tensors: Mapping[str, Array], model: ViT) -> dict[str, Array]:
    """Return timm's tensors in the layout of `model`.

    Raises
    ------
    UserError
        A name is missing or unknown, a shape is wrong, or a value is not finite.
    """
    named = model.parameters
    missing = [name for name in named if name not in tensors]
    unknown = [name for name in tensors if name not in named]
    if missing or unknown:
        wrong = ("missing", missing), ("unknown", unknown)
        raise UserError(
            f"{path} is not a Vision Transformer that minivit supports: "
            + " and ".join(counted(f"tensors {what}", names) for what, names in wrong if names)
        )
    state = {}
    for name, parameter in named.items():
        value = tensors[name]
        expected = exported(name, parameter.value, model.config).shape
        if value.shape != expected:
            raise UserError(f"{path}: {name} has shape {value.shape}; its configuration requires {expected}")
        if not np.isfinite(value).all():
            raise UserError(f"{path}: {name} holds NaN or infinity; these weights cannot be used")
        state[name] = value.transpose(2, 3, 1, 0).reshape(parameter.shape) if name == _PATCH else _transposed(value)
    return state


def _transposed(value: Array) -> Array:
    return value.T if value.ndim == 2 else value


def config_json(config: ViTConfig, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``config.json`` from which timm builds the model of `config`."""
    plain = (name for name in PRESETS if _PLAIN.fullmatch(name))
    named = {"embed_dim", "depth", "num_heads", "patch_size", "img_size"}
    same = (name for name in plain if all(getattr(PRESETS[name], key) == getattr(config, key) for key in named))
    model_args = {name: value for name, value in config.to_dict().items() if name not in ("init", "norm_eps")}
    if config.norm_eps != 1e-6:
        # JSON cannot express the eps. timm fails on this name unless the caller passes norm_layer.
        model_args["norm_layer"] = f"LayerNorm(eps={config.norm_eps})"
    pretrained: dict[str, Any] = {
        "num_classes": config.num_classes,
        "input_size": [config.in_chans, config.height, config.width],
        "fixed_input_size": True,
        "crop_pct": 1.0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    for theirs, ours in (("mean", "mean"), ("std", "std"), ("label_names", "class_names")):
        if ours in extra:
            pretrained[theirs] = extra[ours]
    return {
        "architecture": next(same, "vit_base_patch16_224"),  # model_args replace all its sizes
        "num_classes": config.num_classes,
        "num_features": config.embed_dim,
        "global_pool": config.global_pool,
        "model_args": model_args,
        "pretrained_cfg": pretrained,
    }


def preprocessing(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return mean, std and class_names, as far as timm's ``config.json`` has them."""
    pretrained = _part(config_json, "pretrained_cfg") or config_json  # older files have a single level
    names = config_json.get("label_names") or pretrained.get("label_names")
    found = {"class_names": names, "mean": pretrained.get("mean"), "std": pretrained.get("std")}
    return {key: value for key, value in found.items() if value is not None}


def config_fields(
    path: Path, tensors: Mapping[str, Array], config_json: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of the configuration of a timm file.

    The sources, in order of precedence, are `given`, ``config.json``, the shapes, and timm's defaults. A warning is
    issued for a default that may be wrong.
    """
    sizes = sizes_of(path, tensors)
    model_args = _part(config_json, "model_args")
    pretrained = _part(config_json, "pretrained_cfg") or config_json  # older files have a single level
    unsupported = [name for name, value in model_args.items() if value and name not in _FIELDS | _HARMLESS]
    if unsupported and not (unsupported == ["norm_layer"] and "norm_eps" in given):
        options = ", ".join(f"{name}={model_args[name]!r}" for name in unsupported)
        raise UserError(f"{path.with_name('config.json')} asks for {options}, which minivit does not support")

    known = {name: value for name, value in model_args.items() if name in _FIELDS} | dict(given)
    if config_json.get("global_pool"):
        known.setdefault("global_pool", config_json["global_pool"])
    ratio = sizes["hidden_dim"] / sizes["embed_dim"]
    exact = int(sizes["embed_dim"] * ratio) == sizes["hidden_dim"]
    values = {name: value for name, value in sizes.items() if name in _FIELDS}
    values["mlp_ratio"] = ratio if exact else math.nextafter(ratio, math.inf)
    values["img_size"] = known.get("img_size") or _image_size(path, sizes, pretrained.get("input_size"))
    if "num_heads" not in known:
        values["num_heads"] = _usual_heads(path, sizes["embed_dim"])
    values |= known
    if not _PLAIN.fullmatch(str(config_json.get("architecture", ""))):
        assumed = {"num_heads": values["num_heads"], "act_layer": "gelu", "norm_eps": 1e-6}
        words = [f"{name}={value!r}" for name, value in assumed.items() if name not in known]
        if words:
            warnings.warn(
                f"{path}: assumed {', '.join(words)}, which the files do not define; pass other values to load_model",
                stacklevel=3,
            )
    return values


def _part(config_json: Mapping[str, Any], key: str) -> dict[str, Any]:
    part = config_json.get(key)
    return part if isinstance(part, dict) else {}


def _usual_heads(path: Path, embed_dim: int) -> int:
    if embed_dim in _HEADS:
        return _HEADS[embed_dim]
    if embed_dim % 64:
        raise UserError(f"{path} does not define the number of heads for embed_dim {embed_dim}; pass num_heads=...")
    return embed_dim // 64


def _image_size(path: Path, sizes: Mapping[str, Any], input_size: Any) -> tuple[int, int]:
    P, Q = sizes["patch_size"]
    patches = sizes["num_tokens"] - sizes["class_token"]
    if isinstance(input_size, list) and len(input_size) == 3 and all(isinstance(n, int) for n in input_size):
        _, height, width = input_size
        if height % P == 0 and width % Q == 0 and height // P * (width // Q) == patches:
            return height, width
    side = math.isqrt(patches)
    if side * side != patches:
        raise UserError(f"{path} has positions for {patches} patches, not a square; pass img_size=(height, width)")
    return side * P, side * Q


def sizes_of(path: Path, tensors: Mapping[str, Array]) -> dict[str, Any]:
    """Return the sizes that the shapes determine.

    Raises
    ------
    UserError
        A tensor that determines a size is missing or has the wrong number of axes.
    """
    ranks = {_PATCH: 4, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2, "head.weight": 2}
    wrong = [name for name, rank in ranks.items() if name not in tensors or tensors[name].ndim != rank]
    if wrong:
        found = ", ".join(list(tensors)[:3])
        raise UserError(
            f"{path} is not a Vision Transformer of timm: it has no {', '.join(wrong)} of timm's shape, but {found} ..."
        )
    patch, pos_embed, fc1, head = (tensors[name].shape for name in ranks)
    return {
        "patch_size": (patch[2], patch[3]),
        "in_chans": patch[1],
        "num_classes": head[0],
        "embed_dim": patch[0],
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "hidden_dim": fc1[0],
        "num_tokens": pos_embed[1],
        "class_token": "cls_token" in tensors,
        "global_pool": "avg" if "fc_norm.weight" in tensors else "token",
    }


def check_sizes(path: Path, tensors: Mapping[str, Array], config: ViTConfig) -> None:
    """Raise UserError if the shapes and `config` differ in a size, before a model is created."""
    for name, found in sizes_of(path, tensors).items():
        expected = (config.patch_height, config.patch_width) if name == "patch_size" else getattr(config, name)
        if found != expected:
            raise UserError(
                f"{path} belongs to another model: its tensors have {name} {found}, but its configuration {expected}"
            )
