"""A layer of a user's own that mixes tokens sees all of them, in every place of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bare_vit import images, model, shaken
from contract import assert_close, normal

from minivit import Engine, Layer, ViT, ViTConfig, gradcheck_model, trace
from minivit.arrays import Array
from minivit.layers import LayerNorm


class Mixing(Layer):
    """Adds to each token the one before it."""

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        return x + np.roll(x, 1, axis=1), () if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        return dy + np.roll(dy, -1, axis=1)


PLACES: dict[str, tuple[dict[str, Any], Callable[[ViT], object]]] = {
    "patch_embed": ({}, lambda vit: setattr(vit, "patch_embed", PatchesMixed(vit.patch_embed))),
    "patch_embed.norm": ({"embed_norm": "after"}, lambda vit: setattr(vit.patch_embed, "norm", Mixing())),
    "pos_embed": ({"pos_embed": "sincos_2d"}, lambda vit: setattr(vit, "pos_embed", Mixing())),
    "pos_drop": ({}, lambda vit: setattr(vit, "pos_drop", Mixing())),
    "patch_drop": ({}, lambda vit: setattr(vit, "patch_drop", Mixing())),
    "norm_pre": ({}, lambda vit: setattr(vit, "norm_pre", Mixing())),
    "norm": ({}, lambda vit: setattr(vit, "norm", Mixing())),
    "blocks.2.mlp": ({}, lambda vit: setattr(vit.blocks[-1], "mlp", Mixing())),
}
LAST = ["norm1", "norm2", "ls1", "ls2", "drop_path1", "drop_path2", "mlp"]


class PatchesMixed(Layer):
    """A patch embedding whose tokens are mixed."""

    def __init__(self, inner: Layer) -> None:
        self.inner = inner

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        y, cache = self.inner.forward(x, None, keep)
        return y + np.roll(y, 1, axis=1), cache

    def backward(self, dy: Array, cache: Any) -> Array:
        return self.inner.backward(dy + np.roll(dy, -1, axis=1), cache)


@pytest.mark.parametrize("place", PLACES)
def test_an_engine_whose_workers_share_tokens_gives_a_mixing_layer_all_of_them(place: str) -> None:
    fields, change = PLACES[place]
    config = ViTConfig(img_size=(24, 33), patch_size=3, embed_dim=12, depth=3, num_heads=3, num_classes=7, **fields)
    vit = shaken(ViT(config, seed=3))
    change(vit)
    x = normal(np.empty((2, 24, 33, 3), np.float32))
    for threads in (1, 2):
        with Engine(vit, threads, 4) as engine:
            assert_close([engine.predict(x)], [vit(x)], 1e-5)


def is_the_same_in_every_pass(vit: ViT) -> None:
    """Assert that the logits are those of a trace, of a pass under a hook, and of `forward_head`; check gradients."""
    x = images()
    logits = vit(x)
    traced: Any = trace(vit, x)
    assert_close([logits], [traced.y], 1e-12)
    with vit.head.register_forward_hook(lambda layer, x, y: None):
        assert_close([logits], [vit(x)], 1e-12)
    assert_close([logits], [vit.forward_head(vit.forward_features(x))], 1e-12)
    assert gradcheck_model(vit, x[:1], np.array([4]))


@pytest.mark.parametrize("name", LAST)
def test_a_mixing_layer_of_the_last_block_reads_all_tokens(name: str) -> None:
    vit = shaken(model())
    assert vit.queries(2) == slice(0, 1)
    setattr(vit.blocks[-1], name, Mixing())
    is_the_same_in_every_pass(vit)


@pytest.mark.parametrize("name", ["proj", "proj_drop", "attn_drop"])
def test_a_mixing_layer_in_the_attention_of_the_last_block_reads_all_tokens(name: str) -> None:
    vit = shaken(model())

    class WithMask(Mixing):
        rate = 0.0

        def mask(self, *arguments: Any) -> None:
            return None

    setattr(vit.blocks[-1].attn, name, WithMask())
    is_the_same_in_every_pass(vit)


def test_a_mixing_layer_in_the_place_of_the_last_norm_reads_all_tokens() -> None:
    vit: Any = shaken(model())
    vit.norm = Mixing()
    is_the_same_in_every_pass(vit)


def test_a_last_norm_of_a_subclass_may_mix_tokens() -> None:
    class Mixed(LayerNorm):
        def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
            return super().forward(x + np.roll(x, 1, axis=1), rng, keep)

        def backward(self, dy: Array, cache: Any) -> Array:
            dx = super().backward(dy, cache)
            return dx + np.roll(dx, -1, axis=1)

    vit: Any = shaken(model())
    vit.norm = shaken(Mixed(6).initialize(dtype="float64"))
    is_the_same_in_every_pass(vit)
