"""Load thousands of damaged data files, each in a process of its own, and report what is not refused in one line.

Run it by hand: python tests/fuzz.py --count 3000. A loader may return, or raise UserError in one line; within 2 seconds
and 200 MB. `tests/test_fuzz_data.py` runs some in one process.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import resource
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from mutate_bytes import mutations
from PIL import Image

from minivit.data import load_dataset
from minivit.data.images import decode
from minivit.errors import UserError

Compression = Literal["w:", "w:gz", "w:bz2", "w:xz"]


class Loader(NamedTuple):
    """The contents to damage, by name, the function that loads a file with such a content, and what a refusal names."""

    contents: dict[str, bytes]
    load: Callable[[Path], object]
    named: str | None = None  # the file itself


def _image(kind: str, size: tuple[int, int] = (24, 20), mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _images() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("P", (24, 20), colour) for colour in range(3)]
    return {
        "png": _image("PNG"),
        "palette.png": _image("PNG", mode="P", transparency=0),
        "alpha.png": _image("PNG", mode="RGBA"),
        "jpeg": _image("JPEG", exif=exif),
        "progressive.jpeg": _image("JPEG", progressive=True),
        "gif": _image("GIF", mode="P", save_all=True, append_images=frames),
        "webp": _image("WEBP"),
        "tiff": _image("TIFF"),
        "lzw.tiff": _image("TIFF", compression="tiff_lzw"),
        "jpeg.tiff": _image("TIFF", compression="jpeg"),
        "deflate.tiff": _image("TIFF", compression="tiff_adobe_deflate"),
        "bmp": _image("BMP"),
        "palette.bmp": _image("BMP", mode="P"),
        "ppm": _image("PPM"),
        "pbm": b"P1\n3 2\n1 0 1\n0 1 0\n",
        "pgm": b"P2\n# text\n3 2\n15\n1 2 3\n4 5 6\n",
        "avif": _image("AVIF"),
    }


def _batch(protocol: int = 2) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    return pickle.dumps({b"data": pixels, b"labels": [4, 0, 9], b"filenames": [b"a.png"] * 3}, protocol=protocol)


def _archive(mode: Compression) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for name in [f"{'long-name/' * 12}data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
            content = _batch()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _load_batches(path: Path) -> object:
    """Load a folder of CIFAR whose first batch is `path`."""
    folder = Path(tempfile.mkdtemp(dir=path.parent))
    for i in range(1, 6):
        (folder / f"data_batch_{i}").write_bytes(path.read_bytes() if i == 1 else _batch())
    (folder / "test_batch").write_bytes(_batch())
    return load_dataset(folder)


LOADERS = {
    "images": Loader(_images(), lambda path: decode(path, (16, 16), 3)),
    "pickles": Loader({f"protocol {i}": _batch(i) for i in range(6)}, _load_batches, "data_batch_1"),
    "archives": Loader({mode: _archive(mode) for mode in get_args(Compression)}, load_dataset),
}


def cases(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield `count` pairs (loader/content, damaged bytes), of all contents in turn."""
    generator = np.random.default_rng(seed)
    sources = [
        (f"{name}/{kind}", mutations(content, generator))
        for name, loader in LOADERS.items()
        for kind, content in loader.contents.items()
    ]
    for i in range(count):
        name, damaged = sources[i % len(sources)]
        yield name, next(damaged)


def trouble(name: str, path: Path) -> str | None:
    """Load a file; return None if it is loaded or refused in one line that names it, else what happened."""
    loader = LOADERS[name.partition("/")[0]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loader.load(path)
    except UserError as error:
        message = str(error)
        if "\n" in message or len(message) >= 1000:
            return f"a message of several lines: {message!r:.200}"
        return None if (loader.named or path.name) in message else f"a message without the file: {message!r:.200}"
    except Warning as error:
        return f"warning {type(error).__name__}: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


def main() -> int:
    """Run the cases and print what is wrong; the exit status is 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    wrong: Counter[str] = Counter()
    slowest, largest = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.png"
        trouble("images/png", path)  # imports Pillow before the memory is measured
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for i, (name, content) in enumerate(cases(args.count, args.seed)):
            path.write_bytes(content)
            start = time.perf_counter()
            child = os.fork()
            if child == 0:
                happened = trouble(name, path)
                if happened:
                    print(f"{i} {name}: {happened:.300}", flush=True)
                os._exit(bool(happened))
            _, status, usage = os.wait4(child, 0)
            seconds, megabytes = time.perf_counter() - start, (usage.ru_maxrss - base) // 1024
            slowest, largest = max(slowest, seconds), max(largest, megabytes)
            if os.WIFSIGNALED(status):
                wrong[f"killed by signal {os.WTERMSIG(status)}"] += 1
            wrong["raw errors"] += status == 256
            wrong["above 2 s"] += seconds > 2
            wrong["above 200 MB"] += megabytes > 200
            if os.WIFSIGNALED(status) or seconds > 2 or megabytes > 200:
                kept = Path(tempfile.gettempdir()) / f"fuzz-{args.seed}-{i}"
                kept.write_bytes(content)
                print(f"{i} {name}: status {status}, {seconds:.1f} s, {megabytes} MB; kept as {kept}", flush=True)
    print(f"{args.count} files: {dict(wrong)}; slowest {slowest:.2f} s, largest {largest} MB")
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
