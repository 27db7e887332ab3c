"""The python batches of CIFAR are read; a pickle that names anything else is refused without running code."""

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minivit.data.unpickle import load_batch
from minivit.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
LABELS = [4, 0, 9]


def python2_string(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text


def python2_batch(pixels: np.ndarray[Any, np.dtype[np.uint8]], labels: list[int]) -> bytes:
    """Return the pickle that Python 2 and NumPy 1 wrote in 2009, opcode by opcode."""
    minus_one = b"J" + struct.pack("<i", -1)
    dtype = b"cnumpy\ndtype\n" + python2_string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + python2_string(b"|") + b"NNN" + minus_one + minus_one + b"K\x00tb"
    shape = b"M" + struct.pack("<H", pixels.shape[0]) + b"M" + struct.pack("<H", pixels.shape[1]) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + python2_string(b"b") + b"\x87R"
    array += b"(K\x01" + shape + dtype + b"\x89" + python2_string(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + python2_string(b"data") + array + python2_string(b"labels") + numbers + b"u."


class RunsACommand:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class CallsEval:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1 + 1",)


def assert_is_the_batch(data: bytes) -> None:
    pixels, labels = load_batch(data, "labels", "data_batch_1")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, PIXELS)
    assert labels == LABELS


def test_a_pickle_of_python_2_is_read() -> None:
    data = python2_batch(PIXELS, LABELS)
    np.testing.assert_array_equal(pickle.loads(data, encoding="bytes")[b"data"], PIXELS)
    assert_is_the_batch(data)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_every_protocol_and_both_names_of_the_numpy_core_are_read(protocol: int, core: bytes) -> None:
    data = pickle.dumps({b"data": PIXELS, b"labels": LABELS}, protocol=protocol)
    if protocol < 4:  # later protocols store the length of the name
        data = data.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core)
    assert_is_the_batch(data)


def test_text_keys_and_column_order_are_read() -> None:
    assert_is_the_batch(pickle.dumps({"data": np.asfortranarray(PIXELS), "labels": LABELS}))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    batch = {b"data": PIXELS, b"labels": LABELS, b"extra": RunsACommand(f'echo ran > "{mark}"')}
    data = pickle.dumps(batch, protocol=protocol)
    with pytest.raises(UserError, match=r"data_batch_1 .*asks for \w+\.system"):
        load_batch(data, "labels", "data_batch_1")
    assert not mark.exists()
    pickle.loads(data)
    assert mark.exists(), "the pickle does not run its command: the test is void"


def test_a_pickle_that_calls_a_function_of_numpy_is_refused() -> None:
    loads = b"\x80\x02cnumpy\nload\n" + python2_string(b"/etc/passwd") + b"\x85R."
    with pytest.raises(UserError, match=r"asks for numpy\.load"):
        load_batch(loads, "labels", "data_batch_1")


def test_a_pickle_that_calls_a_builtin_is_refused() -> None:
    with pytest.raises(UserError, match=r"asks for builtins\.eval"):
        load_batch(pickle.dumps(CallsEval()), "labels", "data_batch_1")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({b"data": PIXELS.astype(np.int64), b"labels": LABELS}, "not of uint8"),
        ({b"data": PIXELS.astype(object), b"labels": LABELS}, "not of uint8"),
        ({b"data": PIXELS[:, :-1], b"labels": LABELS}, r"pixels of shape \(3, 3071\)"),
        ({b"data": PIXELS, b"labels": LABELS[:-1]}, "a list of 3 integers as 'labels'"),
        ({b"data": PIXELS, b"labels": [1, 2, "3"]}, "a list of 3 integers as 'labels'"),
        ({b"data": PIXELS}, "labels"),
        ({b"labels": LABELS}, "data"),
        ([1, 2, 3], "AttributeError"),
    ],
)
def test_a_pickle_that_is_not_a_batch_is_refused(batch: object, message: str) -> None:
    with pytest.raises(UserError, match=f"data_batch_1 is not a python batch of CIFAR: .*{message}"):
        load_batch(pickle.dumps(batch), "labels", "data_batch_1")


@pytest.mark.parametrize("length", [0, 1, 50, 5000, -1])
def test_a_truncated_pickle_is_refused(length: int) -> None:
    with pytest.raises(UserError, match="data_batch_1 is not a python batch"):
        load_batch(python2_batch(PIXELS, LABELS)[:length], "labels", "data_batch_1")


