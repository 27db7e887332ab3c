"""Download the official archives of CIFAR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minivit.data.dataset import ProgressCallback
from minivit.errors import UserError


@dataclass(frozen=True)
class Archive:
    """The address and the checksum of an archive."""

    url: str
    md5: str


ARCHIVES = {
    "cifar10": Archive("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    "cifar100": Archive("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
}


class _Bar:
    """A progress bar as pooch requires it, which calls `progress`."""

    total = 0

    def __init__(self, what: str, progress: ProgressCallback) -> None:
        self.what, self.progress, self.done = what, progress, 0

    def update(self, size: int) -> None:
        self.done += size
        self.progress(self.what, min(self.done, self.total) if self.total else self.done, self.total)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def download_archive(name: str, folder: Path, progress: ProgressCallback | None = None) -> Path:
    """Download the binary archive of "cifar10" or "cifar100" into `folder` and return its path.

    The file gets its final name only after its checksum is verified.

    Raises
    ------
    UserError
        The server cannot be reached, the checksum is wrong, or `folder` cannot be written.
    """
    import pooch
    import requests

    archive = ARCHIVES[name]
    file = archive.url.rsplit("/", 1)[1]
    pooch.get_logger().setLevel("WARNING")
    bar = _Bar(f"downloading {file}", progress) if progress is not None else False
    try:
        path = pooch.retrieve(
            archive.url,
            known_hash=f"md5:{archive.md5}",
            fname=file,
            path=folder,
            downloader=pooch.HTTPDownloader(progressbar=bar, timeout=30),
        )
    except requests.RequestException as error:
        raise UserError(
            f"{name} is not on this machine and {archive.url} cannot be downloaded ({type(error).__name__}); "
            f"put {file} or {file.replace('binary', 'python')} into {folder}, or set MINIVIT_DATA to its folder; "
            "`minivit train digits` needs no download"
        ) from error
    except ValueError as error:
        raise UserError(
            f"the file from {archive.url} is not the archive (its MD5 checksum is not {archive.md5}) and was deleted; "
            "try again, and check whether a proxy answers instead of the server"
        ) from error
    except OSError as error:
        raise UserError(
            f"{file} cannot be written into {folder}: {error}; set MINIVIT_DATA to another folder"
        ) from error
    return Path(path)
