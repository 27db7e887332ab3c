"""CIFAR is read in every published format, found on disk or downloaded, and refused if it is damaged."""

import gzip
import hashlib
import http.server
import io
import lzma
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
from numpy.typing import NDArray
from PIL import Image

from minivit.data import Dataset, load_dataset
from minivit.data.cifar import CLASS_NAMES
from minivit.data.download import ARCHIVES, Archive
from minivit.errors import UserError

PER_BATCH = 3


def expected(name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Return random training and test images (n, 32, 32, 3) with labels."""
    generator = np.random.default_rng(7)
    train, classes = (5 * PER_BATCH, 10) if name == "cifar10" else (PER_BATCH, 100)
    images = generator.integers(0, 256, (train + PER_BATCH, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(0, classes, train + PER_BATCH)
    labels[0], labels[-1] = classes - 1, 0
    return images[:train], labels[:train], images[train:], labels[train:]


def files(name: str, version: str) -> dict[str, bytes]:
    """Return the batch files of one version of one data set, by name."""
    train_images, train_labels, test_images, test_labels = expected(name)
    suffix = ".bin" if version == "binary" else ""
    write = binary if version == "binary" else python
    if name == "cifar100":
        parts = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
    else:
        cuts = [slice(i * PER_BATCH, (i + 1) * PER_BATCH) for i in range(5)]
        parts = {f"data_batch_{i + 1}": (train_images[cut], train_labels[cut]) for i, cut in enumerate(cuts)}
        parts["test_batch"] = (test_images, test_labels)
    return {part + suffix: write(name, *content) for part, content in parts.items()}


def binary(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    records = []
    for image, label in zip(images, labels.tolist(), strict=True):
        coarse = b"" if name == "cifar10" else b"\xff"
        records.append(coarse + bytes([label]) + image.transpose(2, 0, 1).tobytes())
    return b"".join(records)


def python(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
    key = b"labels" if name == "cifar10" else b"fine_labels"
    batch = {b"batch_label": b"some", b"data": pixels, key: labels.tolist(), b"filenames": [b"a.png"] * len(labels)}
    return pickle.dumps(batch, protocol=2)


def archive_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_archive(path: Path, name: str, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(archive_of({f"some-folder/{file}": data for file, data in files(name, version).items()}))
    return path


def write_folder(path: Path, name: str, version: str) -> Path:
    path.mkdir(parents=True)
    for file, data in files(name, version).items():
        (path / file).write_bytes(data)
    (path / "readme.html").write_text("something else")
    return path


def assert_is(dataset: Dataset, name: str) -> None:
    train_images, train_labels, test_images, test_labels = expected(name)
    assert dataset.name == name
    assert dataset.class_names == CLASS_NAMES[name]
    np.testing.assert_array_equal(dataset.train_images, train_images)
    np.testing.assert_array_equal(dataset.train_labels, train_labels)
    np.testing.assert_array_equal(dataset.test_images, test_images)
    np.testing.assert_array_equal(dataset.test_labels, test_labels)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide the data sets on this machine and block downloads; return the cache folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINIVIT_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda _: tmp_path / "cache")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    for name in ARCHIVES:
        monkeypatch.setitem(ARCHIVES, name, Archive("http://127.0.0.1:9/cifar-10-binary.tar.gz", "0" * 32))
    return tmp_path / "cache"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[dict[str, bytes]], str]]:
    """Return a function that puts files on a local server and returns the server's address."""
    root = tmp_path / "server"
    root.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def put(content: dict[str, bytes]) -> str:
        for file, data in content.items():
            (root / file).write_bytes(data)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield put
    server.shutdown()
    thread.join()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


BOTH = pytest.mark.parametrize("name", ["cifar10", "cifar100"])
VERSIONS = pytest.mark.parametrize("version", ["binary", "python"])


@BOTH
@VERSIONS
def test_an_archive_is_read(tmp_path: Path, name: str, version: str) -> None:
    assert_is(load_dataset(write_archive(tmp_path / "any.tar.gz", name, version)), name)


@BOTH
@VERSIONS
def test_a_folder_of_batch_files_is_read(tmp_path: Path, name: str, version: str) -> None:
    assert_is(load_dataset(str(write_folder(tmp_path / "any", name, version))), name)


def test_mean_and_std_are_the_published_ones(tmp_path: Path) -> None:
    dataset = load_dataset(write_archive(tmp_path / "any.tar.gz", "cifar10", "binary"))
    assert dataset.mean == (0.4914, 0.4822, 0.4465)
    assert dataset.std == (0.2470, 0.2435, 0.2616)


def test_the_class_names_are_complete() -> None:
    assert [len(CLASS_NAMES[name]) for name in ("cifar10", "cifar100")] == [10, 100]
    assert all(list(names) == sorted(set(names)) for names in CLASS_NAMES.values())


@BOTH
@pytest.mark.parametrize("place", ["data", "cache", "named", "variable"])
@pytest.mark.parametrize(
    "form", ["binary archive", "python archive", "binary folder", "python folder", "its own folder"]
)
def test_a_data_set_is_found_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str, form: str
) -> None:
    folder, number = tmp_path / place, name.removeprefix("cifar")
    version, kind = form.split()[0], form.split()[-1]
    if kind == "archive":
        write_archive(folder / f"cifar-{number}-{version}.tar.gz", name, version)
    elif version == "its":
        write_folder(folder, name, "python")
    else:
        ends = {"10 binary": "10-batches-bin", "10 python": "10-batches-py"}
        write_folder(folder / f"cifar-{ends.get(f'{number} {version}', f'{number}-{version}')}", name, version)
    if place == "variable":
        monkeypatch.setenv("MINIVIT_DATA", str(folder))
    assert_is(load_dataset(name, data_dir=folder if place == "named" else None, download=False), name)


