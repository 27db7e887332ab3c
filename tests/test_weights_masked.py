"""Models for masked pre-training in our own files: to the bit, and their encoders as a plain ViT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from masked_files import (
    CONFIG,
    MAE,
    TASKS,
    C,
    assert_equal_models,
    encoder_of,
    losses,
    made,
)
from model_files import assert_same, model_of

from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.corrupted import SimMIM
from minivit.nn.vit import ViT
from minivit.weights import (
    load_masked_model,
    load_model,
    model_metadata,
    read_tensors,
    save_masked_model,
    save_model,
    write_tensors,
)

every_task = pytest.mark.parametrize("task", TASKS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_task
def test_our_own_file_holds_a_model_to_the_bit(tmp_path: Path, task: str, dtype: str) -> None:
    model = made(task, dtype=dtype)
    for path in (tmp_path, tmp_path / "new" / "x.safetensors"):
        save_masked_model(model, path, extra={"mean": [0.5], "run": "x"})
        found = load_masked_model(path, dtype)
        assert_equal_models(found, model)
        np.testing.assert_array_equal(losses(found), losses(model))
        assert model_metadata(path) == {"mean": [0.5], "run": "x"}
    assert sorted(read_tensors(tmp_path / "model.safetensors")[0]) == sorted(model.state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "new"]


FORMS: dict[str, dict[str, Any]] = {
    "a head": {"num_classes": 5, "representation_size": 7},
    "a mean, sines and registers": {
        "class_token": False, "global_pool": "avg", "pos_embed": "sincos_2d_mae", "reg_tokens": 2,
    },
    "attention pooling, norms of queries": {"global_pool": "map", "qk_norm": True, "init_values": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@every_task
def test_encoders_of_other_forms_come_back_with_and_without_their_decoder(tmp_path: Path, task: str, form: str) -> None:
    config = ViTConfig(**{**CONFIG.to_dict(), **FORMS[form]})
    model = made(task, config)
    save_masked_model(model, tmp_path)
    assert_equal_models(load_masked_model(tmp_path), model)
    encoder = load_model(tmp_path)
    assert (encoder.config.num_classes, encoder.config.representation_size) == (0, 0)
    expected = model.encoder.state_dict()
    for name, value in encoder.state_dict().items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert {name.partition(".")[0] for name in expected.keys() - encoder.state_dict().keys()} <= {"head", "pre_logits"}


@pytest.mark.parametrize("task", ["mpp", "mae"])
def test_the_encoder_of_our_own_file_is_a_plain_vit(tmp_path: Path, task: str) -> None:
    save_masked_model(made(task), tmp_path)
    assert_same(load_model(tmp_path), encoder_of(task))
    with_head = load_model(tmp_path, "float64", num_classes=4, img_size=32, drop_path_rate=0.1)
    assert with_head(np.ones((1, 32, 32, C))).shape == (1, 4)
    with pytest.raises(UserError, match="holds a model with embed_dim 12; it cannot be loaded with 24"):
        load_model(tmp_path, embed_dim=24)


def test_options_and_fields_replace_those_of_the_file(tmp_path: Path) -> None:
    save_masked_model(made("mae"), tmp_path)
    model: Any = load_masked_model(tmp_path, "float64", ratio=0.5, norm_pixels=False, drop_path_rate=0.1, img_size=24)
    assert (model.ratio, model.norm_pixels, model.num_masked) == (0.5, False, 18)
    assert (model.config.drop_path_rate, model.config.grid) == (0.1, (6, 6))
    x = np.random.default_rng(1).standard_normal((2, 24, 24, C))
    assert np.isfinite(model(x)).all()
    expected = load_model(tmp_path, "float64", img_size=24).state_dict()
    np.testing.assert_array_equal(model.encoder.pos_embed.value, expected["pos_embed"])
    for options, words in (
        ({"ratio": 1.5}, "'mae': ratio is 1.5; expected above 0"),
        ({"ratio": "x"}, "its ratio is 'x'; expected a number"),
        ({"target": "mean"}, "'mae': .*unexpected keyword argument 'target'"),
        ({"decoder_heads": 3}, "'mae': .*8.*3"),
        ({"decoder_dim": 12}, r"mask_token has shape \(1, 1, 8\); its configuration requires \(1, 1, 12\)"),
        ({"decoder_depth": 10**9}, "tensors, too few for a decoder of 1000000000 blocks"),
        ({"decoder_mlp": 10**16}, "too large|requires"),
        ({"colour": 1}, "unknown fields of a model: colour"),
    ):
        with pytest.raises(UserError, match=words) as raised:
            load_masked_model(tmp_path, **options)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("layout", ["timm", "huggingface"])
def test_a_plain_vit_is_no_masked_model(tmp_path: Path, layout: str) -> None:
    save_model(model_of(), tmp_path, format=layout)
    words = r"holds no model for masked .* it has no mask token; load_model reads it as a plain ViT"
    with pytest.raises(UserError, match=words):
        load_masked_model(tmp_path)
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    write_tensors(tmp_path / "x" / "model.safetensors", tensors, {})
    with pytest.raises(UserError, match=words):
        load_masked_model(tmp_path / "x")
    with pytest.raises(UserError, match="there is no file"):
        load_masked_model(tmp_path / "nothing")
    write_tensors(tmp_path / "y.safetensors", {"x": np.ones(2)}, {})
    with pytest.raises(UserError, match="is not a Vision Transformer of timm"):
        load_masked_model(tmp_path / "y.safetensors")


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "task": ({"task": "hog"}, "is damaged, or of a newer minivit: its task is 'hog'"),
    "task of another kind": ({"task": ["mae"]}, r"its task is \['mae'\]"),
    "options": ({"options": [1]}, r"its options \[1\]"),
    "an unknown option": ({"options": {"x": 1}}, "unknown option 'x'"),
    "an option": ({"options": MAE | {"mean": [0.5]}}, "'mae': .*unexpected keyword argument 'mean'"),
    "a width": ({"options": MAE | {"decoder_dim": -8}}, "its decoder_dim is -8; expected a whole number above 0"),
    "blocks": ({"options": MAE | {"decoder_depth": 2}}, "tensors unknown.*decoder_blocks.2"),
    "the model": ({"config": CONFIG.to_dict() | {"depth": 3}}, "its tensors have depth 2, but its configuration 3"),
    "an attribute": ({"config": CONFIG.to_dict() | {"mlp_ratio": 2.0}}, "its configuration requires"),
    "a word": ({"config": {"x": 1}}, "its configuration cannot be used"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_values_in_our_own_file_are_named(tmp_path: Path, damage: str) -> None:
    model, (changed, words) = made("mae"), DAMAGED[damage]
    own = {"format": "masked", "task": "mae", "config": CONFIG.to_dict(), "options": model.options, "extra": {}}
    path = tmp_path / "model.safetensors"
    write_tensors(path, model.state_dict(), {"minivit": json.dumps(own)})
    assert_equal_models(load_masked_model(path), model)
    write_tensors(path, model.state_dict(), {"minivit": json.dumps(own | changed)})
    with pytest.raises(UserError, match=words) as raised:
        load_masked_model(path)
    assert "\n" not in str(raised.value)


def test_a_changed_byte_of_our_own_file_is_found(tmp_path: Path) -> None:
    save_masked_model(made("simmim"), tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    for load in (load_masked_model, load_model):
        with pytest.raises(UserError, match="was changed or damaged since minivit wrote it"):
            load(path)


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="extra can hold strings"):
        save_masked_model(made("mae"), tmp_path, extra={"x": object()})
    with pytest.raises(UserError, match=r"is not the name of a model file .*; it must end in \.safetensors"):
        save_masked_model(made("mae"), tmp_path / "x.npz")
    with pytest.raises(UserError, match="a model of complex128 cannot be saved"):
        save_masked_model(made("mae").astype("complex128"), tmp_path)
    model: Any = made("mae")
    model.decoder_blocks[1].mlp = model.decoder_blocks[1].attn.proj
    with pytest.raises(UserError, match=r"with a layer of your own as decoder_blocks\.1\.mlp cannot be saved"):
        save_masked_model(model, tmp_path)

    model = made("mae")
    model.decoder_blocks[0] = model.decoder_norm
    with pytest.raises(UserError, match=r"with a layer of your own as decoder_blocks\.0"):
        save_masked_model(model, tmp_path)

    class Own(SimMIM):
        """The class of a user."""

    with pytest.raises(UserError, match="with a layer of your own as the model cannot be saved"):
        save_masked_model(Own(ViT(CONFIG)).initialize(0), tmp_path)
    assert not any(tmp_path.iterdir())
