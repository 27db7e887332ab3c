"""Atomic writing of files, JSON files, and locks on folders.

A file is written under a temporary name, synced, then renamed. If the process is killed, the complete old file or the
complete new file exists. The temporary file may remain; `remove_leftovers` deletes it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from minivit.errors import RunError, UserError

_locks: set[int] = set()  # file descriptors of the locks that this process holds

_TEMPORARY = ".minivit-{name}-{token}.tmp"

_ADVICE = {
    errno.ENOSPC: "free some space on this disk, or write to another one",
    errno.EDQUOT: "your quota on this disk is exhausted: free some space, or write to another disk",
    errno.EACCES: "you may not write to this folder: change its permissions, or write to another one",
    errno.EPERM: "you may not write to this folder: change its permissions, or write to another one",
    errno.EROFS: "this disk is read-only: write to another one",
    errno.ENOTDIR: "a part of this path is a file and not a folder: write to another path",
    errno.EEXIST: "a part of this path is a file and not a folder: write to another path",
    errno.EISDIR: "there is a folder of this name: write to another path",
    errno.ENOTEMPTY: "there is a folder of this name: write to another path",
}


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: at any moment, `path` is the old file or the complete new file.

    Parameters
    ----------
    path : path
        The file; a missing folder is created.
    write : callable
        ``write(file)`` writes the content to a binary file.

    Raises
    ------
    RunError
        The system refuses the write (disk full, no permission, read-only). In this case, and if `write` raises an
        exception, an existing file is not changed and no temporary file remains.
    """
    path = Path(path)
    temporary = path.with_name(_TEMPORARY.format(name=path.name, token=secrets.token_hex(4)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise _refused(path, error) from error
    _sync_folder(path.parent)


def write_json(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write `value` as JSON, atomically; floats are stored with all digits.

    Raises
    ------
    RunError
        As in `atomic_write`.
    TypeError, ValueError
        A value is not finite or cannot be represented in JSON; no file is written.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises
    ------
    UserError
        The file is missing or unreadable, or does not hold a JSON object.
    """
    try:
        value = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not valid JSON ({error}): it is truncated or another kind of file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}; expected an object: it is another kind of file")
    return value


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file.

    Raises
    ------
    UserError
        The file is missing or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold an exclusive lock on `folder` inside the block; the system releases the lock of a process that dies.

    On systems without file locks (Windows) there is no lock.

    Raises
    ------
    UserError
        Another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _locks.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is at work in {folder}; wait for it, or stop it first") from error
        except OSError:  # the file system has no locks
            pass
        yield
    finally:
        if descriptor in _locks:
            _locks.remove(descriptor)
            os.close(descriptor)


def _close_inherited_locks() -> None:
    """Close the parent's locks in a forked process, so that they end with the parent."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_locks)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete the temporary files of killed processes in `folder`; the caller must be its only writer."""
    for leftover in Path(folder).glob(_TEMPORARY.format(name="*", token="*")):
        with contextlib.suppress(OSError):
            leftover.unlink()


def _refused(path: str | os.PathLike[str], error: OSError) -> RunError:
    advice = _ADVICE.get(error.errno or 0, "check the disk, or write to another one")
    reason = error.strerror or str(error)
    return RunError(f"cannot write {path}: {reason}; the file was not changed; {advice}")


def _sync_folder(folder: Path) -> None:
    # The new file is already complete and renamed. Some systems cannot sync a folder, and Windows cannot open one.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
