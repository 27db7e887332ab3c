"""Files of PyTorch are read without PyTorch; what they could run is refused, and nothing is run."""

from __future__ import annotations

import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import SMALL, assert_same, foreign, model_of
from mutate_bytes import mutations
from torch_files import (
    Built,
    Call,
    Name,
    Opcodes,
    Reference,
    contiguous,
    pickled,
    rebuilt,
    state_of,
    storage,
    torch_archive,
    write_torch,
)

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.weights import load_model, read_tensors, save_model
from minivit.weights.torch_file import read_torch, read_torch_shapes

GIVEN: dict[str, Any] = {name: SMALL[name] for name in ("img_size", "num_heads")}
GIVEN |= {"act_layer": "gelu", "norm_eps": 1e-6}
FLOATS = np.arange(6, dtype=np.float32)


def file_of(tmp_path: Path, content: Any, storages: dict[str, bytes] | None = None) -> Path:
    path = tmp_path / "x.pt"
    data = content if isinstance(content, bytes) else pickled(content)
    path.write_bytes(torch_archive(data, {"0": FLOATS.tobytes()} if storages is None else storages))
    return path


@pytest.mark.parametrize(
    "within", ["", "state_dict", "model", "model_state_dict", "state_dict.model", "model.module.state_dict"]
)
def test_a_state_dict_is_read_wherever_a_checkpoint_keeps_it(tmp_path: Path, within: str) -> None:
    tensors, _ = read_tensors(foreign(tmp_path))
    path = write_torch(tmp_path / "x.pth", tensors, within)
    assert_same(load_model(path, **GIVEN), model_of())


def test_a_folder_of_transformers_with_pytorch_model_bin_is_read(tmp_path: Path) -> None:
    model = model_of(img_size=(10, 10), patch_size=(5, 5), head_dim=0)
    save_model(model, tmp_path, format="huggingface")
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    write_torch(tmp_path / "pytorch_model.bin", tensors)
    expected = load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert_same(load_model(tmp_path), expected)


def test_a_dict_without_tensors_does_not_hide_the_state_dict(tmp_path: Path) -> None:
    state, storages = state_of({"x": np.ones(3, np.float32)})
    path = file_of(tmp_path, {"state_dict": {"step": 1}, "model": {"module": state}}, storages)
    assert read_torch_shapes(path) == {"x": (3,)}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("torch._utils._rebuild_sparse_tensor", "sparse tensors"),
        ("torch._utils._rebuild_qtensor", "quantised tensors"),
        ("torch.ComplexFloatStorage", "complex tensors"),
    ],
)
def test_tensors_of_another_kind_are_called_by_their_name(tmp_path: Path, name: str, kind: str) -> None:
    module, _, attribute = name.rpartition(".")
    with pytest.raises(UserError, match=f"holds {kind}, which no model of minivit has"):
        read_torch(file_of(tmp_path, {"x": Name(module, attribute)}))


@pytest.mark.parametrize(
    ("source", "version", "others", "stored", "expected"),
    [
        (storage("0", 3, "DoubleStorage"), "_v2", (), np.array([1.5, -2, 1e300]), [1.5, -2, 1e300]),
        (storage("0", 3, "HalfStorage"), "", (), np.array([1.5, -2, 3], np.float16), [1.5, -2, 3]),
        (storage("0", 3, "BFloat16Storage"), "_v2", (), np.array([0x3FC0, 0xC000, 0x4040], np.uint16), [1.5, -2, 3]),
        (
            storage("0", 3, "UntypedStorage", "torch.storage"),
            *("_v3", (Name("torch", "float8_e5m2"),), np.array([0x3E, 0xC0, 0x42], np.uint8), [1.5, -2, 3]),
        ),
    ],
    ids=["float64", "float16", "bfloat16", "float8"],
)
def test_numbers_are_converted_exactly(
    tmp_path: Path, source: Any, version: str, others: Any, stored: Any, expected: list[float]
) -> None:
    state = {"x": rebuilt(source, (3,), (1,), version=version, others=others)}
    (found,) = read_torch(file_of(tmp_path, state, {"0": stored.tobytes()})).values()
    np.testing.assert_array_equal(found, expected)


