"""A small model with every kind of dropout, a batch for it, and a step of an engine with them."""

from __future__ import annotations

import dataclasses
import os
import threading
from typing import Any

import numpy as np
from bare_vit import shaken

from minivit import Engine, Key, ViT, ViTConfig
from minivit.arrays import Array

CONFIG = ViTConfig(
    img_size=(4, 9), patch_size=(2, 3), embed_dim=12, depth=3, num_heads=3, num_classes=7,
    drop_rate=0.2, pos_drop_rate=0.2, proj_drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.2,
)  # fmt: skip
B = 13


def model(dtype: str = "float32", **fields: Any) -> ViT:
    return shaken(ViT(dataclasses.replace(CONFIG, **fields), seed=3, dtype=dtype), 0.2)


def batch(size: int = B, dtype: str = "float32") -> tuple[Array, Array, Key]:
    generator = np.random.default_rng(0)
    images = generator.standard_normal((size, 4, 9, 3)).astype(dtype)
    return images, generator.integers(0, 7, size), Key(5, 8, np.arange(100, 100 + size))


def step(
    vit: ViT, threads: int, micro_batch: int | None, rng: bool = True, size: int = B, smoothing: float = 0.1
) -> tuple[Array, Array]:
    """Return the loss and the flat gradient vector of one step."""
    images, labels, key = batch(size, str(vit.head.weight.value.dtype))
    with Engine(vit, threads, micro_batch) as engine:
        loss = engine.loss_and_gradients(images, labels, key if rng else None, smoothing)
    return loss, vit.parameters.store.gradients


def in_a_worker(caller: tuple[int, int]) -> bool:
    """Return whether this is another process or thread than `caller`'s."""
    return (os.getpid(), threading.get_ident()) != caller
