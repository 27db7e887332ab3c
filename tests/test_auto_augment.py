"""Strong augmentation: nothing at magnitude 0, nothing turns black, one image's result depends on its key alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from devices import nothing_crosses
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strict import strict

from minivit.arrays import to_backend, to_host
from minivit.ops.affine import affine, shear, translation
from minivit.ops.augment import random_crop
from minivit.ops.auto_augment import OPS, RAND, TRIVIAL, rand_augment, trivial_augment
from minivit.ops.color import brightness, color_jitter, equalize, saturation
from minivit.ops.erasing import erased, random_erasing
from minivit.ops.resized_crop import crop_resized, random_resized_crop
from minivit.random import Key

SHAPES = st.tuples(st.integers(1, 9), st.integers(2, 11), st.integers(2, 13), st.sampled_from([1, 3]))
SEEDS = st.integers(0, 2**31)
Images = NDArray[np.uint8]
RANDOM: dict[str, Callable[[Any, Key], Any]] = {
    "trivial": trivial_augment,
    "rand": lambda images, key: rand_augment(images, key, 2, 9),
    "jitter": lambda images, key: color_jitter(images, key, 0.8),
    "erasing": lambda images, key: random_erasing(images, key, 0.5),
    "resized crop": lambda images, key: random_resized_crop(images, key, (0.05, 1.0)),
    "padded crop": lambda images, key: random_crop(images, 1, key),
}
WITHOUT_MAGNITUDE = ("autocontrast", "equalize")


def images_of(shape: tuple[int, ...], seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def key_of(count: int, seed: int = 0, step: int = 0) -> Key:
    return Key(seed, step, np.arange(count))


@pytest.mark.parametrize("name", [name for name in OPS if name not in WITHOUT_MAGNITUDE])
@given(shape=SHAPES, seed=SEEDS)
def test_an_op_of_magnitude_0_changes_nothing(name: str, shape: tuple[int, ...], seed: int) -> None:
    images = images_of(shape, seed)
    for ranges in (TRIVIAL, RAND):
        np.testing.assert_array_equal(OPS[name](images, np.zeros(shape[0]), ranges), images)


@given(shape=SHAPES, seed=SEEDS)
def test_without_strength_nothing_changes(shape: tuple[int, ...], seed: int) -> None:
    images, key = images_of(shape, seed), key_of(shape[0], seed)
    for result in (
        trivial_augment(images, key, 0.0),
        rand_augment(images, key, 2, 9, 0.0),
        rand_augment(images, key, 0, 9),
        color_jitter(images, key, 0.0),
        random_erasing(images, key, 0.0),
        random_resized_crop(images, key, (1.0, 1.0)) if shape[1] == shape[2] == 2 else images,
    ):
        np.testing.assert_array_equal(result, images)


@pytest.mark.parametrize("name", RANDOM)
@given(shape=SHAPES, cut=st.integers(0, 9), seed=SEEDS, step=st.integers(0, 10**6))
def test_an_image_has_the_same_bits_in_any_micro_batch(
    name: str, shape: tuple[int, ...], cut: int, seed: int, step: int
) -> None:
    images = images_of(shape, seed)
    ids = np.random.default_rng(seed).permutation(1000)[: shape[0]]
    key = Key(seed, step, ids)
    whole = RANDOM[name](images, key)
    for part in (slice(0, cut), slice(cut, None)):
        if len(images[part]):
            np.testing.assert_array_equal(RANDOM[name](images[part], key[part]), whole[part])
    backwards = RANDOM[name](images[::-1], Key(seed, step, ids[::-1]))
    np.testing.assert_array_equal(backwards, whole[::-1])


@pytest.mark.parametrize("name", RANDOM)
@given(shape=SHAPES, seed=SEEDS, brightest=st.integers(1, 255), share=st.floats(0, 1))
def test_no_image_turns_black(name: str, shape: tuple[int, ...], seed: int, brightest: int, share: float) -> None:
    """Nor dark images, and those of which a few pixels alone are not black."""
    images = images_of(shape, seed) % (brightest + 1)
    images[np.random.default_rng(seed).random(shape) < share] = 0
    images[:, -1, -1] = brightest
    result = RANDOM[name](images, key_of(shape[0], seed))
    assert result.reshape(len(result), -1).any(axis=1).all()


@pytest.mark.parametrize("name", RANDOM)
@given(shape=SHAPES, seed=SEEDS)
def test_images_are_not_changed_in_place(name: str, shape: tuple[int, ...], seed: int) -> None:
    images = images_of(shape, seed)
    before = images.copy()
    result = RANDOM[name](images, key_of(shape[0], seed))
    np.testing.assert_array_equal(images, before)
    assert (result.dtype, result.shape) == (images.dtype, images.shape)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", RANDOM)
def test_a_device_computes_the_same_bits_without_waiting(name: str, channels: int) -> None:
    images = images_of((40, 9, 7, channels))
    expected = RANDOM[name](images, key_of(40, 5))
    assert (expected != images).any()
    resident, ids = to_backend(images, strict), to_backend(np.arange(40), strict)
    with nothing_crosses("strict"):
        made = RANDOM[name](resident, Key(5, 0, ids))
    np.testing.assert_array_equal(to_host(made), expected)


def test_each_op_is_drawn_for_about_as_many_images() -> None:
    """An op is recognised by its result for an image on which all differ; those without magnitude by one result."""
    count = 2800
    image = images_of((1, 24, 24, 3), 1)
    images = np.repeat(image, count, axis=0)
    results = trivial_augment(images, key_of(count))
    by_bytes: dict[bytes, str] = {}
    for name, function in OPS.items():
        for number in range(-30, 31):
            by_bytes.setdefault(function(image, np.array([number / 30]), TRIVIAL).tobytes(), name)
    counts = Counter(by_bytes[result.tobytes()] for result in results)
    assert abs(counts["equalize"] - count / 14) < 5 * 14  # five standard deviations
    assert abs(counts["autocontrast"] - count / 14) < 5 * 14
    for name in ("shear_x", "shear_y", "rotate", "brightness", "color", "contrast", "sharpness"):
        assert abs(counts[name] - count / 14 * 30 / 31) < 5 * 14, name  # of magnitude 0 they are the identity


def test_rand_augment_applies_several_ops_of_one_magnitude() -> None:
    images = np.repeat(images_of((1, 8, 8, 3)), 200, axis=0)
    one, two = (rand_augment(images, key_of(200), count, 9) for count in (1, 2))
    assert len(np.unique(one.reshape(200, -1), axis=0)) <= 14 + 9  # nine ops have a sign
    assert len(np.unique(two.reshape(200, -1), axis=0)) > 40


def test_half_the_strength_is_half_the_magnitude() -> None:
    images = np.repeat(images_of((1, 8, 8, 3)), 50, axis=0)
    half = rand_augment(images, key_of(50), 1, 10, strength=0.5)
    np.testing.assert_array_equal(half, rand_augment(images, key_of(50), 1, 5))


def test_a_translation_scales_with_the_image() -> None:
    """A third of an image of any size is a third of it: 10 pixels are 10 of 30."""
    images = np.arange(1, 91, dtype=np.uint8).reshape(1, 30, 3, 1).repeat(10, axis=2)
    moved = OPS["translate_x"](images, np.array([1.0]), TRIVIAL._replace(translate=1 / 3))
    np.testing.assert_array_equal(moved[:, :, 10:], images[:, :, :-10])
    assert not moved[:, :, :10].any()


def test_shears_and_translations_move_pixels_as_documented() -> None:
    image = np.zeros((1, 5, 5, 1), np.uint8)
    image[0, 2, 3] = 7
    one, zero = np.ones(1), np.zeros(1)
    for maps, place in (
        (translation(one, zero), (2, 4)),
        (translation(zero, one), (3, 3)),
        (shear(one, zero), (2, 0)),  # the middle of its row is at 2.5, and that of the column 0 at 0.5
        (shear(zero, 0.5 * one), (0, 3)),
        (translation(-one, -one), (1, 2)),
    ):
        [found] = np.argwhere(affine(image, maps)[0, :, :, 0]).tolist()
        assert tuple(found) == place


def test_equalized_values_are_spread_evenly() -> None:
    dark = (np.arange(16 * 255) % 16).reshape(1, 16, 255, 1).astype(np.uint8)
    np.testing.assert_array_equal(equalize(dark), 17 * dark)


def test_colours_are_weighted_as_by_rec_601() -> None:
    image = np.array([255, 0, 0, 0, 255, 0, 0, 0, 255], np.uint8).reshape(1, 1, 3, 3)
    grey = saturation(image, np.zeros(1))[0, 0]
    np.testing.assert_array_equal(grey, np.array([[76], [150], [29]]).repeat(3, axis=1))


def test_a_factor_multiplies_the_values() -> None:
    image = np.array([0, 10, 100, 200], np.uint8).reshape(1, 2, 2, 1)
    assert brightness(image, np.array([1.5])).ravel().tolist() == [0, 15, 150, 255]


@given(shape=SHAPES, seed=SEEDS)
def test_a_rectangle_of_one_colour_is_erased(shape: tuple[int, ...], seed: int) -> None:
    images = np.zeros(shape, np.uint8)
    images[:, 0, 0] = 1  # so that no image is black
    result = random_erasing(images, key_of(shape[0], seed), 1.0)
    for before, after in zip(images, result, strict=True):
        rows, columns = np.nonzero((before != after).any(axis=2))
        if len(rows) == 0:
            continue  # the colour was black
        box = after[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        colours = np.unique(box.reshape(-1, shape[3]), axis=0)
        assert len(colours) == 1 or (rows.min(), columns.min()) == (0, 0)


def test_the_erased_share_and_probability_are_as_asked() -> None:
    images = np.full((3000, 24, 24, 1), 77, np.uint8)
    changed = random_erasing(images, key_of(3000), 0.25) != 77
    some = changed.any(axis=(1, 2, 3))
    assert abs(some.mean() - 0.25) < 5 * 0.008
    share = changed[some].mean(axis=(1, 2, 3))
    assert share.max() < 0.36
    assert 0.14 < share.mean() < 0.2


def test_erased_rectangles_are_where_they_were_asked_for() -> None:
    result = erased(np.zeros((1, 4, 5, 1), np.uint8), np.array([[1, 2, 2, 3]]), np.array([[9]], np.uint8))
    expected = np.zeros((4, 5), np.uint8)
    expected[1:3, 2:5] = 9
    np.testing.assert_array_equal(result[0, :, :, 0], expected)


@given(shape=SHAPES, seed=SEEDS)
def test_the_whole_image_resized_to_its_size_is_the_image(shape: tuple[int, ...], seed: int) -> None:
    images = images_of(shape, seed)
    box = np.tile([[0, 0, *shape[1:3]]], (shape[0], 1))
    np.testing.assert_array_equal(crop_resized(images, box), images)


@given(seed=SEEDS)
def test_a_resized_crop_lies_within_the_image(seed: int) -> None:
    """Of an image whose values grow to the right and down, the crop's do, within the same bounds."""
    y, x = np.arange(12)[:, None], np.arange(10)
    images = np.repeat((10 * y + 10 * x).astype(np.uint8)[None, :, :, None], 8, axis=0)
    result = random_resized_crop(images, key_of(8, seed), (0.3, 0.9)).astype(int)
    assert (np.diff(result, axis=1) >= 0).all()
    assert (np.diff(result, axis=2) >= 0).all()
    assert result.max() <= 200
    assert (result[:, -1, -1] - result[:, 0, 0] > 20).all()
