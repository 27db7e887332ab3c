"""The named models. docs/models.md says what each of them is, docs/systems.md what it was compared with.

The sizes are those of Dosovitskiy et al. 2020 (table 1: Base, Large, Huge), Touvron et al. 2021 (DeiT: tiny, small),
Beyer et al. 2022 (SimpleViT) and labml's experiment on CIFAR-10; the names are timm's where timm has the model.
"""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import fields, replace
from typing import Any

from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.vit import ViT
from minivit.random import checked_seed

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
_MINI: dict[str, Any] = {"embed_dim": 96, "depth": 4, "num_heads": 4}
_MEAN_POOLED: dict[str, Any] = {"class_token": False, "global_pool": "avg", "init": "jax"}
# vit-pytorch's SimpleViT: fixed positions, norms around the patch projection, no biases in attention, mean pooling.
_SIMPLE: dict[str, Any] = _MEAN_POOLED | {"pos_embed": "sincos_2d", "embed_norm": "both", "fc_norm": False}
_SIMPLE |= {"qkv_bias": False, "proj_bias": False, "norm_eps": 1e-5}


def _preset(patch_size: int, img_size: int, sizes: dict[str, Any], **fields: Any) -> ViTConfig:
    return ViTConfig(img_size=img_size, patch_size=patch_size, **sizes, **fields)


PRESETS: dict[str, ViTConfig] = {
    f"vit_{size}_patch{patch}_{pixels}": _preset(patch, pixels, _SIZES[size])
    for size, patch, pixels in [
        *[("tiny", 16, 224), ("tiny", 16, 384)],
        *[("small", patch, pixels) for patch in (16, 32) for pixels in (224, 384)],
        ("small", 8, 224),
        *[("base", patch, pixels) for patch in (16, 32) for pixels in (224, 384)],
        ("base", 8, 224),
        *[("large", patch, pixels) for patch in (16, 32) for pixels in (224, 384)],
        ("huge", 14, 224),
    ]
} | {
    # Hybrids with a ResNet: of the paper (R50) and of Steiner et al. 2021; their names are timm's.
    **{
        f"vit_{size}_r{name}_{pixels}": _preset(patch, pixels, _SIZES[size], resnet=depths)
        for size, name, patch, depths in (
            ("tiny", "_s16_p8", 32, (0,)),
            ("small", "26_s32", 32, (2, 2, 2, 2)),
            ("base", "50_s16", 16, (3, 4, 9)),
            ("large", "50_s32", 32, (3, 4, 6, 3)),
        )
        for pixels in (224, 384)
    },
    "vit_base_r26_s32_224": _preset(32, 224, _SIZES["base"], resnet=(2, 2, 2, 2)),
    "vit_tiny_patch4_32": _preset(4, 32, _SIZES["tiny"], num_classes=10),
    "simple_vit_small_patch16_224": _preset(16, 224, _SIZES["small"], **_SIMPLE),
    "simple_vit_base_patch16_224": _preset(16, 224, _SIZES["base"], **_SIMPLE),
    # The experiment of labml's annotated Vision Transformer on CIFAR-10.
    "labml_vit_cifar10": _preset(
        4,
        32,
        {"embed_dim": 512, "depth": 6, "num_heads": 8},
        num_classes=10,
        act_layer="relu",
        norm_eps=1e-5,
        representation_size=2048,
        representation_act="relu",
        proj_drop_rate=0.1,
        attn_drop_rate=0.1,
        init="jax",
    ),
    # For CIFAR-10 on a CPU, with patches and with a stem of convolutions.
    "vit_mini_patch4_32": _preset(4, 32, _MINI, mlp_ratio=2.0, num_classes=10, **_MEAN_POOLED),
    "vit_mini_convstem4_32": _preset(
        4, 32, _MINI | {"num_heads": 3}, mlp_ratio=2.0, num_classes=10, conv_stem=(64, 128, 128, 128), **_MEAN_POOLED
    ),
    "vit_tiny_convstem4_32": _preset(4, 32, _SIZES["tiny"], num_classes=10, conv_stem=(48, 96), **_MEAN_POOLED),
    # For images of 8 x 8 pixels: four patches and the class token; for the digits, half as deep and without that token.
    "vit_micro_patch4_8": _preset(
        4, 8, {"embed_dim": 64, "depth": 4, "num_heads": 4}, mlp_ratio=2.0, in_chans=1, num_classes=10, init="jax"
    ),
    "vit_nano_patch4_8": _preset(
        4, 8, {"embed_dim": 64, "depth": 2, "num_heads": 4}, mlp_ratio=2.0, in_chans=1, num_classes=10, **_MEAN_POOLED
    ),
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the models that match `pattern`, sorted; ``*`` in it stands for any text."""
    return sorted(fnmatch.filter(PRESETS, pattern))


def nearest_preset(config: ViTConfig, name: str | None = None) -> tuple[str, dict[str, Any]]:
    """Return the preset nearest to `config`, or `name`, and the fields of `config` that differ from it."""

    def differing(preset: str) -> dict[str, Any]:
        names = [field.name for field in fields(config)]
        return {
            name: getattr(config, name) for name in names if getattr(config, name) != getattr(PRESETS[preset], name)
        }

    nearest = name or min(PRESETS, key=lambda preset: len(differing(preset)))
    return nearest, differing(nearest)


def get_config(name: str, **overrides: Any) -> ViTConfig:
    """Return the configuration of the preset `name` with the fields in `overrides` replaced.

    Raises
    ------
    UserError
        The preset or a field does not exist, or the sizes are inconsistent.
    """
    if not isinstance(name, str) or name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"there is no model called {name!r:.60}; did you mean {near!r}? `minivit info` lists all models"
        )
    try:
        return replace(PRESETS[name], **overrides)
    except TypeError as error:
        raise UserError(f"{name}: {error}; the fields are those of minivit.ViTConfig") from error


def create_model(name: str, *, seed: Any = 0, dtype: Any = "float32", backend: str = "numpy", **overrides: Any) -> ViT:
    """Return a new model.

    Parameters
    ----------
    name : str
        Name of a preset, such as "vit_tiny_patch4_32".
    seed : int or np.random.Generator
        Seed of the initial parameters, at least 0, or a generator that a seed is drawn from.
    dtype : dtype
        "float32" or "float64".
    backend : str
        "numpy", "cupy" or, for device 1, "cupy:1", which becomes the current device of this thread.
    **overrides
        Fields of `ViTConfig` that replace those of the preset, such as ``depth=2``.
    """
    return ViT(get_config(name, **overrides), seed=checked_seed(seed), dtype=dtype, backend=backend)