def test_only_the_given_folder_is_searched(tmp_path: Path) -> None:
    write_archive(tmp_path / "data" / "cifar-10-binary.tar.gz", "cifar10", "binary")
    with pytest.raises(UserError, match=r"cifar10 is not in .*other and download is off"):
        load_dataset("cifar10", data_dir=tmp_path / "other", download=False)


def test_an_archive_with_the_name_of_the_other_data_set_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path / "data" / "cifar-10-binary.tar.gz", "cifar100", "binary")
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz holds cifar100, not cifar10"):
        load_dataset("cifar10")


@BOTH
@pytest.mark.parametrize("form", ["python archive", "xz archive", "plain archive", "folder", "folder in a folder"])
def test_a_data_set_is_found_whatever_it_is_called(tmp_path: Path, name: str, form: str) -> None:
    folder = tmp_path / "mine"
    other = {"cifar10": "cifar100", "cifar100": "cifar10"}[name]
    write_archive(folder / "a-first.tar.gz", other, "binary")
    (folder / "notes.txt").write_text("x")
    (folder / "broken.tar.gz").write_text("x")
    archive = write_archive(folder / "download (1).tgz", name, "python")
    if form in ("xz archive", "plain archive"):
        content = gzip.decompress(archive.read_bytes())
        archive.with_name("x.tar.xz" if form == "xz archive" else "x.tar").write_bytes(
            lzma.compress(content) if form == "xz archive" else content
        )
    if form != "python archive":
        archive.unlink()
    if form.startswith("folder"):
        write_folder(folder / ("outer/inner" if form == "folder in a folder" else "inner"), name, "python")
    assert_is(load_dataset(name, data_dir=folder, download=False), name)


@BOTH
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_a_data_set_is_found_in_a_folder_of_its_own_name(tmp_path: Path, name: str, form: str) -> None:
    folder = tmp_path / "data" / name
    if form == "archive":
        write_archive(folder / f"cifar-{name.removeprefix('cifar')}-python.tar.gz", name, "python")
    else:
        write_folder(folder / "unpacked", name, "binary")
    assert_is(load_dataset(name, data_dir=tmp_path / "data", download=False), name)


