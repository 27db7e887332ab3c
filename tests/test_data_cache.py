"""The decoded images of a folder are kept: the next time they are not decoded, and any change is noticed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minivit.data import Dataset, cache, folder, load_dataset
from minivit.data.read import decode_blocks


@pytest.fixture
def kept_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep images however quickly they were decoded; return the folder of the cache."""
    monkeypatch.setenv("MINIVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH_SECONDS", 0)
    return tmp_path / "cache"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            pixels = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.bmp")
    return tmp_path / "set"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of files of each call that decodes images."""
    calls: list[int] = []
    read = decode_blocks

    def counted(files: list[Path], *rest: Any) -> Any:
        calls.append(len(files))
        return read(files, *rest)

    monkeypatch.setattr(folder, "decode_blocks", counted)
    return calls


def assert_equal(first: Dataset, second: Dataset) -> None:
    assert first.fingerprint() == second.fingerprint()
    assert (first.mean, first.std, first.class_names) == (second.mean, second.std, second.class_names)


def test_the_second_time_no_image_is_decoded(kept_in: Path, images: Path, decoded: list[int]) -> None:
    first = load_dataset(images)
    assert_equal(load_dataset(images), first)
    assert decoded == [12]
    load_dataset(images, image_size=3)
    assert decoded == [12, 12]
    assert len(list(kept_in.iterdir())) == 2


def test_another_image_of_the_same_name_size_and_time_is_noticed(
    kept_in: Path, images: Path, decoded: list[int]
) -> None:
    before = load_dataset(images)
    file = images / "train" / "a" / "0.bmp"
    times = file.stat()
    file.write_bytes((images / "train" / "a" / "1.bmp").read_bytes())
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_dataset(images).fingerprint() != before.fingerprint()
    assert decoded == [12, 12]


@pytest.mark.parametrize("change", ["removed", "added", "moved to another class"])
def test_another_list_of_files_is_noticed(kept_in: Path, images: Path, decoded: list[int], change: str) -> None:
    load_dataset(images)
    file = images / "train" / "a" / "0.bmp"
    if change == "removed":
        file.unlink()
    elif change == "added":
        file.with_name("3.bmp").write_bytes(file.read_bytes())
    else:
        file.rename(images / "train" / "b" / "3.bmp")
    load_dataset(images)
    assert len(decoded) == 2


def test_another_name_of_a_class_is_noticed(kept_in: Path, images: Path) -> None:
    load_dataset(images, stream=True)
    for part in ("train", "test"):
        (images / part / "a").rename(images / part / "aa")
    assert load_dataset(images, stream=True).fingerprint() == load_dataset(images).fingerprint()


def flip_a_bit(place: int) -> Callable[[Path], None]:
    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[place] ^= 4
        file.write_bytes(data)

    return flip


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [*(flip_a_bit(place) for place in (0, 9, 70, 140, -60, -30, -10, -2)), cut])
def test_a_damaged_file_is_not_used(
    kept_in: Path, images: Path, decoded: list[int], damage: Callable[[Path], None]
) -> None:
    first = load_dataset(images)
    (file,) = kept_in.iterdir()
    damage(file)
    assert_equal(load_dataset(images), first)
    assert decoded == [12, 12]
    assert_equal(load_dataset(images), first)
    assert decoded == [12, 12]


def test_a_system_without_mapped_files_reads_the_file(
    kept_in: Path, images: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_maps(*_: Any, **__: Any) -> None:
        raise OSError("no mmap")

    first = load_dataset(images)
    monkeypatch.setattr(np, "memmap", no_maps)
    monkeypatch.setattr("numpy.lib.format.open_memmap", no_maps)
    assert_equal(load_dataset(images), first)
    assert decoded == [12]


def test_the_files_used_longest_ago_make_room(
    kept_in: Path, images: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LARGEST", 12 * (4 * 5 + 4 * 4) * 3 + 600)
    load_dataset(images)
    load_dataset(images, image_size=4)
    os.utime(next(kept_in.iterdir()), (0, 0))
    load_dataset(images, image_size=(4, 3))
    assert len(list(kept_in.iterdir())) == 2
    monkeypatch.setattr(cache, "LARGEST", 10)
    load_dataset(images, image_size=2)
    assert len(list(kept_in.iterdir())) == 2


def test_the_files_of_killed_processes_make_room(kept_in: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LARGEST", 12 * 4 * 5 * 3 + 600)
    kept_in.mkdir()
    (kept_in / ".minivit-0123456789abcdef.tmp").write_bytes(bytes(700))
    load_dataset(images)
    assert [path.name[:7] for path in kept_in.iterdir()] == ["images-"]


def test_what_another_process_has_deleted_is_no_obstacle(
    kept_in: Path, images: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LARGEST", 12 * 4 * 5 * 3 + 600)
    kept_in.mkdir()
    (kept_in / "images-gone.npy").symlink_to(kept_in / "nothing")
    (kept_in / "images-old.npy").write_bytes(bytes(700))
    unlink = Path.unlink

    def too_late(path: Path, missing_ok: bool = False) -> None:
        unlink(path)
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", too_late)
        load_dataset(images)
    load_dataset(images)
    assert decoded == [12]


def test_a_cache_that_is_only_readable_is_used(
    kept_in: Path, images: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(path)

    survey = cache.Survey((4, 5), 3, (), (0.5,), (0.5,), "x")
    cache.store_survey("k", survey)
    first = load_dataset(images)
    monkeypatch.setattr(os, "utime", refuse)
    assert_equal(load_dataset(images), first)
    assert decoded == [12]
    assert cache.load_survey("k") == survey


@pytest.mark.parametrize("setting", ["off", "", "0"])
def test_the_cache_can_be_switched_off(
    kept_in: Path, images: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("MINIVIT_CACHE", setting)
    load_dataset(images)
    load_dataset(images)
    assert decoded == [12, 12]


def test_a_cache_that_cannot_be_written_is_no_error(
    kept_in: Path, images: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIVIT_CACHE", str(images / "train" / "a" / "0.bmp" / "cache"))
    load_dataset(images)
    load_dataset(images)
    assert decoded == [12, 12]


def test_unreadable_images_are_not_hidden_by_the_cache(kept_in: Path, images: Path) -> None:
    (images / "train" / "a" / "0.bmp").write_bytes(b"none")
    for _ in range(2):
        with pytest.warns(UserWarning, match="left out images that cannot be read"):
            assert len(load_dataset(images, skip_bad=True).train_images) == 5
        with pytest.raises(ValueError, match=r"0\.bmp cannot be read as an image"):
            load_dataset(images)
