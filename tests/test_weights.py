"""Model files: the same bits back, timm's names and shapes, and one clear error for each file that cannot be used."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minivit.arrays import Array
from minivit.config import ViTConfig
from minivit.errors import RunError, UserError
from minivit.vit import ViT
from minivit.weights import load_model, model_metadata, read_tensors, save_model, timm, write_tensors

SMALL: dict[str, Any] = {
    "img_size": (10, 21), "patch_size": (5, 3), "in_chans": 2, "num_classes": 7, "embed_dim": 12, "depth": 2,
    "num_heads": 3, "mlp_ratio": 1.5,
}  # fmt: skip
SHAPES = {
    "patch_embed.proj.weight": (12, 2, 5, 3),
    "patch_embed.proj.bias": (12,),
    "cls_token": (1, 1, 12),
    "pos_embed": (1, 15, 12),
    **{
        f"blocks.{i}.{name}": shape
        for i in range(2)
        for name, shape in {
            "norm1.weight": (12,),
            "norm1.bias": (12,),
            "attn.qkv.weight": (36, 12),
            "attn.qkv.bias": (36,),
            "attn.proj.weight": (12, 12),
            "attn.proj.bias": (12,),
            "norm2.weight": (12,),
            "norm2.bias": (12,),
            "mlp.fc1.weight": (18, 12),
            "mlp.fc1.bias": (18,),
            "mlp.fc2.weight": (12, 18),
            "mlp.fc2.bias": (12,),
        }.items()
    },
    "norm.weight": (12,),
    "norm.bias": (12,),
    "head.weight": (7, 12),
    "head.bias": (7,),
}


def model_of(dtype: Any = "float32", **fields: Any) -> ViT:
    """Return a small model, all of whose parameters are random."""
    model = ViT(ViTConfig(**{**SMALL, **fields}), dtype=dtype)
    generator = np.random.default_rng(5)
    for parameter in model.parameters.values():
        parameter.value[...] = generator.normal(0.0, 0.3, parameter.shape)
    return model


def assert_same(a: ViT, b: ViT) -> None:
    assert a.config == b.config
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def foreign(path: Path, change: Callable[[dict[str, Array]], object] = lambda tensors: None, **fields: Any) -> Path:
    """Write the tensors of a small model, changed, as another program would: without our configuration."""
    save_model(model_of(**fields), path)
    tensors, _ = read_tensors(path / "model.safetensors")
    change(tensors)
    (path / "config.json").unlink()
    write_tensors(path / "model.safetensors", tensors, {"format": "pt"})
    return path / "model.safetensors"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"global_pool": "avg"},
        {"global_pool": "avg", "class_token": False},
        {"act_layer": "gelu_tanh", "norm_eps": 1e-5},
    ],
    ids=["token", "mean", "no token", "tanh"],
)
def test_a_saved_model_comes_back_to_the_bit(tmp_path: Path, dtype: str, fields: dict[str, Any]) -> None:
    model = model_of(dtype, drop_path_rate=0.1, **fields)
    save_model(model, tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path / "model.safetensors", dtype), model)
    assert_same(load_model(tmp_path, dtype), model)
    (tmp_path / "config.json").unlink()
    assert_same(load_model(tmp_path, dtype), model)


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    extra = {"class_names": ["a", "b"], "mean": [0.5], "std": [0.25]}
    for name in ("first", "second", "third"):
        save_model(model_of(), tmp_path / name, extra=extra)
    files = {(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second", "third")}
    assert len(files) == 1


def test_names_and_shapes_are_timms(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path)
    tensors, about = read_tensors(tmp_path / "model.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == SHAPES
    assert about["format"] == "pt"


def test_with_mean_pooling_the_norm_is_timms_fc_norm(tmp_path: Path) -> None:
    save_model(model_of(global_pool="avg", class_token=False), tmp_path)
    names = {name.replace("fc_norm", "norm") for name in read_tensors(tmp_path / "model.safetensors")[0]}
    assert names == SHAPES.keys() - {"cls_token"}


def test_linear_weights_are_transposed_and_patches_a_convolutions(tmp_path: Path) -> None:
    model = model_of()
    save_model(model, tmp_path)
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    for name in ("blocks.1.attn.qkv.weight", "blocks.0.attn.proj.weight", "head.weight"):
        value = model.parameters[name].value
        assert all(tensors[name][o, i] == value[i, o] for i, o in np.ndindex(*value.shape))
    patch = model.parameters["patch_embed.proj.weight"].value
    for row, column, channel, d in np.ndindex(5, 3, 2, 12):
        at = (row * 3 + column) * 2 + channel
        assert tensors["patch_embed.proj.weight"][d, channel, row, column] == patch[at, d]


def test_the_patch_projection_is_a_convolution_over_the_image(tmp_path: Path) -> None:
    model = model_of("float64")
    save_model(model, tmp_path)
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    image = np.random.default_rng(0).normal(size=(10, 21, 2))
    tokens, _ = model.patch_embed.forward(image[None])
    by_hand = [
        np.einsum("dcij,ijc->d", tensors["patch_embed.proj.weight"], image[top : top + 5, left : left + 3])
        + tensors["patch_embed.proj.bias"]
        for top in range(0, 10, 5)
        for left in range(0, 21, 3)
    ]
    np.testing.assert_allclose(tokens[0], by_hand, rtol=1e-12, atol=1e-12)


def test_a_model_is_loaded_in_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    model = model_of("float64")
    save_model(model, tmp_path)
    assert_same(load_model(tmp_path), model.astype("float32"))


def test_a_run_folder_gives_its_best_model(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path / "best")
    save_model(model_of(depth=1), tmp_path / "last")
    assert_same(load_model(tmp_path), model_of())


def test_fields_can_be_replaced_for_fine_tuning(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path)
    assert load_model(tmp_path, drop_path_rate=0.25).config == model_of(drop_path_rate=0.25).config


def test_metadata_comes_back(tmp_path: Path) -> None:
    extra = {"class_names": ["a", "ü"], "mean": [0.1, 1 / 3], "std": [0.2, 0.3], "epoch": 3}
    save_model(model_of(), tmp_path, extra=extra)
    assert model_metadata(tmp_path) == extra
    assert model_metadata(tmp_path / "model.safetensors") == extra
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pretrained_cfg"]["label_names"] == ["a", "ü"]
    assert config["pretrained_cfg"]["mean"] == [0.1, 1 / 3]


def test_metadata_of_timms_config_is_read(tmp_path: Path) -> None:
    path = foreign(tmp_path)
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": [0.5, 0.5], "std": [0.5, 0.4]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_metadata(path) == {"mean": [0.5, 0.5], "std": [0.5, 0.4]}


def test_a_file_of_timm_without_a_configuration_tells_its_sizes(tmp_path: Path) -> None:
    path = foreign(tmp_path)
    model = load_model(path, img_size=(10, 21), num_heads=3, act_layer="gelu", norm_eps=1e-6)
    assert_same(model, model_of())


def test_what_is_assumed_is_said(tmp_path: Path) -> None:
    path = foreign(tmp_path, img_size=(15, 9), embed_dim=128, num_heads=2)
    with pytest.warns(UserWarning, match=r"assumed num_heads=2, act_layer='gelu', norm_eps=1e-06, which the files do"):
        model = load_model(path)
    assert_same(model, model_of(img_size=(15, 9), embed_dim=128, num_heads=2))


def test_known_widths_have_their_own_number_of_heads() -> None:
    shapes = {
        "patch_embed.proj.weight": (1280, 3, 1, 1), "cls_token": (1, 1, 1280), "pos_embed": (1, 5, 1280),
        "blocks.0.mlp.fc1.weight": (8, 1280), "head.weight": (2, 1280),
    }  # fmt: skip
    tensors = {name: np.zeros(shape) for name, shape in shapes.items()}
    with pytest.warns(UserWarning, match="num_heads=16"):
        fields = timm.config_fields(Path("huge"), tensors, {}, {})
    assert fields["num_heads"] == 16  # 80 wide, where others are 64


def test_timms_config_is_followed(tmp_path: Path) -> None:
    path = foreign(tmp_path, act_layer="gelu_tanh", class_token=False, global_pool="avg")
    config = {
        "architecture": "vit_tiny_patch16_224", "global_pool": "avg", "num_features": 12,
        "model_args": {"num_heads": 3, "act_layer": "gelu_tanh", "qkv_bias": True, "qk_norm": False},
        "pretrained_cfg": {"input_size": [2, 10, 21]},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(load_model(path), model_of(act_layer="gelu_tanh", class_token=False, global_pool="avg"))


@pytest.mark.parametrize(("embed_dim", "hidden_dim"), [(12, 18), (11, 15), (13, 30), (22, 15)])
def test_every_hidden_width_is_deduced_exactly(tmp_path: Path, embed_dim: int, hidden_dim: int) -> None:
    """Also where ``embed_dim * (hidden_dim / embed_dim)`` rounds to less than ``hidden_dim``."""
    fields: dict[str, Any] = {"embed_dim": embed_dim, "num_heads": 1, "depth": 1, "img_size": (5, 3)}
    path = foreign(tmp_path, **fields, mlp_ratio=(hidden_dim + 0.5) / embed_dim)
    assert load_model(path, num_heads=1, act_layer="gelu", norm_eps=1e-6).config.hidden_dim == hidden_dim


def test_half_precision_is_widened(tmp_path: Path) -> None:
    def halve(tensors: dict[str, Array]) -> None:
        tensors.update({name: value.astype(np.float16) for name, value in tensors.items()})

    given: dict[str, Any] = {"img_size": (10, 21), "num_heads": 3, "act_layer": "gelu", "norm_eps": 1e-6}
    loaded = load_model(foreign(tmp_path, halve), **given).state_dict()
    for name, value in model_of().state_dict().items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], value.astype(np.float16).astype(np.float32))


def raw_file(path: Path, header: object, data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    bits = {0x3F80: 1.0, 0xC000: -2.0, 0x3EAB: 0.333984375, 0x0001: 2.0**-133, 0x7F7F: 255.0 * 2.0**120}
    data = np.array(list(bits), "<u2").tobytes()
    path = raw_file(tmp_path / "x", {"x": {"dtype": "BF16", "shape": [1, 5], "data_offsets": [0, 10]}}, data)
    tensors, about = read_tensors(path)
    assert tensors["x"].dtype == np.float32
    np.testing.assert_array_equal(tensors["x"], [list(bits.values())])
    assert about == {}


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    cuts = [*range(12), *range(12, len(content), len(content) // 150), len(content) - 1]
    for length in cuts:
        path.write_bytes(content[:length])
        for read in (load_model, model_metadata):
            with pytest.raises(UserError, match=r"model\.safetensors is not a whole safetensors file") as raised:
                read(path)
            assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps({"state_dict": [1.0] * 99}), b"PK\x03\x04" + bytes(99), b"\x89PNG\r\n" + bytes(99), b"hello " * 99],
    ids=["pickle", "zip", "image", "text"],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_model(tmp_path / "x.safetensors")


def test_integers_are_refused(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x", {"x": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8))
    with pytest.raises(UserError, match="x is I64; expected one of F64, F32, F16, BF16"):
        load_model(path)


def test_a_missing_file_and_a_folder_without_a_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nothing\.safetensors"):
        load_model(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match=r"holds no model: expected model\.safetensors"):
        load_model(tmp_path)


def drop(name: str) -> Callable[[dict[str, Array]], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: Array) -> Callable[[dict[str, Array]], object]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("norm.bias"), r"1 tensors missing \(norm.bias\)"),
        (put("reg_token", np.zeros((1, 4, 12))), r"1 tensors unknown \(reg_token\)"),
        (drop("head.weight"), "has no head.weight of timm's shape"),
        (put("blocks.1.mlp.fc2.weight", np.zeros((18, 12))), r"fc2.weight has shape \(18, 12\); .* \(12, 18\)"),
        (put("blocks.1.mlp.fc2.bias", np.zeros((1, 12))), r"fc2.bias has shape \(1, 12\); .* \(12,\)"),
        (put("norm.bias", np.full(12, np.nan)), "norm.bias holds NaN or infinity"),
        (put("patch_embed.proj.weight", np.zeros((12, 30))), "has no patch_embed.proj.weight of timm's shape"),
        (lambda tensors: [tensors.pop(name) for name in SHAPES if "blocks" in name], "has no blocks.0.mlp.fc1.weight"),
    ],
    ids=["missing", "unknown", "no head", "transposed", "rank", "nan", "our layout", "no blocks"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(foreign(tmp_path, change), img_size=(10, 21), num_heads=3, act_layer="gelu", norm_eps=1e-6)


def test_a_model_of_another_library_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {"vit.embeddings.cls_token": np.zeros((1, 1, 8))}, {})
    with pytest.raises(UserError, match=r"not a Vision Transformer of timm: .* but vit\.embeddings\.cls_token"):
        load_model(tmp_path / "x.safetensors")


def test_heads_that_nothing_tells_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"how many heads share its 12 channels; give num_heads=\.\.\."):
        load_model(foreign(tmp_path), img_size=(10, 21))


def test_an_image_size_that_nothing_tells_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"14 patches, not a square; give img_size=\(height, width\)"):
        load_model(foreign(tmp_path), num_heads=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 3}, "have depth 2, but its configuration 3"),
        ({"embed_dim": 24}, "have embed_dim 12, but its configuration 24"),
        ({"img_size": (10, 9)}, "have num_tokens 15, but its configuration 7"),
        ({"patch_size": (5, 7)}, r"have patch_size \(5, 3\), but its configuration \(5, 7\)"),
        ({"global_pool": "avg"}, "have global_pool token, but its configuration avg"),
        ({"mlp_ratio": 2.0}, "have hidden_dim 18, but its configuration 24"),
        ({"num_heads": 5}, "embed_dim 12 cannot be split evenly among num_heads 5"),
        ({"heads": 3}, "unknown fields of a model: heads"),
        ({"drop_rate": "much"}, "its configuration cannot be used"),
        ({"mlp_ratio": float("inf")}, "its configuration cannot be used"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path: Path, fields: Any, message: str) -> None:
    save_model(model_of(), tmp_path)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path, **fields)


def test_the_config_json_of_another_model_is_refused(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path / "a")
    save_model(model_of(num_heads=4), tmp_path / "b")
    (tmp_path / "a" / "config.json").write_bytes((tmp_path / "b" / "config.json").read_bytes())
    for read in (load_model, model_metadata):
        with pytest.raises(UserError, match=r"config\.json describes another model than model\.safetensors"):
            read(tmp_path / "a")


def test_a_damaged_config_json_is_refused(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path)
    content = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        load_model(tmp_path)


@pytest.mark.parametrize("own", ["{", "[1]", '{"config": 1, "extra": {}}'])
def test_a_damaged_configuration_inside_the_file_is_refused(tmp_path: Path, own: str) -> None:
    save_model(model_of(), tmp_path)
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    write_tensors(tmp_path / "model.safetensors", tensors, {"minivit": own})
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path)


def test_options_of_timm_that_we_do_not_have_are_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_args": {"pool_include_prefix": True}}))
    with pytest.raises(UserError, match="asks for pool_include_prefix=True, which minivit does not have"):
        load_model(path)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("model.safetensors", {"format": "onnx"}, "unknown format 'onnx'; expected 'timm'"),
        ("model.pth", {}, "ends in .safetensors"),
        ("model.safetensors", {"extra": {"mean": np.float32(0.5)}}, "extra can hold texts"),
        ("model.safetensors", {"extra": {"mean": float("nan")}}, "extra can hold texts"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_written(
    tmp_path: Path, path: str, options: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        save_model(model_of(), tmp_path / path, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_complex_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a model of complex128 cannot be saved"):
        save_model(model_of("complex128"), tmp_path)


def test_a_full_disk_keeps_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    save_model(model, tmp_path)

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(RunError, match=r"cannot write .*model\.safetensors: No space left on device"):
            save_model(model_of(depth=1), tmp_path)
    assert_same(load_model(tmp_path), model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunError, match="cannot write"):
        save_model(model_of(), tmp_path / "run" / "model.safetensors")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    model = model_of()
    before = model.state_dict()
    state = {name: value + 1 for name, value in before.items()} | {"head.bias": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match=r"head\.bias has shape \(3,\)"):
        model.load_state_dict(state)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_tensors_in_timms_layout_are_sent_to_load_model(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path)
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"minivit\.load_model reads them"):
        model_of().load_state_dict(tensors)
