"""Fetches the official archives of CIFAR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minivit.data.dataset import Progress
from minivit.errors import UserError


@dataclass(frozen=True)
class Archive:
    """Where an archive is, and what it must be."""

    url: str
    md5: str


ARCHIVES = {
    "cifar10": Archive("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    "cifar100": Archive("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
}


class _Bar:
    """What pooch wants of a progress bar, handing on to `progress`."""

    total = 0

    def __init__(self, what: str, progress: Progress) -> None:
        self.what, self.progress, self.done = what, progress, 0

    def update(self, size: int) -> None:
        self.done += size
        self.progress(self.what, min(self.done, self.total) if self.total else self.done, self.total)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def download_archive(name: str, folder: Path, progress: Progress | None = None) -> Path:
    """Fetch the binary archive of "cifar10" or "cifar100" into `folder` and return its path.

    The file gets its name only when it is whole and its checksum is right.

    Raises
    ------
    UserError
        The server cannot be reached, what it sends has another checksum, or `folder` cannot be written.
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
            f"{name} is not on this machine and {archive.url} cannot be fetched ({type(error).__name__}); "
            f"put {file} or {file.replace('binary', 'python')} into {folder}, or name its folder in MINIVIT_DATA; "
            "`minivit train digits` needs no download"
        ) from error
    except ValueError as error:
        raise UserError(
            f"what {archive.url} sent is not the archive (its MD5 checksum is not {archive.md5}) and was thrown away; "
            "try again, and look for a proxy that answers in its place"
        ) from error
    except OSError as error:
        raise UserError(
            f"{file} cannot be written into {folder}: {error}; name another folder in MINIVIT_DATA"
        ) from error
    return Path(path)
