"""Images that stay in their files until a batch needs them: the same bits as from memory, and none read too early."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from photo_folder import COUNTS, DECODING, make_photos, save
from small_run import RECIPE, Killed, Listener, bits, kill, run_at, train

from minivit.data import Dataset, folder, load_dataset, read
from minivit.data.images import Decoding, decode
from minivit.data.on_demand import BLOCK, LostImagesError, OnDemandImages, Stored, as_on_demand, blocks, read_ahead
from minivit.data.prepared import prepare_folder
from minivit.data.read import ImageFiles
from minivit.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.* holds the 6 validation images:UserWarning")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


@pytest.fixture
def kept_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Recorded:
    """The source of images that hold their index; it keeps what was read, and on which thread."""

    def __init__(self, count: int) -> None:
        self.shape: tuple[int, ...] = (count, 1, 1, 1)
        self.background = True
        self.reads: list[list[int]] = []
        self.threads: list[threading.Thread] = []

    def read(self, index: np.ndarray) -> np.ndarray:
        self.reads.append(index.tolist())
        self.threads.append(threading.current_thread())
        return index.astype(np.uint8).reshape(-1, 1, 1, 1)


def sources_of(photos: Path, out: Path) -> dict[str, Dataset]:
    """Return the same images from memory, from their files and from a prepared folder."""
    prepare_folder(photos, out, DECODING)
    return {
        "memory": load_dataset(photos, image_size=4),
        "files": load_dataset(photos, image_size=4, stream=True),
        "prepared": load_dataset(out, image_size=4, stream=True),
        "prepared, in memory": load_dataset(out, image_size=4, stream=False),
    }


def test_an_index_selects_images_and_reads_none() -> None:
    source = Recorded(10)
    images = OnDemandImages(source)
    some = images[2:8][np.array([3, 0])]
    assert (some.shape, some.ndim, some.dtype, len(some)) == ((2, 1, 1, 1), 4, np.dtype(np.uint8), 2)
    assert not source.reads
    assert_array_equal(np.asarray(some).ravel(), [5, 2])
    assert np.asarray(some, np.float32).dtype == np.float32
    assert source.reads == [[5, 2], [5, 2]]
    assert np.asarray(images[[]]).shape == (0, 1, 1, 1)
    assert np.asarray(images[np.arange(10) == 7]).ravel().tolist() == [7]
    assert [image.ravel().tolist() for image in images[-2:]] == [[8], [9]]
    for index in (3, np.int64(3), [[1], [2]]):
        with pytest.raises(IndexError, match=r"a slice or a list, such as images\[3:4\]"):
            images[index]  # type: ignore[index]  # what mypy refuses, too


def test_blocks_hold_every_image_once() -> None:
    source = Recorded(2 * BLOCK + 1)
    assert [len(block) for block in blocks(OnDemandImages(source))] == [BLOCK, BLOCK, 1]
    assert [i for some in source.reads for i in some] == [*range(2 * BLOCK + 1)]


def test_the_next_part_is_read_on_a_thread_while_the_caller_works() -> None:
    source, parts = Recorded(10), [[3], [1, 2], [9], [0], [4]]
    caller, before = threading.current_thread(), threading.active_count()
    for i, pixels in enumerate(read_ahead(OnDemandImages(source), parts)):
        assert pixels.ravel().tolist() == parts[i]
        others = threading.active_count() - before
        assert others == (0 if i in (0, 4) else 1)  # the engine may fork where there is none
    assert source.reads == parts
    assert [thread is caller for thread in source.threads] == [True, True, False, False, False]


def test_a_source_that_must_not_run_beside_others_is_read_by_the_caller() -> None:
    source = Recorded(4)
    source.background = False
    assert len([*read_ahead(OnDemandImages(source), [[i] for i in range(4)])]) == 4
    assert {*source.threads} == {threading.current_thread()}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_parts_are_read_without_a_thread(count: int) -> None:
    source = Recorded(3)
    assert len([*read_ahead(OnDemandImages(source), [[i] for i in range(count)])]) == count
    assert {*source.threads} <= {threading.current_thread()}


def test_an_error_of_a_read_ahead_is_the_callers(photos: Path) -> None:
    dataset = load_dataset(photos, image_size=4, stream=True)
    images, parts = as_on_demand(dataset.train_images), [[0], [1], [2], [3]]
    assert images is not None
    ahead = read_ahead(images, parts)
    next(ahead)
    next(ahead)  # the third part is read now or later
    for file in photos.glob("train/a/*"):
        file.write_bytes(b"no image")
    with pytest.raises(LostImagesError, match=r"cannot be read as an image.*: put back what was there"):
        list(ahead)


def test_images_are_the_same_from_memory_from_files_and_prepared(photos: Path, tmp_path: Path) -> None:
    memory, *others = sources_of(photos, tmp_path / "out").values()
    for other in others:
        assert other.fingerprint() == memory.fingerprint()
        assert replace(other, known_fingerprint=None).fingerprint() == memory.fingerprint()
        assert (other.name, other.class_names, other.mean, other.std) == (
            *(memory.name, memory.class_names),
            *(memory.mean, memory.std),
        )
        assert_array_equal(np.asarray(other.train_images), memory.train_images)
        assert_array_equal(np.asarray(other.test_images), memory.test_images)
        assert memory.validation_index is not None
        assert other.validation_index is not None
        assert_array_equal(other.validation_index, memory.validation_index)
    streamed = [as_on_demand(dataset.train_images) is not None for dataset in (memory, *others)]
    assert streamed == [False, True, True, False]


@pytest.mark.parametrize("backend", ["numpy", "strict"])
def test_a_run_ends_in_the_same_bits_wherever_the_images_are(photos: Path, tmp_path: Path, backend: str) -> None:
    recipe = replace(RECIPE, batch_size=6, mixup_alpha=0.5, auto_augment="trivial")
    sources = sources_of(photos, tmp_path / "out")
    if backend == "strict":  # which is slow
        recipe = replace(recipe, epochs=1, warmup_epochs=0.0, auto_augment="")
        sources = {name: sources[name] for name in ("memory", "prepared")}
    ended = {}
    for name, dataset in sources.items():
        run = run_at(tmp_path / name, recipe)
        train(run, dataset, Listener(), backend=backend)
        ended[name] = bits(run)
    memory = ended.pop("memory")
    assert all(other == memory for other in ended.values())


def test_a_run_that_was_killed_goes_on_from_other_files_of_the_same_images(photos: Path, tmp_path: Path) -> None:
    sources = sources_of(photos, tmp_path / "out")
    whole, cut = run_at(tmp_path / "whole"), run_at(tmp_path / "cut")
    train(whole, sources["memory"], Listener())
    with pytest.raises(Killed):
        train(cut, sources["files"], Listener(4, kill), checkpoint_seconds=0.0)
    train(cut, sources["prepared"], Listener(), resume=True)
    assert bits(cut) == bits(whole)


def test_only_the_images_of_a_batch_are_read(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare_folder(photos, tmp_path / "out", DECODING)
    counts, read_stored = [], Stored.read

    def counted(source: Stored, index: Any) -> Any:
        counts.append(len(index))
        return read_stored(source, index)

    monkeypatch.setattr(Stored, "read", counted)
    dataset = load_dataset(tmp_path / "out", stream=True)
    train(run_at(tmp_path / "run", replace(RECIPE, epochs=1, warmup_epochs=0)), dataset, Listener())
    assert counts == [8, 8, 4, 6, 8]  # the batches of 20 images, then those of validation and of the test


def test_a_folder_is_streamed_if_its_images_are_large(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = 2 * sum(COUNTS.values()) * 4 * 4 * 3
    for most, streamed in ((pixels, False), (pixels - 1, True)):
        monkeypatch.setattr(folder, "MOST_IN_MEMORY", most)
        assert (as_on_demand(load_dataset(photos, image_size=4).train_images) is not None) is streamed
    assert as_on_demand(load_dataset(photos, image_size=4, stream=False).train_images) is None


def test_what_is_known_about_streamed_images_is_kept(
    photos: Path, kept_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*given: Any) -> Any:
        calls.append(given)
        return read.decode_blocks(*given)

    monkeypatch.setattr(folder, "decode_blocks", counted)
    first = load_dataset(photos, image_size=4, stream=True)
    again = load_dataset(photos, image_size=4, stream=True)
    assert (len(calls), again.fingerprint(), again.mean) == (1, first.fingerprint(), first.mean)
    (file,) = kept_in.iterdir()
    file.write_text(file.read_text().replace('"channels": 3', '"channels": 1'))
    load_dataset(photos, image_size=4, stream=True)
    save(photos / "train" / "a" / "new.png", np.zeros((4, 4, 3), np.uint8))
    load_dataset(photos, image_size=4, stream=True)
    assert len(calls) == 3


def test_grey_images_are_streamed_and_prepared_with_one_channel(tmp_path: Path) -> None:
    for i in range(600):
        save(tmp_path / "grey" / "ab"[i % 2] / f"{i}.png", np.full((4, 4), i % 256, np.uint8))
    with pytest.warns(UserWarning, match="has no test part"):
        sources = sources_of(tmp_path / "grey", tmp_path / "out")
    for dataset in sources.values():
        assert dataset.train_images.shape == (480, 4, 4, 1)
        assert dataset.fingerprint() == sources["memory"].fingerprint()
        assert (dataset.mean, dataset.std) == (sources["memory"].mean, sources["memory"].std)


def test_unreadable_images_are_left_out_if_asked(photos: Path, tmp_path: Path) -> None:
    (photos / "train" / "b" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1.png cannot be read as an image.*--skip-bad"):
        load_dataset(photos, image_size=4, stream=True)
    with pytest.raises(UserError, match=r"1.png cannot be read as an image.*--skip-bad"):
        prepare_folder(photos, tmp_path / "out", DECODING)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    with pytest.warns(UserWarning, match=r"left out images that cannot be read \(1\): "):
        prepare_folder(photos, tmp_path / "out", DECODING, skip_bad=True)
    found = [load_dataset(tmp_path / "out")]
    with pytest.warns(UserWarning, match="left out"):
        found += [load_dataset(photos, image_size=4, stream=stream, skip_bad=True) for stream in (True, False)]
    for dataset in found:
        assert (len(dataset.train_images), len(dataset.test_images)) == (2 * 13 - 1, 8)
        assert dataset.fingerprint() == found[0].fingerprint()


def test_a_part_without_a_readable_image_is_named(photos: Path) -> None:
    for file in photos.glob("test/*/*"):
        file.write_bytes(b"no image")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(UserError, match="has no test images that can be"):
        load_dataset(photos, image_size=4, stream=True, skip_bad=True)


def test_streamed_images_need_one_size_or_a_given_one(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give an image size"):
        load_dataset(photos, stream=True)
    for file in photos.glob("*/*/*"):
        save(file, np.zeros((3, 5, 3), np.uint8))
    assert load_dataset(photos, stream=True).train_images.shape == (26, 3, 5, 3)
    prepare_folder(photos, tmp_path / "out", Decoding())
    assert load_dataset(tmp_path / "out").train_images.shape == (26, 3, 5, 3)


def test_the_source_of_files_reads_as_one_decodes_them(photos: Path) -> None:
    files = sorted(photos.glob("train/a/*"))
    source = ImageFiles(files, Decoding((4, 4), 1))
    assert source.shape == (10, 4, 4, 1)
    assert_array_equal(
        source.read(np.array([7, 2])),
        np.stack([decode(files[i], (4, 4), 1)[0] for i in (7, 2)]),
    )
