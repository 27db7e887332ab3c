"""vit_pytorch's ViT and SimpleViT: files of its present and older versions, with names and shapes copied from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import assert_file_holds, assert_same, both, model_of, tensors_of

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.weights import load_model, model_metadata, save_model, write_tensors

D, F, INNER, PIXELS = 12, 18, 15, 30  # width, width of the MLP, three heads of 5, patches of 5 x 3 x 2
GIVEN: dict[str, Any] = {"img_size": (10, 21), "patch_size": (5, 3), "num_heads": 3}
Shapes = dict[str, tuple[int, ...]]


def blocks(parts: Shapes) -> Shapes:
    return {f"transformer.layers.{i}.{name}": shape for i in range(2) for name, shape in parts.items()}


NORMED: Shapes = {
    **both("to_patch_embedding.1", PIXELS),
    **both("to_patch_embedding.2", D, PIXELS),
    **both("to_patch_embedding.3", D),
}
PRESENT: Shapes = NORMED | blocks(
    {
        **both("0.norm", D),
        "0.to_qkv.weight": (3 * INNER, D),
        **both("0.to_out.0", D, INNER),
        **both("1.net.0", D),
        **both("1.net.1", F, D),
        **both("1.net.4", D, F),
    }
)
PRESENT |= both("transformer.norm", D) | both("mlp_head", 7, D)
SIMPLE: Shapes = NORMED | blocks(
    {
        **both("0.norm", D),
        "0.to_qkv.weight": (3 * INNER, D),
        "0.to_out.weight": (D, INNER),
        **both("1.net.0", D),
        **both("1.net.1", F, D),
        **both("1.net.3", D, F),
    }
)
OLD: Shapes = blocks(
    {
        **both("0.norm", D),
        "0.fn.to_qkv.weight": (3 * INNER, D),
        **both("0.fn.to_out.0", D, INNER),
        **both("1.norm", D),
        **both("1.fn.net.0", F, D),
        **both("1.fn.net.3", D, F),
    }
)
OLD |= both("mlp_head.0", D) | both("mlp_head.1", 7, D) | {"cls_token": (1, 1, D), "pos_embedding": (1, 15, D)}
SHAPES: dict[str, Shapes] = {
    "ViT": PRESENT | {"cls_token": (1, D), "pos_embedding": (15, D)},
    "ViT, mean": PRESENT | {"cls_token": (0, D), "pos_embedding": (14, D)},
    "SimpleViT": SIMPLE | both("transformer.norm", D) | both("linear_head", 7, D),
    "SimpleViT, registers": SIMPLE | both("transformer.norm", D) | both("linear_head", 7, D)
    | {"register_tokens": (4, D)},
    "ViT 1.0": OLD | NORMED,
    "ViT 0.40": OLD | both("to_patch_embedding.1", D, PIXELS),
    "SimpleViT 1.0": SIMPLE | both("linear_head.0", D) | both("linear_head.1", 7, D),
}  # fmt: skip
COMMON: dict[str, Any] = {"head_dim": 5, "qkv_bias": False, "norm_eps": 1e-5, "embed_norm": "both", "fc_norm": False}
GAP: dict[str, Any] = {"class_token": False, "global_pool": "avg"}
FIELDS: dict[str, dict[str, Any]] = {
    "ViT": {},
    "ViT, mean": GAP,
    "SimpleViT": {**GAP, "pos_embed": "sincos_2d", "proj_bias": False},
    "SimpleViT, registers": {**GAP, "pos_embed": "sincos_2d", "proj_bias": False, "reg_tokens": 4},
    "ViT 1.0": {"fc_norm": True},
    "ViT 0.40": {"fc_norm": True, "embed_norm": "none"},
    "SimpleViT 1.0": {**GAP, "pos_embed": "sincos_2d", "proj_bias": False, "fc_norm": True},
}


def file_of(path: Path, shapes: Shapes) -> dict[str, Array]:
    tensors = tensors_of(shapes)
    write_tensors(path / "model.safetensors", tensors, {})
    return tensors


@pytest.mark.parametrize("kind", SHAPES)
def test_a_file_is_read_and_written_with_the_same_bits(tmp_path: Path, kind: str) -> None:
    tensors = file_of(tmp_path, SHAPES[kind])
    assumed = "global_pool='token', act_layer" if "cls_token" in tensors and "mean" not in kind else "assumed act_layer"
    with pytest.warns(UserWarning, match=rf"{assumed}='gelu', norm_eps=1e-05 \(as vit_pytorch has by default\)"):
        model = load_model(tmp_path, **GIVEN)
    assert model.config == model_of(**COMMON | FIELDS[kind]).config
    save_model(model, tmp_path / "written", format="vit_pytorch")
    assert_file_holds(tmp_path / "written/model.safetensors", tensors)
    assert_same(load_model(tmp_path / "written"), model)


def test_the_mean_of_an_older_model_includes_the_class_token(tmp_path: Path) -> None:
    tensors = file_of(tmp_path, SHAPES["ViT 1.0"])
    with pytest.warns(UserWarning, match="assumed in_chans=2|assumed act_layer"):
        model = load_model(tmp_path, **GIVEN, global_pool="avg")
    assert model.config.pool_include_prefix
    save_model(model, tmp_path / "written", format="vit_pytorch")
    assert_file_holds(tmp_path / "written/model.safetensors", tensors)


def test_the_wrapped_branches_of_2021_and_the_shapes_before_1_16_are_read(tmp_path: Path) -> None:
    tensors = file_of(tmp_path, SHAPES["ViT 0.40"])
    given = {**GIVEN, "global_pool": "token", "act_layer": "gelu", "norm_eps": 1e-5}
    model = load_model(tmp_path, **given)
    wrapped = {
        name.replace(".norm.", ".fn.norm.").replace(".fn.to_", ".fn.fn.to_").replace(".fn.net.", ".fn.fn.net."): value
        for name, value in tensors.items()
    }
    assert "transformer.layers.1.1.fn.fn.net.3.bias" in wrapped
    write_tensors(tmp_path / "model.safetensors", wrapped, {})
    assert_same(load_model(tmp_path, **given), model)

    tensors = file_of(tmp_path, SHAPES["ViT"])
    model = load_model(tmp_path, **given)
    for prefix in ("", "module.", "model._orig_mod."):
        earlier = {
            name: value[None] if name in ("cls_token", "pos_embedding") else value for name, value in tensors.items()
        }
        write_tensors(tmp_path / "model.safetensors", {prefix + name: value for name, value in earlier.items()}, {})
        assert_same(load_model(tmp_path, **given), model)


def test_a_single_head_as_wide_as_the_model_has_no_projection(tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in SHAPES["ViT"].items() if ".to_out." not in name}
    shapes |= {f"transformer.layers.{i}.0.to_qkv.weight": (3 * D, D) for i in range(2)}
    tensors = file_of(tmp_path, shapes)
    given = {**GIVEN, "num_heads": 1, "global_pool": "token", "act_layer": "gelu", "norm_eps": 1e-5}
    model = load_model(tmp_path, **given)
    projection = model.parameters["blocks.1.attn.proj.weight"].value
    np.testing.assert_array_equal(projection, np.eye(D))
    assert (model.config.num_heads, model.config.proj_bias) == (1, False)
    save_model(model, tmp_path / "written", format="vit_pytorch")
    assert_file_holds(tmp_path / "written/model.safetensors", tensors)
    projection[0, 1] = 0.5
    with pytest.raises(UserError, match=r"has no projection blocks\.1\.attn\.proj\.weight here, which has changed"):
        save_model(model, tmp_path / "written", format="vit_pytorch")


def test_what_the_file_cannot_say_is_that_of_the_family(tmp_path: Path) -> None:
    wide = {
        name: tuple({INNER: 128, 3 * INNER: 384, PIXELS: 48}.get(n, n) for n in shape)
        for name, shape in SHAPES["ViT"].items()
    } | {"pos_embedding": (17, D)}
    file_of(tmp_path, wide)
    words = (
        r"assumed num_heads=2, patch_size=\(4, 4\), in_chans=3, global_pool='token', act_layer='gelu', norm_eps=1e-05"
    )
    with pytest.warns(UserWarning, match=words):
        config = load_model(tmp_path).config
    assert (config.head_dim, config.img_size) == (64, (16, 16))
    for given, found in (
        ({"head_dim": 32}, (4, 32, (4, 4), 3)),
        ({"num_heads": 8}, (8, 16, (4, 4), 3)),
        ({"patch_size": (2, 8)}, (2, 64, (2, 8), 3)),
    ):
        with pytest.warns(UserWarning, match="assumed"):
            config = load_model(tmp_path, **given).config
        assert (config.num_heads, config.head_dim, config.patch_size, config.in_chans) == found


def test_the_images_of_simple_vit_have_256_pixels_if_nothing_else_is_given(tmp_path: Path) -> None:
    file_of(tmp_path, SHAPES["SimpleViT"])
    with pytest.warns(UserWarning, match=r"img_size=\(255, 255\)"):
        assert load_model(tmp_path, num_heads=3, patch_size=(5, 3)).config.img_size == (255, 255)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, r"does not define the number of heads, which are 15 wide together; pass num_heads"),
        ({"num_heads": 2}, "15 wide together, which cannot be num_heads=2"),
        ({"num_heads": 3}, r"has patches of 30 numbers, which are not a square of 3 channels; pass patch_size"),
        ({"num_heads": 3, "in_chans": 2}, "not a square of 2 channels"),
        ({"num_heads": 3, "patch_size": (4, 4)}, "has patches of 30 numbers"),
        ({"num_heads": 3, "patch_size": (5, 3)}, r"positions for 14 patches, not a square; pass img_size"),
    ],
    ids=str,
)
def test_what_nothing_says_must_be_given(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    file_of(tmp_path, SHAPES["ViT"])
    with pytest.raises(UserError, match=words):
        load_model(tmp_path, **given)


def test_tensors_that_are_missing_left_over_or_of_another_shape_are_listed(tmp_path: Path) -> None:
    given = {**GIVEN, "global_pool": "token", "act_layer": "gelu", "norm_eps": 1e-5}
    changes: tuple[tuple[Shapes, str], ...] = (
        ({"transformer.layers.0.0.temperature": (1,)}, r"1 tensor unknown \(transformer\.layers\.0\.0\.temperature\)"),
        ({"mlp_head.bias": (3,)}, r"mlp_head\.bias has shape \(3,\); its configuration requires \(7,\)"),
        ({"cls_token": ()}, r"cls_token"),
        ({"register_tokens": (2, D)}, r"pos_embedding has shape \(15, 12\); its configuration requires \(17, 12\)"),
        ({"pos_embedding": (15,)}, "no positions for patches"),
        ({"to_patch_embedding.2.weight": (D,)}, r"it has no to_patch_embedding\.2\.weight of its shape"),
        ({"transformer.layers.0.0.to_qkv.weight": ()}, "of its shape"),
    )
    for change, words in changes:
        file_of(tmp_path, SHAPES["ViT"] | change)
        with pytest.raises(UserError, match=words):
            load_model(tmp_path, **given)
    less = {name: shape for name, shape in SHAPES["ViT"].items() if name != "transformer.norm.bias"}
    file_of(tmp_path, less)
    with pytest.raises(UserError, match=r"1 tensor missing \(transformer\.norm\.bias\)"):
        load_model(tmp_path, **given)


def test_a_field_that_the_layout_cannot_store_is_named_by_its_parameters(tmp_path: Path) -> None:
    file_of(tmp_path, SHAPES["ViT"])
    given = {**GIVEN, "global_pool": "token", "act_layer": "gelu", "norm_eps": 1e-5}
    words = r"its layout has no 2 parameters \(pre_logits\.fc\.weight, pre_logits\.fc\.bias\), which these fields"
    with pytest.raises(UserError, match=words):
        load_model(tmp_path, **given, representation_size=8)


def test_a_thousand_classes_are_those_of_imagenet(tmp_path: Path) -> None:
    file_of(tmp_path, SHAPES["ViT"] | both("mlp_head", 1000, D))
    assert model_metadata(tmp_path)["class_names"][281] == "tabby"
    file_of(tmp_path, SHAPES["ViT"])
    assert model_metadata(tmp_path) == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"qkv_bias": True}, "qkv_bias=True"),
        ({"embed_norm": "none"}, "embed_norm='none' with a final norm of the tokens"),
        ({"global_pool": "avg"}, "global_pool='avg' with class_token=True, pos_embed='learn' and fc_norm=False"),
        ({**GAP, "fc_norm": True}, "global_pool='avg' with class_token=False and fc_norm=True"),
        ({"reg_tokens": 2}, "reg_tokens=2 with pos_embed='learn'"),
        ({"proj_bias": False}, "proj_bias=False"),
        ({**GAP, "pos_embed": "sincos_2d"}, "proj_bias=True"),
        ({"pos_embed": "sincos_2d", "proj_bias": False}, "global_pool='token' with class_token=True"),
        ({"pos_embed": "sincos_2d_mae"}, "pos_embed='sincos_2d_mae'"),
    ],
    ids=str,
)
def test_what_no_version_can_express_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"the format 'vit_pytorch' cannot express {words}.*; the format 'timm' can"):
        save_model(model_of(**COMMON | fields), tmp_path, format="vit_pytorch")
    assert not list(tmp_path.iterdir())


def test_a_warning_says_where_vit_pytorch_computes_otherwise(tmp_path: Path) -> None:
    model = model_of(**COMMON | {"norm_eps": 1e-6})
    with pytest.warns(
        UserWarning, match="models of vit_pytorch have act_layer='gelu', norm_eps=1e-05, and this one has"
    ):
        save_model(model, tmp_path, format="vit_pytorch")
    assert_same(load_model(tmp_path), model)
