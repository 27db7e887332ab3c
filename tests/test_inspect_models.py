"""The data of the explorer's page for models of all forms, of bad numbers, and of too many; and bad arguments."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest
import small_vit
from bare_vit import shaken
from explored import assert_valid, checked_page, layer, quantities, small_page
from with_model import WithModel

import minivit
from minivit.arrays import Array
from minivit.errors import UserError
from minivit.explorer import Limits, explore
from minivit.layers import EncoderBlock, LayerNorm, Linear

FORMS: dict[str, dict[str, Any]] = {
    "without a class token": {"class_token": False, "global_pool": "avg"},
    "with registers": {"reg_tokens": 2},
    "with registers alone": {"class_token": False, "reg_tokens": 2, "global_pool": "avg"},
    "attention pooling": {"class_token": False, "global_pool": "map"},
    "relative positions": {"pos_embed": "relative"},
    "positions of a grid": {"pos_embed": "learn_2d"},
    "positions in each block": {"depth": 2, "pos_embed_layers": "each"},
    "layer scale and norms of queries": {"init_values": 0.1, "qk_norm": True},
    "a stem of convolutions": {"img_size": (4, 8), "patch_size": 2, "conv_stem": (4,)},
    "a hybrid": {"img_size": (8, 12), "patch_size": 4, "resnet": (1,)},
    "overlapping patches": {"img_size": (4, 9), "patch_size": 3, "patch_stride": (1, 2)},
    "a hidden layer and another activation": {"representation_size": 5, "act_layer": "quick_gelu"},
    "one channel": {"in_chans": 1},
    "two channels": {"in_chans": 2},
}


def page_of(dtype: str = "float32", checks: bool = True, **fields: Any) -> dict[str, Any]:
    model = small_vit.model(dtype, **{"depth": 1, **fields})
    config = model.config
    shape = (1, config.height, config.width, config.in_chans)
    data = explore(model, np.random.default_rng(0).standard_normal(shape).astype(dtype), [3], checks=checks)
    assert_valid(data)
    return data


@pytest.mark.parametrize("form", FORMS)
def test_models_of_all_forms_have_a_page(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form not in ("relative positions", "a hybrid"):  # mistakes, which take most of the time
        module = importlib.import_module("minivit.explorer.explore")  # its name is also that of a function
        monkeypatch.setattr(module, "typical_mistakes", lambda *_: ([], ""))
    fields = FORMS[form]
    data = page_of(**fields)
    model, image = data["model"], data["images"][0]
    rows, columns = model["grid"]
    assert model["tokens"] == rows * columns + model["prefix_tokens"]
    assert model["class_token"] == fields.get("class_token", True)
    assert [data["maps"][image["rollout"]][key] for key in ("rows", "cols")] == model["grid"]
    blocks = [each for each in image["attention"] if each["layer"].startswith("blocks.")]
    assert len(blocks) == model["depth"]
    assert all((each["tokens"], each["queries"]) == (model["tokens"],) * 2 for each in blocks)
    for stage in image["path"]:
        assert stage["y"] is None or len(stage["y"]) == model["tokens"]
    assert all(check["passed"] for check in data["checks"].values())


def test_attention_pooling_has_its_own_attention_and_is_a_stage() -> None:
    data = page_of(checks=False, **FORMS["attention pooling"])
    pooled = data["images"][0]["attention"][-1]
    assert (pooled["layer"], pooled["queries"], pooled["tokens"], len(pooled["weights"])) == ("attn_pool", 1, 6, 3)
    assert "attn_pool" in [stage["name"] for stage in data["images"][0]["path"]]


def test_registers_come_before_patches_and_are_not_there_in_the_patch_embedding() -> None:
    first = page_of(checks=False, **FORMS["with registers"])["images"][0]["path"][0]
    assert first["name"] == "patch_embed"
    assert first["y"][:3] == [None] * 3
    assert None not in first["y"][3:]


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_the_numbers_are_of_the_models_dtype(dtype: str) -> None:
    data = page_of(dtype, act_layer="relu")
    assert data["model"]["dtype"] == dtype
    activations = ("in", "out", "back", "passed")  # gradients of parameters are float32 where the model has 16 bits
    layers = {layer["name"]: layer for layer in data["images"][0]["layers"] if layer["kind"] != "cross_entropy"}
    found = {q["dtype"] for layer in layers.values() for q in layer["quantities"] if q["role"] in activations}
    assert found == {dtype}


def test_without_a_label_the_page_shows_the_forward_pass_alone() -> None:
    data = small_page(labels=None)
    image = data["images"][0]
    assert (image["label"], image["loss"], image["dimage"]) == (None, None, None)
    assert not [q["name"] for _, q in quantities(data) if q["role"] in ("back", "passed", "gradient")]
    assert [each["dweights"] for each in image["attention"]] == [None]
    assert {stage["dy_norm"] for stage in image["path"]} == {None}
    assert set(data["depth"]["steps"][0]["dy"]) == {None}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_null(bad: float) -> None:
    model = small_vit.model(depth=2)
    model.parameters["blocks.1.mlp.fc1.weight"].value[0, 0] = bad
    data = small_page(model)
    image = data["images"][0]
    assert image["loss"] is None
    assert set(image["logits"]) == set(image["probabilities"]) == {None}
    shown = {q["name"]: q for q in layer(data, "blocks.1.mlp.fc1")["quantities"]}
    assert (shown["x"]["map"] is None, shown["y"]["map"], shown["weight"]["map"]) == (False, None, None)
    assert (shown["x"]["statistics"]["finite"], shown["y"]["statistics"]["finite"]) == (True, False)
    stages = {stage["name"]: stage for stage in image["path"]}
    assert stages["blocks.0"]["y_norm"] > 0
    assert stages["blocks.1"]["y_norm"] is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "class token and positions"),
        ({"reg_tokens": 2}, "class token, registers and positions"),
        ({"pos_embed": "none"}, "class token"),
        ({"class_token": False, "global_pool": "avg"}, "positions"),
        ({"class_token": False, "global_pool": "avg", "pos_embed": "sincos_2d"}, "nothing is added"),
    ],
)
def test_the_stage_after_the_patches_names_what_is_added(fields: dict[str, Any], words: str) -> None:
    stages = {stage["name"]: stage for stage in page_of(checks=False, **fields)["images"][0]["path"]}
    assert stages["embed"]["title"] == words


def test_a_layer_that_is_called_twice_is_shown_twice() -> None:
    class Twice(LayerNorm):
        inner: LayerNorm

        def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
            y, cache1 = self.inner.forward(x, rng, keep)
            z, cache2 = self.inner.forward(y, rng, keep)
            return z, (cache1, cache2)

        def backward(self, dz: Array, cache: Any) -> Array:
            return self.inner.backward(self.inner.backward(dz, cache[1]), cache[0])

    model = small_vit.model(depth=1)
    norm = Twice(12)
    norm.inner = LayerNorm(12)
    model.blocks[0].norm1 = norm.initialize(0, "float32")
    data = small_page(model, checks=False)
    assert layer(data, "blocks.0.norm1.inner")["kind"] == layer(data, "blocks.0.norm1.inner_2")["kind"] == "LayerNorm"


@pytest.mark.parametrize(
    ("form", "name", "quantity", "words"),
    [
        ({"qk_norm": True}, "blocks.0.attn.q_norm", "x", "tokens by features of all heads"),
        ({"qk_norm": True}, "blocks.0.attn.k_norm", "dy", "tokens by features of all heads"),
        ({"pos_embed": "learn_2d"}, "pos_embed", "rows", "rows of the grid by features"),
        ({"pos_embed": "learn_2d"}, "pos_embed", "dcolumns", "columns of the grid by features"),
        ({"pos_embed": "learn_2d"}, "pos_embed", "dy", "tokens by features"),
    ],
)
def test_a_map_names_its_axes(form: dict[str, Any], name: str, quantity: str, words: str) -> None:
    data = page_of(checks=False, **form)
    maps = {each["name"]: data["maps"][each["map"]]["how"] for each in layer(data, name)["quantities"]}
    assert maps[quantity].startswith(words)


def test_without_checks_there_are_none_and_no_mistakes() -> None:
    data = small_page(checks=False)
    assert (data["checks"], data["mistakes"]) == ({}, [])
    assert data["mistakes_note"] == "the page was made without gradient checks"


@pytest.fixture(scope="module")
def not_finite() -> dict[str, Any]:
    """Return the page of a model with a weight that is NaN."""
    model = small_vit.model(depth=1)
    model.parameters["blocks.0.mlp.fc1.weight"].value[0, 0] = np.nan
    return small_page(model, checks=True)


def test_layers_that_are_not_finite_are_not_checked(not_finite: dict[str, Any]) -> None:
    (row,) = not_finite["checks"]["blocks.0.mlp.fc1"]["rows"]
    assert row["verdict"] == "skipped"
    assert "NaN" in row["note"]
    assert not_finite["checks"]["blocks.0.attn"]["passed"]


def test_mistakes_of_layers_that_are_not_finite_are_left_out_and_that_is_said(not_finite: dict[str, Any]) -> None:
    note = not_finite["mistakes_note"]
    assert "where they meet NaN or infinity" in note
    assert "blocks.0.mlp" in note.partition("where they meet")[2]


def test_attention_that_is_not_finite_is_left_out() -> None:
    model = small_vit.model(depth=2)
    model.parameters["blocks.1.attn.qkv.weight"].value[0, 0] = np.nan
    data = small_page(model)
    assert [each["layer"] for each in data["images"][0]["attention"]] == ["blocks.0.attn"]
    assert data["images"][0]["rollout"] is None
    assert data["depth"]["steps"][0]["distance"] is None


def test_several_images_have_a_trace_each_and_share_the_maps_of_parameters() -> None:
    model = small_vit.model(depth=1)
    data = small_page(model, 3, names=["a", "b", "c"])
    images, labels, _ = small_vit.batch(3)
    assert [(image["name"], image["label"]) for image in data["images"]] == list(zip("abc", labels, strict=True))
    for i, image in enumerate(data["images"]):
        loss = minivit.trace(model, images[i : i + 1], labels[i : i + 1]).loss
        assert image["loss"] == float(np.asarray(loss))
    weights = [{n: q["map"] for n, q in quantities(data, i) if q["name"] == "weight"} for i in range(3)]
    assert weights[0] == weights[1] == weights[2]
    results = {next(q["map"] for n, q in quantities(data, i) if (n, q["name"]) == ("head", "y")) for i in range(3)}
    assert len(results) == 3


def test_maps_have_fewer_cells_where_more_would_not_fit() -> None:
    few, many = (small_page(limits=Limits(cells=(cells,))) for cells in (3, 64))
    size = sum(len(each["data"]) for each in few["maps"])
    assert sum(len(each["data"]) for each in many["maps"]) > size + 1000
    data = small_page(limits=Limits(maps=size + 1000, cells=(64, 3)))
    assert data["full"]
    assert data["note"] == ""
    assert "at most 3 x 3 cells" in data["reduction"]
    assert max(each["rows"] for each in data["maps"] if "row_high" not in each) == 3


@pytest.mark.parametrize("room", [100, 2000], ids=["too much attention", "too many maps"])
def test_a_large_model_has_statistics_alone_and_says_so(room: int) -> None:
    whole = small_page()
    data = small_page(limits=Limits(maps=room, cells=(64, 32), layer=300))
    assert not data["full"]
    assert data["note"] == (
        "The model has 1 block, 3 heads, 7 tokens: the heat maps of 1 image would take more than "
        f"{room / 1e6:.3g} MB. This page has statistics alone."
    )
    assert "The arrays themselves are not in this page" in data["reduction"]
    image, shown = data["images"][0], {(name, q["name"]): q for name, q in quantities(data)}
    assert image["attention"] is None
    assert {q["map"] for q in shown.values()} == {None}
    of_embed = {("embed", name) for name in ("pos_embed", "dpos_embed", "cls_token", "dcls_token")}
    assert {(name, q["name"]) for name, q in quantities(whole)} - set(shown) == of_embed  # those of the model itself
    for name, quantity in quantities(whole):
        if (name, quantity["name"]) not in of_embed:
            assert shown[name, quantity["name"]] == {**quantity, "map": None}
    for ours, theirs in zip(image["path"], whole["images"][0]["path"], strict=True):
        left_out = {"y": None, "dy": None} if theirs["kind"] in ("attention", "mlp") else {}
        assert ours == {**theirs, **left_out}
    assert data["depth"] == whole["depth"]
    for index in (image["rollout"], image["dimage"]):
        assert data["maps"][index]["data"]


def test_of_a_large_model_the_gradients_of_small_layers_are_checked() -> None:
    data = small_page(checks=True, limits=Limits(maps=100, layer=300))
    assert {"head", "norm"} <= set(data["checks"])
    assert not {"model", "blocks.0", "blocks.0.attn", "blocks.0.mlp.fc1"} & set(data["checks"])
    assert all(check["passed"] for check in data["checks"].values())


def test_several_images_of_a_large_model_may_fit_if_there_are_fewer() -> None:
    data = small_page(count=2, limits=Limits(maps=100))
    assert "the heat maps of 2 images" in data["note"]
    assert data["note"].endswith("fewer images may have room.")


def test_of_very_many_weights_there_is_no_rollout_and_no_distance() -> None:
    data = small_page(limits=Limits(weights=3 * 7 * 7 - 1))
    assert data["images"][0]["rollout"] is None
    assert data["depth"]["steps"][0]["distance"] is None


class Doubled(Linear):
    """A user's own layer, which has the name of no layer of minivit."""

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        y, cache = super().forward(x, rng, keep)
        return 2 * y, cache

    def backward(self, dy: Array, cache: Any) -> Array:
        return super().backward(2 * dy, cache)