def test_views_of_a_storage_and_parameters_are_read(tmp_path: Path) -> None:
    source = storage("0", 6)
    parameter = Call(Name("torch._utils", "_rebuild_parameter"), (rebuilt(source, (2, 2), (1, 3), 1), True, {}))
    state = {"transposed": parameter, "scalar": rebuilt(source, (), (), 5), "row": rebuilt(source, (3,), (1,), 3)}
    found = read_torch(file_of(tmp_path, state))
    np.testing.assert_array_equal(found["transposed"], [[1, 4], [2, 5]])
    np.testing.assert_array_equal(found["scalar"], 5.0)
    np.testing.assert_array_equal(found["row"], [3, 4, 5])
    assert {name: value.shape for name, value in found.items()} == read_torch_shapes(tmp_path / "x.pt")


def test_tensors_that_share_one_storage_make_no_large_model_of_a_small_file(tmp_path: Path) -> None:
    numbers = 1 << 17  # half a MiB

    def shared(count: int) -> Path:
        state = {f"{i}": rebuilt(storage("0", numbers), (numbers,), (1,)) for i in range(count)}
        return file_of(tmp_path, state, {"0": bytes(4 * numbers)})

    assert len(read_torch(shared(6))) == 6
    words = "has 7 tensors of 3,670,016 bytes that share 524,288 bytes: it is not a model"
    for read in (read_torch, read_torch_shapes):
        with pytest.raises(UserError, match=words):
            read(shared(7))


def test_the_bytes_of_another_order_are_swapped(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    content = torch_archive(pickled({"x": rebuilt(storage("0", 6), (6,), (1,))}), {"0": FLOATS.astype(">f4").tobytes()})
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (entries | {"model/byteorder": b"big"}).items():
            archive.writestr(name, data)
    found = read_torch(path)["x"]
    np.testing.assert_array_equal(found, FLOATS)
    assert found.dtype.isnative


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (3, "holds an object of type int; expected a state dict"),
        ({"epoch": 3, "optimizer": {}}, r"holds 2 objects \('epoch', 'optimizer'\); expected a state dict"),
        ({"x": rebuilt(storage("0", 6), (6,), (1,)), "epoch": 3}, r"1 object that is not a tensor \('epoch'\)"),
        ({"x": rebuilt(storage("0", 3, "LongStorage"), (3,), (1,))}, "'x' is of long; expected floating-point"),
        (Call(Name("timm.models.vision_transformer", "VisionTransformer"), ()), "asks for 'timm.models.*state_dict()"),
    ],
)  # fmt: skip
def test_what_is_no_state_dict_is_explained(tmp_path: Path, content: Any, words: str) -> None:
    path = file_of(tmp_path, content, {"0": bytes(24)})
    with pytest.raises(UserError, match=words) as raised:
        read_torch(path)
    assert str(path) in str(raised.value)


RAN: list[str] = []


def ran(*_: object) -> None:
    RAN.append("ran")


CALLS = [
    ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "exec"), ("builtins", "getattr"),
    ("builtins", "__import__"), ("__builtin__", "eval"), ("subprocess", "Popen"), ("importlib", "import_module"),
    ("runpy", "run_path"), ("ctypes", "CDLL"), ("pickle", "loads"), ("codecs", "encode"), ("_codecs", "decode"),
    ("torch", "load"), ("torch.hub", "load"), ("torch.storage", "_load_from_bytes"), ("torch.serialization", "load"),
    ("torch._utils", "_rebuild_wrapper_subclass"), ("torch._tensor", "_rebuild_from_type_v2"), ("torch", "Size.mro"),
    ("torch.nn.modules.linear", "Linear"), ("torch.utils.data", "DataLoader"), ("numpy", "load"), ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "scalar"), ("collections", "defaultdict"),
    ("collections", "OrderedDict.fromkeys"), ("collections", "OrderedDict.__class__"), ("functools", "partial"),
    ("argparse", "Namespace"), ("pathlib", "PosixPath"), ("test_weights_torch", "ran"), ("__main__", "Net"),
    ("minivit.files", "atomic_write"), ("minivit.weights.torch_file", "read_torch"), ("", ""), ("x" * 999, "y" * 999),
    ("os\x1b[2J", "system"),
]  # fmt: skip

WHOLE = rebuilt(storage("0", 6), (6,), (1,))
DICT, FLOAT = Name("collections", "OrderedDict"), Name("torch", "FloatStorage")
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")


def nested(levels: int, opcodes: bytes) -> Opcodes:
    return Opcodes(b"N" + opcodes * levels)


