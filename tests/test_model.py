"""The model: its configuration, its result and its gradients."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bare_vit import SMALL, images, model, shaken
from contract import assert_close, normal

from minivit import (
    PRESETS,
    Key,
    Layer,
    UserError,
    ViT,
    ViTConfig,
    create_model,
    get_config,
    gradcheck_model,
    initializers,
    layers,
    ops,
)
from minivit.arrays import Array
from minivit.train.recipe import Recipe

RATES: tuple[str, ...] = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")


def dropping(rate: float, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names or RATES, rate)


def count_by_arithmetic(config: ViTConfig) -> int:
    """Return the number of parameters of a Vision Transformer, from its sizes alone."""
    D, F = config.embed_dim, config.hidden_dim
    block = 4 * D + (D * 3 * D + 3 * D) + (D * D + D) + (D * F + F) + (F * D + D)
    patches = config.patch_height * config.patch_width * config.in_chans * D + D
    tokens = config.num_tokens * D + config.class_token * D
    return patches + tokens + config.depth * block + 2 * D + D * config.num_classes + config.num_classes


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_small_patch16_224", 22_050_664),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_base_patch32_224", 88_224_232),
        ("vit_large_patch16_224", 304_326_632),
        ("vit_large_patch32_224", 306_535_400),
        ("vit_huge_patch14_224", 632_045_800),
    ],
)
def test_presets_have_the_published_numbers_of_parameters(name: str, count: int) -> None:
    assert count_by_arithmetic(PRESETS[name]) == count


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_tiny_patch4_32", "vit_mini_patch4_32", "vit_micro_patch4_8"]
)
def test_a_model_has_the_parameters_that_its_sizes_say(name: str) -> None:
    assert create_model(name).parameters.count == count_by_arithmetic(PRESETS[name])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"img_size": 10, "patch_size": 4},
            "images of 10 x 10 pixels cannot be cut into patches of 4 x 4; choose a patc",
        ),
        ({"img_size": (4, 10)}, "4 x 10 pixels cannot be cut into patches of 2 x 3"),
        ({"img_size": 0}, r"img_size is 0; expected pixels, one whole number or \(height, width\)"),
        ({"img_size": (1, 2, 3)}, r"img_size is \(1, 2, 3\); expected pixels"),
        ({"img_size": 4.0}, "img_size is 4.0; expected pixels"),
        ({"patch_size": None}, "patch_size is None; expected pixels"),
        ({"img_size": "large"}, "img_size is 'large'; expected pixels"),
        ({"num_heads": 4}, "embed_dim 6 cannot be split evenly among num_heads 4"),
        ({"depth": 0}, "depth is 0; expected a whole number of at least 1"),
        ({"embed_dim": 6.0}, "embed_dim is 6.0; expected a whole number"),
        ({"in_chans": True}, "in_chans is True; expected a whole number"),
        ({"num_classes": -1}, "num_classes is -1; expected a whole number"),
        ({"drop_rate": 1.0}, "drop_rate is 1.0; expected at least 0 and below 1"),
        ({"attn_drop_rate": -0.1}, "attn_drop_rate is -0.1; expected at least 0"),
        ({"mlp_ratio": 0.1}, "mlp_ratio 0.1 leaves the MLP without units"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; expected a number above 0"),
        ({"mlp_ratio": math.inf}, "mlp_ratio is inf; expected a number"),
        ({"drop_rate": "0.1"}, "drop_rate is '0.1'; expected a number"),
        ({"norm_eps": math.nan}, "norm_eps is nan; expected a number above 0"),
        ({"init_values": math.nan}, "init_values is nan; expected a finite number"),
        ({"resnet": False}, "resnet is False; expected a tuple of whole numbers above 0"),
        ({"global_pool": "max"}, "global_pool is 'max'; expected 'token' or 'avg'"),
        ({"act_layer": "swish"}, "act_layer is 'swish'; expected 'gelu' or 'gelu_tanh' or 'quick_gelu' or 'relu'"),
        ({"init": "zeros"}, "init is 'zeros'; expected 'timm' or 'jax'"),
        (
            {"class_token": False},
            "global_pool 'token' reads the class token; set class_token=True or global_pool='avg'",
        ),
    ],
)
def test_an_invalid_configuration_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **fields)


def test_a_configuration_is_the_same_after_a_file() -> None:
    config = dataclasses.replace(SMALL, drop_path_rate=0.1, act_layer="gelu_tanh")
    assert ViTConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match="unknown fields of a model: colour"):
        ViTConfig.from_dict({**config.to_dict(), "colour": 3})


def test_one_number_is_a_square() -> None:
    assert ViTConfig(img_size=224, patch_size=16) == ViTConfig(img_size=(224, 224), patch_size=(16, 16))


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64", "float128", None, ">f4", "floatx", ""])
def test_an_unsupported_dtype_is_refused(dtype: Any) -> None:
    with pytest.raises(UserError, match=r"a model's dtype is .*; expected 'float32'|unknown dtype"):
        ViT(SMALL, dtype=dtype)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="no model called 'vit_tiny_patch4_23'; did you mean 'vit_tiny_patch4_32'"):
        create_model("vit_tiny_patch4_23")


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(UserError, match="unexpected keyword argument 'heads'"):
        get_config("vit_tiny_patch4_32", heads=3)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(UserError, match="unknown backend 'torch'; expected 'numpy', 'cupy' or"):
        create_model("vit_micro_patch4_8", backend="torch")


class Twice(Layer):
    """One linear map, used twice: a recurrence."""

    def __init__(self) -> None:
        self.map = layers.Linear(5, 5, initializers.xavier_uniform, initializers.normal(0.1))
        self.again = [self.map]

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        h, cache1 = self.map.forward(x, keep=keep)
        y, cache2 = self.again[0].forward(h, keep=keep)
        return y, (cache1, cache2)

    def backward(self, dy: Array, cache: Any) -> Array:
        return self.map.backward(self.again[0].backward(dy, cache[1]), cache[0])


def test_a_layer_used_twice_adds_both_gradients() -> None:
    from minivit.testing import assert_layer_gradients

    twice = Twice().initialize(dtype="float64")
    assert list(twice.parameters) == ["map.weight", "map.bias"]
    assert_layer_gradients(twice, images()[:, :, :5, 0])
    assert_layer_gradients(twice.replica(), images()[:, :, :5, 0])


def test_backward_adds_and_zero_grad_starts_again() -> None:
    vit = shaken(model())
    logits, cache = vit.forward(images())
    dlogits = normal(logits)
    vit.backward(dlogits, cache)
    once = {name: p.grad.copy() for name, p in vit.parameters.items()}
    vit.backward(dlogits, cache)
    assert all((p.grad == 2 * once[name]).all() for name, p in vit.parameters.items())
    vit.zero_grad()
    assert not vit.parameters.store.gradients.any()


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("act_layer", ["gelu", "gelu_tanh"])
def test_all_gradients_of_a_model_with_every_dropout_are_verified(pool: str, act_layer: str) -> None:
    vit = shaken(model(**dropping(0.3), global_pool=pool, act_layer=act_layer, depth=2))
    report = gradcheck_model(vit, images(3), np.array([6, 0, 3]), Key(1, 2, np.arange(3)))
    report.raise_if_failed()
    assert report.max_error <= 1e-11
    assert len(report.rows) == 1 + len(vit.parameters) + 2 * 2 * 2  # q, k and v have a row each
    zeros = {row.full_name for row in report.rows if row.verdict == "zero"}
    assert all(name.endswith("qkv.bias[k]") for name in zeros), zeros


def test_every_parameter_has_a_gradient_and_tokens_sum_theirs_over_the_batch() -> None:
    vit = shaken(model())
    logits, cache = vit.forward(images(3))
    dlogits = normal(logits)
    vit.backward(dlogits, cache)
    whole = {name: p.grad.copy() for name, p in vit.parameters.items()}
    assert all(np.abs(gradient).max() > 1e-6 for gradient in whole.values())
    vit.zero_grad()
    for b in range(3):
        _, cache = vit.forward(images(3)[b : b + 1])
        vit.backward(dlogits[b : b + 1], cache)
    for name in ("pos_embed", "cls_token"):
        assert_close([vit.parameters[name].grad], [whole[name]])


@pytest.mark.parametrize("rate", RATES)
def test_each_dropout_acts_in_training_and_none_in_evaluation(rate: str) -> None:
    plain, trained = shaken(model()), shaken(model(**dropping(0.5, rate)))
    x = images(5)
    assert (trained(x) == plain(x)).all()
    assert (trained.forward(x)[0] == plain(x)).all()
    key = Key(0, 0, np.arange(5))
    assert not np.allclose(trained.forward(x, key)[0], plain(x))
    assert (plain.forward(x, key)[0] == plain(x)).all()
    assert (trained.forward(x, key)[0] == trained.forward(x, key)[0]).all()


def test_each_place_draws_its_own_dropout() -> None:
    """Blocks, branches and samples must not share a mask."""
    vit = model(**dropping(0.5), depth=4)
    key = Key(0, 0, np.arange(64))
    seen: dict[str, bytes] = {}
    original = ops.keep_mask

    def spy(key: Key, *args: Any) -> Array:
        mask = original(key, *args)
        assert key.place not in seen
        seen[key.place] = mask.reshape(64, -1)[:, 0].tobytes()
        return mask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "keep_mask", spy)
        vit.forward(images(64), key)
    assert len(set(seen.values())) == len(seen) == 2 + 4 * 6 - 2  # the first block drops no path


def test_stochastic_depth_grows_from_zero() -> None:
    vit = model(drop_path_rate=0.3, depth=4)
    rates = [(block.drop_path1.rate, block.drop_path2.rate) for block in vit.blocks]
    assert np.allclose(rates, [(0, 0), (0.1, 0.1), (0.2, 0.2), (0.3, 0.3)])
    assert model(drop_path_rate=0.3, depth=1).blocks[0].drop_path1.rate == 0


def test_scores_are_scaled_by_the_head_width() -> None:
    """The log of the odds of two attention weights is the difference of their scores over sqrt(K), not sqrt(D)."""
    attention = layers.Attention(6, 2).initialize(dtype="float64")
    attention.proj.weight.value[...] = np.eye(6)
    x = normal(np.zeros((1, 2, 6)))
    qkv = attention.qkv(x)
    values, gathered = qkv[0, :, 15:18], attention(x)[0, 0, 3:6]
    weights = np.linalg.lstsq(values.T, gathered)[0]
    scores = [qkv[0, 0, 3:6] @ qkv[0, m, 9:12] / math.sqrt(3) for m in range(2)]
    assert math.log(weights[0] / weights[1]) == pytest.approx(scores[0] - scores[1], rel=1e-12)


def test_the_model_is_its_parts_in_the_order_of_the_paper() -> None:
    vit, x = shaken(model()), images()
    tokens = np.concatenate([np.repeat(vit.parameters["cls_token"].value, 2, axis=0), vit.patch_embed(x)], axis=1)
    tokens = tokens + vit.pos_embed.value
    for block in vit.blocks:
        tokens = tokens + block.attn(block.norm1(tokens))
        tokens = tokens + block.mlp.fc2(block.mlp.act(block.mlp.fc1(block.norm2(tokens))))
    assert_close([vit(x)], [vit.head(vit.norm(tokens)[:, 0])])
    pooled = shaken(model(global_pool="avg"))
    tokens = np.concatenate([np.repeat(pooled.parameters["cls_token"].value, 2, axis=0), pooled.patch_embed(x)], axis=1)
    tokens = tokens + pooled.pos_embed.value
    for block in pooled.blocks:
        tokens = block(tokens)
    assert_close([pooled(x)], [pooled.head(pooled.fc_norm(tokens[:, 1:].mean(axis=1)))])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((2, 9, 4, 3)), ValueError, r"images have shape \(2, 9, 4, 3\); this model takes \(B, 4, 9, 3\)"),
        (
            np.zeros((2, 4, 9, 1)),
            ValueError,
            r"\(2, 4, 9, 1\); this model takes \(B, 4, 9, 3\): batch, height, width, ch",
        ),
        (np.zeros((4, 9, 3)), ValueError, r"images have shape \(4, 9, 3\)"),
        (
            np.zeros((2, 4, 9, 3), "float32"),
            TypeError,
            r"images have dtype float32; this model computes in float64: use images.astype\('float64'\)",
        ),
        (
            np.zeros((2, 4, 9, 3), "uint8"),
            TypeError,
            r"images have dtype uint8; .* use \(images.astype\('float64'\) / 255",
        ),
        (np.zeros((2, 4, 9, 3), ">f8"), TypeError, "in foreign byte order; use x.astype"),
        (np.zeros((2, 3, 4, 9)), ValueError, r"the channels come first here, .* use images.transpose\(0, 2, 3, 1\)"),
        (np.zeros((4, 9, 3)), ValueError, r"this is one image: use images\[None\]"),
        ([[[[0.0] * 3] * 9] * 4], TypeError, "expected an array of NumPy or CuPy, got list"),
    ],
)
def test_images_of_another_kind_are_refused(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model()(x)


def test_backward_without_a_cache_says_why() -> None:
    vit = model()
    _, cache = vit.forward(images(), keep=False)
    with pytest.raises(ValueError, match=r"ViT\.backward needs a cache, but the forward pass ran with keep=False"):
        vit.backward(np.zeros((2, 7)), cache)


def test_layers_refuse_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="a width of 7 cannot be split evenly among 2 heads"):
        layers.Attention(7, 2)
    with pytest.raises(ValueError, match=r"a dropout rate is at least 0 and below 1, got 1\.0"):
        layers.Dropout(1.0)


def test_layers_refuse_an_initialisation_that_does_not_exist() -> None:
    makers: list[Callable[[], object]] = [
        lambda: layers.PatchEmbed((2, 2), 3, 8, init="Jax"),
        lambda: layers.Attention(8, 2, init="Jax"),
        lambda: layers.MLP(8, 16, init="Jax"),
    ]
    for make in makers:
        with pytest.raises(UserError, match="init is 'Jax'; expected 'timm' or 'jax'"):
            make()


def test_the_epsilon_is_that_of_published_weights() -> None:
    assert ViTConfig().norm_eps == layers.LayerNorm(3).eps == layers.EncoderBlock(4, 2, 4).norm1.eps == 1e-6


def test_the_backward_pass_of_a_dropout_without_a_cache_is_refused() -> None:
    dropout = layers.Dropout(0.5)
    x = np.ones((2, 3))
    _, cache = dropout.forward(x, Key(0, 0, np.arange(2)), keep=False)
    with pytest.raises(ValueError, match="needs a cache"):
        dropout.backward(x, cache)


def test_numbers_of_numpy_are_those_of_python_in_a_configuration_and_a_recipe() -> None:
    fields: dict[str, Any] = {"img_size": np.int64(32), "depth": np.int32(2), "qk_norm": np.bool_(True)}
    config = ViTConfig(**fields, drop_rate=np.float64(0.1))
    assert config == ViTConfig(img_size=32, depth=2, qk_norm=True, drop_rate=0.1)
    assert json.loads(json.dumps(config.to_dict()))["depth"] == 2
    fields = {"epochs": np.int64(3), "flip": np.bool_(False), "betas": (np.float64(0.5), 0.9)}
    recipe = Recipe("digits", "vit_nano_patch4_8", **fields)
    assert recipe == Recipe("digits", "vit_nano_patch4_8", epochs=3, betas=(0.5, 0.9))
    assert type(recipe.betas[0]) is float
