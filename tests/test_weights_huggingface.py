"""Hugging Face's ViT: its folders are read and written, with names and shapes copied from its published models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import assert_file_holds, assert_same, both, model_of, tensors_of
from PIL import Image

from minivit.arrays import Array
from minivit.data.images import Decoding, fitted
from minivit.errors import UserError
from minivit.weights import load_model, model_metadata, save_model, write_tensors
from minivit.weights.preprocessing import FITS

D, F = 12, 18
VIT: dict[str, tuple[int, ...]] = {
    "embeddings.cls_token": (1, 1, D),
    "embeddings.position_embeddings": (1, 15, D),
    **both("embeddings.patch_embeddings.projection", D, 2, 5, 3),
    **{
        f"encoder.layer.{i}.{name}": shape
        for i in range(2)
        for name, shape in {
            **both("layernorm_before", D),
            **both("attention.attention.query", D, D),
            **both("attention.attention.key", D, D),
            **both("attention.attention.value", D, D),
            **both("attention.output.dense", D, D),
            **both("layernorm_after", D),
            **both("intermediate.dense", F, D),
            **both("output.dense", D, F),
        }.items()
    },
    **both("layernorm", D),
}
POOLER = both("pooler.dense", 11, D)
CLASSIFIER: dict[str, tuple[int, ...]] = {f"vit.{name}": shape for name, shape in VIT.items()} | both(
    "classifier", 7, D
)
NO_BIASES = {
    name: shape for name, shape in CLASSIFIER.items() if not name.endswith(("query.bias", "key.bias", "value.bias"))
}
CONFIG: dict[str, Any] = {
    "model_type": "vit", "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": F,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": [10, 21], "patch_size": [5, 3], "num_channels": 2,
    "qkv_bias": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def folder_of(path: Path, shapes: dict[str, tuple[int, ...]], **config: Any) -> dict[str, Array]:
    """Write a folder as transformers does, and return its tensors."""
    tensors = tensors_of(shapes)
    write_tensors(path / "model.safetensors", tensors, {"format": "pt"})
    (path / "config.json").write_text(json.dumps(CONFIG | config))
    return tensors


@pytest.mark.parametrize(
    ("shapes", "fields"),
    [
        (CLASSIFIER, {}),
        (VIT | POOLER, {"num_classes": 0, "representation_size": 11}),
        ({f"vit.{name}": shape for name, shape in VIT.items()}, {"num_classes": 0}),
        (CLASSIFIER | {"vit.embeddings.mask_token": (1, 1, D), **both("vit.pooler.dense", D, D)}, {}),
        (NO_BIASES, {"qkv_bias": False}),
    ],
    ids=["classifier", "pooler", "neither", "mask token and unused pooler", "no biases of queries, keys and values"],
)
def test_a_folder_is_read_and_written_with_the_same_bits(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], fields: dict[str, Any]
) -> None:
    tensors = folder_of(tmp_path, shapes)
    model = load_model(tmp_path)
    assert model.config == model_of(norm_eps=1e-12, **fields).config
    save_model(model, tmp_path / "written", format="huggingface")
    assert_file_holds(tmp_path / "written/model.safetensors", tensors)
    again = load_model(tmp_path / "written")
    assert_same(again, model)
    assert again.unused.keys() == model.unused.keys() == {name for name in tensors if _is_unused(name, shapes)}
    config = json.loads((tmp_path / "written/config.json").read_text())
    assert all(config[key] == value for key, value in CONFIG.items() if key != "qkv_bias")


def _is_unused(name: str, shapes: dict[str, tuple[int, ...]]) -> bool:
    return "mask_token" in name or ("pooler" in name and "classifier.weight" in shapes)


def test_queries_keys_and_values_are_side_by_side_and_weights_transposed(tmp_path: Path) -> None:
    tensors = folder_of(tmp_path, CLASSIFIER)
    model = load_model(tmp_path)
    weight, bias = (model.parameters[f"blocks.1.attn.qkv.{kind}"].value for kind in ("weight", "bias"))
    for i, part in enumerate(("query", "key", "value")):
        theirs = f"vit.encoder.layer.1.attention.attention.{part}"
        np.testing.assert_array_equal(weight[:, i * D : (i + 1) * D], tensors[f"{theirs}.weight"].T)
        np.testing.assert_array_equal(bias[i * D : (i + 1) * D], tensors[f"{theirs}.bias"])
    patch = model.parameters["patch_embed.proj.weight"].value
    theirs_patch = tensors["vit.embeddings.patch_embeddings.projection.weight"]
    for row, column, channel, d in np.ndindex(5, 3, 2, D):
        assert theirs_patch[d, channel, row, column] == patch[(row * 3 + column) * 2 + channel, d]


def test_the_names_that_transformers_5_has_in_memory_are_read(tmp_path: Path) -> None:
    newer = {
        "encoder.layer.": "layers.", "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj", "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    }  # fmt: skip
    tensors = folder_of(tmp_path, CLASSIFIER)
    model = load_model(tmp_path)
    for older, name in newer.items():
        tensors = {key.replace(older, name): value for key, value in tensors.items()}
    assert "vit.layers.1.mlp.fc2.bias" in tensors
    for prefix in ("", "module.", "model._orig_mod."):
        write_tensors(tmp_path / "model.safetensors", {prefix + name: value for name, value in tensors.items()}, {})
        assert_same(load_model(tmp_path), model)


def test_the_configuration_is_followed(tmp_path: Path) -> None:
    folder_of(
        tmp_path, CLASSIFIER, hidden_act="gelu_new", layer_norm_eps=1e-5, hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.2, num_attention_heads=4,
    )  # fmt: skip
    config = load_model(tmp_path).config
    assert (config.act_layer, config.norm_eps, config.num_heads) == ("gelu_tanh", 1e-5, 4)
    assert (config.pos_drop_rate, config.proj_drop_rate, config.attn_drop_rate) == (0.1, 0.1, 0.2)
    assert load_model(tmp_path, norm_eps=1e-3, num_heads=np.int64(3)).config.norm_eps == 1e-3
    for model_type, norm_eps in (("vit", 1e-12), ("vit_msn", 1e-6)):
        folder_of(tmp_path, CLASSIFIER, layer_norm_eps=None, model_type=model_type)
        assert load_model(tmp_path).config.norm_eps == norm_eps
    folder_of(tmp_path, VIT | POOLER, pooler_act="relu")
    assert load_model(tmp_path).config.representation_act == "relu"
    folder_of(tmp_path, VIT | POOLER, pooler_act="silu")
    with pytest.raises(UserError, match="asks for the activation 'silu'"):
        load_model(tmp_path)


def test_a_file_alone_is_read_with_what_the_family_has(tmp_path: Path) -> None:
    wide = {name: tuple(128 if n == D else n for n in shape) for name, shape in CLASSIFIER.items()}
    wide["vit.embeddings.position_embeddings"] = (1, 10, 128)
    folder_of(tmp_path, wide)
    (tmp_path / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"assumed num_heads=2, act_layer='gelu', norm_eps=1e-12 \(as in Hugging Face"):
        config = load_model(tmp_path).config
    assert (config.num_heads, config.img_size) == (2, (15, 9))
    folder_of(tmp_path, CLASSIFIER)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"does not define the number of heads, which are 12 wide .* pass num_heads="):
        load_model(tmp_path)


def test_the_labels_are_the_names_of_the_classes(tmp_path: Path) -> None:
    names = ["cat", "dog", "ü", "a", "b", "c", "d"]
    folder_of(tmp_path, CLASSIFIER, id2label={str(i): name for i, name in enumerate(names)})
    assert model_metadata(tmp_path)["class_names"] == names
    for labels in ({str(i): f"LABEL_{i}" for i in range(7)}, {"0": "cat"}, ["cat"], {str(i): i for i in range(7)}):
        folder_of(tmp_path, CLASSIFIER, id2label=labels)
        assert "class_names" not in model_metadata(tmp_path)
    thousand = CLASSIFIER | both("classifier", 1000, D)
    folder_of(tmp_path, thousand)
    assert model_metadata(tmp_path)["class_names"][281] == "tabby"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (None, {}),
        ({"size": 224, "resample": 3, "image_mean": [0.1, 0.2], "image_std": [0.3, 0.4]},
         {"mean": [0.1, 0.2], "std": [0.3, 0.4], "interpolation": "bicubic"}),
        ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
         {"crop_mode": "center", "crop_pct": 0.8}),
        ({"size": {"height": 40, "width": 40}, "do_center_crop": True, "crop_size": 32}, {"crop_pct": 0.8}),
        ({"do_normalize": False}, {"mean": [0.0], "std": [1.0]}),
        ({"do_rescale": False, "image_mean": [127.5], "image_std": [51.0]}, {"mean": [0.5], "std": [0.2]}),
        ({"resample": 0, "rescale_factor": 0.00784313725490196, "image_mean": [1.0], "image_std": [1.0]},
         {"mean": [0.5], "std": [0.5], "interpolation": "nearest"}),
    ],
    ids=str,
)  # fmt: skip
def test_the_preprocessing_comes_along(tmp_path: Path, said: Any, found: dict[str, Any]) -> None:
    folder_of(tmp_path, CLASSIFIER)
    if said is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    usual = {"mean": [0.5], "std": [0.5], "interpolation": "bilinear", "crop_mode": "squash", "crop_pct": 1.0}
    assert model_metadata(tmp_path) == {key: pytest.approx(value) for key, value in (usual | found).items()}


@pytest.mark.parametrize(("side", "edge"), [(224, 400), (224, 354), (384, 450), (224, 256), (32, 40)])
@pytest.mark.parametrize("size", ["shortest_edge", "height and width"])
def test_an_image_of_the_size_before_the_crop_is_not_resized(tmp_path: Path, side: int, edge: int, size: str) -> None:
    folder_of(tmp_path, CLASSIFIER)
    before = {"shortest_edge": edge} if size == "shortest_edge" else {"height": edge, "width": edge}
    said = {"size": before, "do_center_crop": True, "crop_size": side}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    about = model_metadata(tmp_path)
    image = Image.fromarray(np.random.default_rng(side).integers(0, 256, (edge, edge), np.uint8))
    decoding = Decoding((side, side), crop_fraction=about["crop_pct"], fit=FITS[about["crop_mode"]])
    first = round((edge - side) / 2)
    expected = image.crop((first, first, first + side, first + side))
    np.testing.assert_array_equal(np.asarray(fitted(image, (side, side), decoding)), np.asarray(expected))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"resample": 9}, "its resample is 9"),
        ({"image_mean": ["x"]}, "its image_mean is"),
        ({"image_std": {}}, "its image_std is"),
        ({"rescale_factor": 0}, "its rescale_factor is 0"),
        ([1], "preprocessor_config.json"),
    ],
    ids=str,
)
def test_a_preprocessing_that_cannot_be_used_is_named(tmp_path: Path, said: Any, words: str) -> None:
    folder_of(tmp_path, CLASSIFIER)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=words):
        model_metadata(tmp_path)


@pytest.mark.parametrize("rule", [{"crop_mode": "squash"}, {"crop_mode": "squash", "crop_pct": 0.8}, {"crop_pct": 0.8}])
def test_classes_and_preprocessing_are_written_for_transformers(tmp_path: Path, rule: dict[str, Any]) -> None:
    extra: dict[str, Any] = {"class_names": list("abcdefg"), "mean": [0.1, 0.2], "std": [0.3, 0.4]}
    extra |= {"interpolation": "bicubic", "crop_mode": "center", "crop_pct": 1.0} | rule
    save_model(model_of(img_size=(15, 15)), tmp_path, format="huggingface", extra=extra)
    assert model_metadata(tmp_path) == extra
    # Without our metadata in the model file, transformers' files say the same.
    write_tensors(tmp_path / "model.safetensors", tensors_of(CLASSIFIER), {})
    found = model_metadata(tmp_path)
    assert found.pop("crop_pct") == pytest.approx(extra.pop("crop_pct"), abs=0.05)
    assert found == extra


def test_a_crop_that_transformers_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="cannot crop to 10 x 21 pixels and keep the proportions"):
        save_model(model_of(), tmp_path / "a", format="huggingface", extra={"crop_mode": "center"})
    save_model(model_of(), tmp_path / "b", format="huggingface")
    assert json.loads((tmp_path / "b/preprocessor_config.json").read_text())["size"] == {"height": 10, "width": 21}
    with pytest.raises(UserError, match=r"has 1 class name .*, but its head has 7 classes"):
        save_model(model_of(), tmp_path / "c", format="huggingface", extra={"class_names": ["a"]})
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "beit"}, "holds a model of the type 'beit' of Hugging Face transformers"),
        ({"hidden_act": "silu"}, "asks for the activation 'silu', which minivit does not have"),
        ({"num_attention_heads": 5}, "12 wide together, which cannot be num_heads=5"),
        ({"hidden_size": 24}, "its tensors have embed_dim 12, but its configuration 24"),
        ({"num_hidden_layers": 3}, "its tensors have depth 2, but its configuration 3"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_named(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    folder_of(tmp_path, CLASSIFIER, **config)
    with pytest.raises(UserError, match=words):
        load_model(tmp_path)


def test_a_size_of_images_that_does_not_fit_the_positions_is_said(tmp_path: Path) -> None:
    folder_of(tmp_path, CLASSIFIER | {"vit.embeddings.position_embeddings": (1, 10, D)}, image_size=224)
    with pytest.warns(UserWarning, match="says image_size 224, but the positions .* are for images of 15 x 9"):
        assert load_model(tmp_path).config.img_size == (15, 9)
    folder_of(tmp_path, CLASSIFIER, image_size=224)
    with pytest.raises(UserError, match=r"positions for 14 patches, not a square; pass img_size="):
        load_model(tmp_path)


def test_tensors_that_are_missing_left_over_or_of_another_shape_are_listed(tmp_path: Path) -> None:
    changes: tuple[tuple[dict[str, tuple[int, ...]], str], ...] = (
        ({"vit.extra": (3,)}, r"1 tensor unknown \(vit\.extra\)"),
        ({"embeddings.cls_token": (1, 1, D)}, r"1 tensor unknown \(embeddings\.cls_token\)"),
        ({"classifier.bias": (3,)}, r"classifier\.bias has shape \(3,\); its configuration requires \(7,\)"),
        ({"classifier.weight": (7,)}, r"it has no classifier\.weight of its shape"),
        ({"vit.encoder.layer.0.attention.attention.query.weight": ()}, "it has no .*query.weight of its shape"),
    )
    for change, words in changes:
        folder_of(tmp_path, CLASSIFIER | change)
        with pytest.raises(UserError, match=words):
            load_model(tmp_path)
    less = dict(CLASSIFIER)
    del less["vit.layernorm.bias"]
    folder_of(tmp_path, less)
    with pytest.raises(UserError, match=r"1 tensor missing \(vit\.layernorm\.bias\)"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"qk_norm": True}, r"no 8 parameters \(blocks\.0\.attn\.q_norm\.weight, .*\)"),
        ({"reg_tokens": 1}, r"no 1 parameter \(reg_token\)"),
        ({"init_values": 1e-5}, r"no 4 parameters \(blocks\.0\.ls1\.gamma, .*\)"),
        ({"global_pool": "map"}, r"no \d+ parameters \(attn_pool\.latent, .*\)"),
    ],
    ids=str,
)
def test_a_field_that_the_layout_cannot_store_is_named_by_its_parameters(
    tmp_path: Path, field: dict[str, Any], words: str
) -> None:
    folder_of(tmp_path, CLASSIFIER)
    with pytest.raises(UserError, match=rf"its layout has {words}, which these fields of the model require$"):
        load_model(tmp_path, **field)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"global_pool": "avg"}, "global_pool='avg'"),
        ({"representation_size": 9}, "representation_size=9 with num_classes=7"),
        ({"reg_tokens": 2, "init_values": 0.1}, "init_values=0.1, reg_tokens=2"),
    ],
)
def test_what_the_format_cannot_express_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"the format 'huggingface' cannot express {words}; the format 'timm' can"):
        save_model(model_of(**fields), tmp_path, format="huggingface")
    assert not list(tmp_path.iterdir())
