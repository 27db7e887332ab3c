"""The variants of the model: each has right gradients, trains in the engine, and is described by its summary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bare_vit import shaken

from minivit import Engine, UserError, ViT, ViTConfig, create_model, gradcheck_model, list_models, ops
from minivit.arrays import Array
from minivit.nn.summary import summarize

SMALL: dict[str, Any] = {"img_size": (4, 9), "patch_size": (2, 3), "embed_dim": 8, "depth": 2, "num_heads": 2}
SMALL |= {"num_classes": 7, "mlp_ratio": 1.5}
AVG: dict[str, Any] = {"class_token": False, "global_pool": "avg"}
NO_BIAS: dict[str, Any] = {"qkv_bias": False, "proj_bias": False, "mlp_bias": False}

VARIANTS: dict[str, dict[str, Any]] = {
    "SimpleViT": {**AVG, **NO_BIAS, "fc_norm": False, "pos_embed": "sincos_2d", "embed_norm": "both"},
    "MAE": {"pos_embed": "sincos_2d_mae", "pre_norm": True, "embed_norm": "after"},
    "attention pooling": {"global_pool": "map", "reg_tokens": 2, "pool_include_prefix": True, "act_layer": "gelu_tanh"},
    "attention pooling of patches": {"global_pool": "map", "class_token": False, "reg_tokens": 1, "qk_norm": True},
    "mean with the class token": {"global_pool": "avg", "pool_include_prefix": True, "no_embed_class": True},
    "stem": {"conv_stem": (5, 7), "patch_size": 2, "img_size": (4, 6)},
    "hybrid": {"resnet": (0,), "patch_size": 4, "img_size": (8, 12)},
    "hybrid with stages": {"resnet": (1, 1), "patch_size": 8, "img_size": (16, 8)},
    "hybrid with a norm before the blocks": {"resnet": (0,), "patch_size": 4, "img_size": (8, 12), "pre_norm": True},
    "overlapping patches": {"patch_stride": (1, 3), "init_values": 0.1, "act_layer": "quick_gelu"},
    "relative": {"pos_embed": "relative", "head_dim": 5, "num_heads": 3},
    "wide heads": {"head_dim": 5},
    "positions before each block": {"pos_embed_layers": "each", "reg_tokens": 1},
    "positions shared by all blocks": {"pos_embed_layers": "shared"},
    "rows and columns": {"pos_embed": "learn_2d", "zero_head": True},
    "rows and columns, concatenated": {"pos_embed": "learn_2d_concat", "final_norm": False},
    "no positions": {"pos_embed": "none", "representation_size": 5, "representation_act": "relu"},
}


def variant(fields: dict[str, Any], dtype: str = "float64") -> ViT:
    return shaken(ViT(ViTConfig(**SMALL | fields), seed=1, dtype=dtype))


def images_for(vit: ViT, count: int = 5) -> Array:
    config, dtype = vit.config, vit.parameters.store.values.dtype
    shape = (count, config.height, config.width, config.in_chans)
    return np.random.default_rng(2).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_gradients_are_verified(fields: dict[str, Any]) -> None:
    vit = variant(fields)
    report = gradcheck_model(vit, images_for(vit, 3), np.array([0, 3, 6]))
    assert report, str(report)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_the_engine_computes_what_the_model_computes(fields: dict[str, Any]) -> None:
    vit = variant(fields)
    x, labels = images_for(vit), np.arange(5)
    logits, cache = vit.forward(x)
    loss, loss_cache = ops.cross_entropy(logits, labels)
    vit.zero_grad()
    vit.backward(ops.cross_entropy_backward(1.0, loss_cache), cache)
    expected = vit.parameters.store.gradients.copy()
    with Engine(vit, threads=2, micro_batch=2) as engine:
        np.testing.assert_allclose(engine.predict(x), logits, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(engine.loss_and_gradients(x, labels), loss, rtol=1e-12)
        np.testing.assert_allclose(vit.parameters.store.gradients, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_the_summary_counts_all_parameters(fields: dict[str, Any]) -> None:
    vit = variant(fields)
    assert summarize(vit.config).parameters == vit.parameters.count


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_a_configuration_survives_json(fields: dict[str, Any]) -> None:
    config = ViTConfig(**SMALL | fields)
    assert ViTConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_the_head_reads_the_features(fields: dict[str, Any]) -> None:
    vit = variant(fields)
    x = images_for(vit)
    tokens = vit.get_intermediate_layers(x, n=2, return_prefix_tokens=None)
    assert [each.shape for each in tokens] == [(5, vit.config.num_tokens, 8)] * 2
    np.testing.assert_allclose(vit.classify(tokens[1])[0], vit(x), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(vit.forward_features(x), vit.norm(tokens[1]))


def test_intermediate_layers_are_those_of_the_blocks_asked_for() -> None:
    vit = variant({"depth": 3, "reg_tokens": 2})
    x = images_for(vit)
    (first, prefix), (last, _) = vit.get_intermediate_layers(x, n=[0, -1], return_prefix_tokens=True, reshape=True)
    assert (first.shape, prefix.shape) == ((5, 2, 3, 8), (5, 3, 8))
    np.testing.assert_array_equal(last, vit.get_intermediate_layers(x)[0].reshape(5, 2, 3, 8))
    np.testing.assert_allclose(vit.blocks[0](vit.embed(x)[0])[:, :3], prefix, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(vit.get_intermediate_layers(x, n=np.array([-3]))[0], first.reshape(5, 6, 8))
    for n in (4, 0, -1, [], [3], [-4], [0, 7], None, "a", 1.5, [None], [0.0]):
        with pytest.raises(UserError, match="expected 1 to 3 blocks, or numbers from 0 to 2"):
            vit.get_intermediate_layers(x, n=n)  # type: ignore[arg-type]


def test_a_model_without_classes_returns_features() -> None:
    vit = variant({"num_classes": 0})
    x = images_for(vit)
    with Engine(vit, threads=1) as engine:
        np.testing.assert_allclose(engine.predict(x), vit.forward_features(x)[:, 0], rtol=1e-12, atol=1e-12)


def test_patch_dropout_leaves_patches_out_in_training_alone() -> None:
    vit = variant({"patch_drop_rate": 0.5})
    x = images_for(vit)
    _, cache = vit.forward(x, rng=0)
    assert vit.embed(x, None)[0].shape[1] == 7
    dtokens = vit.classify_backward(np.ones((5, 7)), cache[2])
    assert dtokens.shape == (5, 1, 8)
    assert vit.embed(x, None)[0].shape == (5, 7, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pos_embed": "sincos"}, "did you mean 'sincos_2d'"),
        ({"patch_stride": 3}, "leaves pixels out"),
        ({"patch_stride": (2, 2), "img_size": (4, 8)}, "choose another stride"),
        ({"conv_stem": (5,)}, r"patch_size \(2, 3\) must be \(2\*\*n, 2\*\*n\)"),
        ({"conv_stem": (5,), "patch_size": 4, "img_size": 8}, "takes at least 2"),
        ({"no_embed_class": True, "pos_embed": "none"}, "belong to pos_embed 'learn'"),
        ({"pos_embed_layers": "each", "patch_drop_rate": 0.5}, "leave out no_embed_class and patch_drop_rate"),
        ({"pos_embed": "sincos_2d", "embed_dim": 6}, "a multiple of 4"),
        ({"pool_include_prefix": True}, "belongs to global_pool 'avg' or 'map'"),
        ({"fc_norm": 1}, "expected True, False or None"),
        ({"reg_tokens": -1}, "at least 0"),
    ],
)
def test_what_cannot_be_combined_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ViTConfig(**SMALL | fields)


@pytest.mark.parametrize("count", [1 << 41, 10**30, 10**400])
@pytest.mark.parametrize(
    "name",
    [
        *("img_size", "patch_size", "depth", "embed_dim", "num_heads", "head_dim", "mlp_ratio", "num_classes"),
        *("in_chans", "reg_tokens", "representation_size", "conv_stem"),
    ],
)
def test_a_model_that_no_memory_can_hold_is_refused_at_once(name: str, count: int) -> None:
    fields: dict[str, Any] = {"patch_size": 1, "img_size": count if name == "patch_size" else 4, "num_heads": 1}
    with pytest.raises(UserError, match=r"too large|expected a number"):
        ViTConfig(**fields | {name: count})


def test_a_stack_of_blocks_without_end_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="depth is 1000000000: this model would be too large"):
        create_model("vit_tiny_patch16_224", depth=10**9)


def test_a_stack_of_convolutions_without_end_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"conv_stem has 1,000,000 convolutions: this model would be too large"):
        ViTConfig(**SMALL | {"conv_stem": (1,) * 1_000_000, "patch_size": 4, "img_size": 8})


def test_a_name_that_is_no_text_is_no_model() -> None:
    for name in (None, 3, ["vit"]):
        with pytest.raises(UserError, match="there is no model called"):
            create_model(name)  # type: ignore[arg-type]


def test_models_are_listed_by_pattern() -> None:
    assert list_models("vit_huge*") == ["vit_huge_patch14_224"]
    assert {"labml_vit_cifar10", "simple_vit_base_patch16_224"} <= set(list_models())
    assert create_model("labml_vit_cifar10").parameters["pre_logits.fc.weight"].shape == (512, 2048)
