"""Model files carry a checksum; hostile and damaged files are refused by their header, quickly and in little memory."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from model_files import model_of
from safetensors.numpy import load_file, save_file

from minivit.errors import UserError
from minivit.weights import load_model, model_metadata, read_tensors, save_model, write_tensors


def test_any_flipped_byte_of_a_model_file_is_noticed(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path, extra={"note": '"checksum": "' + "0" * 32})
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    load_model(path)
    generator = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    name = content.index(b'"checksum": "')
    places = {*generator.integers(8, header, 60).tolist(), *generator.integers(header, len(content), 40).tolist()}
    for place in places - set(range(name, name + 10)):  # without its name there is no checksum; nothing else changes
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_model(path)


def test_a_file_with_a_checksum_is_a_usual_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": np.arange(3.0), "checksum": np.ones(1)}, {"about": "this"})
    assert load_file(path)["x"].tolist() == [0.0, 1.0, 2.0]
    tensors, about = read_tensors(path)
    assert sorted(tensors) == ["checksum", "x"]
    assert about == {"about": "this"}


def test_a_file_of_another_program_needs_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": np.ones(2)}, path, metadata={"by": "another"})
    assert read_tensors(path)[1] == {"by": "another"}
    for checksum in ("abc", "0" * 32):
        save_file({"x": np.ones(2)}, path, metadata={"checksum": checksum})
        assert read_tensors(path)[0]["x"].tolist() == [1.0, 1.0]


def test_an_escape_in_the_checksum_does_not_make_a_damaged_file_foreign(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for i in range(20):  # until a digit stands before a "b" or an "f", which a backslash makes one character
        write_tensors(path, {"x": np.zeros(9)}, {"about": str(i)})
        content = bytearray(path.read_bytes())
        start = content.index(b'"checksum": "') + 13
        places = [at for at in range(start, start + 31) if content[at + 1] in b"bf"]
        if places:
            break
    content[places[0]] = ord("\\")
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors was changed or damaged"):
        read_tensors(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 200_000,
        b'{"__metadata__": ' + b'{"a":' * 100_000,
        b'{"__metadata__": {"a": 5}}',
        b'{"__metadata__": [1]}',
        b'{"x": 5}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": "ab"}}',
        b'{"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
        b'{"x": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 8]}}',
        b"\xff\xfe",
        b"",
    ],
    ids=lambda header: str(header[:40]),
)
def test_a_hostile_header_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    for read in (read_tensors, model_metadata):
        with pytest.raises(UserError, match=r"model\.safetensors") as raised:
            read(path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("length", [2, 1 << 23, 1 << 39, 1 << 63], ids=str)
def test_a_file_of_a_terabyte_of_zeros_is_refused_at_once(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b"{}")
        os.truncate(file.fileno(), 1 << 40)
    tracemalloc.start()
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"model\.safetensors (is not a complete|has a header of)"):
        load_model(path)
    assert time.monotonic() - begun < 2
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