@pytest.mark.parametrize("below", [".", "pictures", "a/b"])
def test_a_folder_of_images_of_the_ten_classes_is_found(tmp_path: Path, below: str) -> None:
    for part in ("train", "test"):
        for label in CLASS_NAMES["cifar10"]:
            folder = tmp_path / "mine" / below / part / label
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(folder / "0.png")
    dataset = load_dataset("cifar10", data_dir=tmp_path / "mine", download=False)
    assert dataset.class_names == CLASS_NAMES["cifar10"]
    with pytest.raises(UserError, match="cifar100 is not in"):
        load_dataset("cifar100", data_dir=tmp_path / "mine", download=False)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("data_batch_1", 2**28), "data_batch_1 has 268,435,456 bytes; expected at most 33,000,000"),
        (header("x", 2**30) + bytes(210_000_000), "unpacks to more than 200,000,000 bytes"),
        (header("x", 2**30, tarfile.GNUTYPE_LONGNAME), "a name of 1,073,741,824 bytes"),
        (header("x", 2**29, tarfile.XHDTYPE), "a name of 536,870,912 bytes"),
        (header("x", 0) * 1001, "more than 1,000 files"),
        (header("data_batch_1", 512, tarfile.GNUTYPE_SPARSE), "with holes"),
        (header("data_batch_1", 512) + b"x" * 100, "ends in the middle of a file"),
    ],
    ids=["large", "large in all", "long name", "long header", "many files", "holes", "cut off"],
)
def test_an_archive_beyond_the_bounds_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(content, 1))
    with pytest.raises(UserError, match=rf"bomb\.tar\.gz cannot be read as a tar archive of CIFAR: .*{message}"):
        load_dataset(path)


def test_a_zip_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cats/0.png", b"x")
    with pytest.raises(UserError, match=r"photos\.zip .*it is a zip archive.* unpack it and pass the folder"):
        load_dataset(path)


def test_the_images_of_an_archive_are_resized_when_they_are_read(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "any.tar.gz", "cifar10", "binary")
    stored = load_dataset(path, image_size=32)
    assert isinstance(stored.train_images, np.ndarray)
    resized = load_dataset(path, image_size=(64, 48), interpolation="bilinear", fit="squash")
    assert resized.train_images.shape == (len(stored.train_images), 64, 48, 3)
    first = Image.fromarray(stored.train_images[0]).resize((48, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(resized.train_images[:1])[0], np.asarray(first))


@pytest.mark.parametrize("kept", [0, 10, 1000, -1000])
def test_a_truncated_archive_is_refused(tmp_path: Path, kept: int) -> None:
    path = write_archive(tmp_path / "cut.tar.gz", "cifar10", "binary")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cut\.tar\.gz cannot be read as a tar archive of CIFAR"):
        load_dataset(path)


def test_an_archive_with_a_damaged_middle_is_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "bad.tar.gz", "cifar10", "binary")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :][:100] = data[len(data) // 2 : len(data) // 2 + 100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"bad\.tar\.gz"):
        load_dataset(path)


@pytest.mark.parametrize("content", [b"plain text", gzip.compress(b"not a tar" * 200, mtime=0)])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.tar.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"other\.tar\.gz cannot be read as a tar archive of CIFAR"):
        load_dataset(path)


def test_an_archive_of_other_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.tar.gz"
    path.write_bytes(archive_of({"cats/cat.jpg": b"..."}))
    with pytest.raises(UserError, match=r"other\.tar\.gz holds no batches of CIFAR"):
        load_dataset(path)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "any", "cifar10", "binary")
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(UserError, match=r"holds a part of cifar10, but not data_batch_4\.bin"):
        load_dataset(folder)


@BOTH
def test_a_wrong_record_length_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "any", name, "binary")
    file = folder / ("test_batch.bin" if name == "cifar10" else "test.bin")
    file.write_bytes(file.read_bytes()[:-1])
    length = 3073 if name == "cifar10" else 3074
    with pytest.raises(UserError, match=rf"{file.name} has {3 * length - 1} bytes; expected a multiple of {length}"):
        load_dataset(folder)


@VERSIONS
def test_a_label_out_of_range_is_named(tmp_path: Path, version: str) -> None:
    folder = write_folder(tmp_path / "any", "cifar10", version)
    images, labels = expected("cifar10")[:2]
    labels[1] = 10
    write = binary if version == "binary" else python
    file = folder / ("data_batch_1.bin" if version == "binary" else "data_batch_1")
    file.write_bytes(write("cifar10", images[:PER_BATCH], labels[:PER_BATCH]))
    with pytest.raises(UserError, match=rf"{file.name}: record 1 has the label 10; expected 0 to 9"):
        load_dataset(folder)


