"""Atomic writing of files, JSON files with a checksum, and locks on folders.

A file is written under a temporary name, synced, then renamed. If the process is killed, the complete old file or the
complete new file exists. The temporary file may remain; `remove_leftovers` deletes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from minivit.errors import RunError, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None

_locks: set[int] = set()  # file descriptors of the locks that this process holds

_LARGEST_JSON = 1 << 22  # bytes; a longer text of small lists would take hundreds of megabytes

TEMPORARY = ".minivit-{token}.tmp"  # without the name of the file, which may have the greatest length

_ADVICE = {
    errno.ENOSPC: "free some space on this disk, or write to another one",
    errno.EDQUOT: "your quota on this disk is exhausted: free some space, or write to another disk",
    errno.EACCES: "you may not write to this folder: change its permissions, or write to another one",
    errno.EPERM: "you may not write to this folder: change its permissions, or write to another one",
    errno.EROFS: "this disk is read-only: write to another one",
    errno.ENOTDIR: "a part of this path is a file and not a folder: write to another path",
    errno.EEXIST: "a part of this path is a file and not a folder: write to another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "there is a folder of this name: write to another path",
    errno.ENOTEMPTY: "there is a folder of this name: write to another path",
}


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: at any moment, `path` is the old file or the complete new file.

    Parameters
    ----------
    path : path
        The file; a missing folder is created. Of a symbolic link, the file that it points to is written. A file that
        exists keeps its permissions.
    write : callable
        ``write(file)`` writes the content to a binary file.

    Raises
    ------
    RunError
        The system refuses the write (disk full, no permission, read-only), or `path` is a device or a pipe, whose
        place the file would take. In this case, and if `write` raises an exception, an existing file is not changed
        and no temporary file remains.
    """
    path = _regular(Path(path))
    if not path.name:  # "/" or "."
        raise refused(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    temporary = path.with_name(TEMPORARY.format(token=secrets.token_hex(8)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                if os.name == "posix":
                    with contextlib.suppress(OSError):  # there is no such file, or its disk has no permissions
                        temporary.chmod(path.stat().st_mode & 0o777)
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise refused(path, error) from error
    _sync_folder(path.parent)


def _regular(path: Path) -> Path:
    """Return the path to replace: `path`, or what a link points to; RunError if it is a device, a pipe or a socket."""
    try:
        mode = path.stat().st_mode
    except OSError:  # there is none; what else is wrong, the write itself reports
        mode = stat.S_IFREG
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        what = "it is a device or a pipe, which a file would replace"
        raise RunError(f"cannot write {path}: {what}; write to another path")
    is_link = os.path.islink(path)  # noqa: PTH114 - that of pathlib raises for a name that is too long
    return Path(os.path.realpath(path)) if is_link else path  # of a loop of links, one of them


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Append `text` to a file, which is made if there is none; a kill may leave a part of it.

    Raises
    ------
    RunError
        The system refuses.
    """
    try:
        with Path(path).open("ab") as file:
            file.write(text.encode())
    except OSError as error:
        raise refused(Path(path), error, "a part of the text may have been written; ") from error


def make_folder(path: str | os.PathLike[str]) -> bool:
    """Make a folder and its parents; return whether it is new. Of two processes, it is new for one.

    Raises
    ------
    RunError
        The system refuses, or there is a file of this name.
    """
    for last_try in (False, True):
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).mkdir()
            return True
        except FileNotFoundError as error:  # another process has just removed the parent
            if last_try:
                raise refused(path, error, "") from error
        except FileExistsError as error:
            if not Path(path).is_dir():
                raise refused(path, error, "") from error
            return False
        except OSError as error:
            raise refused(path, error, "") from error
    raise AssertionError("unreachable")


def delete(path: str | os.PathLike[str]) -> None:
    """Delete a file, if there is one.

    Raises
    ------
    RunError
        The system refuses.
    """
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise refused(path, error) from error


def write_json(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write `value` as JSON, atomically; floats are stored with all digits.

    Raises
    ------
    RunError
        As in `atomic_write`.
    TypeError, ValueError
        A value is not finite or cannot be represented in JSON; no file is written.
    UserError
        The text has more than 4 MiB, which `read_json` would refuse.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError:  # a name of a file that is not UTF-8: JSON can hold it as an escape only
        content = (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    if len(content) > _LARGEST_JSON:
        raise UserError(f"{path} would have {len(content):,} bytes; a file of this kind has at most {_LARGEST_JSON:,}")
    atomic_write(path, lambda file: file.write(content))


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises
    ------
    UserError
        The file is missing, unreadable or larger than 4 MiB, or does not hold a JSON object.
    """
    return parse_json(read_bytes(path, _LARGEST_JSON), path)


def parse_json(text: str | bytes, name: object) -> dict[str, Any]:
    """Return the JSON object in a text; `name` says in messages where the text is from.

    Raises
    ------
    UserError
        The text is not valid JSON, is nested too deeply, holds NaN or infinity, or is not an object.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise UserError(f"{name} is nested too deeply: it is damaged or another kind of file") from error
    except ValueError as error:  # also a number of too many digits, or bytes that are not UTF-8
        raise UserError(f"{name} is not valid JSON ({error}): it is truncated or another kind of file") from error
    if not isinstance(value, dict):
        raise UserError(f"{name} holds a JSON {type(value).__name__}; expected an object: it is another kind of file")
    return value


def checksum(content: bytes) -> str:
    """Return the checksum that files of a run carry: BLAKE2b of 128 bits, in hexadecimal."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def with_checksum(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the values and their ``checksum``, which also covers the text `before`: the checksum of another part."""
    values = {name: value for name, value in values.items() if name != "checksum"}
    return {**values, "checksum": checksum((before + json.dumps(values, sort_keys=True)).encode())}


def expect_checksum(values: Mapping[str, Any], name: object, before: str = "", required: bool = True) -> dict[str, Any]:
    """Return the values of `with_checksum` without their checksum; it may be missing if it is not `required`.

    Raises
    ------
    UserError
        The values are not those of the checksum; `name` is the file for the message.
    """
    kept = {key: value for key, value in values.items() if key != "checksum"}
    right = with_checksum(kept, before)["checksum"] if required or "checksum" in values else None
    if right != values.get("checksum"):
        raise UserError(f"{name} was changed or damaged since minivit wrote it: put the original back")
    return kept


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def read_bytes(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """Return the content of a file.

    Parameters
    ----------
    path : path
        A file; a device or a pipe is refused, because reading it might not end.
    limit : int, optional
        The largest size that is read, in bytes.

    Raises
    ------
    UserError
        The file is missing, is not a regular file, is larger than `limit`, or cannot be read.
    """
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path} is a folder; expected a file")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file")
        if limit is not None and status.st_size > limit:
            raise UserError(f"{path} has {status.st_size:,} bytes; a file of this kind has at most {limit:,}")
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
    FileNotFoundError
        Another process removed the folder before the lock was held.
    """
    if fcntl is None:
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
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder)):  # noqa: PTH116 - the folder may be bytes
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(folder))
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
    for leftover in Path(folder).glob(TEMPORARY.format(token="*")):
        with contextlib.suppress(OSError):
            leftover.unlink()


def refused(path: str | os.PathLike[str], error: OSError, state: str = "the file was not changed; ") -> RunError:
    """Return the error that says why the system refuses to write `path`, its `state`, and advice."""
    advice = _ADVICE.get(error.errno or 0, "check the disk, or write to another one")
    reason = error.strerror or str(error)
    return RunError(f"cannot write {path}: {reason}; {state}{advice}")


def _sync_folder(folder: Path) -> None:
    # The new file is already complete and renamed. Some systems cannot sync a folder, and Windows cannot open one.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
