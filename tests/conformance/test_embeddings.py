"""Patches, convolutions, tokens and positions compute what PyTorch, timm and vit_pytorch compute, with every gradient.

pip install 'minivit[test,conformance]'
pytest tests/conformance/test_embeddings.py -m conformance
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minivit import Key, Layer, layers, ops
from minivit.arrays import Array
from minivit.ops.sincos_positions import sincos_table

pytestmark = pytest.mark.conformance

B, C, O, D = 3, 5, 7, 24  # noqa: E741 - channels in and out


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def assert_equal(ours: Array, theirs: Any, bound: float = 1e-12) -> None:
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= bound * np.linalg.norm(theirs)


def conv_weight(torch: Any, weight: Array, kernel: tuple[int, int]) -> Any:
    """Return the weight (kh kw C, O) in PyTorch's layout, (O, C, kh, kw), as a leaf."""
    laid_out = torch.tensor(weight).reshape(*kernel, -1, weight.shape[1]).permute(3, 2, 0, 1)
    return laid_out.contiguous().requires_grad_()


def from_conv(weight_grad: Any) -> Any:
    """Return a gradient (O, C, kh, kw) in our layout, (kh kw C, O)."""
    return weight_grad.permute(2, 3, 1, 0).reshape(-1, len(weight_grad))


def channels_first(torch: Any, x: Array) -> Any:
    return torch.tensor(x).permute(0, 3, 1, 2).contiguous().requires_grad_()


