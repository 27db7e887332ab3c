"""What the contract cannot see of a backward pass, or sees late; each test bears the name of its op or layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contract import assert_close, normal

from minivit import Key, ViT, ViTConfig, layers, ops, trace
from minivit.checking.cases import LAYERS, Case

STEP = 1e-20


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_all_gradients_together_fit_one_complex_step(case: Case) -> None:
    """<dy, J v> = <J^T dy, v>, in milliseconds: a wrong layer fails here before a table explains it."""
    arrays = case.make(0, "float64")
    generator = np.random.default_rng(1)
    directions = [generator.standard_normal(x.shape) for x in arrays]
    moved, _ = case.forward(*(x + 1j * STEP * v for x, v in zip(arrays, directions, strict=True)))
    dy = generator.standard_normal(moved.shape)
    gradients = case.backward(dy, case.forward(*arrays)[1])
    terms = [float((dx * v).sum()) for dx, v in zip(gradients, directions, strict=True)]
    scale = sum(float(np.linalg.norm(dx) * np.linalg.norm(v)) for dx, v in zip(gradients, directions, strict=True))
    assert abs(sum(terms) - float((dy * moved.imag).sum()) / STEP) <= 1e-11 * scale


@pytest.mark.parametrize("given", ["", "pos_embed", "cls_token", "reg_token", "pos_embed reg_token"])
def test_embed_has_a_gradient_for_what_it_was_given_and_none_in_the_other_places(given: str) -> None:
    generator = np.random.default_rng(0)
    lengths = {"cls_token": 1, "reg_token": 3}
    arrays: dict[str, Any] = {name: np.ones((1, lengths.get(name, 5), 7)) for name in given.split()}
    y, cache = ops.embed(np.ones((2, 5, 7)), **arrays)
    assert cache is not None
    dy = generator.standard_normal(y.shape)
    expected = {"dx": dy[:, -5:], "pos_embed": dy[:, -5:].sum(axis=0, keepdims=True)}
    expected |= {name: dy[:, :length].sum(axis=0, keepdims=True) for name, length in lengths.items()}
    names = ("dx", "pos_embed", "cls_token", "reg_token")
    got = {name: g for name, g in zip(names, ops.embed_backward(dy, cache), strict=True) if g is not None}
    assert got.keys() == {"dx", *given.split()}
    for name, gradient in got.items():
        np.testing.assert_array_equal(gradient, expected[name])


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_an_encoder_block_asked_for_the_class_token_gives_what_it_gives_among_all_tokens(rate: float) -> None:
    """Equal up to rounding, dropout included: the token's random bits do not depend on how many others are computed."""
    x = np.random.default_rng(0).standard_normal((3, 5, 6))
    rates: dict[str, Any] = dict.fromkeys(("attn_drop_rate", "proj_drop_rate", "drop_path_rate"), rate)
    block = layers.EncoderBlock(6, 2, 8, **rates).initialize(0, "float64")
    key = Key(0, 1, np.array([4, 5, 6]))
    every, every_cache = block.forward(x, key)
    token, cache = block.forward(x, key, queries=slice(0, 1))
    np.testing.assert_allclose(token, every[:, :1], rtol=1e-12, atol=1e-14)
    dy = np.zeros_like(every)
    dy[:, :1] = np.random.default_rng(1).standard_normal(token.shape)
    expected = block.backward(dy, every_cache)
    gradients = block.parameters.store.gradients.copy()
    block.zero_grad()
    np.testing.assert_allclose(block.backward(dy[:, :1], cache), expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(block.parameters.store.gradients, gradients, rtol=1e-11, atol=1e-13)


def test_layer_scale_sums_many_tokens_in_float32_with_a_small_error() -> None:
    x, dy = (normal(np.zeros((64, 65, 7), "float32"), seed) for seed in (1, 2))
    _, cache = ops.layer_scale(x, np.ones(7, "float32"))
    exact = (dy.astype("float64") * x).sum(axis=(0, 1))
    assert_close([ops.layer_scale_backward(dy, cache)[1]], [exact], 4e-7)


def test_a_vit_can_leave_out_the_gradient_of_the_images_and_no_other() -> None:
    config = ViTConfig(img_size=(4, 8), patch_size=2, conv_stem=(5, 4), embed_dim=6, depth=1, num_heads=2)
    model = ViT(config, seed=3)
    tokens, cache = model.embed(normal(np.empty((2, 4, 8, 3), np.float32)))
    dtokens = normal(tokens)
    model.embed_backward(dtokens, cache)
    expected = model.parameters.store.gradients.copy()
    model.zero_grad()
    dpatches = model.embed_backward(dtokens, cache, images=False)
    np.testing.assert_array_equal(model.parameters.store.gradients, expected)
    np.testing.assert_array_equal(dpatches, model.embed_patches_backward(dtokens, cache[1:]))


def test_the_gradient_of_mae_passes_the_fixed_positions_of_its_decoder() -> None:
    encoder = ViT(ViTConfig(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=0))
    model = layers.MAE(encoder, 0.5, decoder_depth=1).initialize(seed=3)
    record = trace(model, normal(np.empty((2, 8, 8, 3), np.float32)), at="sincos_positions")["sincos_positions"]
    np.testing.assert_array_equal(record.dx, record.dy)
    assert np.abs(record.dy).max() > 0
