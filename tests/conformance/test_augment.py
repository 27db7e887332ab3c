"""Augmentation of images with given parameters is that of torchvision, on Pillow's images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from minivit.ops import affine as geometry
from minivit.ops import color
from minivit.ops.augment import random_crop, random_flip
from minivit.ops.auto_augment import OPS, RAND, TRIVIAL, Ranges
from minivit.ops.erasing import erased
from minivit.ops.mixing import cutmix, mixed_targets, mixup
from minivit.ops.resized_crop import crop_resized
from minivit.random import Key

from .torchvision_operators import import_torchvision

pytestmark = pytest.mark.conformance

FACTORS = [0.01, 0.3, 0.77, 1.0, 1.2, 1.99]
SHAPES = [(32, 32, 3), (17, 24, 3), (8, 8, 1)]


@pytest.fixture(scope="module")
def functional(torch: Any) -> Any:
    import_torchvision()
    from torchvision.transforms import functional

    return functional


def image_of(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return smooth waves and noise, with values from 0 to 255."""
    height, width, C = shape
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(C), indexing="ij")
    noise = np.random.default_rng(0).normal(0, 20, shape)
    waves: NDArray[np.uint8] = np.clip(110 + 90 * np.sin(x / 5 + c) * np.cos(y / 4) + noise, 0, 255).astype(np.uint8)
    return waves


