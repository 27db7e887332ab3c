"""timm's ``config.json``: what it says of a model, what its architectures are, and how one is written."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from typing import Any

from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.hybrid_embed import feature_patch
from minivit.nn.presets import PRESETS
from minivit.weights.layout import WeightsFile
from minivit.weights.preprocessing import IMAGE_KEYS

_FIELDS = {field.name: field.default for field in dataclass_fields(ViTConfig)}
# Arguments of timm's model that do not matter in evaluation.
_HARMLESS = {"weight_init", "fix_init", "dynamic_img_size", "strict_img_size", "dynamic_img_pad"}
# Architectures of timm's VisionTransformer: what their files do not define. All others are unknown.
_KNOWN = re.compile(r"(vit|deit|deit3|flexivit|eva)_")
_PLAIN = re.compile(r"(vit|deit)_(tiny|small|base|large|huge)_patch(8|14|16|32)_\d{3}")
_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # of a width; the others have heads of width 64
_SIGLIP2 = re.compile(r"_(base_patch32|giantopt_patch16|so400m_patch16)_siglip_|_large_patch16_siglip_(gap_)?512")
# The fields that timm's models have always had; the others are written where they are not timm's defaults.
_ALWAYS = {"img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "class_token"}
_ALWAYS |= {"global_pool", "act_layer", "drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate"}
_ALWAYS |= {"drop_path_rate"}
_OURS = {"resnet", "init", "norm_eps", "num_classes", "embed_norm", "mlp_bias", "zero_head", "representation_act"}


def _architecture(file: WeightsFile) -> str:
    return str(file.config_json.get("architecture", ""))


def arguments(file: WeightsFile, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that ``config.json`` of timm defines.

    Raises
    ------
    UserError
        It asks for an option that minivit does not have.
    """
    said = file.config_json.get("model_args")
    said = dict(said) if isinstance(said, dict) else {}
    if said.pop("embed_norm_layer", None):
        said["embed_norm"] = "after"
    if said.get("init_values", 0.0) is None:
        said["init_values"] = 0.0
    if not said.get("pos_embed", "none"):
        said["pos_embed"] = "none"
    if str(said.get("norm_layer")).lower() == "layernorm":
        del said["norm_layer"]
    if "_rpn_" in _architecture(file):
        raise UserError(
            f"{file.path} holds a model whose norms follow its attention and MLP; minivit does not support it"
        )
    unsupported = [name for name, value in said.items() if value and name not in _FIELDS.keys() | _HARMLESS]
    if unsupported and not (unsupported == ["norm_layer"] and "norm_eps" in given):
        options = ", ".join(f"{name}={said[name]!r:.40}" for name in unsupported)
        raise UserError(f"{file.path.with_name('config.json')} asks for {options}, which minivit does not support")
    known = {name: value for name, value in said.items() if name in _FIELDS}
    if file.config_json.get("global_pool"):
        known.setdefault("global_pool", file.config_json["global_pool"])
    return known


def is_known(file: WeightsFile) -> bool:
    """Return whether ``config.json`` names an architecture of which `family` knows all fields."""
    return _KNOWN.match(_architecture(file)) is not None


def family(file: WeightsFile, embed_dim: int) -> dict[str, Any]:
    """Return the heads, the activation and the eps of an architecture of timm; of an unknown one, the usual ones.

    The number of heads is 0 if it is unknown.
    """
    architecture = _architecture(file)
    heads = _HEADS.get(embed_dim, 0 if embed_dim % 64 else embed_dim // 64)
    if "_giantopt_" in architecture or architecture == "vit_base_patch16_gap_224":
        heads = 16
    act = "quick_gelu" if "_quickgelu_" in architecture else "gelu_tanh" if _SIGLIP2.search(architecture) else "gelu"
    eps = 1e-5 if "_clip_" in architecture else 1e-6
    return {"num_heads": heads, "act_layer": act, "norm_eps": eps}


def warn_of_depth(file: WeightsFile, sizes: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Issue a warning if the architecture that ``config.json`` names has another number of blocks."""
    architecture = _architecture(file)
    named = PRESETS.get(architecture)
    if named and named.embed_dim == sizes["embed_dim"] and named.depth != sizes["depth"] and "depth" not in known:
        warnings.warn(
            f"{file.path.with_name('config.json')} names {architecture}, which has {named.depth} blocks, but "
            f"{file.path.name} has {sizes['depth']}: is a part of it missing?",
            stacklevel=4,
        )


def config_json(config: ViTConfig, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``config.json`` from which timm builds the model of `config`."""
    plain = (name for name in PRESETS if _PLAIN.fullmatch(name))
    named = {"embed_dim", "depth", "num_heads", "patch_size", "img_size"}
    alike = (name for name in plain if all(getattr(PRESETS[name], key) == getattr(config, key) for key in named))
    pretrained: dict[str, Any] = {
        "num_classes": config.num_classes,
        "input_size": [config.in_chans, config.height, config.width],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "first_conv": _first_convolution(config),
        "classifier": "head",
    }
    pretrained |= {key: extra[key] for key in IMAGE_KEYS if key in extra}
    labels = {"label_names": extra["class_names"]} if "class_names" in extra else {}
    return labels | {
        # model_args replace all its sizes.
        "architecture": hybrid_architecture(config) or next(alike, "vit_base_patch16_224"),
        "num_classes": config.num_classes,
        "num_features": config.embed_dim,
        "global_pool": config.global_pool,
        "model_args": _model_args(config),
        "pretrained_cfg": pretrained,
    }


def hybrid_architecture(config: ViTConfig) -> str:
    """Return the name of a hybrid of timm with the ResNet of `config`, or ""."""
    return next((name for name in PRESETS if config.resnet and PRESETS[name].resnet == config.resnet), "")


def _first_convolution(config: ViTConfig) -> str:
    backbone = "patch_embed.backbone.stem.conv" if config.resnet_depths else "patch_embed.backbone.conv"
    return backbone if config.resnet else "patch_embed.proj"


def _model_args(config: ViTConfig) -> dict[str, Any]:
    """Return the arguments of timm's model."""
    said = {
        name: value
        for name, value in config.to_dict().items()
        if name not in _OURS and (name in _ALWAYS or getattr(config, name) != _FIELDS[name])
    }
    if config.resnet:  # its patches are of the features
        said["patch_size"] = list(feature_patch((config.patch_height, config.patch_width), config.resnet_depths))
    if config.embed_norm == "after":
        said["embed_norm_layer"] = "layernorm"
    if config.norm_eps != 1e-6:
        # JSON cannot express the eps. timm fails on this name unless the caller passes norm_layer.
        said["norm_layer"] = f"LayerNorm(eps={config.norm_eps})"
    return said
