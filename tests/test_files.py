"""Files are written atomically, whatever fails during the write; folders are locked by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from forks import ended_well, forked, needs_fork

from minivit.errors import RunError, UserError, did_you_mean, printable
from minivit.files import (
    atomic_write,
    expect_checksum,
    locked,
    parse_json,
    read_bytes,
    read_json,
    remove_leftovers,
    with_checksum,
    write_json,
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_content_replaces_the_old(old: Path) -> None:
    atomic_write(old, lambda file: file.write(b"new"))
    assert old.read_bytes() == b"new"
    assert names(old.parent) == ["file"]


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", lambda file: file.write(b"x"))
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.skipif(os.name != "posix", reason="this system has no permissions of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(old: Path, mode: int) -> None:
    """So does the temporary file, from before the first byte is written."""
    old.chmod(mode)

    def write(file: BinaryIO) -> None:
        assert {path.stat().st_mode & 0o777 for path in old.parent.iterdir()} == {mode}
        file.write(b"new")

    atomic_write(old, write)
    assert (old.read_bytes(), old.stat().st_mode & 0o777) == (b"new", mode)


@pytest.mark.parametrize("path", [".", "", "/"])
def test_a_path_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(RunError, match="there is a folder of this name: write to another path"):
        atomic_write(path, lambda file: file.write(b"new"))


def test_missing_folders_are_created(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a" / "b" / "file", lambda file: file.write(b"new"))
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_interrupted_write_does_not_change_the_old_file(old: Path, error: BaseException) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"half of the new")
        raise error

    with pytest.raises(type(error)):
        atomic_write(old, write)
    assert old.read_bytes() == b"old"
    assert names(old.parent) == ["file"]


def test_the_old_file_exists_until_the_new_one_is_synced(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def sync(descriptor: int) -> None:
        seen.append(old.read_bytes())

    monkeypatch.setattr(os, "fsync", sync)
    atomic_write(old, lambda file: file.write(b"new"))
    assert seen[0] == b"old"
    assert seen[1:] == ([] if os.name == "nt" else [b"new"])  # when the folder is synced


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "permissions"), (errno.EROFS, "read-only")]
)
@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_an_error_of_the_system_is_reported_and_keeps_the_old_file(
    old: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, advice: str
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, refuse)
        with pytest.raises(RunError) as raised:
            atomic_write(old, lambda file: file.write(b"new"))
    assert str(old) in str(raised.value)
    assert os.strerror(code) in str(raised.value)
    assert advice in str(raised.value)
    assert old.read_bytes() == b"old"
    assert names(old.parent) == ["file"]


def test_a_disk_that_fills_up_during_the_write_is_reported_and_keeps_the_old_file(old: Path) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"half of the new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match="free some space"):
        atomic_write(old, write)
    assert old.read_bytes() == b"old"
    assert names(old.parent) == ["file"]


def test_a_file_in_place_of_the_folder_is_refused(old: Path) -> None:
    with pytest.raises(RunError, match="is a file and not a folder"):
        atomic_write(old / "new", lambda file: file.write(b"new"))


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        atomic_write(tmp_path / "file", lambda file: file.write(b"new"))
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_device_or_a_pipe_is_refused_and_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(RunError, match="it is a device or a pipe, which a file would replace"):
            atomic_write(tmp_path / name, lambda file: file.write(b"new"))
    assert names(tmp_path) == ["link", "pipe"]
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_stays_and_the_file_that_it_points_to_is_written(old: Path) -> None:
    link = old.with_name("link")
    link.symlink_to(old)
    atomic_write(link, lambda file: file.write(b"new"))
    assert link.is_symlink()
    assert old.read_bytes() == b"new"
    assert names(old.parent) == ["file", "link"]


def test_of_a_link_to_a_missing_file_that_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("folder/file")
    atomic_write(tmp_path / "link", lambda file: file.write(b"new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder/file").read_bytes() == b"new"


def test_of_a_link_to_a_pipe_the_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(RunError, match="link: it is a device or a pipe"):
        atomic_write(tmp_path / "link", lambda file: file.write(b"new"))


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    atomic_write(tmp_path / ("a" * 255), lambda file: file.write(b"new"))
    assert (tmp_path / ("a" * 255)).read_bytes() == b"new"
    with pytest.raises(RunError, match="File name too long; the file was not changed; choose a shorter name"):
        atomic_write(tmp_path / ("a" * 256), lambda file: file.write(b"new"))


def test_files_are_written_on_a_system_that_cannot_sync_folders(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    atomic_write(old, lambda file: file.write(b"new"))
    assert old.read_bytes() == b"new"


def test_only_temporary_files_of_killed_processes_are_removed(old: Path) -> None:
    def write(file: BinaryIO) -> None:
        # A copy of the temporary file that a process killed at this moment leaves.
        (temporary,) = (path for path in old.parent.iterdir() if path != old)
        temporary.with_name(temporary.name.replace(".tmp", "0.tmp")).write_bytes(b"half")

    atomic_write(old, write)
    (old.parent / "other.tmp").write_bytes(b"")
    assert len(names(old.parent)) == 3
    remove_leftovers(old.parent)
    assert names(old.parent) == ["file", "other.tmp"]


def test_json_keeps_all_digits(tmp_path: Path) -> None:
    value = {"a": [0.1, 1 / 3, 1e-300, 12345678901234567], "ü": None}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("value", [{"a": float("nan")}, {"a": {1, 2}}])
def test_values_that_json_cannot_represent_are_refused_before_the_file_is_touched(
    old: Path, value: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_json(old, value)
    assert old.read_bytes() == b"old"


def test_json_that_would_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"would have 4,194,3\d\d bytes; a file of this kind has at most 4,194,304"):
        write_json(tmp_path / "x.json", {"a": "b" * (1 << 22)})
    assert names(tmp_path) == []


def test_names_that_are_not_utf_8_survive_in_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"path": "raw\udcff", "name": "日"})
    assert read_json(tmp_path / "a.json") == {"path": "raw\udcff", "name": "日"}


def test_values_that_were_changed_are_noticed_by_their_checksum() -> None:
    values = {"lr": 0.1, "name": "é", "nested": {"b": [1, None], "a": True}}
    sealed = with_checksum(values)
    assert expect_checksum(sealed, "a.json") == expect_checksum(values, "a.json", required=False) == values
    for changed in (values, {**sealed, "lr": 0.2}, {**sealed, "more": 1}, {**sealed, "checksum": "0" * 32}):
        with pytest.raises(UserError, match=r"^a\.json was changed or damaged"):
            expect_checksum(changed, "a.json")
    with pytest.raises(UserError, match="changed or damaged"):
        expect_checksum(sealed, "a.json", before="another line")


def test_json_truncated_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": [1, "text"], "b": {"c": None}})
    content = path.read_bytes()
    for length in range(len(content.rstrip())):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"x\.json is (not valid JSON|nested too deeply)"):
            read_json(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b"\x80\x04N."], ids=["text", "deep", "pickle"])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json is (not valid JSON|nested too deeply)"):
        read_json(tmp_path / "x.json")


def test_json_that_is_not_an_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"x\.json holds a JSON list"):
        read_json(tmp_path / "x.json")


def test_the_error_for_a_missing_json_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*x\.json: No such file"):
        read_json(tmp_path / "x.json")


@needs_fork
def test_a_forked_process_does_not_hold_the_lock_of_its_parent(tmp_path: Path) -> None:
    """A forked worker that outlives its parent does not keep the folder locked."""
    here, there = multiprocessing.Pipe()

    def outlive() -> None:
        here.close()
        there.send_bytes(b"begun")
        with contextlib.suppress(EOFError):
            there.recv_bytes()  # blocks until the parent closes the pipe

    with locked(tmp_path):
        child = forked(outlive)
        there.close()
        here.recv_bytes()
    with locked(tmp_path):
        pass
    here.close()
    assert ended_well(child)


def test_a_folder_can_be_locked_only_once(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(UserError, match="another process is at work in"), locked(tmp_path):
            pass
        other = tmp_path / "other"
        other.mkdir()
        with locked(other):
            pass
        with pytest.raises(UserError, match="another process is at work in"), locked(tmp_path):
            pass


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": NaN}', "[1]", "", b"\xff", '{"a": ' + "1" * 5000 + "}"])
def test_json_of_another_form_is_refused(text: str | bytes) -> None:
    with pytest.raises(UserError, match=r"^config\.json "):
        parse_json(text, "config.json")


def test_a_pipe_or_a_file_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(UserError, match=r"5 bytes.* at most 4"):
        read_bytes(tmp_path / "a", 4)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UserError, match="not a regular file"):
            read_bytes(tmp_path / "pipe")


def test_messages_show_control_characters_as_escapes() -> None:
    assert printable("a\x1b[2J\u202eb\udcffé 日\u200d") == "a\\x1b[2J\\u202eb\\udcffé 日\u200d"


def test_messages_name_the_nearest_name() -> None:
    assert did_you_mean("Dept", ["depth", "embed_dim"]) == " did you mean 'depth'?"
    assert did_you_mean("xyz", ["depth"]) == ""
