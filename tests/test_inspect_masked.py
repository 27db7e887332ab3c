"""The data of the explorer's page for models of masked pre-training: what was seen, places of tokens, the path."""

from __future__ import annotations

import base64
import functools
import io
from typing import Any

import numpy as np
import pytest
from explored import assert_valid, assert_within_half_a_step, in_rows, layer, quantities
from PIL import Image
from test_masked import every_kind, images, made

import minivit
from minivit import UserError
from minivit.arrays import Array
from minivit.explorer import Limits, explore
from minivit.explorer.checks import check_layers
from minivit.explorer.layers import shown
from minivit.explorer.masks import masks_of, seen_pixels, weights_of
from minivit.explorer.page import page
from minivit.nn.masked import MaskedModel

N, P = 16, 2
PIXELS = np.random.default_rng(3).integers(0, 256, (2, 8, 8, 3), np.uint8)


def page_of(model: MaskedModel, count: int = 1, **options: Any) -> dict[str, Any]:
    """Return the valid data of a model and some images; without gradient checks, which are slow."""
    data = explore(model, images(count), **{"checks": False, **options})
    assert_valid(data)
    return data


def shaken(kind: str, **fields: Any) -> Any:
    """Return a model whose parameters are large enough that no two of its numbers are alike."""
    model = made(kind, **fields)
    values = model.parameters.store.values
    values += 0.3 * np.random.default_rng(5).standard_normal(values.shape)
    return model


@functools.cache
def page_of_two(kind: str) -> dict[str, Any]:
    """Return the page of a model of this kind for two images with pixels."""
    return page_of(shaken(kind), 2, pixels=PIXELS)


def decoded(png: str) -> Array:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png.partition(",")[2]))))


@every_kind
def test_there_is_a_loss_and_no_class(kind: str) -> None:
    model, data = shaken(kind), page_of_two(kind)
    losses = model(images(2))
    for i, image in enumerate(data["images"]):
        assert image["loss"] == pytest.approx(losses[i], rel=1e-12)
        for name in ("label", "logits", "probabilities", "predicted", "rollout"):
            assert image[name] is None
        assert not image["label_predicted"]
        assert image["dimage"] is not None
    assert data["model"]["task"] == model.task
    assert data["model"]["class_names"] == []
    (step,) = data["depth"]["steps"]
    assert step["loss"] == data["images"][0]["loss"]
    assert step["distance"] is None
    assert None not in step["dy"]
    assert page(data).count("<img") == 2