@pytest.mark.parametrize("kernel", [(3, 3), (4, 3), (1, 1), (2, 5)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 3), (5, 4)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (0, 2)])
def test_unfold_and_a_linear_map_are_a_convolution(
    torch: Any, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    x, weight, bias = draw(B, 11, 8, C), draw(kernel[0] * kernel[1] * C, O, seed=1), draw(O, seed=2)
    cut, cut_cache = ops.unfold(x, kernel, stride, padding)
    y, cache = ops.linear(cut, weight, bias)
    assert cache is not None
    assert cut_cache is not None
    tx, tweight, tbias = channels_first(torch, x), conv_weight(torch, weight, kernel), torch.tensor(bias)
    theirs = torch.nn.functional.conv2d(tx, tweight, tbias.requires_grad_(), stride, padding)
    assert_equal(y, theirs.flatten(2).transpose(1, 2))
    dy = draw(*y.shape, seed=3)
    theirs.backward(torch.tensor(dy).transpose(1, 2).reshape(theirs.shape))
    dcut, dweight, dbias = ops.linear_backward(dy, cache)
    assert_equal(ops.unfold_backward(dcut, cut_cache), tx.grad.permute(0, 2, 3, 1))
    assert_equal(dweight, from_conv(tweight.grad))
    assert dbias is not None
    assert_equal(dbias, tbias.grad)


def random(layer: Layer) -> Any:
    """Return the layer in float64 with random parameters."""
    layer.initialize(0, "float64")
    for seed, parameter in enumerate(layer.parameters.values()):
        parameter.value[...] = draw(*parameter.shape, seed=seed) * 0.5
    return layer


def load(module: Any, layer: Layer, torch: Any) -> None:
    """Give a PyTorch module the layer's parameters, matched in their order and by their shapes."""
    for theirs, ours in zip(module.parameters(), layer.parameters.values(), strict=True):
        value = torch.tensor(ours.value)
        if theirs.ndim == 4:
            value = conv_weight(torch, ours.value, tuple(theirs.shape[2:]))
        elif theirs.ndim == 2:
            value = value.T
        theirs.data.copy_(value)


def assert_layer_equals(layer: Layer, module: Any, torch: Any, x: Array, tx: Any, tokens: Any) -> None:
    """Compare result, gradient of the images and gradients of all parameters."""
    y, cache = layer.forward(x)
    theirs = tokens(module(tx))
    assert_equal(y, theirs)
    dy = draw(*y.shape, seed=9)
    theirs.backward(torch.tensor(dy))
    layer.zero_grad()
    dx = layer.backward(dy, cache)
    assert_equal(dx, tx.grad.permute(0, 2, 3, 1))
    for ours, parameter in zip(layer.parameters.values(), module.parameters(), strict=True):
        grad = parameter.grad
        assert_equal(ours.grad, from_conv(grad) if grad.ndim == 4 else grad.T if grad.ndim == 2 else grad)


def as_tokens(x: Any) -> Any:
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("norm", ["none", "after"])
def test_patch_embed_is_that_of_timm(torch: Any, timm: Any, norm: str) -> None:
    layer = random(layers.PatchEmbed((4, 4), C, D, norm=norm, eps=1e-5))
    norm_layer = torch.nn.LayerNorm if norm == "after" else None
    theirs = timm.layers.PatchEmbed((8, 12), 4, C, D, norm_layer=norm_layer).double()
    load(theirs, layer, torch)
    x = draw(B, 8, 12, C)
    assert_layer_equals(layer, theirs, torch, x, channels_first(torch, x), lambda tokens: tokens)


def test_overlapping_patches_with_norms_are_layers_of_pytorch(torch: Any) -> None:
    layer = random(layers.PatchEmbed((5, 4), C, D, stride=(3, 2), norm="after", eps=1e-3))

    class Tokens(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return as_tokens(x)

    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(C, D, (5, 4), (3, 2)), Tokens(), torch.nn.LayerNorm(D, eps=1e-3)
    ).double()
    load(theirs, layer, torch)
    x = draw(B, 11, 8, C)
    assert_layer_equals(layer, theirs, torch, x, channels_first(torch, x), lambda tokens: tokens)


@pytest.mark.parametrize("family", ["ViT", "SimpleViT"])
def test_norms_before_and_after_are_those_of_vit_pytorch(torch: Any, vit_pytorch: Any, family: str) -> None:
    theirs = getattr(vit_pytorch, family)(
        image_size=(8, 12), patch_size=4, channels=C, num_classes=2, dim=D, depth=1, heads=1, mlp_dim=2
    )
    embedding = theirs.to_patch_embedding.double()
    layer = random(layers.PatchEmbed((4, 4), C, D, norm="both", eps=1e-5))
    load(embedding, layer, torch)
    x = draw(B, 8, 12, C)
    assert_layer_equals(layer, embedding, torch, x, channels_first(torch, x), lambda tokens: tokens)


@pytest.mark.parametrize(("P", "channels"), [(1, (4, 6)), (2, (4, 6)), (4, (4, 6, 8)), (8, (4, 6, 8))])
def test_a_convolutional_stem_is_layers_of_pytorch(torch: Any, P: int, channels: tuple[int, ...]) -> None:
    """Images of odd sizes are rounded up, as PyTorch's convolutions with padding do."""
    layer = random(layers.ConvStem((P, P), channels, C, D, eps=1e-4))

    class ChannelNorm(torch.nn.LayerNorm):
        def forward(self, x: Any) -> Any:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    steps: list[Any] = []
    for i, (inputs, outputs) in enumerate(zip((C, *channels[:-1]), channels, strict=True)):
        stride = 2 if 2**i < P else 1
        steps += [torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), ChannelNorm(outputs, eps=1e-4),
                  torch.nn.ReLU()]  # fmt: skip
    theirs = torch.nn.Sequential(*steps, torch.nn.Conv2d(channels[-1], D, 1)).double()
    load(theirs, layer, torch)
    x = draw(B, 17, 24, C)
    assert_layer_equals(layer, theirs, torch, x, channels_first(torch, x), as_tokens)


@pytest.mark.parametrize("no_embed_class", [False, True])
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("reg_tokens", [0, 3])
def test_tokens_are_those_of_timm(
    torch: Any, timm: Any, no_embed_class: bool, class_token: bool, reg_tokens: int
) -> None:
    theirs = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=D, depth=1, num_heads=1, num_classes=0, class_token=class_token,
        reg_tokens=reg_tokens, no_embed_class=no_embed_class, global_pool="token" if class_token else "avg",
    ).double()  # fmt: skip
    x = draw(B, 4, D)
    named = {name: getattr(theirs, name) for name in ("pos_embed", "cls_token", "reg_token")}
    arrays: dict[str, Any] = {}
    for seed, (name, parameter) in enumerate(named.items()):
        if parameter is not None:
            arrays[name] = draw(*parameter.shape, seed=seed)
            parameter.data.copy_(torch.tensor(arrays[name]))
    y, cache = ops.embed(x, **arrays)
    assert cache is not None
    tx = torch.tensor(x, requires_grad=True)
    tokens = theirs._pos_embed(tx)
    assert_equal(y, tokens)
    dy = draw(*y.shape, seed=9)
    tokens.backward(torch.tensor(dy))
    dx, *gradients = ops.embed_backward(dy, cache)
    assert_equal(dx, tx.grad)
    for ours, parameter in zip(gradients, named.values(), strict=True):
        assert (ours is None) == (parameter is None)
        if ours is not None:
            assert_equal(ours, parameter.grad)


