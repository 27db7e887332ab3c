"""Model files store a model exactly, with timm's names and shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import assert_same, foreign, model_of, raw_file

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.weights import load_model, model_metadata, read_tensors, save_model, write_tensors
from minivit.weights.entries import hollow
from minivit.weights.layout import WeightsFile
from minivit.weights.timm import Timm

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
def test_a_saved_model_is_loaded_with_the_same_bits(tmp_path: Path, dtype: str, fields: dict[str, Any]) -> None:
    model = model_of(dtype, drop_path_rate=0.1, **fields)
    save_model(model, tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path / "model.safetensors", dtype), model)
    assert_same(load_model(tmp_path, dtype), model)
    (tmp_path / "config.json").unlink()
    assert_same(load_model(tmp_path, dtype), model)


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
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


def test_with_mean_pooling_the_norm_is_called_fc_norm_as_in_timm(tmp_path: Path) -> None:
    save_model(model_of(global_pool="avg", class_token=False), tmp_path)
    names = {name.replace("fc_norm", "norm") for name in read_tensors(tmp_path / "model.safetensors")[0]}
    assert names == SHAPES.keys() - {"cls_token"}


def test_linear_weights_are_transposed_and_the_patch_projection_is_a_convolution_weight(tmp_path: Path) -> None:
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


def test_a_model_is_loaded_in_the_given_dtype(tmp_path: Path) -> None:
    model = model_of("float64")
    save_model(model, tmp_path)
    assert_same(load_model(tmp_path), model.astype("float32"))


def test_a_run_folder_gives_its_best_model(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path / "best")
    save_model(model_of(depth=1), tmp_path / "last")
    assert_same(load_model(tmp_path), model_of())


def test_fields_of_the_configuration_can_be_replaced(tmp_path: Path) -> None:
    save_model(model_of(), tmp_path)
    assert load_model(tmp_path, drop_path_rate=0.25).config == model_of(drop_path_rate=0.25).config


def test_metadata_is_stored(tmp_path: Path) -> None:
    extra = {"class_names": ["a", "ü"], "mean": [0.1, 1 / 3], "std": [0.2, 0.3], "epoch": 3}
    save_model(model_of(), tmp_path, extra=extra)
    assert model_metadata(tmp_path) == extra
    assert model_metadata(tmp_path / "model.safetensors") == extra
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["label_names"] == ["a", "ü"]
    assert config["pretrained_cfg"]["mean"] == [0.1, 1 / 3]


def test_metadata_of_timms_config_is_read(tmp_path: Path) -> None:
    path = foreign(tmp_path)
    images = {
        "mean": [0.5, 0.5],
        "std": [0.5, 0.4],
        "crop_pct": 0.9,
        "crop_mode": "squash",
        "interpolation": "bilinear",
    }
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {**images, "url": "", "label_names": ["a"]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_metadata(path) == {**images, "class_names": ["a"]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "x", "label_names": ["b"], "mean": [0.5]}))
    assert model_metadata(path) == {"class_names": ["b"], "mean": [0.5], "crop_pct": 0.875}


def test_a_thousand_classes_of_timm_are_those_of_imagenet(tmp_path: Path) -> None:
    path = foreign(tmp_path, num_classes=1000)
    names = model_metadata(path)["class_names"]
    assert len(set(names)) == 1000
    assert (names[0], names[207], names[281], names[999]) == ("tench", "golden retriever", "tabby", "toilet tissue")


def test_the_sizes_of_a_timm_file_without_a_configuration_are_deduced(tmp_path: Path) -> None:
    path = foreign(tmp_path)
    model = load_model(path, img_size=(10, 21), num_heads=3, act_layer="gelu", norm_eps=1e-6)
    assert_same(model, model_of())


def test_a_warning_names_the_assumed_fields(tmp_path: Path) -> None:
    path = foreign(tmp_path, img_size=(15, 9), embed_dim=128, num_heads=2)
    with pytest.warns(UserWarning, match=r"assumed num_heads=2, act_layer='gelu', norm_eps=1e-06, which the files do"):
        model = load_model(path)
    assert_same(model, model_of(img_size=(15, 9), embed_dim=128, num_heads=2))


def test_the_number_of_heads_of_a_known_width_is_deduced() -> None:
    shapes = {
        "patch_embed.proj.weight": (1280, 3, 1, 1), "cls_token": (1, 1, 1280), "pos_embed": (1, 5, 1280),
        "blocks.0.mlp.fc1.weight": (8, 1280), "blocks.0.attn.qkv.weight": (3840, 1280),
        "blocks.0.attn.qkv.bias": (3840,), "head.weight": (2, 1280),
    }  # fmt: skip
    tensors = {name: hollow(shape) for name, shape in shapes.items()}
    with pytest.warns(UserWarning, match="num_heads=16"):
        fields = Timm().fields(WeightsFile(Path("huge"), tensors, {}, {}, dict), {})
    assert fields["num_heads"] == 16  # of width 80; the default width is 64


def test_timms_config_is_followed(tmp_path: Path) -> None:
    path = foreign(tmp_path, act_layer="gelu_tanh", class_token=False, global_pool="avg")
    config = {
        "architecture": "vit_tiny_patch16_224", "global_pool": "avg", "num_features": 12,
        "model_args": {"num_heads": 3, "act_layer": "gelu_tanh", "qkv_bias": True, "qk_norm": False},
        "pretrained_cfg": {"input_size": [2, 10, 21]},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(load_model(path), model_of(act_layer="gelu_tanh", class_token=False, global_pool="avg"))


@pytest.mark.parametrize(
    ("differs", "words"),
    [
        (
            {"pretrained_cfg": {"input_size": [2, 20, 42]}},
            r"says input_size \[2, 20, 42\], .* of 15 x 15, which",
        ),
        ({"pretrained_cfg": {"input_size": "large"}}, "says input_size 'large', but the positions"),
        ({"model_args": {"num_heads": 3}}, "vit_tiny_patch16_224, which has 12 blocks, but .* has 2: is a part"),
    ],
)
def test_a_warning_says_where_timms_config_and_the_tensors_differ(
    tmp_path: Path, differs: dict[str, Any], words: str
) -> None:
    path = foreign(tmp_path, img_size=(15, 15), patch_size=5, embed_dim=192, num_heads=3)
    args = {"num_heads": 3, "depth": 2}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": args, "pretrained_cfg": {"input_size": [2, 15, 15]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load_model(path)  # says nothing
    (tmp_path / "config.json").write_text(json.dumps(config | differs))
    with pytest.warns(UserWarning, match=words):
        load_model(path)


@pytest.mark.parametrize(("embed_dim", "hidden_dim"), [(12, 18), (11, 15), (13, 30), (22, 15)])
def test_every_hidden_width_is_deduced_exactly(tmp_path: Path, embed_dim: int, hidden_dim: int) -> None:
    """The widths include some for which ``embed_dim * (hidden_dim / embed_dim)`` rounds below ``hidden_dim``."""
    fields: dict[str, Any] = {"embed_dim": embed_dim, "num_heads": 1, "depth": 1, "img_size": (5, 3)}
    path = foreign(tmp_path, **fields, mlp_ratio=(hidden_dim + 0.5) / embed_dim)
    assert load_model(path, num_heads=1, act_layer="gelu", norm_eps=1e-6).config.hidden_dim == hidden_dim


def test_float16_is_converted_exactly(tmp_path: Path) -> None:
    def halve(tensors: dict[str, Array]) -> None:
        tensors.update({name: value.astype(np.float16) for name, value in tensors.items()})

    given: dict[str, Any] = {"img_size": (10, 21), "num_heads": 3, "act_layer": "gelu", "norm_eps": 1e-6}
    loaded = load_model(foreign(tmp_path, halve), **given).state_dict()
    for name, value in model_of().state_dict().items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], value.astype(np.float16).astype(np.float32))


def test_bfloat16_is_converted_exactly(tmp_path: Path) -> None:
    bits = {0x3F80: 1.0, 0xC000: -2.0, 0x3EAB: 0.333984375, 0x0001: 2.0**-133, 0x7F7F: 255.0 * 2.0**120}
    data = np.array(list(bits), "<u2").tobytes()
    path = raw_file(tmp_path / "x", {"x": {"dtype": "BF16", "shape": [1, 5], "data_offsets": [0, 10]}}, data)
    tensors, about = read_tensors(path)
    assert tensors["x"].dtype == np.float32
    np.testing.assert_array_equal(tensors["x"], [list(bits.values())])
    assert about == {}


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("F8_E4M3", {0x00: 0.0, 0x01: 2.0**-9, 0x08: 2.0**-6, 0x38: 1.0, 0x7E: 448.0, 0xB9: -1.125}),
        ("F8_E5M2", {0x00: 0.0, 0x01: 2.0**-16, 0x04: 2.0**-14, 0x3C: 1.0, 0x7B: 57344.0, 0xBD: -1.25}),
    ],
)
def test_eight_bits_are_converted_exactly(tmp_path: Path, dtype: str, values: dict[int, float]) -> None:
    entry = {"dtype": dtype, "shape": [len(values)], "data_offsets": [0, len(values)]}
    tensors, _ = read_tensors(raw_file(tmp_path / "x", {"x": entry}, bytes(values)))
    assert tensors["x"].tolist() == list(values.values())


def sharded(folder: Path) -> Path:
    """Write the model of `model_of` in two files and an index, as Hugging Face does."""
    tensors, _ = read_tensors(foreign(folder))
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        write_tensors(folder / file, {name: tensors[name] for name in places if places[name] == file}, {})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder / "model.safetensors.index.json"


GIVEN: dict[str, Any] = {"img_size": (10, 21), "num_heads": 3, "act_layer": "gelu", "norm_eps": 1e-6}


def test_a_model_in_several_files_is_loaded(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    assert_same(load_model(index, **GIVEN), model_of())
    assert_same(load_model(tmp_path, **GIVEN), model_of())


def test_an_index_and_files_that_differ_are_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    content = json.loads(index.read_text())
    for change, words in (
        (
            {"norm.bias": "../secret.safetensors"},
            "names '../secret.safetensors'; expected a .safetensors file in the same",
        ),
        (
            {"norm.bias": "model-3.safetensors"},
            "names 'model-3.safetensors', which is missing in its folder",
        ),
        ({"token": "model-00001-of-00002.safetensors"}, r"differ: 1 tensor is in one of them only \(token\)"),
        ({"norm.bias": 3}, "does not say in which files its tensors are"),
    ):
        index.write_text(json.dumps(content | {"weight_map": content["weight_map"] | change}))
        with pytest.raises(UserError, match=words):
            load_model(tmp_path, **GIVEN)


@pytest.mark.parametrize(
    "fields",
    [
        {"qkv_bias": False, "init_values": 0.1, "reg_tokens": 2, "qk_norm": True},
        {"pos_embed": "learn_2d"},
        {"pos_embed": "learn_2d_concat", "head_dim": 5},
        {"pos_embed": "relative", "mlp_bias": False},
        {"pos_embed_layers": "each", "representation_size": 5, "representation_act": "relu"},
        {"pos_embed": "sincos_2d", "patch_stride": (1, 2), "embed_norm": "both", "global_pool": "map"},
        {"conv_stem": (4, 6), "patch_size": 4, "img_size": (8, 12), "num_classes": 0},
        {"resnet": (0,), "patch_size": 8, "img_size": (8, 16)},
        {"resnet": (1, 2), "patch_size": 8, "img_size": (8, 16)},
    ],
    ids=str,
)
def test_a_model_with_parts_that_timm_lacks_is_loaded_with_the_same_bits(tmp_path: Path, fields: Any) -> None:
    model = model_of(**fields)
    save_model(model, tmp_path)
    assert_same(load_model(tmp_path), model)


def test_the_names_of_layer_scale_of_deit_iii_are_read(tmp_path: Path) -> None:
    def rename(tensors: dict[str, Array]) -> None:
        for name in [name for name in tensors if ".ls" in name]:
            tensors[name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")] = tensors.pop(name)

    model = load_model(foreign(tmp_path, rename, init_values=0.1), **GIVEN, init_values=0.1)
    assert_same(model, model_of(init_values=0.1))