def test_a_length_or_number_that_would_take_gigabytes_is_refused() -> None:
    for bomb in (b"\x80\x02Nr\xff\xff\xff\x7f.", b"Np2000000000\n.", b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f."):
        with pytest.raises(UserError, match="data_batch_1 is not a python batch"):
            load_batch(bomb, "labels", "data_batch_1")


def test_random_bytes_are_refused() -> None:
    generator = np.random.default_rng(1)
    for _ in range(500):
        with pytest.raises(UserError, match="data_batch_1 is not a python batch"):
            load_batch(generator.bytes(64), "labels", "data_batch_1")


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"})" + b"\x85" * 1_000_000 + b"Ns.", "nested more than 100 levels"),
        (b"})" + b"q\x00h\x00\x85" * 1000 + b"Ns.", "nested more than 100 levels"),
        (b"})" + b"(0\x85" * 1000 + b"Ns.", "nested more than 100 levels"),
        (b"})" + b"2\x86" * 60 + b"Ns.", "more than 10,000,000 parts"),  # the hash of the key would take years
        (b"]" * 2_000_000 + b".", "more than 600,000 opcodes"),
        (b"N(0.", "takes more from its stack|NoneType"),
        (b"N(\x850.", "stack"),
    ],
)
def test_a_pickle_that_would_crash_or_fill_the_memory_is_refused(pickled: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"data_batch_1 is not a python batch of CIFAR: .*({message})"):
        load_batch(b"\x80\x02" + pickled, "labels", "data_batch_1")


COLLIDING = [i * (2**61 - 1) for i in range(1, 40_000)]  # the hash of each is 0


@pytest.mark.parametrize(
    "value", [dict.fromkeys(COLLIDING[:1001]), {(i,): 0 for i in COLLIDING[:501]}, {1.5 + i: 0 for i in range(1001)}]
)
def test_keys_that_may_have_one_hash_are_refused(value: object) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(UserError, match="its keys have more than 1,000 parts"):
            load_batch(pickle.dumps(value, protocol), "labels", "data_batch_1")


@pytest.mark.parametrize("opcodes", [b"}(%sd", b"\x8f(%s\x90", b"(%s\x91", b"(%sd"])
def test_no_opcode_takes_minutes_for_keys_of_one_hash(opcodes: bytes) -> None:
    keys = b"".join(b"\x8a\x0a" + i.to_bytes(10, "little") for i in COLLIDING)
    with pytest.raises(UserError, match="its keys have more than 1,000 parts"):
        load_batch(b"\x80\x04" + opcodes % keys + b".", "labels", "data_batch_1")


def test_a_text_that_is_encoded_again_and_again_does_not_fill_the_memory() -> None:
    text = b"X" + struct.pack("<I", 100_000) + b"x" * 100_000
    encoded = b"c_codecs\nencode\nq\x00" + text + b"X\x06\x00\x00\x00latin1\x86q\x01R"
    again = b"h\x00h\x01R" * 100
    with pytest.raises(UserError, match="it makes more bytes than it has"):
        load_batch(b"\x80\x02](" + encoded + again + b"e.", "labels", "data_batch_1")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_batch_of_as_many_names_as_cifar_has_is_read(protocol: int) -> None:
    batch = {b"data": PIXELS, b"labels": LABELS, b"filenames": [b"image_%d.png" % i for i in range(1000)]}
    batch[b"letters"] = [bytes([i]) for i in range(256)] * 9
    assert_is_the_batch(pickle.dumps({**batch, b"by number": {i: i for i in range(5000)}}, protocol))


@pytest.mark.parametrize("label", [10**30, -(10**30), 1 << 100_000, True], ids=["large", "negative", "long", "true"])
def test_a_label_that_is_no_small_integer_is_refused(label: int) -> None:
    with pytest.raises(UserError, match="a list of 3 integers as 'labels'"):
        load_batch(pickle.dumps({b"data": PIXELS, b"labels": [1, label, 2]}), "labels", "data_batch_1")


def test_a_pickle_cannot_change_the_reader() -> None:
    build = b"c_codecs\nencode\nN}U\x0c__defaults__)s\x86b."
    with pytest.raises(UserError, match="it sets attributes of a function"):
        load_batch(b"\x80\x02" + build, "labels", "data_batch_1")
