"""A folder with one folder of images for each class is a data set; the error messages name the faulty file."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minivit.data import Dataset, channel_statistics, load_dataset, read, read_images, split_validation
from minivit.data.images import decode_file
from minivit.data.search import images_in
from minivit.errors import UserError

SIZE = (5, 7)  # height, width


def save(path: Path, seed: int = 0, *, grey: bool = False, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Write a random image and return its pixels, (height, width, C)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 1 if grey else 3), dtype=np.uint8)
    Image.fromarray(pixels[..., 0] if grey else pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes: "a" with one training image and "b" with two, and one test image of each."""
    names = ("train/b/1.png", "train/b/0.png", "train/a/2.png", "test/a/3.png", "test/b/4.png")
    for seed, name in enumerate(names):
        save(tmp_path / "pets" / name, seed)
    return tmp_path / "pets"


def test_classes_and_files_are_sorted_and_labelled(folder: Path) -> None:
    dataset = load_dataset(folder)
    assert dataset.name == "pets"
    assert dataset.class_names == ("a", "b")
    assert dataset.train_labels.tolist() == [0, 1, 1]
    assert dataset.test_labels.tolist() == [0, 1]
    for image, seed in zip([*dataset.train_images, *dataset.test_images], [2, 1, 0, 3, 4], strict=True):
        np.testing.assert_array_equal(image, np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    assert (dataset.mean, dataset.std) == channel_statistics(dataset.train_images)


def test_val_is_the_test_set_if_there_is_no_test(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    assert len(load_dataset(folder).test_images) == 2


def test_val_beside_test_is_the_validation_part(folder: Path) -> None:
    for name in ("a", "b"):
        save(folder / "val" / name / "1.png", seed=50)
    with pytest.warns(UserWarning, match="val holds the 2 validation images$"):
        dataset = load_dataset(folder)
    train, validation = split_validation(dataset, 0.5, seed=0)
    assert (dataset.train_labels[train].tolist(), dataset.train_labels[validation].tolist()) == ([0, 1, 1], [0, 1])
    assert (dataset.train_images[validation[0]] == dataset.train_images[validation[1]]).all()
    assert (dataset.mean, dataset.std) == channel_statistics(dataset.train_images[train])
    assert len(dataset.test_images) == 2


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "VAL", "Test"), ("training", "validation", "testing"), ("train", "dev", "test")],
)
def test_parts_may_have_other_names(folder: Path, train: str, val: str, test: str) -> None:
    shutil.copytree(folder / "test", folder / val)
    (folder / "train").rename(folder / train)
    (folder / "test").rename(folder / test)
    with pytest.warns(UserWarning, match="validation images"):
        dataset = load_dataset(folder)
    assert (len(dataset.train_images), len(dataset.test_images)) == (5, 2)