def laughs(levels: int) -> Opcodes:
    """Return a tuple of two tuples of two tuples and so on, all of which the hash of a key visits."""
    level = b"".join(b"0h" + bytes([i, ord("h"), i]) + b"\x86q" + bytes([i + 1]) for i in range(levels))
    return Opcodes(b"}(K\x01\x85q\x00" + level + b"K\x01u")


def tensor_from(source: Any) -> dict[str, Call]:
    return tensor_of(source=source)


def tensor_of(**changes: Any) -> dict[str, Call]:
    return {"x": rebuilt(**({"source": storage("0", 6), "shape": (6,), "strides": (1,)} | changes))}


CONTENTS: list[Any] = [
    # Sizes.
    *(tensor_of(shape=shape, strides=strides) for shape, strides in [
        ((7,), (1,)), ((2,), (6,)), ((1 << 40,), (0,)), ((1 << 20, 1 << 20), (0, 0)), ((-1,), (1,)), ((6,), (-1,)),
        ((6,), ()), ((6, 1), (1,)), ([6], [1]), (6, 1), (None, None), ((6.0,), (1,)), ((True,), (1,)), (("6",), (1,)),
        ((1,) * 70, (1,) * 70), ((10**400,), (1,)), ((0, 1 << 47, 1 << 47), (1, 1, 1)), (((6,),), ((1,),)),
    ]),
    *(tensor_of(offset=offset) for offset in (1, -1, 1 << 70, None, "0", 1.5, (0,))),
    *(tensor_of(source=storage("0", numbers)) for numbers in (7, 1 << 60, -6, 10**400, "6", None)),
    *(tensor_of(source=storage("0", 6, kind)) for kind in ("DoubleStorage", "QInt8Storage", "UntypedStorage", "")),
    *(tensor_of(source=storage(key, 6)) for key in ("1", "", "../data.pkl", "/etc/passwd", "0/", "\0", "x" * 9999)),
    *map(tensor_from, (
        None, 3, "0", (), {}, REBUILD, Reference(("storage", "float", "0", "cpu", 6)), Reference(()), Reference(None),
        Reference(("module", FLOAT, "0", "cpu", 6)), Reference("storage"), Reference(WHOLE),
        Reference(("storage", REBUILD, "0", "cpu", 6)), Reference(("storage", FLOAT, 0, "cpu", 6)),
    )),
    # Objects.
    None, "", [], (), {}, 1.5, True, WHOLE, [WHOLE], (WHOLE,), {"x": {"y": WHOLE}}, {3: WHOLE}, {None: WHOLE},
    {"": {"": {"": WHOLE}}}, Call(DICT, ()), REBUILD, FLOAT, DICT,
    Call(Call(DICT, ()), ()), Call(REBUILD, ()), Call(REBUILD, (1,) * 99), Call("x", ()), Call(FLOAT, ()),
    Call(Name("torch", "Size"), ()), Call(DICT, (3,)), Call(Name("_codecs", "encode"), ("x", "rot13")),
    Built(REBUILD, {"__call__": 1}), Built(DICT, {"x": 1}), Built(WHOLE, {"shape": (1 << 60,)}),
    Built(WHOLE, (None, {"shape": (1 << 60,)})), Built("x", {"y": 1}), Built({}, {"y": 1}), Built(FLOAT, {"bytes": 0}),
    # Nesting and other opcodes.
    nested(200, b"\x85"), nested(200_000, b"\x85"), nested(700_000, b"0N"), laughs(40), laughs(90),
    *map(Opcodes, (
        b"]q\x00" + b"]h\x00a" * 9, b"", b"0", b"h\x07", b"j\xff\xff\xff\x7f", b"Nr\xff\xff\xff\x7f", b"(" * 99,
        b"t", b"R", b"b", b"Q", b"\x82\x01", b"\x97", b"\x98", b"\x8b\xff\xff\xff\x7f", b"X\xff\xff\xff\xff",
        b"\x8e" + b"\xff" * 8, b"\x95" + b"\xff" * 8, b"ios\nsystem\n", b"(S'x'\nios\nsystem\n", b"Pstorage\n",
        b"I" + b"9" * 9999 + b"\n", b"cos\nsystem\n(S'touch ran'\no", b"\x8c\x02os\x8c\x06system\x93)R",
        b"(cos\nsystem\nS'touch ran'\no",
    )),
]  # fmt: skip


