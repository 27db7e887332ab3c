"""The named models, with the sizes of Dosovitskiy et al. 2020 (table 1) and, for tiny, Touvron et al. 2021 (DeiT)."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.vit import ViT

_TINY: dict[str, Any] = {"embed_dim": 192, "depth": 12, "num_heads": 3}
_SMALL: dict[str, Any] = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_BASE: dict[str, Any] = {"embed_dim": 768, "depth": 12, "num_heads": 12}
_LARGE: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
_MINI: dict[str, Any] = {"embed_dim": 96, "depth": 4, "num_heads": 4}
_HUGE: dict[str, Any] = {"embed_dim": 1280, "depth": 32, "num_heads": 16}

_MEAN_POOLED: dict[str, Any] = {"class_token": False, "global_pool": "avg", "init": "jax"}


def _preset(patch_size: int, img_size: int, sizes: dict[str, Any], **fields: Any) -> ViTConfig:
    return ViTConfig(img_size=img_size, patch_size=patch_size, **sizes, **fields)


PRESETS: dict[str, ViTConfig] = {
    "vit_tiny_patch16_224": _preset(16, 224, _TINY),
    "vit_small_patch16_224": _preset(16, 224, _SMALL),
    "vit_base_patch16_224": _preset(16, 224, _BASE),
    "vit_base_patch32_224": _preset(32, 224, _BASE),
    "vit_large_patch16_224": _preset(16, 224, _LARGE),
    "vit_large_patch32_224": _preset(32, 224, _LARGE),
    "vit_huge_patch14_224": _preset(14, 224, _HUGE),
    "vit_tiny_patch4_32": _preset(4, 32, _TINY, num_classes=10),
    # For CIFAR-10 on a CPU.
    "vit_mini_patch4_32": _preset(4, 32, _MINI, mlp_ratio=2.0, num_classes=10, **_MEAN_POOLED),
    # For the digits of 8 x 8 pixels: four patches and the class token.
    "vit_micro_patch4_8": _preset(
        4, 8, {"embed_dim": 64, "depth": 4, "num_heads": 4}, mlp_ratio=2.0, in_chans=1, num_classes=10, init="jax"
    ),
}


def get_config(name: str, **overrides: Any) -> ViTConfig:
    """Return the configuration of the preset `name` with the fields in `overrides` replaced.

    Raises
    ------
    UserError
        The preset or a field does not exist, or the sizes are inconsistent.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise UserError(f"there is no model called {name!r}; did you mean {near!r}? `minivit info` lists all models")
    try:
        return replace(PRESETS[name], **overrides)
    except TypeError as error:
        raise UserError(f"{name}: {error}; the fields are those of minivit.ViTConfig") from error


def create_model(name: str, *, seed: int = 0, dtype: Any = "float32", backend: str = "numpy", **overrides: Any) -> ViT:
    """Return a new model.

    Parameters
    ----------
    name : str
        Name of a preset, such as "vit_tiny_patch4_32".
    seed : int
        Seed of the initial parameters.
    dtype : dtype
        "float32" or "float64".
    backend : str
        "numpy", "cupy" or, for device 1, "cupy:1", which becomes the current device of this thread.
    **overrides
        Fields of `ViTConfig` that replace those of the preset, such as ``depth=2``.
    """
    return ViT(get_config(name, **overrides), seed=seed, dtype=dtype, backend=backend)