def pillow(image: NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def same(mine: NDArray[np.uint8], theirs: Any) -> None:
    np.testing.assert_array_equal(mine[0], np.asarray(theirs).reshape(mine[0].shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
def test_factors(functional: Any, name: str, factor: float, shape: tuple[int, ...]) -> None:
    image = image_of(shape)
    theirs = getattr(functional, f"adjust_{name}")(pillow(image), factor)
    same(getattr(color, name)(image[None], np.array([factor])), theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_tables(functional: Any, shape: tuple[int, ...]) -> None:
    image = image_of(shape)
    few = image // 90 * 90
    for given in (image, few, np.full_like(image, 37)):
        same(color.autocontrast(given[None]), functional.autocontrast(pillow(given)))
        same(color.equalize(given[None]), functional.equalize(pillow(given)))
        for bits in (2, 5, 8):
            same(color.posterize(given[None], np.array([bits])), functional.posterize(pillow(given), bits))
        for threshold in (0.0, 100.5, 255.0):
            same(color.solarize(given[None], np.array([threshold])), functional.solarize(pillow(given), threshold))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("angle", [-135.0, -31.5, 0.0, 4.5, 90.0, 121.5])
def test_rotation(functional: Any, angle: float, shape: tuple[int, ...]) -> None:
    image = image_of(shape)
    if angle == 90.0 and shape[0] != shape[1]:
        return  # Pillow transposes squares alone
    same(geometry.affine(image[None], geometry.rotation(np.array([angle]), *shape[:2])),
         functional.rotate(pillow(image), angle))  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pixels", [-7, 0, 3])
def test_translation(functional: Any, pixels: int, shape: tuple[int, ...]) -> None:
    image, number, zero = image_of(shape), np.array([float(pixels)]), np.zeros(1)
    for mine, theirs in (((number, zero), [pixels, 0]), ((zero, number), [0, pixels])):
        moved = functional.affine(pillow(image), angle=0.0, translate=theirs, scale=1.0, shear=[0.0, 0.0])
        same(geometry.affine(image[None], geometry.translation(*mine)), moved)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [TRIVIAL, RAND])
@pytest.mark.parametrize("name", [name for name in OPS if name not in ("translate_x", "translate_y", "identity")])
def test_an_op_of_a_magnitude(functional: Any, name: str, kind: Ranges, shape: tuple[int, ...]) -> None:
    """The parameters come from the tables of torchvision's classes; translations have ranges of their own.

    Theirs are rounded to float32, which changes a value by 1 here and there. At 0 torchvision inverts white.
    """
    from torchvision.transforms import RandAugment, TrivialAugmentWide
    from torchvision.transforms.autoaugment import _apply_op

    image = np.minimum(image_of(shape), 254)
    if kind is TRIVIAL:
        space = TrivialAugmentWide()._augmentation_space(31)
    else:
        space = RandAugment()._augmentation_space(31, shape[:2])
    theirs = {words.lower().replace("shear", "shear_"): words for words in space}[name]
    sizes, signed = space[theirs]
    for number in (0, 3, 9, 22, 30):
        for sign in (1.0, -1.0) if signed else (1.0,):
            size = float(sizes[number]) if sizes.ndim else 0.0
            expected = _apply_op(pillow(image), theirs, sign * size, functional.InterpolationMode.NEAREST, None)
            mine = OPS[name](image[None], np.array([sign * number / 30]), kind)
            difference = mine[0].astype(int) - np.asarray(expected).reshape(shape)
            assert np.abs(difference).max() <= (1 if signed else 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("box", [(0, 0, 8, 8), (3, 1, 5, 6), (2, 3, 1, 4), (1, 0, 7, 3)])
def test_resized_crop(torch: Any, functional: Any, box: tuple[int, int, int, int], shape: tuple[int, ...]) -> None:
    image = image_of(shape)
    given = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float64))
    theirs = functional.resized_crop(given, *box, size=shape[:2], antialias=False).numpy().transpose(1, 2, 0)
    mine = crop_resized(image[None], np.array([box]))[0]
    assert np.abs(mine - theirs).max() <= 0.5 + 1e-3  # theirs are not rounded


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("box", [(0, 0, 8, 8), (3, 1, 5, 6), (7, 2, 1, 4)])
def test_erasing(torch: Any, functional: Any, box: tuple[int, int, int, int], shape: tuple[int, ...]) -> None:
    image, fill = image_of(shape), np.array([5, 100, 250], np.uint8)[: shape[2]]
    given = torch.from_numpy(image.transpose(2, 0, 1).copy())
    theirs = functional.erase(given, *box, torch.from_numpy(fill)[:, None, None]).numpy().transpose(1, 2, 0)
    same(erased(image[None], np.array([box]), fill[None]), theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_padded_crop_is_one_of_theirs(functional: Any, shape: tuple[int, ...]) -> None:
    (height, width, _), padding, count = shape, 3, 200
    image = image_of(shape)
    padded = functional.pad(pillow(image), padding)
    places = [(top, left) for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
    theirs = {np.asarray(functional.crop(padded, *place, height, width)).tobytes(): place for place in places}
    crops = random_crop(np.repeat(image[None], count, axis=0), padding, Key(0, 0, np.arange(count)))
    found = [theirs[crop.tobytes()] for crop in crops]
    assert {top for top, _ in found} == {left for _, left in found} == set(range(2 * padding + 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flipped_image_is_theirs(functional: Any, shape: tuple[int, ...]) -> None:
    image = image_of(shape)
    flipped = random_flip(np.repeat(image[None], 20, axis=0), Key(0, 0, np.arange(20)))
    mirrored = np.asarray(functional.hflip(pillow(image))).reshape(shape)
    assert {each.tobytes() for each in flipped} == {image.tobytes(), mirrored.tobytes()}


@pytest.mark.parametrize("shape", SHAPES)
def test_mixed_batches_and_their_targets(torch: Any, functional: Any, shape: tuple[int, ...]) -> None:
    """Two images, of which each is the other's partner in both programs."""
    from torchvision.transforms.v2 import CutMix, MixUp

    images = np.stack([image_of(shape), image_of(shape)[::-1]]).astype(np.float64)
    labels, (top, bottom, left, right) = np.array([2, 0]), (1, 6, 2, 5)
    share = 1 - (bottom - top) * (right - left) / (shape[0] * shape[1])
    given, of_given = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)
    both = {"labels": of_given, "batch_size": 2}
    cut = {**both, "box": (left, top, right, bottom), "lam_adjusted": share}
    for theirs, parameters, mine in (
        (MixUp(num_classes=3), {**both, "lam": share}, mixup(images, share)),
        (CutMix(num_classes=3), cut, cutmix(images, (top, bottom, left, right))),
    ):
        np.testing.assert_allclose(mine, theirs.transform(given, parameters).numpy().transpose(0, 2, 3, 1), rtol=1e-12)
        targets = theirs.transform(of_given, parameters).numpy()
        np.testing.assert_allclose(mixed_targets(labels, 3, share, np.float64), targets, rtol=1e-6)