@pytest.mark.parametrize("grid", [(7, 7), (3, 5), (1, 4)])
def test_sincos_positions_are_those_of_simple_vit(torch: Any, vit_pytorch: Any, grid: tuple[int, int]) -> None:
    posemb = vit_pytorch.simple_vit.posemb_sincos_2d
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # in which it computes the frequencies
    try:
        theirs = posemb(*grid, D, dtype=torch.float64)
    finally:
        torch.set_default_dtype(before)
    assert_equal(sincos_table(grid, D), theirs, 1e-14)
    single = posemb(*grid, D)
    y, _ = ops.sincos_positions(np.zeros((1, grid[0] * grid[1], D), "float32"), grid)
    np.testing.assert_allclose(y[0], single.numpy(), atol=2e-6)


def mae_table(D: int, rows: int, columns: int) -> Array:
    """Return the table of MAE as it is published (util/pos_embed.py), for a grid that need not be a square."""

    def of_axis(width: int, positions: Array) -> Array:
        omega = np.arange(width // 2, dtype=float)
        omega /= width / 2.0
        omega = 1.0 / 10000**omega
        out = np.einsum("m,d->md", positions.reshape(-1), omega)
        return np.concatenate([np.sin(out), np.cos(out)], axis=1)

    grid_h, grid_w = np.arange(rows, dtype=np.float32), np.arange(columns, dtype=np.float32)
    grid = np.stack(np.meshgrid(grid_w, grid_h), axis=0)  # "here w goes first"
    return np.concatenate([of_axis(D // 2, grid[0]), of_axis(D // 2, grid[1])], axis=1)


@pytest.mark.parametrize("grid", [(7, 7), (3, 5), (1, 4)])
def test_sincos_positions_are_those_of_mae(torch: Any, grid: tuple[int, int]) -> None:
    assert_equal(sincos_table(grid, D, "mae"), torch.tensor(mae_table(D, *grid)), 1e-14)


@pytest.mark.parametrize("concat", [False, True])
def test_grid_positions_are_parameters_of_pytorch(torch: Any, concat: bool) -> None:
    layer = random(layers.GridPositions((3, 5), D, concat))
    x = draw(B, 15, D)
    tx, rows, columns = (
        torch.tensor(value, requires_grad=True) for value in (x, layer.rows.value, layer.columns.value)
    )
    parts = [rows[:, None].expand(3, 5, -1), columns.expand(3, 5, -1)]
    position = torch.cat(parts, dim=-1) if concat else parts[0] + parts[1]
    theirs = tx + position.reshape(15, D)
    y, cache = layer.forward(x)
    assert_equal(y, theirs)
    dy = draw(*y.shape, seed=9)
    theirs.backward(torch.tensor(dy))
    assert_equal(layer.backward(dy, cache), tx.grad)
    assert_equal(layer.rows.grad, rows.grad)
    assert_equal(layer.columns.grad, columns.grad)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_patch_dropout_keeps_as_many_tokens_as_that_of_timm_and_is_a_gather(
    torch: Any, timm: Any, rate: float, prefix: int
) -> None:
    layer, theirs = layers.PatchDropout(rate, prefix), timm.layers.PatchDropout(rate, prefix).train()
    for N in (1, 2, 49, 196):
        assert layer.num_kept(prefix + N) == theirs(torch.zeros(1, prefix + N, 1)).shape[1]
    x = draw(B, prefix + 49, D)
    y, cache = layer.forward(x, Key(0, 0, np.arange(B)))
    tx = torch.tensor(x, requires_grad=True)
    index = torch.tensor(layer.index(Key(0, 0, np.arange(B)), prefix + 49))
    gathered = tx.gather(1, index[:, :, None].expand(-1, -1, D))
    assert_equal(y, gathered)
    dy = draw(*y.shape, seed=9)
    gathered.backward(torch.tensor(dy))
    assert_equal(layer.backward(dy, cache), tx.grad)
