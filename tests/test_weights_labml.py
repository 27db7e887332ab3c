"""labml's annotated Vision Transformer, with names and shapes copied from its code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import assert_file_holds, assert_same, both, model_of, tensors_of

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.weights import load_model, model_metadata, read_tensors, save_model, write_tensors

D, F = 12, 18
SHAPES: dict[str, tuple[int, ...]] = {
    "cls_token_emb": (1, 1, D),
    **both("patch_emb.conv", D, 2, 5, 3),
    "pos_emb.positional_encodings": (5000, 1, D),
    **{
        f"transformer_layers.{i}.{name}": shape
        for i in range(2)
        for name, shape in {
            **both("self_attn.query.linear", D, D),
            **both("self_attn.key.linear", D, D),
            **both("self_attn.value.linear", D, D),
            **both("self_attn.output", D, D),
            **both("feed_forward.layer1", F, D),
            **both("feed_forward.layer2", D, F),
            **both("norm_self_attn", D),
            **both("norm_ff", D),
        }.items()
    },
    **both("ln", D),
    **both("classification.linear1", 11, D),
    **both("classification.linear2", 7, 11),
}
FIELDS: dict[str, Any] = {
    "act_layer": "relu", "norm_eps": 1e-5, "representation_size": 11, "representation_act": "relu"
}  # fmt: skip
GIVEN: dict[str, Any] = {"img_size": (10, 21), "num_heads": 3, "act_layer": "relu", "norm_eps": 1e-5}


def file_of(path: Path, **change: tuple[int, ...]) -> dict[str, Array]:
    tensors = tensors_of(SHAPES | {name.replace("__", "."): shape for name, shape in change.items()})
    write_tensors(path / "model.safetensors", tensors, {})
    return tensors


def test_a_file_is_read_and_written_with_the_same_bits(tmp_path: Path) -> None:
    tensors = file_of(tmp_path)
    model = load_model(tmp_path, **GIVEN)
    assert model.config == model_of(**FIELDS).config
    positions = tensors["pos_emb.positional_encodings"]
    np.testing.assert_array_equal(model.parameters["pos_embed"].value[0], positions[:15, 0])
    np.testing.assert_array_equal(model.unused["pos_emb.positional_encodings"], positions[15:])
    save_model(model, tmp_path / "written", format="labml")
    assert_file_holds(tmp_path / "written/model.safetensors", tensors)
    again = load_model(tmp_path / "written")
    assert_same(again, model)
    np.testing.assert_array_equal(again.unused["pos_emb.positional_encodings"], positions[15:])
    save_model(again, tmp_path / "again", format="labml")
    assert_file_holds(tmp_path / "again/model.safetensors", tensors)


def test_larger_images_use_more_of_the_positions(tmp_path: Path) -> None:
    tensors = file_of(tmp_path)
    model = load_model(tmp_path, **GIVEN | {"img_size": (20, 21)})
    positions = tensors["pos_emb.positional_encodings"]
    np.testing.assert_array_equal(model.parameters["pos_embed"].value[0], positions[:29, 0])
    assert len(model.unused["pos_emb.positional_encodings"]) == 5000 - 29


@pytest.mark.parametrize("img_size", [(20, 21), (5, 21)])
def test_a_model_for_images_of_another_size_is_written_with_as_many_positions(
    tmp_path: Path, img_size: tuple[int, int]
) -> None:
    tensors = file_of(tmp_path)
    save_model(load_model(tmp_path, **GIVEN), tmp_path / "written", format="labml")
    model = load_model(tmp_path / "written", img_size=img_size)
    N = model.config.num_tokens
    save_model(model, tmp_path / "resized", format="labml")
    written, _ = read_tensors(tmp_path / "resized/model.safetensors")
    positions = written["pos_emb.positional_encodings"]
    assert positions.shape == (5000, 1, D)
    np.testing.assert_array_equal(positions[:N, 0], model.parameters["pos_embed"].value[0])
    np.testing.assert_array_equal(positions[N:], tensors["pos_emb.positional_encodings"][N:])
    assert_same(load_model(tmp_path / "resized"), model)


def test_a_small_file_with_a_size_of_very_large_images_is_refused_without_their_positions(tmp_path: Path) -> None:
    sizes = {name: shape for name, shape in SHAPES.items() if not name.startswith("pos_emb")}
    tensors = tensors_of(sizes | {"pos_emb.positional_encodings": (15, 1, D)})
    large = model_of(**FIELDS).config.to_dict() | {"img_size": (5 << 17, 3 << 16)}
    own = {"config": large, "extra": {}, "format": "labml"}
    write_tensors(tmp_path / "model.safetensors", tensors, {"format": "pt", "minivit": json.dumps(own)})
    with pytest.raises(UserError, match=r"has shape \(15, 1, 12\); its configuration requires \(8589934593, 1, 12\)"):
        load_model(tmp_path)


def test_a_model_of_ours_is_written_with_5000_positions(tmp_path: Path) -> None:
    model = model_of(**FIELDS)
    save_model(model, tmp_path, format="labml")
    again = load_model(tmp_path)
    assert_same(again, model)
    unused = again.unused["pos_emb.positional_encodings"]
    assert unused.shape == (5000 - 15, 1, D)
    assert not unused.any()


def test_what_the_file_cannot_say_is_that_of_the_experiment_but_heads_must_be_given(tmp_path: Path) -> None:
    file_of(tmp_path, patch_emb__conv__weight=(D, 3, 4, 4))
    with pytest.raises(UserError, match=r"does not define the number of heads, which are 12 wide .*; pass num_heads="):
        load_model(tmp_path)
    words = r"assumed img_size=\(32, 32\), act_layer='relu', norm_eps=1e-05 \(as in labml's CIFAR-10 experiment\)"
    with pytest.warns(UserWarning, match=words):
        assert load_model(tmp_path, num_heads=3).config.num_patches == 64
    file_of(tmp_path)
    with pytest.raises(UserError, match=r"does not define the size of images; pass img_size="):
        load_model(tmp_path, num_heads=3)
    with pytest.raises(UserError, match="cannot be num_heads=5"):
        load_model(tmp_path, num_heads=5)
    assert model_metadata(tmp_path) == {"mean": [0.5], "std": [0.5]}


def test_tensors_that_are_missing_left_over_or_of_another_shape_are_listed(tmp_path: Path) -> None:
    changes: tuple[tuple[dict[str, tuple[int, ...]], str], ...] = (
        ({"extra": (3,)}, r"1 tensor unknown \(extra\)"),
        ({"ln__bias": (3,)}, r"ln\.bias has shape \(3,\); its configuration requires \(12,\)"),
        ({"pos_emb__positional_encodings": (10, 1, D)}, r"requires \(15, 1, 12\)"),
        ({"pos_emb__positional_encodings": (60,)}, r"positional_encodings has shape \(60,\)"),
        ({"pos_emb__positional_encodings": (20, 2, D)}, r"positional_encodings has shape \(20, 2, 12\)"),
        ({"classification__linear1__weight": (D,)}, r"it has no classification\.linear1\.weight of its shape"),
        ({"transformer_layers__0__feed_forward__linear_v__weight": (F, D)}, r"with a gated MLP \(GLU\)"),
        ({"transformer_layers__0__norm_src_attn__weight": (D,)}, r"unknown \(transformer_layers\.0\.norm_src_attn"),
    )
    for change, words in changes:
        file_of(tmp_path, **change)
        with pytest.raises(UserError, match=words):
            load_model(tmp_path, **GIVEN)


def test_a_field_that_the_layout_cannot_store_is_named_by_its_parameters(tmp_path: Path) -> None:
    file_of(tmp_path)
    words = r"its layout has no 4 parameters \(blocks\.0\.ls1\.gamma, .*\), which these fields of the model require$"
    with pytest.raises(UserError, match=words):
        load_model(tmp_path, **GIVEN, init_values=1e-5)
    words = r"its layout has no pos_embed of shape \(1, 14, 12\), which these fields of the model require$"
    with pytest.raises(UserError, match=words):
        load_model(tmp_path, **GIVEN, no_embed_class=True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"representation_size": 0}, "representation_size=0"),
        ({"representation_act": "tanh"}, "representation_act='tanh'"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"head_dim": 5}, "head_dim=5"),
        ({"global_pool": "avg"}, "global_pool='avg'"),
    ],
    ids=str,
)
def test_what_the_format_cannot_express_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"the format 'labml' cannot express {words}; the format 'timm' can"):
        save_model(model_of(**FIELDS | fields), tmp_path, format="labml")
    assert not list(tmp_path.iterdir())
