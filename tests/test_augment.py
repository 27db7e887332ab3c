"""Augmentation shifts and flips images as documented, depends on each sample's key only, and keeps the dtype."""

from typing import Any

import numpy as np
import pytest
from devices import nothing_crosses
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strict import strict

from minivit.arrays import library_name, to_backend, to_host
from minivit.data import augment, channel_statistics, normalize, random_crop, random_flip
from minivit.ops.augment import channel_scale, training_images
from minivit.random import Key

SHAPES = st.tuples(st.integers(1, 7), st.integers(2, 11), st.integers(2, 13), st.integers(1, 3))
SEEDS = st.integers(0, 2**31)


def random_images(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def key_of(count: int, seed: int = 0, step: int = 0) -> Key:
    return Key(seed, step, np.arange(count))


def shifts_of(cropped: NDArray[np.uint8], image: NDArray[np.uint8], padding: int) -> list[tuple[int, int]]:
    """Return every (row, column) at which `cropped` is a slice of the padded `image`."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    places = [(row, column) for row in range(2 * padding + 1) for column in range(2 * padding + 1)]
    return [(r, c) for r, c in places if (padded[r : r + height, c : c + width] == cropped).all()]


@given(shape=SHAPES, padding=st.integers(0, 5), seed=SEEDS)
def test_a_crop_is_a_slice_of_the_padded_image(shape: tuple[int, ...], padding: int, seed: int) -> None:
    padding = min(padding, shape[1] - 1, shape[2] - 1)
    images = random_images(shape)
    cropped = random_crop(images, padding, key_of(shape[0], seed))
    assert cropped.shape == shape
    assert cropped.dtype == np.uint8
    for image, result in zip(images, cropped, strict=True):
        assert shifts_of(result, image, padding)
        assert result.any(), "a crop must contain a part of the image"


def test_every_shift_is_about_equally_likely() -> None:
    image = random_images((1, 6, 6, 1))
    cropped = random_crop(np.repeat(image, 5000, axis=0), 2, key_of(5000))
    counts = np.zeros((5, 5), int)
    for result in cropped:
        [(row, column)] = shifts_of(result, image[0], 2)
        counts[row, column] += 1
    assert np.abs(counts - 200).max() < 5 * 14  # five standard deviations of a binomial count


def test_shifts_differ_between_samples_and_between_steps() -> None:
    images = np.repeat(random_images((1, 8, 8, 1)), 64, axis=0)
    first, second = (random_crop(images, 4, key_of(64, step=step)) for step in (0, 1))
    assert len(np.unique(first.reshape(64, -1), axis=0)) > 30
    assert (first != second).any(axis=(1, 2, 3)).mean() > 0.9


def test_a_crop_without_padding_changes_nothing() -> None:
    images = random_images((3, 4, 5, 3))
    np.testing.assert_array_equal(random_crop(images, 0, key_of(3)), images)


@pytest.mark.parametrize("padding", [-1, 4, 100])
def test_a_padding_as_large_as_the_image_is_refused(padding: int) -> None:
    with pytest.raises(ValueError, match=f"padding is {padding} for images of 4 x 7; expected 0 to 3"):
        random_crop(random_images((2, 4, 7, 1)), padding, key_of(2))


@given(shape=SHAPES, seed=SEEDS)
def test_a_flip_mirrors_some_images_and_is_its_own_inverse(shape: tuple[int, ...], seed: int) -> None:
    images, key = random_images(shape), key_of(shape[0], seed)
    flipped = random_flip(images, key)
    for image, result in zip(images, flipped, strict=True):
        assert (result == image).all() or (result == image[:, ::-1]).all()
    np.testing.assert_array_equal(random_flip(flipped, key), images)


def test_about_half_of_the_images_are_flipped() -> None:
    images = np.tile(np.array([1, 2], np.uint8)[None, None, :, None], (4000, 1, 1, 1))
    share = (random_flip(images, key_of(4000))[:, 0, 0, 0] == 2).mean()
    assert abs(share - 0.5) < 5 * 0.008  # five standard deviations


def test_crop_and_flip_are_independent() -> None:
    image = random_images((1, 4, 4, 1))
    counts = np.zeros((3, 3, 2), int)
    for result in augment(np.repeat(image, 3600, axis=0), key_of(3600), crop_padding=1, flip=True):
        [(row, column, flipped)] = [
            (*shift, flipped)
            for flipped, candidate in enumerate((result, result[:, ::-1]))
            for shift in shifts_of(candidate, image[0], 1)
        ]
        counts[row, column, flipped] += 1
    assert np.abs(counts - 200).max() < 5 * 14  # five standard deviations of a binomial count


@given(shape=SHAPES, cut=st.integers(0, 7), seed=SEEDS, step=st.integers(0, 10**6))
def test_augmentation_is_the_same_in_any_micro_batch(shape: tuple[int, ...], cut: int, seed: int, step: int) -> None:
    images = random_images(shape)
    ids = np.random.default_rng(seed).permutation(1000)[: shape[0]]
    key = Key(seed, step, ids)
    whole = augment(images, key, crop_padding=1, flip=True)
    for part in (slice(0, cut), slice(cut, None)):
        if len(images[part]):
            np.testing.assert_array_equal(augment(images[part], key[part], crop_padding=1, flip=True), whole[part])
    backwards = Key(seed, step, ids[::-1])
    np.testing.assert_array_equal(augment(images[::-1], backwards, crop_padding=1, flip=True), whole[::-1])


def test_without_crop_and_flip_the_images_are_returned_unchanged() -> None:
    images = random_images((5, 4, 4, 3))
    assert augment(images, key_of(5), crop_padding=0, flip=False) is images


@given(shape=SHAPES, dtype=st.sampled_from([np.uint8, np.float32, np.float64]))
def test_arguments_are_not_changed_and_the_dtype_stays(shape: tuple[int, ...], dtype: Any) -> None:
    images = random_images(shape).astype(dtype)
    before = images.copy()
    assert augment(images, key_of(shape[0]), crop_padding=1, flip=True).dtype == dtype
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-14)])
def test_normalisation_follows_its_formula(dtype: Any, tolerance: float) -> None:
    images = random_images((3, 5, 7, 3))
    mean, std = (0.49, 0.5, 0.1), (0.25, 0.2, 0.5)
    result = normalize(images, mean, std, dtype)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, (images / 255 - mean) / std, atol=tolerance, rtol=0)


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    images = random_images((200, 4, 4, 2))
    result = normalize(images, *channel_statistics(images), np.float64)
    np.testing.assert_allclose(result.mean(axis=(0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(result.std(axis=(0, 1, 2)), 1, rtol=1e-12)


@pytest.mark.parametrize(("crop_padding", "flip"), [(0, False), (2, False), (0, True), (2, True)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.usefixtures("computed")
def test_training_images_have_the_same_bits_on_every_backend(crop_padding: int, flip: bool, dtype: str) -> None:
    images = random_images((11, 5, 7, 3))
    mean, std = (0.49, 0.5, 0.1), (0.25, 0.2, 0.5)
    key = Key(3, 5, np.array([7, 0, 10, 7]))
    expected = augment(images[key.sample_ids], key, crop_padding=crop_padding, flip=flip)
    expected = normalize(expected, mean, std, np.float32).astype(dtype)
    for library in (np, strict):
        device_key = Key(3, 5, to_backend(key.sample_ids, library))
        scale, shift = channel_scale(mean, std, "float32", library)
        resident = to_backend(images, library)
        with nothing_crosses(library_name(library)):
            made = training_images(
                resident, device_key, crop_padding=crop_padding, flip=flip, scale=scale, shift=shift, dtype=dtype
            )
        assert made.dtype == dtype
        np.testing.assert_array_equal(to_host(made), expected)


def test_only_uint8_is_normalised() -> None:
    with pytest.raises(TypeError, match="images of float32; expected uint8"):
        normalize(np.zeros((1, 2, 2, 1), np.float32), (0.5,), (0.5,), np.float32)


def test_normalisation_needs_a_mean_and_a_std_for_each_channel() -> None:
    with pytest.raises(ValueError, match="images have 1 channels, but mean has 3 and std 3 numbers"):
        normalize(random_images((1, 2, 2, 1)), (0.5,) * 3, (0.5,) * 3, np.float32)
