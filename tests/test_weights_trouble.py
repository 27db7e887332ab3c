"""Model files that cannot be read or written: each gives one clear error and changes no file."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import assert_same, foreign, model_of, raw_file

from minivit.arrays import Array
from minivit.errors import RunError, UserError
from minivit.weights import load_model, model_metadata, read_tensors, save, save_model, write_tensors
from minivit.weights.tensors import read_shapes

SIZES: dict[str, Any] = {"img_size": (10, 21), "num_heads": 3, "act_layer": "gelu", "norm_eps": 1e-6}


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    cuts = [*range(1, 12), *range(12, len(content), len(content) // 150), len(content) - 1]
    for length in cuts:
        path.write_bytes(content[:length])
        for read in (load_model, model_metadata):
            with pytest.raises(UserError, match=r"model\.safetensors is not a complete safetensors file") as raised:
                read(path)
            assert "\n" not in str(raised.value)


def test_integers_are_refused(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x", {"x": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8))
    with pytest.raises(UserError, match="x is I64; expected one of F64, F32, F16, BF16"):
        read_tensors(path)
    with pytest.raises(UserError, match="is I32; expected one of"):
        load_model(foreign(tmp_path, put("head.bias", np.zeros(7, np.int32))), **SIZES)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": [], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1] * 70, "data_offsets": [0, 4]},
        {"dtype": "F4", "shape": [1 << 47, 1 << 47], "data_offsets": [0, 4]},
        {"dtype": "I64", "shape": [0, 1 << 47, 1 << 47], "data_offsets": [0, 4]},
        [0, 4],
    ],
    ids=str,
)
def test_a_header_that_contradicts_itself_is_refused_before_the_tensors_are_read(tmp_path: Path, entry: Any) -> None:
    path = raw_file(tmp_path / "x.safetensors", {"x": entry}, bytes(4))
    with pytest.raises(UserError, match="not a complete safetensors file"):
        read_shapes(path)


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([(0, 8), (4, 12)], "'b' overlaps another tensor"),
        ([(0, 8), (0, 8)], "'b' overlaps another tensor"),
        ([(0, 4), (8, 12)], "'b' is not where the tensor before it ends"),
        ([(4, 8), (8, 12)], "'a' is not where the tensor before it ends"),
        ([(0, 4), (4, 8)], "12 bytes follow its header, which describes 8"),
        ([(0, 12), (12, 4)], "its header describes 'b' wrongly"),
    ],
)
def test_offsets_that_overlap_or_leave_bytes_out_are_refused(tmp_path: Path, offsets: Any, words: str) -> None:
    header = {
        name: {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}
        for name, (begin, end) in zip("ab", offsets, strict=True)
    }
    path = raw_file(tmp_path / "x.safetensors", header, bytes(12))
    for read in (read_shapes, read_tensors, load_model):
        with pytest.raises(UserError, match=words):
            read(path)


def test_a_header_of_ten_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((10 << 30).to_bytes(8, "little") + b"{")
    with pytest.raises(UserError, match="it ends within its header"):
        load_model(path)
    os.truncate(path, 11 << 30)  # with holes: no disk is used
    with pytest.raises(UserError, match="a header of 10,737,418,240 bytes, and at most 4,194,304 are read"):
        load_model(path)


def test_another_model_is_refused_before_the_tensors_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = foreign(tmp_path, put("blocks.1.norm2.bias", np.zeros(99)))
    monkeypatch.setattr("minivit.weights.source.read_tensors", lambda path: pytest.fail("the tensors were read"))
    with pytest.raises(UserError, match=r"norm2.bias has shape \(99,\); its configuration requires \(12,\)"):
        load_model(path, **SIZES)


def test_a_missing_file_and_a_folder_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nothing\.safetensors"):
        load_model(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match=r"holds no model: expected model\.safetensors"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r"^there is no file a+; expected"):
        load_model("a" * 5000)


def drop(name: str) -> Callable[[dict[str, Array]], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: Array) -> Callable[[dict[str, Array]], object]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("norm.bias"), r"1 tensor missing \(norm.bias\)"),
        (put("token", np.zeros((1, 4, 12))), r"1 tensor unknown \(token\)"),
        (drop("head.weight"), r"1 tensor unknown \(head.bias\)"),
        (put("blocks.1.mlp.fc2.weight", np.zeros((18, 12))), r"fc2.weight has shape \(18, 12\); .* \(12, 18\)"),
        (put("blocks.1.mlp.fc2.bias", np.zeros((1, 12))), r"fc2.bias has shape \(1, 12\); .* \(12,\)"),
        (put("norm.bias", np.full(12, np.nan)), "norm.bias holds NaN or infinity"),
        (put("patch_embed.proj.weight", np.zeros((12, 30))), "has no patch_embed.proj.weight of timm's shape"),
        (
            lambda tensors: [tensors.pop(name) for name in list(tensors) if "blocks" in name],
            "has no blocks.0.mlp.fc1.weight",
        ),
    ],
    ids=["missing", "unknown", "no head", "transposed", "rank", "nan", "our layout", "no blocks"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(foreign(tmp_path, change), img_size=(10, 21), num_heads=3, act_layer="gelu", norm_eps=1e-6)


def test_an_unknown_number_of_heads_must_be_passed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"number of heads for embed_dim 12; pass num_heads=\.\.\."):
        load_model(foreign(tmp_path), img_size=(10, 21))


def test_an_unknown_image_size_must_be_passed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"14 patches, not a square; pass img_size=\(height, width\)"):
        load_model(foreign(tmp_path), num_heads=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"depth": 3},
            "holds a model with depth 2; it cannot be loaded with 3: of its sizes only num_classes and img_",
        ),
        ({"embed_dim": 24}, "holds a model with embed_dim 12; it cannot be loaded with 24"),
        ({"img_size": (10, 10)}, "images of 10 x 10 pixels cannot be cut into patches of 5 x 3"),
        ({"img_size": "large"}, "img_size is 'large'"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"resample": "nearest"}, "resample is 'nearest'; expected 'timm' or 'google'"),
        ({"patch_size": (5, 7)}, r"holds a model with patch_size \(5, 3\); it cannot be loaded with \(5, 7\)"),
        ({"patch_size": 5}, r"holds a model with patch_size \(5, 3\); it cannot be loaded with 5"),
        ({"global_pool": "avg"}, r"missing \(fc_norm.weight, fc_norm.bias\) and .* unknown \(norm.bias, norm.weight\)"),
        ({"mlp_ratio": 2.0}, "have hidden_dim 18, but its configuration 24"),
        ({"num_heads": 5}, "embed_dim 12 cannot be split evenly among num_heads 5"),
        ({"heads": 3}, "unknown fields of a model: heads"),
        ({"drop_rate": "much"}, "its configuration cannot be used"),
        ({"mlp_ratio": float("inf")}, "its configuration cannot be used"),
        ({"class_token": "yes"}, "class_token is 'yes'; expected True or False"),
        ({"class_token": [1]}, r"class_token is \[1\]; expected True or False"),
        ({"mlp_ratio": 10**400}, "mlp_ratio is 1000"),
        ({"num_heads": 10**30}, "this model would be too large"),
        ({"depth": 10**6}, "holds a model with depth 2; it cannot be loaded with 1000000"),
        (
            {"img_size": (5 * 10**9, 3 * 10**9)},
            "this model would be too large: with layers up to 36 wide and 1e.18 tokens",
        ),
        ({"num_classes": 10**13}, "num_classes is 10000000000000: this model would be too large"),
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


GIVEN: dict[str, Any] = {"num_heads": 3, "img_size": (10, 21), "act_layer": "gelu", "norm_eps": 1e-6}


def test_a_config_json_of_ours_is_not_that_of_another_file_in_the_folder(tmp_path: Path) -> None:
    file = foreign(tmp_path).rename(tmp_path / "other.safetensors")
    before = load_model(file, **GIVEN)
    save_model(model_of(num_classes=3, depth=1), tmp_path)
    assert_same(load_model(file, **GIVEN), before)


def test_a_file_of_another_name_leaves_the_config_json_of_the_folder_alone(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path)
    content = (tmp_path / "config.json").read_bytes()
    for name in ("timm", "huggingface"):
        plain = {"norm_eps": 1e-6, "head_dim": 0, "in_chans": 3}
        save_model(model_of(num_classes=3, **plain), tmp_path / f"{name}.safetensors", format=name)
        assert load_model(tmp_path / f"{name}.safetensors").config.num_classes == 3
    assert (tmp_path / "config.json").read_bytes() == content
    assert not (tmp_path / "preprocessor_config.json").exists()


@pytest.mark.parametrize("before", ["timm", "huggingface"])
@pytest.mark.parametrize("after", ["timm", "huggingface", "vit_pytorch", "labml"])
def test_a_model_in_the_place_of_another_has_no_files_of_that_beside_it(
    tmp_path: Path, before: str, after: str
) -> None:
    of_format: dict[str, dict[str, Any]] = {
        "vit_pytorch": {"qkv_bias": False, "embed_norm": "both", "fc_norm": False},
        "labml": {"act_layer": "relu", "representation_size": 11, "representation_act": "relu"},
    }
    model = model_of(norm_eps=1e-5, **of_format.get(after, {}))
    save_model(model_of(num_heads=4, num_classes=3), tmp_path / "used", format=before)
    for folder in ("used", "new"):
        save_model(model, tmp_path / folder, format=after)
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("used", "new")]
    assert contents[0] == contents[1]
    assert_same(load_model(tmp_path / "used"), model)


def test_a_file_of_the_model_before_that_cannot_be_deleted_is_named(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path)
    (tmp_path / "preprocessor_config.json").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*preprocessor_config\.json: "):
        save_model(model_of(), tmp_path)


def test_a_folder_without_a_model_keeps_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"mine": 1}')
    fields = {"act_layer": "relu", "representation_size": 11, "representation_act": "relu", "norm_eps": 1e-5}
    save_model(model_of(**fields), tmp_path, format="labml")
    assert (tmp_path / "config.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize("content", ["[1, 2]", '{"lr": NaN}', '{"hidden_size": 3}'])
def test_a_config_json_of_another_program_does_not_matter_beside_a_file_of_ours(tmp_path: Path, content: str) -> None:
    save_model(model_of(), tmp_path / "mine.safetensors")
    (tmp_path / "config.json").write_text(content)
    assert_same(load_model(tmp_path / "mine.safetensors"), model_of())


def test_what_would_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a header of 4,\d+,\d+ bytes, and at most 4,194,304 are read; shorten its"):
        save_model(model_of(), tmp_path / "x.safetensors", extra={"note": "a" * (1 << 22)})
    assert list(tmp_path.iterdir()) == []


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


def test_a_configuration_that_is_nested_deeply_is_refused(tmp_path: Path) -> None:
    write_tensors(foreign(tmp_path), {"x": np.zeros(1)}, {"minivit": "[" * 100_000})
    for read in (load_model, model_metadata):
        with pytest.raises(UserError, match="the configuration inside it is nested too deeply"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("patch_embed.proj.weight", (0, 2, 5, 3)), ("pos_embed", (1, 0, 12)), ("head.bias", (0,))],
)
def test_tensors_without_numbers_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=rf"is damaged: it has 1 tensor without numbers \({name}\)"):
        load_model(foreign(tmp_path, put(name, np.zeros(shape))))


def test_numbers_that_overflow_the_dtype_are_refused(tmp_path: Path) -> None:
    save_model(model_of("float64"), tmp_path)
    tensors, about = read_tensors(tmp_path / "model.safetensors")
    write_tensors(tmp_path / "model.safetensors", tensors | {"norm.bias": np.full(12, 1e300)}, about)
    assert load_model(tmp_path, dtype="float64").parameters["norm.bias"].value[0] == 1e300
    with pytest.raises(UserError, match=r"norm\.bias holds numbers too large for float32; use dtype='float64'"):
        load_model(tmp_path)


def test_unsupported_options_of_timm_are_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_args": {"scale_attn_norm": True}}))
    with pytest.raises(UserError, match="asks for scale_attn_norm=True, which minivit does not support"):
        load_model(path)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("model.safetensors", {"format": "keras"}, "unknown format 'keras'; expected one of 'timm'"),
        ("model.pth", {}, "must end in .safetensors"),
        ("model.safetensors", {"extra": {"mean": np.float32(0.5)}}, "extra can hold strings"),
        ("model.safetensors", {"extra": {"mean": float("nan")}}, "extra can hold strings"),
    ],
)
def test_invalid_arguments_of_save_model_are_refused_before_a_file_is_written(
    tmp_path: Path, path: str, options: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        save_model(model_of(), tmp_path / path, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_complex_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a model of complex128 cannot be saved"):
        save_model(model_of("complex128"), tmp_path)


def test_the_old_model_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    (tmp_path / "run").write_text("content")
    with pytest.raises(RunError, match="cannot write"):
        save_model(model_of(), tmp_path / "run" / "model.safetensors")
    assert (tmp_path / "run").read_text() == "content"


def test_a_state_dict_with_a_wrong_shape_changes_no_parameter() -> None:
    model = model_of()
    before = model.state_dict()
    state = {name: value + 1 for name, value in before.items()} | {"head.bias": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match=r"head\.bias has shape \(3,\)"):
        model.load_state_dict(state)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_the_error_for_tensors_in_timms_layout_names_load_model(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path)
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"minivit\.load_model reads them"):
        model_of().load_state_dict(tensors)


def test_onnx_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"needs the package onnx: .*pip install.* onnx"):
        save_model(model_of(), tmp_path / "x.onnx", format="onnx")


def test_a_model_that_a_file_of_onnx_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 4 * 304_326_632 < save._LARGEST_ONNX < 4 * 632_045_800  # vit_large_patch16_224, vit_huge_patch14_224
    model = model_of()
    monkeypatch.setattr(save, "_LARGEST_ONNX", 4 * model.parameters.count - 1)
    with pytest.raises(UserError, match=r"holds less than 2 GiB, and the parameters of this model take 0\.0 GiB"):
        save_model(model, tmp_path / "x.onnx", format="onnx")
    assert not [*tmp_path.iterdir()]