def test_a_layer_of_a_users_own_is_shown_with_its_code() -> None:
    model = small_vit.model(depth=1)
    own = Doubled(12, 12)
    own.initialize(0)
    model.blocks[0].attn.proj = own
    data = small_page(model, checks=True)
    assert layer(data, "blocks.0.attn.proj")["kind"] == "Doubled"
    assert any("2 * super().forward" in each["text"] or "2 * y" in each["text"] for each in data["sources"]["Doubled"])
    assert data["checks"]["blocks.0.attn.proj"]["passed"]


@pytest.mark.parametrize("limits", [Limits(), Limits(maps=100)], ids=["arrays", "statistics"])
def test_a_layer_that_is_called_model_is_no_whole_model(limits: Limits) -> None:
    model = shaken(WithModel(dataclasses.replace(small_vit.CONFIG, depth=1)), 0.2)
    data = small_page(model, checks=True, limits=limits)
    whole, own = layer(data, "root"), layer(data, "model")
    assert (whole["title"], whole["kind"]) == ("the whole model", "WithModel")
    assert (own["title"], own["kind"]) == ("model", "Linear")
    assert data["depth"]["layers"][-1] == "model"
    images, labels, _ = small_vit.batch(1)
    dimage = np.linalg.norm(minivit.trace(model, images, labels)[""].dx[0], axis=-1)
    assert data["maps"][data["images"][0]["dimage"]]["high"] == pytest.approx(dimage.max())
    assert {"root", "model", "embed", "pool"} <= set(data["checks"])
    assert all(check["passed"] for check in data["checks"].values())
    assert "embed" in {mistake["layer"] for mistake in data["mistakes"]} or not data["full"]


