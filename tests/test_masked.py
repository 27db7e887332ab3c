"""Models that learn without labels: which patches they see, what they predict, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from minivit import AdamW, Key, ViT, ViTConfig, layers
from minivit.arrays import Array
from minivit.nn.corrupted import Corrupted, SimMIM
from minivit.nn.layer import Layer
from minivit.nn.mae import MAE
from minivit.nn.masked import MaskedModel
from minivit.nn.masked_patches import MaskedPatches

FIELDS: dict[str, Any] = {"img_size": 8, "patch_size": 2, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 0}
MODELS: dict[str, Callable[[ViT], Any]] = {
    "SimMIM": SimMIM,
    "mean": MaskedPatches,
    "pixels": lambda encoder: MaskedPatches(encoder, "pixels"),
    "MAE": lambda encoder: MAE(encoder, decoder_dim=8),
    "MAE, norm": lambda encoder: MAE(encoder, norm_pixels=True),
}


def encoder(**fields: Any) -> ViT:
    return ViT(ViTConfig(**{**FIELDS, **fields}), seed=None, dtype="float64")


def made(kind: str, **fields: Any) -> Any:
    return MODELS[kind](encoder(**fields)).initialize(seed=1, dtype="float64")


def images(count: int = 3, C: int = 3, side: int = 8) -> Array:
    return np.random.default_rng(0).standard_normal((count, side, side, C))


def key(count: int, first: int = 0) -> Key:
    return Key(3, 1, np.arange(first, first + count))


every_kind = pytest.mark.parametrize("kind", MODELS)


@every_kind
def test_an_image_has_its_loss_whatever_is_beside_it(kind: str) -> None:
    model, x = made(kind), images(5)
    losses, _ = model.forward(x, key(5))
    assert losses.shape == (5,)
    assert (losses > 0).all()
    assert_allclose(model.forward(x[3:], key(2, 3))[0], losses[3:], rtol=1e-12)
    assert not np.allclose(model.forward(x, Key(3, 2, np.arange(5)))[0], losses)


@every_kind
def test_in_evaluation_all_images_have_one_mask(kind: str) -> None:
    model, x = made(kind, drop_path_rate=0.3), images(1).repeat(3, axis=0)
    losses = model(x)
    assert_allclose(losses, losses[0], rtol=1e-12)
    assert_array_equal(model(x), losses)


def direction(x: Array, seed: int = 5) -> Array:
    return np.random.default_rng(seed).standard_normal(x.shape)


def test_the_pixels_of_a_masked_model_pass_their_gradient_back() -> None:
    model, x, v = MaskedModel(encoder(), 0.5).initialize(seed=0, dtype="float64"), images(), direction(images())
    masked = model.order(key(3))[:, : model.num_masked]
    y, cache = model.pixels(x, masked, True)
    dy = direction(y, 6)
    dx = model.pixels_backward(dy, cache)
    assert_allclose((dx * v).sum(), (dy * model.pixels(v, masked, False)[0]).sum(), rtol=1e-12)


def test_the_predictions_of_corrupted_patches_pass_their_gradient_back() -> None:
    model: Corrupted = made("SimMIM")
    x = images()
    y, _, cache = model.predictions(x, key(3), True)
    dy = direction(y)
    model.zero_grad()
    dx = model.predictions_backward(dy, cache)
    v, h = direction(x, 7), 1e-20
    moved, expected = model.astype("complex128"), (dx * v).sum()
    for name, parameter in model.parameters.items():
        change = direction(parameter.value, 8)
        moved.parameters[name].value[...] = parameter.value + 1j * h * change
        expected += (parameter.grad * change).sum()
    found = moved.predictions(x + 1j * h * v, key(3), False)[0].imag / h
    assert_allclose((dy * found).sum(), expected, rtol=1e-9)


@every_kind
def test_a_masked_model_learns_to_predict(kind: str) -> None:
    rng = np.random.default_rng(1)
    x = np.repeat(np.repeat(rng.standard_normal((16, 1, 1, 3)), 8, axis=1), 8, axis=2)  # one colour each
    model = made(kind)
    optimizer = AdamW(model, 1e-2)
    losses = []
    for step in range(100):
        loss, cache = model.forward(x, Key(0, step, np.arange(16)))
        model.zero_grad()
        model.backward(np.full(16, 1 / 16), cache)
        optimizer.step()
        losses.append(loss.mean())
    bound = 1.02 if kind == "MAE, norm" else 0.6  # one colour has no variance to predict
    assert np.mean(losses[-5:]) < bound * losses[0]


@pytest.mark.parametrize(
    ("ratio", "N", "count"), [(0.5, 16, 8), (0.75, 16, 12), (0.01, 16, 1), (0.99, 16, 15), (0.6, 4, 2)]
)
def test_a_part_of_the_patches_is_predicted_and_never_all_or_none(ratio: float, N: int, count: int) -> None:
    model = SimMIM(encoder(img_size=2 * round(N**0.5)), ratio)
    assert model.num_masked == count
    order = model.order(key(50))
    assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(N), (50, 1)))
    assert len({tuple(row[:count].tolist()) for row in order}) > 1


def test_simmim_masks_what_it_predicts_and_nothing_else() -> None:
    model = made("SimMIM")
    order = model.order(key(4))
    index = model.corruption(key(4), order)
    for row, some in zip(index, order, strict=True):
        assert set(np.flatnonzero(row == -1).tolist()) == set(some[: model.num_masked].tolist())
        assert (row[row >= 0] == np.flatnonzero(row >= 0)).all()


def test_the_papers_corruption_is_that_of_bert() -> None:
    model = made("mean")
    order = model.order(key(2000))
    index = model.corruption(key(2000), order)
    rows = np.arange(2000)[:, None]
    own = np.broadcast_to(np.arange(16), index.shape)
    chosen, others = index[rows, order[:, :8]], index[rows, order[:, 8:]]
    assert_array_equal(others, own[rows, order[:, 8:]])
    shares = [(chosen == -1).mean(), (chosen == order[:, :8]).mean()]
    assert_allclose(shares, [0.8, 0.1], atol=0.01)
    another = (chosen != -1) & (chosen != order[:, :8])
    assert len(np.unique(chosen[another])) == 16


def test_colours_have_three_bits_a_channel() -> None:
    model = MaskedPatches(encoder(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
    colour = np.array([0.0, 0.51, 0.999])  # 0, 4 and 7 of 8
    pixels = np.tile((colour - model.mean) / model.std, (2, 3, 4))
    assert_array_equal(model.colours(pixels), np.full((2, 3), 0 * 64 + 4 * 8 + 7))
    outside = np.tile((np.array([-1.0, 2.0, 0.2]) - model.mean) / model.std, (1, 1, 4))
    assert_array_equal(model.colours(outside), [[0 * 64 + 7 * 8 + 1]])


def test_a_patch_made_small_has_sixteen_colours() -> None:
    model = MaskedPatches(encoder(img_size=16, patch_size=8, in_chans=1), "small", mean=(0.0,), std=(1.0,))
    patch = np.arange(64).reshape(8, 8) // 8 / 8 + 1e-9  # rows of one grey each, two to a part
    classes = model.colours(patch.reshape(1, 1, 64)).reshape(4, 4)
    assert_array_equal(classes, [[0] * 4, [2] * 4, [4] * 4, [6] * 4])
    assert model.head.weight.shape[1] == 16 * 8


@pytest.mark.parametrize("kind", ["MAE", "SimMIM"])
def test_a_prediction_does_not_see_what_it_predicts(kind: str) -> None:
    model, x = made(kind), images()
    seen: list[Array] = []
    last = model.decoder_pred if kind == "MAE" else model.head
    changed = x.copy()
    masked = model.order(model.key(key(3), x)[1])[:, : model.num_masked]
    for image, patches in zip(changed, masked, strict=True):
        for n in patches:
            row, column = divmod(int(n), 4)
            image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 9.0
    with last.register_forward_hook(lambda layer, x, y: seen.append(y.copy())):
        losses = [model.forward(some, key(3))[0] for some in (x, changed)]
    assert_array_equal(seen[0], seen[1])
    assert (losses[0] != losses[1]).all()


def test_mae_divides_pixels_by_the_unbiased_deviation() -> None:
    x, masks = images(), key(3)
    plain, normed = (MAE(encoder(), norm_pixels=norm).initialize(seed=1, dtype="float64") for norm in (False, True))
    for model in (plain, normed):
        model.decoder_pred.weight.value[...] = 0
    masked = plain.order(plain.key(masks, x)[1])[:, :12]
    pixels, _ = plain.pixels(x, masked, False)
    assert_allclose(plain.forward(x, masks)[0], (pixels**2).mean(axis=(1, 2)), rtol=1e-12)
    target = (pixels - pixels.mean(2, keepdims=True)) / np.sqrt(pixels.var(2, ddof=1, keepdims=True) + 1e-6)
    assert_allclose(normed.forward(x, masks)[0], (target**2).mean(axis=(1, 2)), rtol=1e-10)


def test_the_encoder_of_mae_computes_the_patches_that_it_sees() -> None:
    model, x = made("MAE", reg_tokens=2), images()
    sizes: list[int] = []
    with model.encoder.blocks[0].register_forward_hook(lambda layer, x, y: sizes.append(x.shape[1])):
        model.forward(x, key(3))
    assert sizes == [3 + 4]


@pytest.mark.parametrize(
    "fields", [{"class_token": False, "global_pool": "avg"}, {"pos_embed": "sincos_2d_mae"}], ids=str
)
@every_kind
def test_encoders_of_other_forms_are_trained(kind: str, fields: dict[str, Any]) -> None:
    model, x = made(kind, **fields), images()
    _, cache = model.forward(x, key(3))
    model.zero_grad()
    assert model.backward(np.ones(3), cache).shape == x.shape
    gradients = {name: np.abs(p.grad).max() for name, p in model.parameters.items()}
    unused = {name for name, size in gradients.items() if size == 0}
    assert unused <= {"encoder.fc_norm.weight", "encoder.fc_norm.bias"}


BAD: dict[str, tuple[Callable[[], Layer], str]] = {
    "no patches": (lambda: SimMIM(encoder(), 0.0), "ratio is 0.0; expected above 0 and below 1"),
    "all patches": (lambda: MAE(encoder(), 1.0), "ratio is 1.0"),
    "one patch": (lambda: MAE(encoder(patch_size=8)), "an image of one patch has nothing to predict it from"),
    "overlap": (lambda: SimMIM(encoder(patch_stride=1)), r"have a stride of \(1, 1\)"),
    "a target": (lambda: MaskedPatches(encoder(), "hog"), "target is 'hog'; expected one of mean, small, pixels"),
    "small parts": (lambda: MaskedPatches(encoder(), "small"), "patches of 2 x 2 pixels have no 4 x 4 equal parts"),
    "one number": (
        lambda: MAE(encoder(patch_size=1, in_chans=1, img_size=2), norm_pixels=True, decoder_dim=4),
        "a patch of one number has no variance",
    ),
    "fewer patches": (lambda: SimMIM(encoder(patch_drop_rate=0.5)), "patch_drop_rate is 0.5; expected 0"),
    "positions in blocks": (lambda: MAE(encoder(pos_embed_layers="each")), "adds the positions of all patches"),
    "relative positions": (lambda: MAE(encoder(pos_embed="relative")), "adds the positions of all patches"),
    "no sines": (lambda: MAE(encoder(embed_dim=12)), "decoder_dim is 6; expected a multiple of 4"),
    "no hidden layer": (lambda: MAE(encoder(), decoder_mlp=0), "decoder_mlp is 0"),
    "eps": (lambda: MAE(encoder(), eps=-1.0), "eps is -1.0; expected at least 0"),
    "one mean": (
        lambda: MaskedPatches(encoder(), mean=cast(Any, 0.5)),
        "mean is 0.5; expected a number for each channel",
    ),
    "two means": (lambda: MaskedPatches(encoder(), mean=(0.5, 0.5)), r"mean is \(0.5, 0.5\); expected a number for"),
    "no deviation": (lambda: MaskedPatches(encoder(), std=(0.0,)), "expected more than 0"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_trained_is_refused(bad: str) -> None:
    build, words = BAD[bad]
    with pytest.raises(ValueError, match=words):
        build()


def test_images_of_another_size_are_refused() -> None:
    for kind in MODELS:
        with pytest.raises((ValueError, TypeError), match=r"img_size|8"):
            made(kind).forward(images(side=6), key(3))


def test_the_layers_are_public() -> None:
    assert {layers.MAE, layers.SimMIM, layers.MaskedPatches} <= {MAE, SimMIM, MaskedPatches}
