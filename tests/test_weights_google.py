"""Google's .npz files: the layouts of vision_transformer and of big_vision are read, and written."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import assert_same, model_of

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.weights import load_model, model_metadata, save_model
from minivit.weights.archive import opened_archive

D, L, H, K, F = 12, 2, 3, 4, 18  # width, blocks, heads, width of a head and of the MLP
FLAX: dict[str, Any] = {"act_layer": "gelu_tanh", "img_size": (15, 9), "fc_norm": False}


def block(attention: str, norm: str, mlp: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a block."""
    heads = {f"{attention}/{name}/{part}": shape for name in ("query", "key", "value")
             for part, shape in (("kernel", (D, H, K)), ("bias", (H, K)))}  # fmt: skip
    return heads | {
        f"{attention}/out/kernel": (H, K, D), f"{attention}/out/bias": (D,),
        "LayerNorm_0/scale": (D,), "LayerNorm_0/bias": (D,), f"{norm}/scale": (D,), f"{norm}/bias": (D,),
        f"{mlp}/Dense_0/kernel": (D, F), f"{mlp}/Dense_0/bias": (F,),
        f"{mlp}/Dense_1/kernel": (F, D), f"{mlp}/Dense_1/bias": (D,),
    }  # fmt: skip


def shapes_of(kind: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes in a file of the `kind`, for images of 15 x 9 pixels in 9 patches of 5 x 3."""
    shapes = {
        "embedding/kernel": (5, 3, 2, D), "embedding/bias": (D,), "head/kernel": (D, 7), "head/bias": (7,),
        "Transformer/encoder_norm/scale": (D,), "Transformer/encoder_norm/bias": (D,),
    }  # fmt: skip
    if kind in ("original", "pre_logits", "opt"):
        parts = block("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
        shapes |= {"cls": (1, 1, D), "Transformer/posembed_input/pos_embedding": (1, 10, D)}
    else:
        parts = block("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
        shapes |= {} if kind == "sincos" else {"pos_embedding": (1, 9, D)}
        shapes |= {"cls": (1, 1, D)} if kind == "tok" else {}
    if kind == "stacked":
        shapes |= {f"Transformer/encoderblock/{name}": (L, *shape) for name, shape in parts.items()}
    else:
        shapes |= {f"Transformer/encoderblock_{i}/{name}": shape for i in range(L) for name, shape in parts.items()}
    if kind == "pre_logits":
        shapes |= {"pre_logits/kernel": (D, 11), "pre_logits/bias": (11,), "head/kernel": (11, 7)}
    if kind == "map":
        head = block("MultiHeadDotProductAttention_0", "LayerNorm_0", "MlpBlock_0")
        shapes |= {f"MAPHead_0/{name}": shape for name, shape in head.items()} | {"MAPHead_0/probe": (1, 1, D)}
    if kind == "opt":
        shapes = {f"opt/target/{name}": shape for name, shape in shapes.items()} | {"opt/state/step": (1,)}
    elif kind in ("map", "stacked"):
        shapes = {f"params/{name}": shape for name, shape in shapes.items()} | {"opt/0/count": (1,), "chrono/t": (1,)}
    return shapes


KINDS: dict[str, dict[str, Any]] = {
    "original": {},
    "pre_logits": {"representation_size": 11},
    "opt": {},
    "tok": {"no_embed_class": True},
    "gap": {"class_token": False, "global_pool": "avg"},
    "stacked": {"class_token": False, "global_pool": "avg"},
    "map": {"class_token": False, "global_pool": "map"},
    "sincos": {"class_token": False, "global_pool": "avg", "pos_embed": "sincos_2d"},
}


def tensors_of(kind: str) -> dict[str, Array]:
    generator = np.random.default_rng(7)
    counters = {"opt/state/step": np.int32, "opt/0/count": np.int64}
    return {
        name: generator.normal(0.0, 0.3, shape).astype(counters.get(name, np.float32))
        for name, shape in shapes_of(kind).items()
    }


def write(path: Path, tensors: Any) -> None:
    np.savez(path, **tensors)


def file_of(folder: Path, kind: str) -> Path:
    write(folder / "x.npz", tensors_of(kind))
    return folder / "x.npz"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_read_and_written_with_the_same_bits(tmp_path: Path, kind: str) -> None:
    given: dict[str, Any] = {"img_size": (15, 9)} if kind == "sincos" else {}
    with pytest.warns(
        UserWarning, match=r"assumed act_layer='gelu_tanh', norm_eps=1e-06 \(as Google's programs have\)"
    ):
        model = load_model(file_of(tmp_path, kind), **given)
    assert model.config == model_of(**FLAX | KINDS[kind]).config
    save_model(model, tmp_path / "y.npz", format="google")
    assert_same(load_model(tmp_path / "y.npz"), model)  # the file says all, and nothing is assumed
    if kind not in ("opt", "gap", "stacked", "map"):  # these are written with other names
        with np.load(tmp_path / "y.npz") as written:
            assert written.keys() == shapes_of(kind).keys()
            for name, value in tensors_of(kind).items():
                np.testing.assert_array_equal(written[name], value, err_msg=name)
                assert written[name].dtype == value.dtype


def test_heads_are_side_by_side_and_blocks_in_order(tmp_path: Path) -> None:
    tensors = tensors_of("stacked")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_model(file_of(tmp_path, "stacked"))
    kernel = tensors["params/Transformer/encoderblock/MultiHeadDotProductAttention_0/key/kernel"]
    weight = model.parameters["blocks.1.attn.qkv.weight"].value
    assert all(weight[d, D + h * K + k] == kernel[1, d, h, k] for d, h, k in np.ndindex(D, H, K))
    out = tensors["params/Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel"]
    weight = model.parameters["blocks.0.attn.proj.weight"].value
    assert all(weight[h * K + k, d] == out[0, h, k, d] for d, h, k in np.ndindex(D, H, K))
    patch = tensors["params/embedding/kernel"]
    weight = model.parameters["patch_embed.proj.weight"].value
    assert all(
        weight[(row * 3 + column) * 2 + c, d] == patch[row, column, c, d]
        for row, column, c, d in np.ndindex(5, 3, 2, D)
    )


def test_images_of_positions_that_are_no_square_must_be_given(tmp_path: Path) -> None:
    tensors = tensors_of("gap") | {"pos_embedding": np.ones((1, 6, D), np.float32)}
    write(tmp_path / "x.npz", tensors)
    with pytest.raises(UserError, match=r"positions for 6 patches, not a square; pass img_size=\(height, width\)"):
        load_model(tmp_path / "x.npz")
    fields: dict[str, Any] = {"img_size": (10, 9), "act_layer": "gelu_tanh", "norm_eps": 1e-6}
    assert load_model(tmp_path / "x.npz", **fields).config.grid == (2, 3)


def test_fixed_positions_are_for_images_of_224_pixels_if_nothing_else_is_given(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"norm_eps=1e-06, img_size=\(220, 222\)"):
        assert load_model(file_of(tmp_path, "sincos")).config.img_size == (220, 222)


def test_float16_and_bfloat16_are_read(tmp_path: Path) -> None:
    tensors = tensors_of("original")
    bits = (tensors["cls"].view(np.uint32) >> 16).astype(np.uint16)
    half = tensors["head/bias"].astype(np.float16)
    write(tmp_path / "x.npz", tensors | {"cls": bits.view("V2"), "head/bias": half})
    model = load_model(tmp_path / "x.npz", act_layer="gelu", norm_eps=1e-6)
    np.testing.assert_array_equal(model.parameters["cls_token"].value, (bits.astype(np.uint32) << 16).view(np.float32))
    np.testing.assert_array_equal(model.parameters["head.bias"].value, half.astype(np.float32))


def test_arrays_in_the_order_of_fortran_and_of_another_machine_are_read(tmp_path: Path) -> None:
    tensors = tensors_of("original")
    other: Any = {name: np.asfortranarray(value).astype(">f4", order="K") for name, value in tensors.items()}
    np.savez_compressed(tmp_path / "x.npz", **other)
    given: dict[str, Any] = {"act_layer": "gelu", "norm_eps": 1e-6}
    assert_same(load_model(tmp_path / "x.npz", **given), load_model(file_of(tmp_path, "original"), **given))


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save_model(model_of(**FLAX), tmp_path / f"{name}.npz", format="google", extra={"mean": [0.5]})
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    assert model_metadata(tmp_path / "x.npz") == {"mean": [0.5]}


def test_the_preprocessing_is_that_of_googles_programs(tmp_path: Path) -> None:
    assert model_metadata(file_of(tmp_path, "original")) == {
        "mean": [0.5], "std": [0.5], "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"qkv_bias": False}, "qkv_bias=False"),
        ({"global_pool": "avg", "class_token": False}, r"a norm of the pooled vector \(fc_norm=True\)"),
        ({"global_pool": "avg", "fc_norm": False}, "class_token=True with global_pool='avg'"),
        ({"act_layer": "relu"}, "act_layer='relu'"),
        ({"reg_tokens": 2, "init_values": 0.1}, "init_values=0.1, reg_tokens=2"),
    ],
)
def test_what_the_format_cannot_express_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"the format 'google' cannot express {words}; the format 'timm' can"):
        save_model(model_of(**fields), tmp_path / "x.npz", format="google")
    assert not list(tmp_path.iterdir())


def test_a_warning_says_where_googles_programs_compute_otherwise(tmp_path: Path) -> None:
    model = model_of(norm_eps=1e-5)
    with pytest.warns(UserWarning, match="and this one has act_layer='gelu', norm_eps=1e-05: its results from"):
        save_model(model, tmp_path, format="google")
    assert_same(load_model(tmp_path / "model.npz"), model)


def test_a_hybrid_and_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    tensors, ones = tensors_of("original"), np.ones(3, np.float32)
    for change, words in (
        ({"conv_root/kernel": ones}, "conv_root/kernel of its shape"),
        ({"extra/bias": ones}, r"1 tensor unknown \(extra/bias\)"),
        ({"head/bias": ones}, r"head/bias has shape \(3,\); its configuration requires \(7,\)"),
        (
            {"embedding/kernel": ones},
            "is not a Vision Transformer of Google's JAX programs: it has no embedding/kernel",
        ),
        ({"cls": np.full((1, 1, D), np.inf, np.float32)}, "cls holds NaN or infinity"),
        ({"cls": np.ones((1, 1, D), np.int32)}, "cls is int32; expected floating-point numbers"),
        ({"cls": np.ones((1, 1, D), np.complex64)}, "cls is complex64; expected real numbers"),
    ):
        write(tmp_path / "x.npz", tensors | change)
        with pytest.raises(UserError, match=words):
            load_model(tmp_path / "x.npz", act_layer="gelu_tanh", norm_eps=1e-6)


def archive(path: Path, write: Callable[[zipfile.ZipFile], object], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        write(file)
    return path


def npy(shape: str, descr: str = "'<f4'", data: bytes = b"") -> bytes:
    """Return the content of an .npy file with this header."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def test_a_pickle_inside_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "run",)

    write(tmp_path / "x.npz", {"embedding/kernel": np.array([Trap()], dtype=object)})
    for read in (load_model, model_metadata):
        with pytest.raises(UserError, match="holds Python objects, which could run any program"):
            read(tmp_path / "x.npz")
    assert not (tmp_path / "run").exists()


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "x.npz", lambda file: file.writestr("cls.npy", npy("(30000000,)", data=bytes(120_000_000))), 8
    )
    assert path.stat().st_size < 200_000
    with pytest.raises(UserError, match=r"unpacks to 120,000,0\d\d bytes, far more than its own size"):
        load_model(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy("(1000000000000,)"), "is not a complete .npz file"),
        (npy("(1 << 70,)"), "is not a complete .npz file"),
        (npy("(-1, -1)", data=bytes(4)), "is not a complete .npz file"),
        (npy("(0, 99999999999999999999)"), "is not a complete .npz file"),
        (npy("(1,) * 99999999999", data=bytes(4)), "is not a complete .npz file"),
        (npy("(1,)", "'O'", bytes(8)), "holds Python objects"),
        (npy("(1,)", "[('a', 'O')]", bytes(8)), "holds Python objects"),
        (npy("(1,)", "'<f4'", bytes(5)), "is not a complete .npz file"),
        (npy("(" * 5000 + ")" * 5000), "is not a complete .npz file"),
        (b"not an array", "is not a complete .npz file"),
        (b"", "is not a complete .npz file"),
    ],
    ids=range(11),
)
def test_headers_that_lie_are_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = archive(tmp_path / "x.npz", lambda file: file.writestr("cls.npy", content))
    for read in (load_model, model_metadata):
        with pytest.raises(UserError, match=words) as raised:
            read(path)
        assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:.*assumed")
