"""Images without labels, for pre-training: any folder of images is a data set; one with classes keeps its parts."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY, Minivit, assert_refused
from numpy.testing import assert_array_equal
from photo_folder import COUNTS, DECODING, make_photos, save

from minivit import create_model, save_model
from minivit.cli.common import open_dataset
from minivit.cli.terminal import Terminal
from minivit.data import Dataset, cache, folder, load_dataset
from minivit.data.dataset import UNLABELLED
from minivit.data.images import Decoding
from minivit.data.on_demand import as_on_demand
from minivit.data.prepared import prepare_folder
from minivit.errors import UserError

SPLIT = "pets has no test part: one image in 20, chosen by a checksum of the file names, is used as one"


def fill(path: Path, names: Iterable[str]) -> Path:
    """Write an image of one colour, its number in the list, under each name, and return the folder."""
    for number, name in enumerate(names):
        save(path / f"{name}.png", np.full((4, 5, 3), number, np.uint8))
    return path


def of(where: str, count: int) -> list[str]:
    """Return the names of images in a folder."""
    return [f"{where}/{i}" if where else str(i) for i in range(count)]


def shown(images: np.ndarray) -> list[int]:
    return sorted(np.asarray(images)[:, 0, 0, 0].tolist())


def parts(dataset: Dataset) -> tuple[list[int], list[int], list[int]]:
    """Return the numbers of the images for training, for validation and for tests."""
    index = dataset.validation_index if dataset.validation_index is not None else np.zeros(0, np.int64)
    trained = np.delete(np.arange(len(dataset.train_images)), index)
    return shown(dataset.train_images[trained]), shown(dataset.train_images[index]), shown(dataset.test_images)


def assert_unlabelled(dataset: Dataset) -> None:
    assert not dataset.has_labels
    assert (dataset.name, dataset.class_names) == ("pets", (UNLABELLED,))
    assert not dataset.train_labels.any()
    assert not dataset.test_labels.any()


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (of("", 2), (1, 1)),
        (of("", 39), (38, 1)),
        (of("", 40), (38, 2)),
        (of("", 20) + of("edited", 20), (38, 2)),
        (of("train", 20), (19, 1)),
        (of("all", 20), (19, 1)),
        (of("a/b/c", 20) + of("a/b", 20), (38, 2)),
    ],
)
def test_one_image_in_twenty_is_for_tests_where_there_is_no_part_for_them(
    tmp_path: Path, names: list[str], counts: tuple[int, int]
) -> None:
    pets = fill(tmp_path / "pets", names)
    train, test = counts
    with pytest.warns(UserWarning, match=rf"{SPLIT} \({train} training and {test} test images\)") as said:
        dataset = load_dataset(pets, labels=False)
    assert len(said) == 1
    assert_unlabelled(dataset)
    assert (len(dataset.train_images), len(dataset.test_images)) == counts
    assert sorted(shown(dataset.train_images) + shown(dataset.test_images)) == list(range(len(names)))


def test_which_images_are_for_tests_does_not_depend_on_where_they_are(tmp_path: Path) -> None:
    fill(tmp_path / "pets", of("", 60))
    shutil.copytree(tmp_path / "pets", tmp_path / "elsewhere" / "pets" / "images" / "train")
    tested = []
    for path in (tmp_path / "pets", tmp_path / "elsewhere" / "pets"):
        with pytest.warns(UserWarning, match=SPLIT):
            tested.append(shown(load_dataset(path, labels=False).test_images))
    assert tested[0] == tested[1]
    assert len(tested[0]) == 3


@pytest.mark.filterwarnings("ignore:the images of .* are used without their classes")
@pytest.mark.parametrize("above", ["", "pets/", "2024/all/"])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (of("train", 3) + of("test", 2), ([0, 1, 2], [], [3, 4])),
        (of("Training", 3) + of("VAL", 2), ([0, 1, 2], [], [3, 4])),
        (of("train", 3) + of("train/a", 1) + of("test/x/y", 2), ([0, 1, 2, 3], [], [4, 5])),
        (of("train/a", 2) + of("training/b", 2) + of("test", 1), ([0, 1, 2, 3], [], [4])),
        (of("train/images/a", 1) + of("train/images/b", 1) + of("test/images", 1), ([0, 1], [], [2])),
    ],
)
def test_parts_are_kept_whatever_is_in_them(
    tmp_path: Path, above: str, names: list[str], expected: tuple[list[int], ...]
) -> None:
    dataset = load_dataset(fill(tmp_path / "pets", [above + name for name in names]), labels=False)
    assert_unlabelled(dataset)
    assert parts(dataset) == expected


@pytest.mark.parametrize(
    ("names", "expected", "note"),
    [
        (
            of("train", 2) + of("dev", 2) + of("test", 1),
            ([0, 1], [2, 3], [4]),
            "holds the 2 validation images",
        ),
        (
            of("train", 2) + of("test", 2) + of("masks", 1) + of("", 1),
            ([0, 1], [], [2, 3]),
            r"images of .*pets beside its part for training are not read \(2\): 0\.png, masks/0\.png",
        ),
        (
            of("a", 1) + of("b/c", 1) + of("", 1) + of("test/d", 2),
            ([0, 1, 2], [], [3, 4]),
            "images of .*pets are used without their classes: .*pets has test/, but no train/",
        ),
        (
            of("train/a", 1) + of("train/b", 1) + of("test/c", 1),
            ([0, 1], [], [2]),
            "pets are used without their classes: .* must have the same classes",
        ),
    ],
)
def test_what_is_done_with_other_folders_is_said(
    tmp_path: Path, names: list[str], expected: tuple[list[int], ...], note: str
) -> None:
    pets = fill(tmp_path / "pets", names)
    with pytest.warns(UserWarning, match=note) as said:
        dataset = load_dataset(pets, labels=False)
    assert len(said) == 1
    assert_unlabelled(dataset)
    assert parts(dataset) == expected


def test_other_files_and_hidden_images_are_skipped(tmp_path: Path) -> None:
    pets = fill(tmp_path / "pets", [*of("train", 2), *of("test", 2), "train/.hidden", ".cache/1", "__MACOSX/1"])
    (pets / "train" / "notes.txt").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"skipped files that are not images \(2\): \.hidden\.png, notes\.txt$"):
        assert parts(load_dataset(pets, labels=False)) == ([0, 1], [], [2, 3])


@pytest.mark.filterwarnings("ignore:.* holds the 6 validation images:UserWarning")
@pytest.mark.parametrize("missing", [(), ("val",), ("test",), ("val", "test")])
def test_a_folder_with_classes_is_the_same_data_set_as_with_labels(tmp_path: Path, missing: tuple[str, ...]) -> None:
    photos = make_photos(tmp_path / "photos")
    for part in missing:
        shutil.rmtree(photos / part)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*has no test part: a fifth of each class")
        labelled, same = (load_dataset(photos, image_size=4, labels=labels) for labels in (True, False))
    assert same.has_labels
    assert same.fingerprint() == labelled.fingerprint()
    assert (same.class_names, same.mean, same.std) == (("a", "b"), labelled.mean, labelled.std)
    assert_array_equal(same.train_labels, labelled.train_labels)


def test_images_beside_the_folders_of_classes_are_not_read_and_that_is_said(tmp_path: Path) -> None:
    pets = fill(tmp_path / "pets", [*of("train/a", 2), *of("train/b", 2), *of("test/a", 1), "train/loose", "._x"])
    with (
        pytest.warns(UserWarning, match=r"pets outside the folders of its classes are not read \(1\): loose\.png"),
        pytest.warns(UserWarning, match=r"skipped files that are not images \(1\): \._x\.png"),
        pytest.warns(UserWarning, match="test has no images of classes"),
    ):
        dataset = load_dataset(pets, labels=False)
    assert dataset.class_names == ("a", "b")
    assert parts(dataset) == ([0, 1, 2, 3], [], [4])


@pytest.mark.filterwarnings("ignore:.* holds the 6 validation images:UserWarning")
def test_the_same_bits_come_from_memory_from_files_and_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH_SECONDS", 0)
    pets = make_photos(tmp_path / "pets")
    for part in ("train", "val", "test"):  # other folders in each part
        (pets / part / "a").rename(pets / part / f"of {part}")

    def load(stream: bool | None = None) -> Dataset:
        with pytest.warns(UserWarning, match="must have the same classes"):
            return load_dataset(pets, image_size=4, stream=stream, labels=False)

    in_memory = load()
    assert not as_on_demand(in_memory.train_images)
    streamed = load(stream=True)
    monkeypatch.setattr(folder, "MOST_IN_MEMORY", 4 * 4 * 3 * 2 * sum(COUNTS.values()) - 1)
    large = load()
    monkeypatch.setattr(folder, "decode_blocks", None)  # what is read now is in the cache
    for dataset in (streamed, large, load(stream=True), load(stream=False)):
        assert_unlabelled(dataset)
        assert dataset.fingerprint() == in_memory.fingerprint()
        assert (dataset.mean, dataset.std) == (in_memory.mean, in_memory.std)
        assert_array_equal(np.asarray(dataset.train_images), in_memory.train_images)
        assert_array_equal(np.asarray(dataset.test_images), in_memory.test_images)
        assert_array_equal(dataset.validation_index, in_memory.validation_index)
    assert as_on_demand(streamed.train_images)
    assert as_on_demand(large.train_images)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_classes_that_are_added_are_noticed_by_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIVIT_CACHE", str(tmp_path / "cache"))
    pets = fill(tmp_path / "pets", of("train", 2) + of("test", 2))
    before = load_dataset(pets, labels=False, stream=True)
    for part in ("train", "test"):
        (pets / part).rename(pets / "a")
        (pets / "a").rename(pets.parent / part)
        (pets / part).mkdir()
        (pets.parent / part).rename(pets / part / "a")
    with pytest.warns(UserWarning, match="one class alone, a"):
        after = load_dataset(pets, stream=True)
    assert (before.has_labels, after.has_labels) == (False, True)
    assert before.fingerprint() != after.fingerprint()


@pytest.mark.parametrize("stream", [False, True])
def test_unreadable_images_are_named_or_left_out(tmp_path: Path, stream: bool) -> None:
    pets = fill(tmp_path / "pets", of("train", 3) + of("test", 2))
    (pets / "train" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png cannot be read as an image.*--skip-bad"):
        load_dataset(pets, labels=False, stream=stream)
    with pytest.warns(UserWarning, match=r"left out images that cannot be read \(1\)"):
        dataset = load_dataset(pets, labels=False, stream=stream, skip_bad=True)
    assert_unlabelled(dataset)
    assert parts(dataset) == ([0, 2], [], [3, 4])


@pytest.mark.parametrize("stream", [False, True])
def test_grey_images_and_images_of_a_size_are_as_in_folders_with_classes(tmp_path: Path, stream: bool) -> None:
    for part in ("train", "test"):
        for i, size in enumerate([(4, 5), (7, 9)]):
            save(tmp_path / "pets" / part / f"{i}.png", np.full(size, 7, np.uint8))
    dataset = load_dataset(tmp_path / "pets", labels=False, stream=stream, image_size=(6, 4))
    assert dataset.train_images.shape == (2, 6, 4, 1)
    assert load_dataset(tmp_path / "pets", labels=False, image_size=6, channels=3).test_images.shape == (2, 6, 6, 3)
    with pytest.raises(UserError, match="give an image size"):
        load_dataset(tmp_path / "pets", labels=False, stream=stream)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "pets has no images; expected image files in it, or in folders in it"),
        (["inner/.hidden"], "pets has no images"),
        (["1"], "pets has one image; expected two or more"),
        (of("test", 2), "pets has images for tests or validation, but none for training; put them into train/"),
        (of("val/a", 2) + of("other/.hidden", 1), "pets has images for tests or validation, but none for training"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    (tmp_path / "pets").mkdir()
    fill(tmp_path / "pets", names)
    with pytest.raises(UserError, match=message):
        load_dataset(tmp_path / "pets", labels=False)


def test_a_link_to_the_folder_above_ends_the_search(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "again").symlink_to(tmp_path / "pets", target_is_directory=True)
    with pytest.raises(UserError, match="pets has no images"):
        load_dataset(tmp_path / "pets", labels=False)


def test_other_data_sets_are_the_same_without_labels(tmp_path: Path) -> None:
    assert load_dataset("digits", labels=False).fingerprint() == load_dataset("digits").fingerprint()
    photos = make_photos(tmp_path / "photos")
    shutil.rmtree(photos / "val")
    prepare_folder(photos, tmp_path / "prepared", DECODING)
    prepared = load_dataset(tmp_path / "prepared", labels=False)
    assert prepared.has_labels
    assert prepared.fingerprint() == load_dataset(tmp_path / "prepared").fingerprint()


def test_has_labels_is_kept_by_a_change_of_size(tmp_path: Path) -> None:
    dataset = load_dataset(fill(tmp_path / "pets", of("train", 2) + of("test", 2)), labels=False)
    assert not dataset.resized(Decoding((2, 2))).has_labels


HINT = "has no class folders; expected a folder of images for each class in it; `minivit pretrain` takes images without"


@pytest.mark.parametrize("names", [of("", 2), of("train", 2) + of("test", 2)])
def test_commands_that_need_labels_name_the_one_that_does_not(cli: Minivit, tmp_path: Path, names: list[str]) -> None:
    pets = fill(tmp_path / "pets", names)
    with pytest.raises(UserError, match=HINT):
        load_dataset(pets)
    model = create_model("vit_micro_patch4_8", num_classes=0)
    save_model(model, tmp_path / "model", extra={"mean": [0.5], "std": [0.5]})
    assert_refused(cli("train", pets), 2, HINT)
    assert_refused(cli("probe", tmp_path / "model", pets), 2, HINT)


def test_an_empty_folder_is_refused_without_that_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a folder of images for each class in it$"):
        load_dataset(tmp_path)


def test_commands_may_open_images_without_labels(tmp_path: Path) -> None:
    pets = fill(tmp_path / "pets", of("train", 2) + of("test", 2))
    assert not open_dataset(str(pets), (4, 4), None, Terminal(), labels=False).has_labels
    with pytest.raises(UserError, match=HINT):
        open_dataset(str(pets), (4, 4), None, Terminal())


def test_a_prepared_folder_without_labels_is_for_pretraining_alone(cli: Minivit, tmp_path: Path) -> None:
    pets = fill(tmp_path / "pets", of("train", 8) + of("test", 2))
    assert cli("prepare", pets, "out", "--recipe", "pretrain", *TINY).status == 0
    hint = "out was prepared without classes; `minivit pretrain` takes images without labels"
    with pytest.raises(UserError, match=hint):
        load_dataset("out")
    assert not load_dataset("out", labels=False).has_labels
    assert_refused(cli("train", "out", *TINY), 2, hint)
    said = cli("pretrain", "out", *TINY, "--epochs", 1, "--run", "run")
    assert said.status == 0
    assert "train LABELLED-DATA --init run" in said.out
    assert "probe run LABELLED-DATA" in said.out
    assert_refused(cli("probe", "run", "out"), 2, hint)