def test_reading_an_archive_writes_no_files(tmp_path: Path) -> None:
    members = {f"../../{name}": data for name, data in files("cifar10", "binary").items()}
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = folder / "malicious.tar.gz"
    path.write_bytes(archive_of({**members, "../escaped.txt": b"x"}))
    before = sorted(tmp_path.rglob("*"))
    assert_is(load_dataset(path), "cifar10")
    assert sorted(tmp_path.rglob("*")) == before


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "links.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UserError, match="holds no batches of CIFAR"):
        load_dataset(path)


def test_a_duplicate_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.tar.gz"
    members = files("cifar10", "binary")
    path.write_bytes(archive_of({**members, "again/test_batch.bin": members["test_batch.bin"]}))
    with pytest.raises(UserError, match=r"test_batch\.bin occurs twice"):
        load_dataset(path)


@BOTH
def test_a_data_set_is_downloaded_once(
    monkeypatch: pytest.MonkeyPatch, isolated: Path, serve: Callable[[dict[str, bytes]], str], name: str
) -> None:
    file = "cifar-10-binary.tar.gz" if name == "cifar10" else "cifar-100-binary.tar.gz"
    data = archive_of(files(name, "binary"))
    address = serve({file: data})
    monkeypatch.setitem(ARCHIVES, name, Archive(f"{address}/{file}", hashlib.md5(data).hexdigest()))
    seen: list[tuple[str, int, int]] = []
    assert_is(load_dataset(name, progress=lambda *now: seen.append(now)), name)
    assert seen[-1] == (f"downloading {file}", len(data), len(data))
    assert [path.name for path in isolated.iterdir()] == [file]
    monkeypatch.setitem(ARCHIVES, name, Archive("http://127.0.0.1:9/nothing", "0" * 32))
    assert_is(load_dataset(name), name)


def test_a_download_goes_to_the_given_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[dict[str, bytes]], str]
) -> None:
    data = archive_of(files("cifar10", "binary"))
    address = serve({"a.tar.gz": data})
    monkeypatch.setitem(ARCHIVES, "cifar10", Archive(f"{address}/a.tar.gz", hashlib.md5(data).hexdigest()))
    load_dataset("cifar10", data_dir=tmp_path / "here")
    assert (tmp_path / "here" / "a.tar.gz").read_bytes() == data


def test_a_download_with_a_wrong_checksum_is_deleted(
    monkeypatch: pytest.MonkeyPatch, isolated: Path, serve: Callable[[dict[str, bytes]], str]
) -> None:
    address = serve({"cifar-10-binary.tar.gz": b"please log in"})
    monkeypatch.setitem(ARCHIVES, "cifar10", Archive(f"{address}/cifar-10-binary.tar.gz", "0" * 32))
    with pytest.raises(UserError, match=r"is not the archive \(its MD5 checksum is not 0{32}\)"):
        load_dataset("cifar10")
    assert list(isolated.iterdir()) == []


def test_the_error_of_a_download_without_a_connection_says_what_to_do(isolated: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset("cifar10")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "cannot be downloaded",
        "cifar-10-binary.tar.gz",
        "cifar-10-python.tar.gz",
        str(isolated),
        "MINIVIT_DATA",
    ):
        assert part in message
    assert "`minivit train digits` needs no download" in message


def test_a_missing_file_on_the_server_is_reported(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[[dict[str, bytes]], str]
) -> None:
    monkeypatch.setitem(ARCHIVES, "cifar10", Archive(f"{serve({})}/cifar-10-binary.tar.gz", "0" * 32))
    with pytest.raises(UserError, match=r"cannot be downloaded \(HTTPError\)"):
        load_dataset("cifar10")


def test_a_folder_that_cannot_be_created_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[dict[str, bytes]], str]
) -> None:
    monkeypatch.setitem(ARCHIVES, "cifar10", Archive(f"{serve({'a': b''})}/a", "0" * 32))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"a cannot be written into .*file.*: "):
        load_dataset("cifar10", data_dir=tmp_path / "file" / "below")
