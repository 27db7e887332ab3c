"""Model files that cannot be read or written: each gives one clear error and changes no file."""

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
from model_files import assert_same, foreign, model_of, raw_file

from minivit.arrays import Array
from minivit.errors import RunError, UserError
from minivit.weights import load_model, model_metadata, read_tensors, save_model, write_tensors


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    cuts = [*range(12), *range(12, len(content), len(content) // 150), len(content) - 1]
    for length in cuts:
        path.write_bytes(content[:length])
        for read in (load_model, model_metadata):
            with pytest.raises(UserError, match=r"model\.safetensors is not a complete safetensors file") as raised:
                read(path)
            assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps({"state_dict": [1.0] * 99}), b"PK\x03\x04" + bytes(99), b"\x89PNG\r\n" + bytes(99), b"hello " * 99],
    ids=["pickle", "zip", "image", "text"],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a complete safetensors file"):
        load_model(tmp_path / "x.safetensors")


def test_integers_are_refused(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x", {"x": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8))
    with pytest.raises(UserError, match="x is I64; expected one of F64, F32, F16, BF16"):
        load_model(path)


def test_a_missing_file_and_a_folder_without_a_model_are_refused(tmp_path: Path) -> None:
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


def test_a_model_of_another_library_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {"vit.embeddings.cls_token": np.zeros((1, 1, 8))}, {})
    with pytest.raises(UserError, match=r"not a Vision Transformer of timm: .* but vit\.embeddings\.cls_token"):
        load_model(tmp_path / "x.safetensors")


def test_an_unknown_number_of_heads_must_be_passed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"number of heads for embed_dim 12; pass num_heads=\.\.\."):
        load_model(foreign(tmp_path), img_size=(10, 21))


def test_an_unknown_image_size_must_be_passed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"14 patches, not a square; pass img_size=\(height, width\)"):
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


def test_unsupported_options_of_timm_are_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_args": {"pool_include_prefix": True}}))
    with pytest.raises(UserError, match="asks for pool_include_prefix=True, which minivit does not support"):
        load_model(path)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("model.safetensors", {"format": "onnx"}, "unknown format 'onnx'; expected 'timm'"),
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
