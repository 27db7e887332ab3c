"""From images to tokens: overlapping patches, convolutions, positions, register tokens, patch dropout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from contract import assert_close, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from strict import StrictArray, strict
from test_summary import kept_bytes

from minivit import Key, Layer, UserError, layers, ops
from minivit.arrays import Array, to_backend
from minivit.nn.initializers import patch_initializers
from minivit.ops.sincos_positions import sincos_table

SIZE = st.integers(1, 5)


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def windows_by_loops(
    x: Array, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[Array, Array]:
    """Return all windows, one at a time, and for each pixel the number of windows that it is in."""
    (B, height, width, C), (P, Q), (top, left) = x.shape, kernel, padding
    padded = np.zeros((B, height + 2 * top, width + 2 * left, C))
    counts = np.zeros(padded.shape[1:3])
    padded[:, top : top + height, left : left + width] = x
    y = []
    for row in range(0, height + 2 * top - P + 1, stride[0]):
        for column in range(0, width + 2 * left - Q + 1, stride[1]):
            y.append(padded[:, row : row + P, column : column + Q].reshape(B, P * Q * C))
            counts[row : row + P, column : column + Q] += 1
    return np.stack(y, axis=1), counts[top : top + height, left : left + width]


@given(kernel=st.tuples(SIZE, SIZE), stride=st.tuples(SIZE, SIZE), padding=st.tuples(st.integers(0, 3), SIZE),
       size=st.tuples(st.integers(5, 9), st.integers(5, 9)))  # fmt: skip
def test_unfold_gives_every_window_and_its_backward_pass_adds_overlaps(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], size: tuple[int, int]
) -> None:
    """For every kernel, stride and padding: overlapping, adjacent and with gaps; pixels may be left over."""
    x = draw(2, *size, 3)
    expected, counts = windows_by_loops(x, kernel, stride, padding)
    y, cache = ops.unfold(x, kernel, stride, padding)
    assert cache is not None
    assert_same_bits([y], [expected])
    dx = ops.unfold_backward(np.ones_like(y), cache)
    assert (dx == counts[None, :, :, None]).all()


def test_unfold_of_adjacent_windows_gives_the_bits_of_patches() -> None:
    x = draw(2, 6, 15, 7)
    y, cache = ops.unfold(x, (2, 5), (2, 5))
    expected, expected_cache = ops.patches(x, (2, 5))
    assert cache is not None
    assert expected_cache is not None
    assert_same_bits([y, ops.unfold_backward(y, cache)], [expected, ops.patches_backward(y, expected_cache)])


def test_embed_puts_class_and_register_tokens_in_front() -> None:
    x, cls_token, reg_token = draw(2, 5, 7), draw(1, 1, 7, seed=1), draw(1, 3, 7, seed=2)
    of_all, of_patches = draw(1, 9, 7, seed=3), draw(1, 5, 7, seed=4)
    front = np.concatenate([cls_token, reg_token], axis=1)
    tokens = np.concatenate([np.concatenate([front, front]), x], axis=1)
    assert_same_bits([ops.embed(x, None, cls_token, reg_token)[0]], [tokens])
    assert_same_bits([ops.embed(x, of_all, cls_token, reg_token)[0]], [tokens + of_all])
    assert_same_bits([ops.embed(x, of_patches, cls_token, reg_token)[0][:, :4].copy()], [tokens[:, :4].copy()])
    assert_same_bits([ops.embed(x, of_patches, cls_token, reg_token)[0][:, 4:].copy()], [x + of_patches])
    assert_same_bits([ops.embed(x)[0]], [x])


def test_grid_positions_are_the_sum_or_the_concatenation_of_rows_and_columns() -> None:
    x, rows, columns = draw(2, 15, 8), draw(3, 8, seed=1), draw(5, 8, seed=2)
    y, _ = ops.grid_positions(x, rows, columns)
    halves, _ = ops.grid_positions(x, rows[:, :4], columns[:, :4], True)
    for r, c in np.ndindex(3, 5):
        n = 5 * r + c
        assert_close([y[:, n]], [x[:, n] + rows[r] + columns[c]])
        assert_close([halves[:, n]], [x[:, n] + np.concatenate([rows[r, :4], columns[c, :4]])])


@pytest.mark.parametrize(("form", "last"), [("simple", 1e-4), ("mae", 1e-3)])
def test_sincos_positions_are_sines_and_cosines_of_columns_then_rows(form: str, last: float) -> None:
    """With 4 frequencies the exponents are 0 to 3 thirds, or 0 to 3 quarters."""
    table = sincos_table((3, 5), 16, form)
    frequencies = [last ** (i / 3) for i in range(4)]
    for r, c in np.ndindex(3, 5):
        expected = [f(at * w) for at in (c, r) for f in (math.sin, math.cos) for w in frequencies]
        assert_close([table[5 * r + c]], [np.array(expected)], 1e-14)


def test_sincos_positions_of_another_dtype_are_those_of_float64_rounded() -> None:
    x = np.zeros((2, 15, 16), "float32")
    y, _ = ops.sincos_positions(x, (3, 5))
    assert_same_bits([y[1]], [sincos_table((3, 5), 16).astype("float32")])


def test_take_tokens_takes_the_tokens_in_the_order_of_the_index() -> None:
    x, index = draw(2, 5, 7), np.array([[4, 0, 2], [1, 2, 0]])
    y, cache = ops.take_tokens(x, index)
    assert cache is not None
    assert_same_bits([y], [np.stack([x[0, [4, 0, 2]], x[1, [1, 2, 0]]])])
    dx = ops.take_tokens_backward(y, cache)
    kept = np.array([[1, 0, 1, 0, 1], [1, 1, 1, 0, 0]])[:, :, None]
    assert_same_bits([dx], [np.where(kept, x, 0.0)])


INVALID: dict[str, tuple[Any, str]] = {
    "unfold, axes": (lambda: ops.unfold(draw(6, 6, 3), (2, 2), (1, 1)), r"expected \(B, height, width, C\)"),
    "unfold, large": (
        lambda: ops.unfold(draw(2, 6, 7, 3), (3, 10), (1, 1), (0, 1)),
        r"images of 6 x 7 pixels with a padding of 0 x 1 have no window of 3 x 10",
    ),
    "unfold, stride": (lambda: ops.unfold(draw(2, 6, 7, 3), (2, 2), (1, 0)), r"stride \(1, 0\) and padding \(0, 0\)"),
    "unfold, padding": (lambda: ops.unfold(draw(2, 6, 7, 3), (2, 2), (1, 1), (0, -1)), r"padding \(0, -1\); expected"),
    "embed, registers": (
        lambda: ops.embed(draw(2, 5, 7), None, None, draw(1, 3, 6)),
        r"reg_token has shape \(1, 3, 6\); expected \(1, R, 7\)",
    ),
    "embed, no registers": (lambda: ops.embed(draw(2, 5, 7), None, None, draw(1, 0, 7)), "no tokens; leave it out"),
    "embed, positions": (
        lambda: ops.embed(draw(2, 5, 7), draw(1, 6, 7), draw(1, 1, 7), draw(1, 2, 7)),
        r"pos_embed has shape \(1, 6, 7\); expected \(1, 8, 7\), or \(1, 5, 7\) for the patches alone",
    ),
    "embed, positions alone": (lambda: ops.embed(draw(2, 5, 7), draw(1, 6, 7)), r"expected \(1, 5, 7\)$"),
    "grid, tokens": (
        lambda: ops.grid_positions(draw(2, 14, 8), draw(3, 8), draw(5, 8)),
        r"x has 14 tokens; expected 3 \* 5, for 3 rows and 5 columns",
    ),
    "grid, width": (
        lambda: ops.grid_positions(draw(2, 15, 8), draw(3, 8), draw(5, 8), True),
        r"rows has shape \(3, 8\); expected \(R, 4\)",
    ),
    "grid, columns": (
        lambda: ops.grid_positions(draw(2, 15, 8), draw(3, 8), draw(5, 4)),
        r"columns has shape \(5, 4\); expected \(C, 8\)",
    ),
    "grid, odd": (
        lambda: ops.grid_positions(draw(2, 15, 7), draw(3, 3), draw(5, 3), True),
        "a width of 7 cannot be ha",
    ),
    "sincos, tokens": (lambda: ops.sincos_positions(draw(2, 14, 8), (3, 5)), r"x has 14 tokens; expected 3 \* 5"),
    "sincos, form": (
        lambda: ops.sincos_positions(draw(2, 15, 8), (3, 5), "moco"),
        "'moco'; expected 'simple' or 'mae'",
    ),
    "sincos, width": (
        lambda: ops.sincos_positions(draw(2, 15, 6), (3, 5), "mae"),
        "6; expected .* 4 .*least 4 for 'mae'",
    ),
    "sincos, small": (lambda: ops.sincos_positions(draw(2, 15, 4), (3, 5)), "4; expected .* at least 8 for 'simple'"),
    "take, shape": (lambda: ops.take_tokens(draw(2, 5, 7), np.zeros((3, 1), int)), r"\(3, 1\); expected \(2, M\)"),
    "take, dtype": (lambda: ops.take_tokens(draw(2, 5, 7), draw(2, 1)), "index has dtype float64; expected integers"),
    "take, range": (
        lambda: ops.take_tokens(draw(2, 5, 7), np.array([[0, 1], [2, 5]])),
        "index has 5 for image 1; 5 tokens have the numbers 0 to 4",
    ),
    "take, negative": (lambda: ops.take_tokens(draw(1, 5, 7), np.array([[0, -1]])), "index has -1 for image 0"),
    "take, twice": (
        lambda: ops.take_tokens(draw(2, 5, 7), np.array([[0, 1, 2], [2, 1, 2]])),
        "index has token 2 of image 1 twice; expected different tokens",
    ),
    "norm": (
        lambda: layers.PatchEmbed((2, 2), 3, 8, norm="before"),
        "norm is 'before'; expected 'none', 'after' or 'b",
    ),
    "stem, rectangle": (lambda: layers.ConvStem((2, 4), (8, 8), 3, 8), r"patch_size is \(2, 4\); .*\(2\*\*n, 2\*\*n\)"),
    "stem, six": (lambda: layers.ConvStem((6, 6), (8, 8, 8), 3, 8), r"patch_size is \(6, 6\)"),
    "stem, few": (lambda: layers.ConvStem((8, 8), (8, 8), 3, 8), "at least 3: .* 3 convolutions have a stride of 2"),
    "stem, none": (lambda: layers.ConvStem((1, 1), (), 3, 8), r"channels are \(\); expected at least 1"),
    "grid, layer": (lambda: layers.GridPositions((3, 5), 7, concat=True), "a width of 7 cannot be halved"),
    "sincos, layer": (lambda: layers.SinCosPositions((3, 5), 10), "the width is 10"),
    "drop, rate": (lambda: layers.PatchDropout(1.0), "a dropout rate is at least 0 and below 1, got 1.0"),
    "drop, prefix": (lambda: layers.PatchDropout(0.5, -1), "num_prefix_tokens is -1; expected at least 0"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_error_says_what_came_and_what_was_expected(name: str) -> None:
    call, message = INVALID[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


# layer, size of the images, rows and columns of tokens
EMBEDDINGS: dict[str, tuple[Any, tuple[int, int], tuple[int, int]]] = {
    "patches": (layers.PatchEmbed((2, 3), 3, 8), (6, 15), (3, 5)),
    "norms": (layers.PatchEmbed((2, 3), 3, 8, "timm", norm="both"), (6, 15), (3, 5)),
    "overlap": (layers.PatchEmbed((4, 3), 3, 8, stride=(2, 3)), (8, 15), (3, 5)),
    "pixels": (layers.ConvStem((1, 1), (4, 5), 3, 8), (3, 5), (3, 5)),
    "stem": (layers.ConvStem((4, 4), (4, 5, 6), 3, 8, "timm"), (12, 20), (3, 5)),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_an_embedding_says_its_grid_and_its_cost(name: str) -> None:
    layer, (height, width), grid = EMBEDDINGS[name]
    layer = layer.initialize(0, "float64")
    assert layer.grid(height, width) == grid
    y, cache = layer.forward(draw(3, height, width, 3))
    assert y.shape == (3, math.prod(grid), 8)
    of_one = kept_bytes(layer.forward(draw(1, height, width, 3))[1], {})
    assert kept_bytes(cache, {}) - of_one == 2 * 8 * layer.cost((height, width, 3)).kept
    products = {"patches": 18, "norms": 18, "overlap": 36, "pixels": 27 * 4 / 8 + 36 * 5 / 8 + 5,
                "stem": 27 * 4 * 4 / 8 + 36 * 5 / 8 + 45 * 6 / 8 + 6}  # fmt: skip
    assert layer.cost((height, width, 3)).flops == 2 * 15 * 8 * products[name]


def test_the_layers_of_an_embedding_have_the_names_of_timm_and_the_scheme_of_a_convolution() -> None:
    both = layers.PatchEmbed((2, 2), 3, 8, norm="both").initialize()
    assert list(both.parameters) == ["patch_norm.weight", "patch_norm.bias", "proj.weight", "proj.bias",
                                     "norm.weight", "norm.bias"]  # fmt: skip
    stem = layers.ConvStem((2, 2), (4, 5), 3, 8, "timm", eps=0.5).initialize()
    assert {name: p.shape for name, p in stem.parameters.items()} == {
        "convs.0.conv.weight": (27, 4), "convs.0.norm.weight": (4,), "convs.0.norm.bias": (4,),
        "convs.1.conv.weight": (36, 5), "convs.1.norm.weight": (5,), "convs.1.norm.bias": (5,),
        "proj.weight": (5, 8), "proj.bias": (8,),
    }  # fmt: skip
    assert stem.convs[1].conv.weight.init == patch_initializers("timm", 36)[0]
    assert {unit.norm.eps for unit in stem.convs} == {0.5}
    assert [name for name, p in stem.parameters.items() if p.decay] == [
        n for n in stem.parameters if "v.w" in n or "j.w" in n
    ]


def key(first: int = 0, count: int = 6) -> Key:
    return Key(3, 5, np.arange(first, first + count), "patch_drop")


@pytest.mark.parametrize(("rate", "kept"), [(0.25, 7), (0.5, 5), (0.99, 1)])
def test_patch_dropout_keeps_the_prefix_and_some_patches_of_each_image(rate: float, kept: int) -> None:
    layer = layers.PatchDropout(rate, num_prefix_tokens=2)
    x = np.arange(6 * 12.0).reshape(6, 12, 1)
    y, cache = layer.forward(x, key())
    assert y.shape == (6, layer.num_kept(12), 1) == (6, 2 + kept, 1)
    assert_same_bits([y[:, :2].copy()], [x[:, :2].copy()])
    for image, tokens in zip(x[:, 2:, 0], y[:, 2:, 0], strict=True):
        assert len(set(tokens)) == kept
        assert set(tokens) <= set(image)
    dx = layer.backward(np.ones_like(y), cache)
    assert dx[:, :2].all()
    assert set(np.flatnonzero(dx)) == set(y.astype(int).ravel())


def test_patch_dropout_does_nothing_in_evaluation_or_at_rate_0() -> None:
    x = draw(6, 12, 1)
    for layer, rng in ((layers.PatchDropout(0.5), None), (layers.PatchDropout(0.0), key())):
        y, cache = layer.forward(x, rng)
        assert y is x
        assert layer.backward(y, cache) is y
        assert layer.forward(x, rng, keep=False)[1] is None


def test_patch_dropout_keeps_each_patch_equally_often_in_any_place() -> None:
    index = layers.PatchDropout(0.5).index(key(count=2000), 6)
    for place in range(3):
        counts = np.bincount(index[:, place], minlength=6)
        assert np.abs(counts - 2000 / 6).max() < 5 * (2000 / 6) ** 0.5
    assert not (index[:-1] == index[1:]).all(axis=1).all()


def test_patch_dropout_is_the_same_in_every_micro_batch_and_on_every_device() -> None:
    layer = layers.PatchDropout(0.4, 1)
    whole = layer.index(key(), 200)
    assert (layer.index(key(2, 3), 200) == whole[2:5]).all()
    moved = layer.index(Key(3, 5, to_backend(np.arange(6), strict), "patch_drop"), 200)
    assert isinstance(moved, StrictArray)
    assert (moved._array == whole).all()
    assert (layer.index(Key(3, 6, np.arange(6), "patch_drop"), 200) != whole).any()


def test_patch_dropout_takes_a_seed_and_refuses_other_things() -> None:
    x = draw(6, 12, 1)
    layer = layers.PatchDropout(0.5)
    assert_same_bits([layer.forward(x, 7)[0]], [layer.forward(x, Key(7, 0, np.arange(6)))[0]])
    wrong: Any = "seed"
    with pytest.raises(UserError, match="rng is 'seed'; expected an integer"):
        layer.forward(x, wrong)


def test_patch_dropout_of_no_patches_keeps_the_prefix() -> None:
    assert layers.PatchDropout(0.5, 2).num_kept(2) == 2
    assert layers.PatchDropout(0.5, 2).num_kept(3) == 3


@pytest.mark.parametrize("layer", [layers.GridPositions((3, 5), 8), layers.SinCosPositions((3, 5), 8)], ids=repr)
def test_positions_keep_nothing(layer: Layer) -> None:
    _, cache = layer.initialize(0, "float64").forward(draw(2, 15, 8))
    assert kept_bytes(cache, {}) == 0 == layer.cost((15, 8)).kept
