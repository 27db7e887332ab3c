"""A folder with one folder of images for each class is a data set; the error messages name the faulty file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minivit.data import channel_statistics, load_dataset, read_images
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


def test_test_is_preferred_to_val(folder: Path) -> None:
    save(folder / "val" / "a" / "1.png")
    assert len(load_dataset(folder).test_images) == 2


def test_hidden_files_are_ignored(folder: Path) -> None:
    (folder / "train" / ".DS_Store").write_text("x")
    (folder / "train" / "a" / ".hidden.txt").write_text("x")
    assert len(load_dataset(folder).train_images) == 3


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
    (folder / "train").rename(folder / "training")


def no_test(folder: Path) -> None:
    (folder / "test").rename(folder / "exam")


def no_classes(folder: Path) -> None:
    (folder / "train").rename(folder / "old")
    (folder / "train").mkdir()


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


def sixteen_bits(folder: Path) -> None:
    Image.fromarray(np.full(SIZE, 40_000, np.uint16)).save(folder / "train" / "b" / "0.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_train, r"pets has no folder train/"),
        (no_test, r"pets has no folder test/ or val/"),
        (no_classes, r"train has no class folders"),
        (empty_class, r"class folder .*train.c is empty"),
        (other_classes, r"must have the same classes, but only one of them has: cats"),
        (add_file("train/notes.png"), r"notes\.png is not a folder"),
        (add_file("train/a/notes.txt"), r"notes\.txt is not an image"),
        (add_file("train/b/bad.png"), r"b.bad\.png cannot be read as an image"),
        (add_file("train/b/empty.jpg", b""), r"b.empty\.jpg cannot be read as an image"),
        (truncated, r"b.0\.png cannot be read as an image"),
        (truncated_jpeg, r"b.0\.jpg cannot be read as an image"),
        (other_size, r"b.0\.png is 7 x 5 pixels, but .*a.2\.png is 5 x 7; give an image size"),
        (sixteen_bits, r"b.0\.png cannot be read as an image: its pixels have the mode I"),
    ],
)
def test_the_error_names_the_fault(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_dataset(folder)


def test_an_image_size_of_zero_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="image size is 0 x 0"):
        load_dataset(folder, image_size=0)


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