def test_the_model_stays_as_it_is() -> None:
    model = small_vit.model(depth=1)
    model.parameters["head.weight"].grad[...] = 1.0
    before = model.parameters.store.values.copy(), model.parameters.store.gradients.copy()
    small_page(model, checks=True)
    assert (model.parameters.store.values == before[0]).all()
    assert (model.parameters.store.gradients == before[1]).all()


def test_the_same_arguments_give_the_same_page() -> None:
    one, other = copy.deepcopy(checked_page()), small_page(checks=True)
    for check in (*one["checks"].values(), *other["checks"].values()):
        check["seconds"] = 0
    assert one == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [1, 2]}, "there are 2 labels and 1 images; give one for each"),
        ({"labels": [7]}, r"labels are \[7\]; expected a whole number below 7 for each image"),
        ({"labels": [-1]}, r"labels are \[-1\]"),
        ({"labels": [0.5]}, r"labels are \[0.5\]"),
        ({"labels": [[1]]}, r"labels are \[\[1\]\]; expected a whole number for each image"),
        ({"labels": 1}, "labels are 1; expected"),
        ({"names": ["a", "b"]}, "there are 2 names and 1 images"),
        ({"pixels": np.zeros((2, 4, 9, 3), np.uint8)}, "there are 2 pixels and 1 images"),
        ({"class_names": ["a"]}, "there are 1 class names and 7 classes"),
        ({"limits": Limits(images=0)}, "1 images were given; a page shows at most 0"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_page(**options)


def test_a_model_without_a_head_is_refused() -> None:
    model = small_vit.model(depth=1, num_classes=0)
    with pytest.raises(UserError, match="the model has no head"):
        explore(model, small_vit.batch(1)[0])


def test_a_model_of_complex_numbers_is_refused() -> None:
    model = small_vit.model("complex128", depth=1)
    with pytest.raises(UserError, match=r"convert it with astype\('float64'\)"):
        explore(model, small_vit.batch(1, "complex128")[0])


def test_another_object_than_a_model_is_refused() -> None:
    with pytest.raises(UserError, match="expected a ViT"):
        explore(Linear(3, 4), np.zeros((1, 3), np.float32))  # type: ignore[arg-type] # the test


def test_the_page_has_every_call_of_a_block_that_stands_in_several_places() -> None:
    model = small_vit.model(depth=1)
    model.blocks = model.blocks * 2
    data = small_page(model)
    assert_valid(data)
    depth = data["depth"]
    assert depth["layers"] == ["patch_embed", "blocks.0", "blocks.0_2", "norm", "head"]
    weights = depth["steps"][-1]["weights"]
    assert weights[1] == weights[2] > 0
    stages = [stage["name"] for stage in data["images"][0]["path"]]
    assert stages[2:8] == [
        "blocks.0.attn",
        "blocks.0.mlp",
        "blocks.0",
        "blocks.0.attn_2",
        "blocks.0.mlp_2",
        "blocks.0_2",
    ]


def test_the_page_of_blocks_with_different_numbers_of_heads_has_no_distance() -> None:
    model = small_vit.model(depth=2)
    model.blocks[1] = EncoderBlock(12, 2, 24).initialize(1)
    data = small_page(model)
    assert_valid(data)
    assert data["depth"]["steps"][-1]["distance"] is None
