"""ONNX files: ONNX Runtime computes the logits of the model, and the metadata says how images are prepared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Minivit
from model_files import model_of

from minivit import UserError, ViT, save_model
from minivit.arrays import Array
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.presets import get_config

pytestmark = pytest.mark.conformance

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mean": {"global_pool": "avg", "class_token": False},
    "registers": {"reg_tokens": 2, "no_embed_class": True, "pool_include_prefix": True, "global_pool": "avg"},
    "map": {"global_pool": "map", "class_token": False, "fc_norm": False},
    "overlapping patches with norms": {"patch_stride": (5, 1), "embed_norm": "both"},
    "norms and LayerScale": {"qk_norm": True, "init_values": 0.5, "pre_norm": True, "embed_norm": "after"},
    "no biases": {"qkv_bias": False, "proj_bias": False, "mlp_bias": False, "head_dim": 5},
    "gelu_tanh": {"act_layer": "gelu_tanh", "representation_size": 9},
    "quick_gelu": {"act_layer": "quick_gelu", "representation_size": 9, "representation_act": "relu"},
    "relu": {"act_layer": "relu", "final_norm": False},
    "positions of rows and columns": {"pos_embed": "learn_2d", "reg_tokens": 1},
    "concatenated positions": {"pos_embed": "learn_2d_concat"},
    "fixed positions": {"pos_embed": "sincos_2d", "class_token": False, "global_pool": "avg"},
    "relative positions": {"pos_embed": "relative"},
    "positions of each block": {"pos_embed_layers": "each"},
    "shared positions": {"pos_embed_layers": "shared"},
    "stem": {"img_size": (12, 24), "patch_size": 4, "conv_stem": (6, 8, 8)},
    "hybrid": {"img_size": (64, 48), "patch_size": 8, "resnet": (1, 2)},
    "stem of a hybrid": {"img_size": 40, "patch_size": 8, "resnet": (0,)},
    "features": {"num_classes": 0},
}


def session_of(path: Path) -> Any:
    """Return the session of ONNX Runtime for a file."""
    try:
        import onnxruntime
    except ImportError as error:
        pytest.fail(f"this test needs ONNX Runtime: pip install 'minivit[test,conformance]' ({error})")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def computed(path: Path, images: Array) -> Array:
    """Return the result of ONNX Runtime for images (B, height, width, C)."""
    session = session_of(path)
    (logits,) = session.run(["logits"], {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})
    return logits


def images_of(model: ViT, count: int) -> Array:
    config = model.config
    shape = (count, config.height, config.width, config.in_chans)
    return np.random.default_rng(count).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_onnx_runtime_computes_the_logits_of_any_number_of_images(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = model_of(**fields)
    path = tmp_path / "model.onnx"
    save_model(model, path, format="onnx")
    import onnx

    onnx.checker.check_model(onnx.load(path), full_check=True)
    for count in (1, 3):
        images = images_of(model, count)
        np.testing.assert_allclose(computed(path, images), model(images), rtol=1e-5, atol=1e-5)


def test_relative_positions_are_stored_as_in_the_model(tmp_path: Path) -> None:
    import onnx

    model = model_of(pos_embed="relative")
    save_model(model, tmp_path / "model.onnx", format="onnx")
    shapes = {it.name: tuple(it.dims) for it in onnx.load(tmp_path / "model.onnx").graph.initializer}
    N, K = model.config.num_tokens, model.config.head_width
    assert {name: shape for name, shape in shapes.items() if name.endswith("rel_pos")} == {
        f"blocks.{i}.attn.rel_pos": (2 * N - 1, K) for i in range(2)
    }
    assert [name for name, shape in shapes.items() if shape[:2] == (N, N)] == ["relative_places"]


@pytest.mark.parametrize("name", ["vit_mini_convstem4_32", "vit_tiny_patch4_32"])
def test_named_models_have_the_same_logits(tmp_path: Path, name: str) -> None:
    model = ViT(get_config(name), seed=1)
    save_model(model, tmp_path, format="onnx")
    images = images_of(model, 2)
    np.testing.assert_allclose(computed(tmp_path / "model.onnx", images), model(images), rtol=0, atol=1e-5)


def test_float64_becomes_float32_and_equal_models_give_equal_files(tmp_path: Path) -> None:
    for name, dtype in (("a", "float32"), ("b", "float64")):
        save_model(model_of(pos_embed="learn_2d").astype(dtype), tmp_path / f"{name}.onnx", format="onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_metadata_say_how_images_are_prepared(tmp_path: Path) -> None:
    extra = {"class_names": ["a", "ü"], "mean": [0.5, 0.4], "std": [0.2, 0.1], "interpolation": "bicubic"}
    save_model(model_of(num_classes=2), tmp_path / "x.onnx", format="onnx", extra=extra)
    session = session_of(tmp_path / "x.onnx")
    found = session.get_modelmeta().custom_metadata_map
    assert found.pop("interpolation") == "bicubic"
    assert {name: json.loads(text) for name, text in found.items()} == {
        name: value for name, value in extra.items() if name != "interpolation"
    }


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    class Mine(LayerNorm):
        pass

    model = model_of()
    with pytest.raises(UserError, match=r"x\.npz is not the name of a model file in the format 'onnx'.*\.onnx"):
        save_model(model, tmp_path / "x.npz", format="onnx")
    with pytest.raises(UserError, match="extra can hold strings, finite numbers"):
        save_model(model, tmp_path / "x.onnx", format="onnx", extra={"mean": float("nan")})
    model.norm = Mine(12)
    with pytest.raises(UserError, match="cannot express a layer of your own as norm"):
        save_model(model, tmp_path / "x.onnx", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_converted_by_the_command(tmp_path: Path, cli: Minivit) -> None:
    model = model_of()
    save_model(model, tmp_path / "x.safetensors", extra={"class_names": list("abcdefg")})
    result = cli("convert", str(tmp_path / "x.safetensors"), str(tmp_path / "x.onnx"), "--json")
    assert result.json()["format"] == "onnx"
    images = images_of(model, 2)
    np.testing.assert_allclose(computed(tmp_path / "x.onnx", images), model(images), rtol=1e-5, atol=1e-5)