@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"qkv_bias": False}, r"6 tensors unknown \(.*query/bias, "),
        ({"proj_bias": False}, r"2 tensors unknown \(.*out/bias, "),
        ({"head_dim": 7}, r"its layout has no blocks\.0\.attn\.qkv\.weight of shape \(12, 63\), which these fields"),
    ],
    ids=str,
)
def test_a_field_that_contradicts_the_tensors_is_refused(tmp_path: Path, field: dict[str, Any], words: str) -> None:
    write(tmp_path / "x.npz", tensors_of("original"))
    with pytest.raises(UserError, match=words):
        load_model(tmp_path / "x.npz", img_size=(15, 9), **field)


@pytest.mark.filterwarnings("ignore:.*assumed")
def test_a_field_that_the_layout_cannot_store_is_named_by_its_parameters(tmp_path: Path) -> None:
    square = tensors_of("original") | {"embedding/kernel": np.zeros((4, 4, 2, D), np.float32)}
    write(tmp_path / "x.npz", square)
    with pytest.raises(UserError, match=r"its layout has no 6 parameters \(patch_embed\.convs\.0\.conv\.weight, "):
        load_model(tmp_path / "x.npz", conv_stem=(8, 8))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "compression", "words"),
    [
        (("a.npy", "a.npy"), zipfile.ZIP_STORED, "two entries have one name"),
        (("a.npy",), zipfile.ZIP_BZIP2, "a compression of kind 12"),
        (("a.npy", "b"), zipfile.ZIP_STORED, "'b', which is not an array"),
    ],
)
def test_other_archives_are_refused(tmp_path: Path, names: tuple[str, ...], compression: int, words: str) -> None:
    content = npy("(1,)", data=bytes(4))

    def fill(file: zipfile.ZipFile) -> None:
        for name in names:
            file.writestr(name, content)

    path = archive(tmp_path / "x.npz", fill, compression)
    with pytest.raises(UserError, match=words):
        load_model(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = file_of(tmp_path, "original").read_bytes()
    for length in [*range(1, 12), *range(12, len(content), len(content) // 50), len(content) - 1]:
        (tmp_path / "x.npz").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"x\.npz is ") as raised:
            load_model(tmp_path / "x.npz")
        assert "\n" not in str(raised.value)


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    content = bytearray(file_of(tmp_path, "original").read_bytes())
    at = content.index(tensors_of("original")["head/kernel"].tobytes())
    content[at] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match="Bad CRC-32"):
        load_model(tmp_path / "x.npz", act_layer="gelu", norm_eps=1e-6)


def test_an_archive_of_a_million_members_is_refused_before_its_directory_is_read(tmp_path: Path) -> None:
    entry = io.BytesIO()
    with zipfile.ZipFile(entry, "w") as file:
        file.writestr("a.npy", b"")
    content = entry.getvalue()
    at, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    directory = content[at:end] * 100_000
    tail = bytearray(content[end:])
    tail[12:16] = len(directory).to_bytes(4, "little")
    (tmp_path / "x.npz").write_bytes(content[:at] + directory + tail)
    with pytest.raises(UserError, match="its directory has 5,100,000 bytes"):
        load_model(tmp_path / "x.npz")


@pytest.mark.parametrize(("between", "place"), [(0, 0), (40, 0), (0, 1 << 40)])
@pytest.mark.parametrize("comment", [0, (1 << 16) - 1])
def test_a_record_of_zip64_does_not_hide_the_size_of_a_directory(
    tmp_path: Path, between: int, place: int, comment: int
) -> None:
    record = b"PK\x06\x06" + bytes(36) + (5_000_000).to_bytes(8, "little") + bytes(8 + between)
    locator = b"PK\x06\x07" + bytes(4) + place.to_bytes(8, "little") + bytes(4)
    end = b"PK\x05\x06" + bytes(16) + comment.to_bytes(2, "little") + bytes(comment)
    path = tmp_path / "x.npz"
    path.write_bytes(record + locator + end)
    with pytest.raises(UserError, match="its directory has 5,000,000 bytes"), opened_archive(path, ".npz"):
        pass


@pytest.mark.parametrize("resnet", [(0,), (1, 2)])
@pytest.mark.parametrize("of_four_axes", [False, True])
def test_a_hybrid_is_read_and_written(tmp_path: Path, resnet: tuple[int, ...], of_four_axes: bool) -> None:
    """Group norms have one axis in Flax, and four in the published files."""
    fields = {"resnet": resnet, "img_size": 32, "patch_size": 16, "in_chans": 3, "num_classes": 5}
    model = model_of(**fields, act_layer="gelu_tanh", fc_norm=False)
    save_model(model, tmp_path / "x.npz", format="google")
    with np.load(tmp_path / "x.npz") as file:
        tensors = dict(file)
    blocks = {name.partition("conv1/")[0] for name in tensors if "conv1/" in name}
    assert blocks == ({"block1/unit1/", "block2/unit1/", "block2/unit2/"} if resnet == (1, 2) else set())
    assert tensors["conv_root/kernel"].shape == (7, 7, 3, 64)
    if of_four_axes:
        for name in tensors:
            if "gn" in name:
                tensors[name] = tensors[name].reshape(1, 1, 1, -1)
    np.savez(tmp_path / "y.npz", **tensors)
    with pytest.warns(UserWarning, match="assumed act_layer='gelu_tanh'"):
        found = load_model(tmp_path / "y.npz")
    assert_same(found, model)
