"""Files that are whole or not there: written under a temporary name, synced, then renamed.

A process that dies at any moment leaves the old file or the new one, never a part of one. What it may leave besides is
its temporary file, which `remove_leftovers` takes away.
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

_locks: set[int] = set()  # descriptors of this process

_TEMPORARY = ".minivit-{name}-{token}.tmp"

_ADVICE = {
    errno.ENOSPC: "free some space on this disk, or write to another one",
    errno.EDQUOT: "your quota on this disk is used up: free some space, or write to another disk",
    errno.EACCES: "you may not write to this folder: change its permissions, or write to another one",
    errno.EPERM: "you may not write to this folder: change its permissions, or write to another one",
    errno.EROFS: "this disk is read-only: write to another one",
    errno.ENOTDIR: "a part of this path is a file and not a folder: write to another path",
    errno.EEXIST: "a part of this path is a file and not a folder: write to another path",
    errno.EISDIR: "there is a folder of this name: write to another path",
    errno.ENOTEMPTY: "there is a folder of this name: write to another path",
}


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that it is at every moment the old one or the whole new one.

    Parameters
    ----------
    path : path
        The file; its folder is made if it is missing.
    write : callable
        ``write(file)`` writes the content to a binary file.

    Raises
    ------
    RunError
        The system refused (disk full, no permission, read-only). The old file, if any, is intact then, and nothing is
        left beside it; so it is when `write` itself raises.
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
    """Write `value` as JSON, atomically; floats keep all their digits.

    Raises
    ------
    RunError
        As in `atomic_write`.
    TypeError, ValueError
        A value is nothing that JSON has, or not finite; no file is touched then.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises
    ------
    UserError
        The file is missing or unreadable, or holds no JSON object: it is truncated, or something else.
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
        It is missing or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes that ask for it out of `folder` while the block lasts; a dead process holds no lock.

    Where the system has no file locks (Windows), nobody is kept out.

    Raises
    ------
    UserError
        Another process holds the folder.
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
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        if descriptor in _locks:
            _locks.remove(descriptor)
            os.close(descriptor)


def _leave_locks() -> None:
    """Close, in a forked process, the parent's locks: they must not outlive it."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove what killed writers left in `folder`; only for who alone writes there."""
    for leftover in Path(folder).glob(_TEMPORARY.format(name="*", token="*")):
        with contextlib.suppress(OSError):
            leftover.unlink()


def _refused(path: str | os.PathLike[str], error: OSError) -> RunError:
    advice = _ADVICE.get(error.errno or 0, "check the disk, or write to another one")
    reason = error.strerror or str(error)
    return RunError(f"cannot write {path}: {reason}; nothing there was changed; {advice}")


def _sync_folder(folder: Path) -> None:
    # The file is whole and in place by now; some systems have no way to sync a folder, and Windows cannot open one.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