def test_stray_files_are_skipped_and_counted_in_one_line(folder: Path) -> None:
    strays = ("Thumbs.db", "a/desktop.ini", "a/.DS_Store", "a/notes.txt", "b/._0.png", "b/pictures.zip", "loose.png")
    for name in strays:
        (folder / "train" / name).write_bytes(b"x")
    save(folder / "train" / "a" / ".ipynb_checkpoints" / "2.png")
    save(folder / "train" / "__MACOSX" / "2.png")
    with pytest.warns(UserWarning, match=r"skipped files that are not images \(7\): .*, \.\.\.$") as said:
        assert len(load_dataset(folder).train_images) == 3
    assert len(said) == 1


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder a class, without parts: 10 images of cats and 7 of dogs, each with its number as its colour."""
    for name, count in (("cats", 10), ("dogs", 7)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (2, 2), i).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def shown(dataset: Dataset) -> list[tuple[int, int]]:
    return [
        (int(label), int(image[0, 0, 0])) for label, image in zip(dataset.test_labels, dataset.test_images, strict=True)
    ]


def test_folders_of_classes_are_split_in_a_way_that_is_said_and_depends_on_the_names_alone(photos: Path) -> None:
    with pytest.warns(UserWarning, match=r"photos has no test part: a fifth of each class.*14 training and 3 test"):
        dataset = load_dataset(photos)
    assert dataset.class_names == ("cats", "dogs")
    assert np.bincount(dataset.test_labels).tolist() == [2, 1]
    assert np.bincount(dataset.train_labels).tolist() == [8, 6]
    moved = photos.with_name("elsewhere") / "train"
    shutil.copytree(photos, moved)
    with pytest.warns(UserWarning, match="no test part"):
        again = load_dataset(moved.parent)
    assert shown(again) == shown(dataset)
    assert again.fingerprint() == dataset.fingerprint()


def test_a_folder_in_a_folder_of_its_name_and_images_in_subfolders_are_found(folder: Path, photos: Path) -> None:
    (folder.parent / "unpacked").mkdir()
    folder.rename(folder.parent / "unpacked" / "pets")
    assert len(load_dataset(folder.parent / "unpacked").train_images) == 3
    (photos / "cats" / "summer").mkdir()
    (photos / "cats" / "3.png").rename(photos / "cats" / "summer" / "3.png")
    (photos / "dogs" / "loop").symlink_to(photos)
    (photos / "dogs" / "loop").unlink()
    (photos / "dogs" / "loop").symlink_to(photos / "dogs")
    with pytest.warns(UserWarning, match="14 training and 3 test images"):
        load_dataset(photos)


def test_a_folder_with_many_links_to_it_is_read_once(tmp_path: Path) -> None:
    levels = [tmp_path / f"level{i}" for i in range(25)]  # 2**24 ways to the last
    for folder in levels:
        folder.mkdir()
        Image.new("RGB", (4, 4)).save(folder / f"{folder.name}.png")
    for folder, inner in pairwise(levels):
        (folder / "b").symlink_to(inner)
        (folder / "a").symlink_to(inner)
    (levels[-1] / "c").symlink_to(levels[0])
    names = [file.name for file in images_in(levels[0], [])]
    assert names == sorted("a/" * i + f"level{i}.png" for i in range(25))


def test_a_class_of_vehicles_called_train_is_a_class(photos: Path) -> None:
    (photos / "dogs").rename(photos / "train")
    with pytest.warns(UserWarning, match="no test part"):
        assert load_dataset(photos).class_names == ("cats", "train")


def test_a_test_part_without_labels_is_not_used_and_that_is_said(folder: Path, photos: Path) -> None:
    shutil.rmtree(folder / "test")
    save(folder / "test" / "1.png")
    shutil.copytree(photos, folder / "train", dirs_exist_ok=True)
    for name in ("a", "b"):
        shutil.rmtree(folder / "train" / name)
    with (
        pytest.warns(UserWarning, match="test has images, but no class folders, so it is not used"),
        pytest.warns(UserWarning, match="no test part: a fifth"),
    ):
        assert len(load_dataset(folder).test_images) == 3


def test_ctrl_c_ends_the_reading_of_images_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def slow(*args: Any) -> Any:
        decoded.append(args[0])
        time.sleep(0.001)
        return decode_file(*args)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(read, "decode_file", slow)
    with pytest.raises(KeyboardInterrupt):
        read_images([folder / "test" / "a" / "3.png"] * 5000, progress=interrupt)
    assert len(decoded) < 1000


def test_a_class_alone_is_said(photos: Path) -> None:
    shutil.rmtree(photos / "dogs")
    with (
        pytest.warns(UserWarning, match="no test part"),
        pytest.warns(
            UserWarning, match="photos has one class alone, cats: every answer is right, so nothing is learnt"
        ),
    ):
        load_dataset(photos)


def test_a_class_missing_from_the_test_part_is_said(folder: Path) -> None:
    shutil.rmtree(folder / "test" / "a")
    with pytest.warns(UserWarning, match=r"test has no images of classes of .*train \(1\): a"):
        assert load_dataset(folder).test_labels.tolist() == [1]


def test_unreadable_images_are_all_named_or_left_out(photos: Path) -> None:
    for i in range(7):
        (photos / "cats" / f"{i}.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="no test part"), pytest.raises(UserError) as refused:
        load_dataset(photos)
    message = str(refused.value)
    assert message.startswith("7 images cannot be read")
    assert message.count("cannot be read as an image") == 5
    assert message.endswith("and 2 more, or leave them out with --skip-bad (skip_bad=True)")
    with (
        pytest.warns(UserWarning, match="no test part"),
        pytest.warns(UserWarning, match=r"left out images that cannot be read \(7\): ") as said,
    ):
        dataset = load_dataset(photos, skip_bad=True)
    assert len(said) == 2
    assert len(dataset.train_images) + len(dataset.test_images) == 10
    assert not (dataset.train_images[dataset.train_labels == 0] < 7).any()


def test_two_unicode_forms_of_a_name_are_one_class(folder: Path) -> None:
    (folder / "train" / "a").rename(folder / "train" / "cafe\u0301")
    (folder / "test" / "a").rename(folder / "test" / "caf\u00e9")
    assert load_dataset(folder).class_names == ("b", "caf\u00e9")
    save(folder / "train" / "caf\u00e9" / "0.png")
    assert load_dataset(folder).train_labels.tolist() == [0, 0, 1, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names of any bytes")
def test_names_of_any_bytes_and_characters_are_read(folder: Path) -> None:
    names = [b"caf\xe9", b"[a-z]*?", b"-x\n\x1b[2J", b"100% {}"]
    for name in names:
        for part in ("train", "test"):
            shutil.copytree(folder / part / "a", folder / part / os.fsdecode(name))
    save(folder / "train" / "a" / os.fsdecode(b"[\xff]*.png"))
    dataset = load_dataset(folder)
    assert set(dataset.class_names) == {"a", "b", "caf\\xe9", "[a-z]*?", "-x\n\x1b[2J", "100% {}"}
    assert len(dataset.train_images) == 3 + len(names) + 1
    "".join(dataset.class_names).encode()


@pytest.mark.parametrize("ending", ["jfif", "JPG", "jpe", "webp", "bmp", "tif", "gif", "pbm", "avif"])
def test_images_of_every_ending_are_read(folder: Path, ending: str) -> None:
    kind = {"jfif": "JPEG", "JPG": "JPEG", "jpe": "JPEG", "tif": "TIFF", "pbm": "PPM"}.get(ending, ending.upper())
    Image.new("1" if ending == "pbm" else "RGB", (7, 5)).save(folder / "train" / "a" / f"x.{ending}", format=kind)
    assert len(load_dataset(folder).train_images) == 4


def test_photos_keep_their_proportions(folder: Path) -> None:
    wide = Image.new("RGB", (60, 20), (0, 0, 255))
    wide.paste((255, 0, 0), (20, 0, 40, 20))
    wide.save(folder / "train" / "a" / "2.png")
    assert (load_dataset(folder, image_size=8).train_images[0, :, 1:-1] == [255, 0, 0]).all()
    squashed = load_dataset(folder, image_size=8, fit="squash").train_images[0]
    assert (squashed[:, 0] == [0, 0, 255]).all()


def test_grey_images_have_one_channel_if_all_are_grey(folder: Path) -> None:
    greys = [save(path, grey=True) for path in sorted(folder.glob("*/*/*.png"))]
    images = load_dataset(folder).train_images
    assert images.shape == (3, *SIZE, 1)
    np.testing.assert_array_equal(images[0], greys[0])


def test_all_images_become_rgb_if_one_is_in_colour(folder: Path) -> None:
    grey = save(folder / "train" / "a" / "2.png", grey=True)
    images = load_dataset(folder).train_images
    assert images.shape == (3, *SIZE, 3)
    np.testing.assert_array_equal(images[0], np.repeat(grey, 3, axis=2))


def test_images_with_a_palette_or_transparency_become_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (7, 5), (255, 0, 0))
    red.quantize(4).save(tmp_path / "palette.png")
    red.convert("RGBA").save(tmp_path / "alpha.png")
    images = read_images([tmp_path / "palette.png", tmp_path / "alpha.png"])
    assert images.shape == (2, *SIZE, 3)
    assert (images == [255, 0, 0]).all()


def test_images_are_converted_to_the_given_channels(tmp_path: Path) -> None:
    save(tmp_path / "colour.png")
    grey = save(tmp_path / "grey.png", grey=True)
    files = [tmp_path / "colour.png", tmp_path / "grey.png"]
    assert read_images(files, channels=1).shape == (2, *SIZE, 1)
    as_rgb = read_images([tmp_path / "grey.png"], channels=3)
    np.testing.assert_array_equal(as_rgb[0], np.repeat(grey, 3, axis=2))


def test_images_are_resized_when_a_size_is_given(folder: Path) -> None:
    save(folder / "train" / "a" / "9.png", size=(40, 30))
    assert load_dataset(folder, image_size=(6, 4)).train_images.shape == (4, 6, 4, 3)
    assert load_dataset(folder, image_size=8).test_images.shape == (2, 8, 8, 3)


def test_an_image_of_the_given_size_is_not_changed(folder: Path) -> None:
    images = load_dataset(folder, image_size=SIZE).train_images
    np.testing.assert_array_equal(images, load_dataset(folder).train_images)


def test_resizing_keeps_areas_of_one_colour_in_place(tmp_path: Path) -> None:
    halves = Image.new("RGB", (40, 40), (10, 20, 30))
    halves.paste((200, 100, 50), (20, 0, 40, 40))
    halves.save(tmp_path / "halves.png")
    image = read_images([tmp_path / "halves.png"], image_size=8)[0]
    assert (image[:, :2] == [10, 20, 30]).all()
    assert (image[:, -2:] == [200, 100, 50]).all()


def test_many_files_keep_their_order_and_report_progress(tmp_path: Path) -> None:
    files = [tmp_path / f"{i:03}.png" for i in range(100)]
    for i, file in enumerate(files):
        Image.new("L", (2, 2), i).save(file)
    seen: list[tuple[str, int, int]] = []
    images = read_images(files, progress=lambda *now: seen.append(now))
    assert images[:, 0, 0, 0].tolist() == list(range(100))
    assert [what for what, _, _ in seen] == ["reading images"] * len(seen)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1:] == (100, 100)


def add_file(name: str, content: bytes = b"x") -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return add


def empty_class(folder: Path) -> None:
    (folder / "train" / "c").mkdir()


def no_train(folder: Path) -> None:
    (folder / "train").rename(folder / "old")


def two_trains(folder: Path) -> None:
    (folder / "Training").mkdir()


def no_classes(folder: Path) -> None:
    (folder / "train").rename(folder / "old")
    (folder / "train").mkdir()


def images_in_parts(folder: Path) -> None:
    for part in ("train", "test"):
        shutil.rmtree(folder / part)
        save(folder / part / "1.png")


def a_level_too_many(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part).rename(folder / "images")
        (folder / part).mkdir()
        (folder / "images").rename(folder / part / "images")


def two_levels_too_many(folder: Path) -> None:
    a_level_too_many(folder)
    for part in ("train", "test"):
        (folder / part / "2024").mkdir()
        (folder / part / "images").rename(folder / part / "2024" / "images")


def one_image_each(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    (folder / "train" / "b" / "0.png").unlink()


def other_classes(folder: Path) -> None:
    save(folder / "test" / "cats" / "1.png")


def other_size(folder: Path) -> None:
    save(folder / "train" / "b" / "0.png", size=(7, 5))
    save(folder / "train" / "b" / "1.png", size=(9, 9))


def truncated(folder: Path) -> None:
    file = folder / "train" / "b" / "0.png"
    file.write_bytes(file.read_bytes()[:-40])


def truncated_jpeg(folder: Path) -> None:
    save(folder / "train" / "b" / "0.jpg", size=(64, 64))
    file = folder / "train" / "b" / "0.jpg"
    file.write_bytes(file.read_bytes()[:900])


def floats(folder: Path) -> None:
    Image.fromarray(np.full(SIZE, 0.5, np.float32)).save(folder / "train" / "b" / "0.tif")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_train, r"pets has test/, but no train/"),
        (two_trains, r"pets has (train/ and Training/|Training/ and train/); expected one of them"),
        (images_in_parts, r"train has no class folders"),
        (a_level_too_many, r"train holds one class alone, images, with folders in it \(2\): a, b: a folder level too"),
        (two_levels_too_many, r"class alone, 2024, with folders in it \(2\): a, b: .*, not in .*train.2024.images"),
        (one_image_each, r"train has one image in each class; expected two or more"),
        (no_classes, r"train has no class folders"),
        (empty_class, r"class folder .*train.c has no images"),
        (other_classes, r"must have the same classes, but only one of them has: cats"),
        (add_file("train/b/bad.png"), r"b.bad\.png cannot be read as an image"),
        (add_file("train/b/empty.jpg", b""), r"b.empty\.jpg cannot be read as an image"),
        (truncated, r"b.0\.png cannot be read as an image"),
        (truncated_jpeg, r"b.0\.jpg cannot be read as an image"),
        (other_size, r"b.0\.png is 7 x 5 pixels, but .*a.2\.png is 5 x 7; give an image size"),
        (floats, r"b.0\.tif cannot be read as an image: its pixels are floats; save it with 8 or 16 bits"),
    ],
)
def test_the_error_names_the_fault(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_dataset(folder)


@pytest.mark.parametrize("size", [0, (8, 0), (8, 8, 8), 8.5, "8"])
def test_what_is_no_image_size_is_refused(folder: Path, size: Any) -> None:
    with pytest.raises(UserError, match=r"image_size is .*; expected pixels, one whole number or"):
        load_dataset(folder, image_size=size)


def test_an_image_size_may_be_a_list_or_a_number_of_numpy(folder: Path) -> None:
    sizes: list[Any] = [[6, 4], (np.int64(6), 4)]
    for size in sizes:
        assert load_dataset(folder, image_size=size).train_images.shape[1:] == (6, 4, 3)
    assert load_dataset(folder, image_size=np.int64(8)).train_images.shape[1:] == (8, 8, 3)  # type: ignore[arg-type]  # no int


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png cannot be read as an image"):
        read_images([tmp_path / "gone.png"])


def test_an_empty_list_of_images_is_refused() -> None:
    with pytest.raises(UserError, match="no image files"):
        read_images([])


def test_a_folder_of_images_can_replace_cifar10(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "cifar10-jpeg")
    dataset = load_dataset("cifar10", data_dir=tmp_path, download=False)
    assert dataset.name == "cifar10-jpeg"
    assert len(dataset.train_images) == 3
    (tmp_path / "cifar10-jpeg").rename(tmp_path / "unpacked")
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "unpacked").rename(tmp_path / "cifar10" / "unpacked")
    assert load_dataset("cifar10", data_dir=tmp_path, download=False).fingerprint() == dataset.fingerprint()
