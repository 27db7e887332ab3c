"""What a masked model reconstructs: the predictions in their places, the rest as it was, and a picture of both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from minivit import Key, RunError, ViTConfig
from minivit.arrays import Array
from minivit.nn.masked_patches import MaskedPatches
from minivit.nn.pretraining import masked_model
from minivit.nn.reconstruction import bin_centres, with_patches
from minivit.train.reconstructions import draw_reconstructions

FIELDS: dict[str, Any] = {"embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 0}
FORMS: dict[str, dict[str, Any]] = {
    "square": {"img_size": 16, "patch_size": 4},
    "wide": {"img_size": (8, 24), "patch_size": (4, 8), "in_chans": 1},
    "rows": {"img_size": (12, 8), "patch_size": (4, 8), "class_token": False, "global_pool": "avg"},
}
KINDS: dict[str, dict[str, Any]] = {
    "simmim": {"task": "simmim"},
    "mean": {"task": "mpp", "mean": (0.4,), "std": (0.25,)},
    "small": {"task": "mpp", "target": "small"},
    "pixels": {"task": "mpp", "target": "pixels"},
    "mae": {"task": "mae"},
    "norm": {"task": "mae", "norm_pixels": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_form = pytest.mark.parametrize("form", FORMS)


def made(kind: str, form: str = "square", **fields: Any) -> Any:
    config = ViTConfig(**{**FIELDS, **FORMS[form], **fields})
    return masked_model(config=config, seed=1, dtype="float64", **KINDS[kind])


def images(model: Any, count: int = 3) -> Array:
    config = model.config
    return np.random.default_rng(0).standard_normal((count, config.height, config.width, config.in_chans))


def constant(model: Any, bias: Any) -> Any:
    """Let the model predict `bias` (outputs,) of every patch."""
    head = model.decoder_pred if model.task == "mae" else model.head
    head.weight.value[...], head.bias.value[...] = 0, bias
    return model


def cut(model: Any, images: Array) -> Array:
    """Return the patches (B, N, P, Q, C) of images, by slices."""
    P, Q = model.config.patch_height, model.config.patch_width
    rows, columns = range(0, images.shape[1], P), range(0, images.shape[2], Q)
    return np.stack([images[:, i : i + P, j : j + Q] for i in rows for j in columns], axis=1)


def key(count: int) -> Key:
    return Key(3, 1, np.arange(count))


@every_form
@every_kind
def test_what_is_not_predicted_has_the_bits_of_the_image(kind: str, form: str) -> None:
    model = made(kind, form)
    x = images(model)
    before = x.copy()
    masked, predicted, marks = model.reconstruct(x, key(3))
    assert_array_equal(x, before)
    assert masked.shape == predicted.shape == x.shape
    assert masked.dtype == predicted.dtype == x.dtype
    assert marks.dtype == bool
    assert_array_equal(marks.sum(axis=1), 3 * [model.num_masked])
    true = cut(model, x)
    for found in (cut(model, masked), cut(model, predicted)):
        assert_array_equal(found[~marks], true[~marks])
        assert (found[marks] != true[marks]).any(axis=(1, 2, 3)).all()
    means = x.mean(axis=(1, 2))
    for image, some, mean in zip(cut(model, masked), marks, means, strict=True):
        assert_allclose(image[some], np.broadcast_to(mean, image[some].shape), rtol=1e-12)


@every_form
@pytest.mark.parametrize("rng", [None, key(3)], ids=["evaluation", "training"])
@pytest.mark.parametrize(("kind", "power"), [("simmim", 1), ("pixels", 2), ("mae", 2), ("norm", 2)])
def test_the_loss_of_a_reconstruction_is_that_of_the_forward_pass(
    kind: str, power: int, rng: Key | None, form: str
) -> None:
    model = made(kind, form, drop_path_rate=0.3)
    x = images(model)
    _, predicted, marks = model.reconstruct(x, rng)
    true = cut(model, x).reshape(*marks.shape, -1)
    error = np.abs(cut(model, predicted).reshape(true.shape) - true)
    if kind == "norm":
        error /= np.sqrt(true.var(axis=2, ddof=1, keepdims=True) + 1e-6)
    expected = (error**power).sum(axis=(1, 2)) / (marks.sum(axis=1) * true.shape[2])
    assert_allclose(expected, model.forward(x, rng)[0], rtol=1e-12)
    assert (marks == marks[0]).all() == (rng is None)


@every_kind
def test_an_image_has_its_reconstruction_whatever_is_beside_it(kind: str) -> None:
    model = made(kind)
    x = images(model)
    whole = model.reconstruct(x, key(3))
    alone = model.reconstruct(x[2:], Key(3, 1, np.arange(2, 3)))
    for both, one in zip(whole, alone, strict=True):
        assert_allclose(both[2:], one, rtol=1e-12)


@every_form
@every_kind
def test_a_model_that_predicts_the_target_reconstructs_the_image(kind: str, form: str) -> None:
    model = made(kind, form)
    config = model.config
    classes = np.array([1, 6, 3])[: config.in_chans]  # of 8 a channel
    colour = (classes + 0.5) / 8 - 0.4
    colour = colour / 0.25 if kind == "mean" else (colour - 0.1) / 0.5
    bias: Any = np.tile(colour, config.patch_height * config.patch_width)
    if kind == "norm":
        bias = (bias - bias.mean()) / np.sqrt(bias.var(ddof=1) + 1e-6)
    elif kind in ("mean", "small"):
        one = np.zeros(8**config.in_chans)
        one[int("".join(map(str, classes)), 8)] = 1
        bias = np.tile(one, 16 if kind == "small" else 1)
    x = np.tile(colour, (2, config.height, config.width, 1))
    assert_allclose(constant(model, bias).reconstruct(x).predicted, x, rtol=1e-13)


def test_normed_pixels_get_the_deviation_and_mean_of_the_true_patch() -> None:
    model = made("norm")
    bias = np.random.default_rng(1).standard_normal(48)
    x = images(model)
    _, predicted, marks = constant(model, bias).reconstruct(x, key(3))
    true, found = (cut(model, some).reshape(3, 16, 48) for some in (x, predicted))
    expected = bias * np.sqrt(true.var(axis=2, ddof=1, keepdims=True) + 1e-6) + true.mean(axis=2, keepdims=True)
    assert_allclose(found[marks], expected[marks], rtol=1e-12)


@pytest.mark.parametrize("C", [1, 3])
def test_the_colours_of_classes_are_the_centres_of_their_bins(C: int) -> None:
    classes = np.arange(8**C).reshape(1, -1)
    centres = bin_centres(classes, 8, C)
    assert_array_equal(centres[0, :2, -1], [1 / 16, 3 / 16])
    assert_array_equal(centres[0, -1], C * [15 / 16])
    assert_array_equal(centres[0, 8 ** (C - 1)], [3 / 16] + (C - 1) * [1 / 16])
    model: MaskedPatches = made("mean", in_chans=C)
    pixels = np.tile((centres - 0.4) / 0.25, (1, 1, 16))
    assert_array_equal(model.colours(pixels), classes)


def test_each_part_of_a_small_patch_gets_its_colour() -> None:
    model: Any = masked_model(
        "mpp", ViTConfig(**FIELDS, img_size=(8, 24), patch_size=(4, 8)),
        dtype="float64", target="small", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5),
    )  # fmt: skip
    classes = np.random.default_rng(2).integers(0, 512, (4, 4))
    found = constant(model, np.eye(512)[classes].reshape(-1)).reconstruct(images(model, 1))
    patch = cut(model, found.predicted)[found.is_predicted][0]
    for i, j in np.ndindex(4, 8):
        digits = [int(digit) for digit in f"{classes[i, j // 2]:03o}"]
        colour = [((digit + 0.5) / 8 - m) / s for digit, m, s in zip(digits, model.mean, model.std, strict=True)]
        assert_allclose(patch[i, j], colour, rtol=1e-12)


def test_patches_that_are_views_of_an_image_are_not_written_into_it() -> None:
    x = np.zeros((1, 4, 3, 2))
    y = with_patches(x, np.ones((1, 1, 12)), np.array([[1]]), (2, 3))
    assert_array_equal(y[:, :2], 0)
    assert_array_equal(y[:, 2:], 1)
    assert_array_equal(x, 0)


def photos(count: int, height: int, width: int, C: int = 3) -> Array:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, C), dtype=np.uint8)


def drawn(path: Path, task: str = "mae", count: int = 3, form: str = "square", **options: Any) -> Any:
    """Return the picture (height, width, 3) of a model's reconstructions."""
    model = masked_model(task, ViTConfig(**FIELDS, **FORMS[form]))
    config = model.config
    pixels = photos(count, config.height, config.width, config.in_chans)
    assert draw_reconstructions(model, pixels, path=path, **{"mean": (0.5,), "std": (0.25,), **options}) == str(path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def test_the_picture_has_three_rows_of_images(tmp_path: Path) -> None:
    picture = drawn(tmp_path / "new" / "picture.png", names=["a", "a name that is too long", "a $ and\n more"])
    assert 450 < picture.shape[0] < 650
    assert 450 < picture.shape[1] < 650
    colours = {tuple(map(int, colour)) for colour in picture.reshape(-1, 3)}
    original = {tuple(map(int, colour)) for colour in photos(3, 16, 16).reshape(-1, 3)}
    assert original <= colours
    grey = np.flatnonzero((picture == 128).all(axis=2).sum(axis=1) > 30)  # more than at the edges of letters
    assert len(picture) / 3 < grey.min() < grey.max() < 0.73 * len(picture)  # the second row of images


def test_eight_images_are_drawn_in_grey_or_wide(tmp_path: Path) -> None:
    many, more = (drawn(tmp_path / f"{count}.png", "simmim", count, "wide") for count in (8, 11))
    assert_array_equal(many, more)
    assert max(many.shape) < 1600
    assert_array_equal(drawn(tmp_path / "each.png", count=1), drawn(tmp_path / "all.png", count=1, std=(0.25,) * 3))


def test_predictions_that_are_not_finite_are_drawn(tmp_path: Path) -> None:
    model: Any = masked_model("simmim", ViTConfig(**FIELDS, **FORMS["square"]))
    constant(model, [np.nan, np.inf, -np.inf] * 16)
    path = tmp_path / "picture.png"
    assert draw_reconstructions(model, photos(2, 16, 16), (0.5,), (0.25,), path) == str(path)


def test_without_matplotlib_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model = masked_model("mae", ViTConfig(**FIELDS, **FORMS["square"]))
    assert draw_reconstructions(model, photos(2, 16, 16), (0.5,), (0.25,), tmp_path / "picture.png") is None
    assert not any(tmp_path.iterdir())


def test_a_picture_of_other_images_or_in_no_folder_is_refused(tmp_path: Path) -> None:
    model = masked_model("mae", ViTConfig(**FIELDS, **FORMS["square"]))
    with pytest.raises(ValueError, match="this model takes"):
        draw_reconstructions(model, photos(2, 8, 8), (0.5,), (0.25,), tmp_path / "picture.png")
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match="taken"):
        draw_reconstructions(model, photos(2, 16, 16), (0.5,), (0.25,), tmp_path / "taken" / "picture.png")
