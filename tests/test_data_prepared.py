"""Prepared folders: what is written, by whom, and what is refused or noticed when they are read."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from photo_folder import DECODING, make_photos, save

from minivit.data import load_dataset
from minivit.data.images import Decoding
from minivit.data.on_demand import LostImagesError, Stored
from minivit.data.prepared import _ImageFile, load_prepared, prepare_dataset, prepare_folder
from minivit.errors import RunError, UserError
from minivit.files import read_json, with_checksum, write_json

pytestmark = pytest.mark.filterwarnings("ignore:.* holds the 6 validation images:UserWarning")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


def test_prepared_arrays_are_those_that_numpy_loads(photos: Path, tmp_path: Path) -> None:
    prepare_folder(photos, tmp_path / "out", DECODING)
    memory = load_dataset(photos, image_size=4)
    images = np.load(tmp_path / "out" / "images.npy", mmap_mode="r")
    assert (images.dtype, images.offset % 64) == (np.uint8, 0)
    assert_array_equal(images[:26], memory.train_images)
    assert_array_equal(images[26:], memory.test_images)
    assert_array_equal(np.load(tmp_path / "out" / "labels.npy")[:26], memory.train_labels)
    assert np.bincount(np.load(tmp_path / "out" / "parts.npy")).tolist() == [20, 6, 8]


@pytest.mark.parametrize("stream", [True, False])
def test_a_data_set_in_memory_is_prepared_too(tmp_path: Path, stream: bool) -> None:
    digits = load_dataset("digits")
    told: list[tuple[str, int, int]] = []
    prepare_dataset(digits, tmp_path / "out", Decoding(), lambda *said: told.append(said))
    loaded = load_dataset(tmp_path / "out", stream=stream)
    assert (loaded.name, loaded.fingerprint(), loaded.mean) == ("digits", digits.fingerprint(), digits.mean)
    assert told[-1] == ("writing images", 1797, 1797)
    large = digits.resized(Decoding((16, 16)))
    prepare_dataset(large, tmp_path / "large", Decoding((16, 16)))
    assert_array_equal(np.asarray(load_dataset(tmp_path / "large").test_images), np.asarray(large.test_images))


def test_nothing_is_written_over(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    prepare_folder(photos, tmp_path / "out", DECODING)
    with pytest.raises(UserError, match="out exists already and is not an empty folder"):
        prepare_folder(photos, tmp_path / "out", DECODING)


def test_an_empty_folder_a_link_and_a_stopped_one_are_written_to(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "real" / ".part").mkdir(parents=True)
    (tmp_path / "real" / ".part" / "images.npy").write_bytes(b"of a process that was killed")
    (tmp_path / "link").symlink_to("real")
    prepare_folder(photos, tmp_path / "link", DECODING)
    names = ["images.npy", "labels.npy", "parts.npy", "prepared.json"]
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == names
    assert (tmp_path / "link").is_symlink()


def test_two_do_not_write_to_one_folder_at_once(photos: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def second(*_: object) -> None:
        if not refused:
            with pytest.raises(UserError) as error:
                prepare_folder(photos, tmp_path / "out", DECODING)
            refused.append(str(error.value))

    prepare_folder(photos, tmp_path / "out", DECODING, progress=second)
    assert "another process is at work" in refused[0]
    load_dataset(tmp_path / "out")


def test_an_error_of_the_progress_output_is_none_of_the_disk(photos: Path, tmp_path: Path) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        prepare_folder(photos, tmp_path / "out", DECODING, progress=gone)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_file_of_images_is_closed_although_the_disk_is_full(tmp_path: Path) -> None:
    file = _ImageFile(Path("/dev/full"), tmp_path / "out")
    with pytest.raises(RunError, match=r"cannot write .*out: No space left"), file:
        file.append(np.zeros((1, 2, 2, 3), np.uint8))
    assert file._file.closed


@pytest.mark.parametrize("inside", ["out", "train/out", ""])
def test_a_folder_is_not_prepared_into_itself(photos: Path, inside: str) -> None:
    with pytest.raises(UserError, match=r"is in .*photos, whose images it is made of"):
        prepare_folder(photos, photos / inside, DECODING)


def test_images_that_were_copied_are_read_and_those_that_were_changed_are_refused(photos: Path, tmp_path: Path) -> None:
    prepare_folder(photos, tmp_path / "out", DECODING)
    before = load_dataset(tmp_path / "out").fingerprint()
    shutil.copytree(tmp_path / "out", tmp_path / "copy", copy_function=shutil.copyfile)
    assert load_dataset(tmp_path / "copy").fingerprint() == before
    images = np.load(tmp_path / "copy" / "images.npy")
    np.save(tmp_path / "copy" / "images.npy", 255 - images)
    with pytest.raises(UserError, match=r"images\.npy of .*copy was changed since it was prepared: put the original"):
        load_dataset(tmp_path / "copy")


def test_images_that_were_copied_are_checked_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_folder(photos, tmp_path / "out", DECODING)
    before = load_dataset(tmp_path / "out").fingerprint()
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "out", copy, copy_function=shutil.copyfile)
    os.utime(copy / "images.npy", ns=(0, 0))
    about = (copy / "prepared.json").read_bytes()

    def refuse(path: Path, value: object) -> None:
        raise RunError(f"cannot write {path}")

    with monkeypatch.context() as patched:  # root may write to any folder
        patched.setattr("minivit.data.prepared.write_json", refuse)
        assert load_dataset(copy).fingerprint() == before
    assert (copy / "prepared.json").read_bytes() == about
    assert load_dataset(copy).fingerprint() == before
    monkeypatch.setattr(Stored, "read", lambda *index: pytest.fail("the images were read again"))
    assert load_dataset(copy, stream=True).fingerprint() == before
    assert {**read_json(copy / "prepared.json"), "images": 0, "checksum": ""} == {
        **read_json(tmp_path / "out" / "prepared.json"), "images": 0, "checksum": ""
    }  # fmt: skip


def test_greyscale_images_are_read_as_rgb_where_the_model_takes_rgb(tmp_path: Path) -> None:
    for i in range(12):
        for part in ("train", "test"):
            pixels = np.random.default_rng(i).integers(0, 256, (5, 6), np.uint8)
            save(tmp_path / "grey" / part / "ab"[i % 2] / f"{i}.png", pixels)
    prepare_folder(tmp_path / "grey", tmp_path / "out", DECODING)
    expected = load_dataset(tmp_path / "grey", image_size=4, channels=3)
    for stream in (True, False):
        found = load_dataset(tmp_path / "out", image_size=4, channels=3, stream=stream)
        assert_array_equal(np.asarray(found.train_images), expected.train_images)
        assert found.fingerprint() == expected.fingerprint()
    shutil.copytree(tmp_path / "out", tmp_path / "copy", copy_function=shutil.copyfile)
    assert load_dataset(tmp_path / "copy", image_size=4, channels=3).fingerprint() == expected.fingerprint()
    prepare_folder(tmp_path / "grey", tmp_path / "rgb", Decoding((4, 4), 3))
    with pytest.raises(UserError, match="has images of 3 channels, not of 1: prepare them again"):
        load_dataset(tmp_path / "rgb", channels=1)


def test_a_relative_path_is_read_from_wherever_the_process_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare_folder(Path("photos"), Path("out"), DECODING)
    found = [load_dataset(name, image_size=4, stream=True) for name in ("photos", "out")]
    monkeypatch.chdir("/")
    first, second = (np.asarray(dataset.train_images) for dataset in found)
    assert_array_equal(first, second)


def test_images_that_were_prepared_in_another_way_are_warned_of(photos: Path, tmp_path: Path) -> None:
    prepare_folder(photos, tmp_path / "out", DECODING)
    with pytest.warns(UserWarning, match=r"prepared with size \(4, 4\) and not \(8, 8\), interpolation bicubic and"):
        dataset = load_dataset(tmp_path / "out", image_size=8, interpolation="bilinear", stream=True)
    assert np.asarray(dataset.train_images[:2]).shape == (2, 8, 8, 3)
    assert dataset.known_fingerprint is None
    dataset.fingerprint()


def of_shape(text: str) -> bytes:
    """Return the header of an int64 array of this shape."""
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {text}}}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


HEADERS: dict[str, bytes] = {
    "a shape larger than the memory": of_shape(f"({2**36},)"),
    "a shape larger than any memory": of_shape(f"({2**70},)"),
    "an archive": b"PK\x03\x04",
    "open brackets": of_shape("(((("),
    "very deep brackets": of_shape("(" * 9000),
    "a long header": of_shape(f"({' ' * 20_000}1,)"),
}
DAMAGES: dict[str, Any] = {
    **{
        f"{name} with {what}": (name, lambda data, content=content: content)
        for name in ("images.npy", "labels.npy", "parts.npy")
        for what, content in HEADERS.items()
    },
    "a cut of the images": ("images.npy", lambda data: data[:-1]),
    "no header": ("images.npy", lambda data: data[:20]),
    "no images": ("images.npy", lambda data: b""),
    "another dtype": ("images.npy", lambda data: data.replace(b"|u1", b"|i1")),
    "objects": ("images.npy", lambda data: data.replace(b"|u1", b"|O ")),
    "another shape": ("images.npy", lambda data: data.replace(b"(34, 4", b"(33, 4")),
    "another pixel": ("images.npy", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "labels of another type": ("labels.npy", lambda data: data.replace(b"<i8", b"<f8")),
    "a cut of the labels": ("labels.npy", lambda data: data[:-8]),
    "other classes": ("labels.npy", lambda data: data[:-1] + b"\x7f"),
    "labels that were changed": ("labels.npy", lambda data: data.replace(b"\x01", b"\x00", 3)[:-8] + bytes(8)),
    "parts that are none": ("parts.npy", lambda data: data[:-8]),
    "parts that were changed": ("parts.npy", lambda data: data[:128] + data[:127:-1]),
    "another text": ("prepared.json", lambda data: data.replace(b"photos", b"potatoes")),
    "no JSON": ("prepared.json", lambda data: data[:-9]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("stream", [True, False])
def test_a_damaged_folder_is_refused_in_one_line(photos: Path, tmp_path: Path, damage: str, stream: bool) -> None:
    prepare_folder(photos, tmp_path / "out", DECODING)
    name, change = DAMAGES[damage]
    data = (tmp_path / "out" / name).read_bytes()
    changed = change(data)
    assert changed != data
    (tmp_path / "out" / name).write_bytes(changed)
    os.utime(tmp_path / "out" / name, ns=(0, 0))  # a clock may not have gone on
    with pytest.raises(UserError) as refused:
        load_prepared(tmp_path / "out", DECODING, stream)
    assert "\n" not in str(refused.value)


def test_a_file_that_was_replaced_during_a_run_is_noticed(photos: Path, tmp_path: Path) -> None:
    prepare_folder(photos, tmp_path / "out", DECODING)
    dataset = load_dataset(tmp_path / "out", stream=True)
    np.save(tmp_path / "out" / "images.npy", np.zeros((34, 2, 2, 3), np.uint8))
    with pytest.raises(LostImagesError, match="was replaced"):
        np.asarray(dataset.train_images[:1])


def test_a_pixel_that_is_changed_during_a_run_is_noticed(photos: Path, tmp_path: Path) -> None:
    prepare_folder(photos, tmp_path / "out", DECODING)
    file = tmp_path / "out" / "images.npy"
    dataset = load_dataset(tmp_path / "out", stream=True)
    np.asarray(dataset.train_images[:1])
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(file, ns=(0, 0))  # a clock may not have gone on
    with pytest.raises(LostImagesError, match="was replaced or changed while it was read"):
        np.asarray(dataset.train_images[:1])


@pytest.mark.parametrize("missing", ["decoding", "mean", "class_names", "fingerprint", "name", "numbers", "images"])
def test_a_prepared_folder_without_a_value_is_refused(photos: Path, tmp_path: Path, missing: str) -> None:
    prepare_folder(photos, tmp_path / "out", DECODING)
    file = tmp_path / "out" / "prepared.json"
    values = {name: value for name, value in read_json(file).items() if name != missing}
    write_json(file, with_checksum(values))
    with pytest.raises(UserError, match="is damaged: prepare the images again"):
        load_dataset(tmp_path / "out")
    write_json(file, with_checksum({**values, "version": 9}))
    with pytest.raises(UserError, match="another version"):
        load_dataset(tmp_path / "out")