@every_kind
def test_the_patches_that_the_model_sees_are_shown(kind: str) -> None:
    model = shaken(kind)
    seen = page_of_two(kind)["images"][1]["seen"]
    order = model.order(model.key(None, images(1))[1])[0]
    assert seen["predicted"] == order[: model.num_masked].tolist()
    unseen = {patch for patch, shown in enumerate(seen["patches"]) if shown < 0}
    assert unseen <= set(seen["predicted"])
    assert (unseen == set(seen["predicted"])) == (model.task != "mpp")
    picture = decoded(seen["png"])
    for patch in range(N):
        row, column = P * (patch // 4), P * (patch % 4)
        found = picture[row : row + P, column : column + P]
        if (other := seen["patches"][patch]) < 0:
            assert (found == 128).all()
        else:
            row, column = P * (other // 4), P * (other % 4)
            assert (found == PIXELS[1, row : row + P, column : column + P]).all()


def test_images_of_any_sides_and_colours_are_put_together_again() -> None:
    encoder = minivit.ViT(
        minivit.ViTConfig(img_size=(4, 9), patch_size=(2, 3), embed_dim=8, depth=1, num_heads=2), None
    )
    model = minivit.layers.SimMIM(encoder).initialize(0)
    masks = masks_of(model, np.zeros((1, 4, 9, 3), np.float32))
    assert masks is not None
    grey = np.arange(36, dtype=np.uint8).reshape(4, 9)
    whole = masks._replace(seen=[0, 1, 2, 3, 4, 5])
    assert (seen_pixels(grey, whole, (2, 3)) == grey).all()
    turned = seen_pixels(grey, whole._replace(seen=[1, -1, 2, 3, 4, 5]), (2, 3))
    assert (turned[:2, :3] == grey[:2, 3:6]).all()
    assert (turned[:2, 3:6] == 128).all()
    assert (turned[:, 6:] == grey[:, 6:]).all()


def test_the_encoder_of_an_autoencoder_has_its_attention_at_the_places_of_what_it_sees() -> None:
    model = shaken("MAE")
    data = page_of(model)
    image = data["images"][0]
    visible = [patch for patch in image["seen"]["patches"] if patch >= 0]
    trace = minivit.trace(model, images(1))
    for each in image["attention"]:
        weights = trace[each["layer"]].weights
        if each["layer"].startswith("decoder"):
            assert (each["places"], each["tokens"]) == (None, 17)
        else:
            assert sorted(each["places"]) == [0, *(1 + patch for patch in visible)]
            assert (each["tokens"], each["queries"]) == (5, 5)
            assert trace["take_tokens"].arguments["index"][0].tolist() == each["places"]
            for head, index in enumerate(each["weights"]):
                assert_within_half_a_step(data["maps"][index], weights[0, head].tolist())
    assert [each["layer"] for each in image["attention"]] == [
        f"{part}blocks.{i}.attn" for part in ("encoder.", "decoder_") for i in (0, 1)
    ]


@pytest.mark.parametrize("kind", ["SimMIM", "mean"])
def test_where_all_tokens_are_encoded_attention_has_all_places(kind: str) -> None:
    attention = page_of_two(kind)["images"][0]["attention"]
    assert [(each["tokens"], each["places"]) for each in attention] == [(17, None)] * 2


PATH = {
    "SimMIM": ["fill_tokens", "embed", "encoder.blocks.0", "encoder.blocks.1", "encoder.norm", "head", "pixel_error"],
    "MAE": ["embed", "encoder.blocks.0", "encoder.blocks.1", "encoder.norm", "decoder_embed", "fill_tokens",
            "decoder_blocks.0", "decoder_blocks.1", "decoder_norm", "decoder_pred", "pixel_error"],
}  # fmt: skip
PATH["mean"] = [*PATH["SimMIM"][:-1], "token_cross_entropy"]


@pytest.mark.parametrize("kind", PATH)
@pytest.mark.parametrize("fields", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_the_path_has_the_norm_of_each_token_where_it_is(kind: str, fields: dict[str, Any]) -> None:
    model = shaken(kind, **fields)
    prefix = model.config.num_prefix_tokens
    image = page_of(model)["images"][0]
    stages = {stage["name"]: stage for stage in image["path"]}
    whole = [name for name in stages if not name.endswith((".attn", ".mlp"))]
    without = () if model.config.class_token else ("encoder.norm",)  # its norm is that of the pooled vector
    assert whole == ["encoder.patch_embed", *(name for name in PATH[kind] if name not in without)]
    trace = minivit.trace(model, images(1))
    order = model.order(model.key(None, images(1))[1])[0]
    encoded = [*range(prefix), *(prefix + order[model.num_masked :])]
    places: dict[str, Any] = dict.fromkeys(stages, range(prefix + N))
    places |= dict.fromkeys(("head", "decoder_norm", "decoder_pred"), prefix + order[: model.num_masked])
    places["encoder.patch_embed"] = range(prefix, prefix + N)
    if kind == "MAE":
        some = [name for name in stages if name.startswith("encoder.blocks")]
        places |= dict.fromkeys([*some, "encoder.norm", "decoder_embed"], encoded)
    else:
        places["fill_tokens"] = places["encoder.patch_embed"]
    for name, stage in stages.items():
        for quantity in ("y", "dy"):
            array = getattr(trace[name], quantity)
            assert stage[f"{quantity}_norm"] == pytest.approx(np.linalg.norm(array))
            if stage["kind"] == "loss":
                assert stage[quantity] is None
                continue
            expected: list[Any] = [None] * (prefix + N)
            for i, token in enumerate(places[name]):
                expected[token] = pytest.approx(float(np.linalg.norm(array[0, i])))
            assert stage[quantity] == expected
            assert (np.diff(np.sort(places[name])) > 0).all()


def test_as_many_tokens_as_patches_are_not_taken_for_the_patches() -> None:
    """With one hidden patch the class token and the others are as many as the patches."""
    model = minivit.layers.MAE(made("MAE").encoder, ratio=1 / 16).initialize(seed=1, dtype="float64")
    image = page_of(model)["images"][0]
    (hidden,) = image["seen"]["predicted"]
    stage = next(stage for stage in image["path"] if stage["name"] == "encoder.blocks.0")
    assert [token for token, norm in enumerate(stage["y"]) if norm is None] == [1 + hidden]
    assert image["attention"][0]["tokens"] == 16


def test_layers_have_titles_blocks_and_no_parameters_that_are_none() -> None:
    data = page_of_two("MAE")
    titles = {each["name"]: (each["title"], each["block"]) for each in data["images"][0]["layers"]}
    assert titles["model"] == ("the whole model", None)
    assert titles["encoder.patch_embed"] == ("patch embedding", None)
    assert titles["encoder.blocks.1.mlp.act"] == ("encoder block 1: MLP, activation", 1)
    assert titles["decoder_blocks.0"] == ("decoder block 0", 0)
    assert titles["fill_tokens"] == ("mask tokens for the others", None)
    assert "cross_entropy" not in titles
    roles = {(name, each["name"]): each["role"] for name, each in quantities(data)}
    assert roles["fill_tokens", "token"] == "parameter"
    assert roles["fill_tokens", "dtoken"] == "gradient"
    assert roles["pixel_error", "target"] == roles["pixel_error", "dtarget"] == "inside"
    assert not [names for names in roles if names[1] in ("index", "labels")]
    assert roles["model", "encoder.pos_embed"] == "parameter"


def test_the_maps_are_the_arrays_of_a_trace() -> None:
    model = shaken("MAE, norm")
    data = page_of(model)
    trace = minivit.trace(model, images(1))
    for name in ("encoder.blocks.1.attn.qkv", "decoder_blocks.0.mlp", "take_tokens_3", "decoder_pred"):
        for each in layer(data, name)["quantities"]:
            rows = in_rows(trace[name].quantities[each["name"]], each["name"], trace[name].kind)
            assert_within_half_a_step(data["maps"][each["map"]], rows)


@every_kind
def test_the_gradients_of_the_layers_and_ops_of_masked_models_are_checked(kind: str) -> None:
    model = shaken(kind, depth=1)
    trace = minivit.trace(model, images(1))
    names = [name for name in shown(trace.records) if "block" not in name]
    checks = check_layers(model, trace, names)
    failed = {name: check["rows"] for name, check in checks.items() if not check["passed"]}
    assert set(failed) == ({"layer_norm"} if "norm" in kind else set())  # it is checked in the model, which calls it
    assert [row["verdict"] for rows in failed.values() for row in rows] == ["skipped"] * len(failed)
    assert {"model", "fill_tokens", "take_tokens", "patches", "embed"} <= set(checks)
    assert [row["array"] for row in checks["fill_tokens"]["rows"]] == ["x", "token"]


def test_a_page_has_formulas_sources_checks_and_mistakes_that_are_all_found() -> None:
    data = page_of(shaken("MAE", depth=1), checks=True)
    assert all(check["passed"] for check in data["checks"].values())
    assert len(data["mistakes"]) > 15
    assert all(mistake["found"] for mistake in data["mistakes"])
    kinds = {each["kind"] for each in data["images"][0]["layers"]}
    assert {"MAE", "take_tokens", "fill_tokens", "pixel_error"} <= kinds & set(data["formulas"])
    assert all(data["sources"][each] for each in kinds)


def test_a_large_model_has_statistics_alone() -> None:
    model = shaken("MAE")
    assert weights_of(model) == 2 * 2 * (5 * 5 + 17 * 17)
    data, whole = page_of(model, pixels=PIXELS[:1], limits=Limits(maps=100)), page_of_two("MAE")
    assert "The model has 2 blocks, 2 heads, 17 tokens" in data["note"]
    image = data["images"][0]
    assert image["attention"] is None
    assert image["seen"] == whole["images"][0]["seen"]
    assert [stage["y_norm"] for stage in image["path"]] == [stage["y_norm"] for stage in whole["images"][0]["path"]]


def test_numbers_that_are_not_finite_are_null() -> None:
    model = shaken("MAE")
    model.parameters["decoder_pred.weight"].value[0, 0] = np.nan
    image = page_of(model)["images"][0]
    assert image["loss"] is None
    assert image["dimage"] is None
    assert {each["dweights"] is None for each in image["attention"]} == {True}


@pytest.mark.parametrize("options", [{"labels": [1]}, {"class_names": ["a"]}])
def test_classes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="has no classes; leave labels and class_names out"):
        page_of(made("MAE"), **options)


def test_a_model_of_another_kind_is_refused() -> None:
    model = MaskedModel(made("MAE").encoder, 0.5).initialize(seed=0, dtype="float64")
    with pytest.raises(UserError, match="is of type MaskedModel; expected a ViT or a model of masked pre-training"):
        explore(model, images(1))


def test_the_model_stays_as_it_is() -> None:
    model = shaken("MAE")
    store = model.parameters.store
    store.gradients[...] = 1.0
    before = store.values.copy()
    page_of(model)
    assert (store.values == before).all()
    assert (store.gradients == 1).all()