def assert_refused(path: Path) -> None:
    """Assert that a file is refused in one short line, at once."""
    for read in (read_torch_shapes, read_torch, load_model):
        began = time.process_time()
        with pytest.raises(UserError) as raised:
            read(path)
        assert time.process_time() - began < 2.0
        message = str(raised.value)
        assert path.name in message
        assert message.isprintable()
        assert len(message) < 600
    assert not RAN
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", CALLS, ids=lambda name: ".".join(name)[:40].replace("\x1b", "ESC"))
def test_a_function_that_a_pickle_calls_is_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(file_of(tmp_path, {"x": WHOLE, "y": Call(Name(*name), ("touch ran",))}))


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_a_hostile_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(file_of(tmp_path, content))


def two_pickles(archive: zipfile.ZipFile) -> None:
    archive.writestr("other/data.pkl", pickled({"x": WHOLE}))


def one_entry_twice(archive: zipfile.ZipFile) -> None:
    info = archive.getinfo("model/data/0")
    archive.filelist.append(info)
    archive.NameToInfo["again"] = info


def a_lie_about_the_size(archive: zipfile.ZipFile) -> None:
    archive.getinfo("model/data/0").file_size = 1 << 40


def a_lie_about_the_place(archive: zipfile.ZipFile) -> None:
    archive.getinfo("model/data/0").header_offset = 1 << 20


def another_byte_order(archive: zipfile.ZipFile) -> None:
    archive.writestr("model/byteorder", "middle")


def encrypted(archive: zipfile.ZipFile) -> None:
    archive.getinfo("model/data.pkl").flag_bits |= 1


@pytest.mark.parametrize(
    "trick",
    [two_pickles, one_entry_twice, a_lie_about_the_size, a_lie_about_the_place, another_byte_order, encrypted],
    ids=lambda trick: trick.__name__,
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_trick_of_the_archive_is_refused(tmp_path: Path, trick: Callable[[zipfile.ZipFile], None]) -> None:
    path = file_of(tmp_path, tensor_of())
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b" "  # so that the directory is written again
        trick(archive)
    with pytest.raises(UserError, match=r"x\.pt is not a complete \.pt file"):
        read_torch(path)


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    source = storage("0", 1 << 22)
    content = pickled({"x": rebuilt(source, (1 << 22,), (1,))})
    path.write_bytes(torch_archive(content, {"0": bytes(1 << 24)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="its entries are compressed"):
        read_torch(path)


def test_damaged_bytes_give_a_model_or_one_line(tmp_path: Path) -> None:
    tensors: dict[str, Array] = {"a.weight": np.ones((3, 2), np.float32), "b": np.zeros(4, np.float64)}
    state, storages = state_of(tensors)
    whole = torch_archive(pickled({"model": state}), storages)
    path = tmp_path / "x.pt"
    for content in mutations(whole, np.random.default_rng(3), 300):
        path.write_bytes(content)
        message = ""
        try:
            read_torch(path)
        except UserError as error:
            message = str(error)
        assert not message or "x.pt" in message
        assert message.isprintable()


def test_what_a_training_program_keeps_beside_the_model_is_read(tmp_path: Path) -> None:
    optimizer = {"state": {i: {"step": i} for i in range(3000)}, "param_groups": [{"params": list(range(3000))}]}
    old = {"state": {140_000_000_000_000 + 64 * i: {"step": i} for i in range(400)}}  # of addresses
    content = {"model": tensor_of(), "optimizer": optimizer, "old": old, None: {1.5: (1, 2)}}
    assert list(read_torch(file_of(tmp_path, content))) == ["x"]


def test_an_ordered_dict_does_not_copy_others(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"x": WHOLE, "copies": [Call(DICT, ({"y": 1},))]})
    with pytest.raises(UserError, match="an OrderedDict is made of another object"):
        read_torch(path)


def test_protocols_of_pickle_from_2_to_5_are_read() -> None:
    from minivit.weights.torch_file import _content

    content = {"model": {"x": [1, 2.5, None, True, "text", (b"bytes", -(10**9))]}}
    for protocol in range(2, 6):
        assert _content(Path("x.pt"), pickle.dumps(content, protocol)) == content


def test_strides_of_a_shape() -> None:
    assert contiguous((2, 3, 4)) == (12, 4, 1)
