"""The data of the explorer's page: every number is that of the trace, and every map that of the array."""

from __future__ import annotations

import base64
import io
import json
import math
from typing import Any

import numpy as np
import pytest
import small_vit
from explored import (
    assert_within_half_a_step,
    in_rows,
    layer,
    quantities,
    reduced,
    small_page,
    values_of,
)
from PIL import Image

import minivit
from minivit import ops
from minivit.explorer import Limits
from minivit.explorer.heat_maps import HeatMaps, Plane
from minivit.tracing import Statistics, Trace, attention_distance, attention_rollout

CELLS = 5  # of a map, so that the arrays of a small model have to be reduced


@pytest.fixture(scope="module")
def model() -> minivit.ViT:
    return small_vit.model(depth=2)


@pytest.fixture(scope="module")
def trace(model: minivit.ViT) -> Trace:
    images, labels, _ = small_vit.batch(1)
    return minivit.trace(model, images, labels)


@pytest.fixture(scope="module")
def data(model: minivit.ViT) -> dict[str, Any]:
    return small_page(model, checks=True, limits=Limits(cells=(CELLS,)))


def test_all_layers_and_the_ops_without_a_layer_are_shown_in_the_order_of_the_pass(
    model: minivit.ViT, trace: Trace, data: dict[str, Any]
) -> None:
    names = [each["name"] for each in data["images"][0]["layers"]]
    not_called = {f"blocks.{i}.attn.attn_drop" for i in range(2)}  # dropout of the weights does nothing in evaluation
    layers = {name or "model" for name, _ in model.named_layers()}
    assert layers - not_called == {name for name in names if not trace[name].is_op}
    assert {name for name in names if trace[name].is_op} == {
        "patch_embed.patches", "embed", "blocks.0.attn.softmax", "blocks.1.attn.softmax", "pool", "cross_entropy",
    }  # fmt: skip
    assert names == [name for name in trace.names if name in names]
    assert (layer(data, "blocks.1.mlp")["block"], layer(data, "head")["block"]) == (1, None)


def test_every_quantity_of_the_trace_is_there_once(trace: Trace, data: dict[str, Any]) -> None:
    for each in data["images"][0]["layers"]:
        found, record = [quantity["name"] for quantity in each["quantities"]], trace[each["name"]]
        left_out = {"logits", "dlogits", "labels"}  # x and dx by another name; no numbers
        assert sorted(found) == sorted(set(record.quantities) - left_out)


def test_roles_tell_what_came_in_went_out_came_back_and_was_passed_on(data: dict[str, Any]) -> None:
    roles = {q["name"]: q["role"] for q in layer(data, "blocks.0.norm1")["quantities"]}
    assert roles == {
        "x": "in", "y": "out", "dy": "back", "dx": "passed", "x_hat": "inside", "inv_std": "inside",
        "weight": "parameter", "dweight": "gradient", "bias": "parameter", "dbias": "gradient",
    }  # fmt: skip
    assert {q["role"] for q in layer(data, "blocks.0.attn")["quantities"] if q["name"] in ("q", "dq")} == {"inside"}


def test_statistics_shapes_and_dtypes_are_those_of_the_trace(trace: Trace, data: dict[str, Any]) -> None:
    for name, quantity in quantities(data):
        array = getattr(trace[name], quantity["name"])
        assert quantity["shape"] == list(array.shape)
        assert quantity["dtype"] == str(array.dtype)
        expected = json.loads(json.dumps(Statistics.of(array, quantity["name"]).to_dict()))
        assert quantity["statistics"] == expected, (name, quantity["name"])


def test_heat_maps_are_means_of_blocks_within_half_a_step(trace: Trace, data: dict[str, Any]) -> None:
    for name, quantity in quantities(data):
        array = getattr(trace[name], quantity["name"])
        expected = reduced(in_rows(array, quantity["name"], trace[name].kind), CELLS)
        heat_map = data["maps"][quantity["map"]]
        assert heat_map["of"] == quantity["shape"]
        assert_within_half_a_step(heat_map, expected)


def test_a_map_says_how_the_array_was_reduced(data: dict[str, Any]) -> None:
    shown = {q["name"]: data["maps"][q["map"]]["how"] for q in layer(data, "blocks.0.attn")["quantities"]}
    assert shown["y"] == "tokens by features; cells are means of 2 x 3 numbers"
    assert shown["q"] == "tokens by features of all heads; cells are means of 2 x 3 numbers"
    assert shown["weights"] == "queries by keys; mean over 3 heads; cells are means of 2 x 2 numbers"
    weight = next(q for q in layer(data, "head")["quantities"] if q["name"] == "weight")
    assert data["maps"][weight["map"]]["how"] == "inputs by outputs; cells are means of 3 x 2 numbers"
    assert "at most 5 x 5 cells of 8 bits" in data["reduction"]


def test_attention_has_every_weight_and_gradient_of_each_head(trace: Trace, data: dict[str, Any]) -> None:
    shown = data["images"][0]["attention"]
    assert [each["layer"] for each in shown] == ["blocks.0.attn", "blocks.1.attn"]
    for each in shown:
        assert (each["tokens"], each["queries"]) == (7, 7)
        for key in ("weights", "dweights"):
            array = getattr(trace[each["layer"]], key)
            assert len(each[key]) == 3
            for head, index in enumerate(each[key]):
                assert_within_half_a_step(data["maps"][index], [[float(x) for x in row] for row in array[0, head]])


def test_the_result_is_that_of_the_trace(trace: Trace, data: dict[str, Any]) -> None:
    image = data["images"][0]
    logits = [float(x) for x in np.asarray(trace.y)[0]]
    total = sum(math.exp(x) for x in logits)
    assert image["logits"] == logits
    assert image["probabilities"] == pytest.approx([math.exp(x) / total for x in logits], rel=1e-12)
    assert image["predicted"] == max(range(7), key=lambda i: logits[i])
    assert image["loss"] == float(np.asarray(trace.loss))
    assert image["loss"] == pytest.approx(-math.log(image["probabilities"][image["label"]]), rel=1e-5)


def test_the_path_has_the_norm_of_each_token_at_each_stage(trace: Trace, data: dict[str, Any]) -> None:
    path = data["images"][0]["path"]
    assert [(stage["name"], stage["kind"]) for stage in path] == [
        ("patch_embed", "patches"), ("embed", "embed"),
        ("blocks.0.attn", "attention"), ("blocks.0.mlp", "mlp"), ("blocks.0", "block"),
        ("blocks.1.attn", "attention"), ("blocks.1.mlp", "mlp"), ("blocks.1", "block"),
        ("norm", "norm"), ("head", "head"), ("cross_entropy", "loss"),
    ]  # fmt: skip
    for stage in path:
        record = trace[stage["name"]]
        for key, array in (("y", record.y), ("dy", record.dy)):
            assert stage[f"{key}_norm"] == pytest.approx(math.sqrt(sum(float(x) ** 2 for x in array.flat)), rel=1e-6)
            if array.ndim < 3:
                assert stage[key] is None
                continue
            expected = [math.sqrt(sum(float(x) ** 2 for x in token)) for token in array[0]]
            prefix = [None] * (7 - len(expected))  # a class token that is not there yet
            assert len(prefix) == (stage["name"] == "patch_embed")
            assert stage[key][: len(prefix)] == prefix
            assert stage[key][len(prefix) :] == pytest.approx(expected, rel=1e-12)


def test_the_gradient_of_the_image_is_the_norm_over_channels(trace: Trace, data: dict[str, Any]) -> None:
    heat_map = data["maps"][data["images"][0]["dimage"]]
    norms = [[math.sqrt(sum(float(c) ** 2 for c in pixel)) for pixel in row] for row in trace["model"].dx[0]]
    assert_within_half_a_step(heat_map, reduced(norms, CELLS))
    assert heat_map["how"] == "rows by columns; norm over 3 channels; cells are means of 1 x 2 numbers"


def test_rollout_and_distance_are_those_of_tracing(model: minivit.ViT, data: dict[str, Any]) -> None:
    images, _, _ = small_vit.batch(1)
    rollout = attention_rollout(model, images)[0]
    heat_map = data["maps"][data["images"][0]["rollout"]]
    assert heat_map["low"] == 0
    assert_within_half_a_step(heat_map, [[float(x) for x in row] for row in rollout])
    assert data["depth"]["steps"][-1]["distance"] == attention_distance(model, images).tolist()


def test_norms_by_depth_are_those_of_the_table(model: minivit.ViT, trace: Trace, data: dict[str, Any]) -> None:
    depth, rows = data["depth"], trace.rows()
    (step,) = depth["steps"]
    assert depth["layers"] == ["patch_embed", "blocks.0", "blocks.1", "norm", "head"]
    assert step["y"] == [row.y.norm for row in rows]
    assert step["dy"] == [row.dy.norm for row in rows if row.dy is not None]
    assert step["dparameters"] == [row.gradient for row in rows]
    assert step["loss"] == data["images"][0]["loss"]
    of_block = [p.value for name, p in model.parameters.items() if name.startswith("blocks.1.")]
    assert step["weights"][2] == pytest.approx(math.sqrt(sum(float((v.astype(float) ** 2).sum()) for v in of_block)))
    assert (step["step"], step["update_ratio"]) == (None, None)
    assert "not from a run" in depth["note"]


def test_equal_arrays_share_a_map(data: dict[str, Any]) -> None:
    texts = [json.dumps(each) for each in data["maps"]]
    assert len(set(texts)) == len(texts)
    found = {(name, q["name"]): q["map"] for name, q in quantities(data)}
    assert found["blocks.0", "y"] == found["blocks.1", "x"] == found["blocks.1.norm1", "x"]
    assert found["blocks.0.ls1", "dy"] == found["blocks.0.ls1", "dx"]
    assert found["blocks.0", "x"] != found["blocks.0", "y"]


def test_the_check_of_each_layer_is_there_and_passes(data: dict[str, Any]) -> None:
    names = [each["name"] for each in data["images"][0]["layers"]]
    assert list(data["checks"]) == names
    assert [name for name, check in data["checks"].items() if not check["passed"]] == []


def test_every_kind_has_formulas_and_source_lines(data: dict[str, Any]) -> None:
    kinds = {each["kind"] for each in data["images"][0]["layers"]}
    assert set(data["formulas"]) == kinds
    assert all(data["sources"][kind] for kind in kinds)
    assert {mistake["kind"] for mistake in data["mistakes"]} <= kinds


def test_the_picture_has_the_pixels_that_were_given() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 9, 3), np.uint8)
    png = small_page(pixels=pixels)["images"][0]["png"]
    shown = Image.open(io.BytesIO(base64.b64decode(png.partition(",")[2])))
    assert (np.asarray(shown) == pixels[0]).all()


def test_without_pixels_the_picture_is_from_the_least_value_to_the_largest() -> None:
    images, _, _ = small_vit.batch(1)
    png = small_page()["images"][0]["png"]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(png.partition(",")[2]))))
    share = (images[0] - images.min()) / np.ptp(images)
    assert np.abs(shown / 255 - share).max() < 0.5 / 255 + 1e-6


def test_texts_with_markup_stay_texts() -> None:
    names = ["<b>cat</b>", "</script><script>alert(1)</script>", "a & b", "'\"", "é", "<!--", "\u2028"]
    data = small_page(class_names=names, names=["<img src=x>"], title="<i>", command="minivit inspect '<x>'")
    assert data["model"]["class_names"] == names
    assert (data["title"], data["images"][0]["name"]) == ("<i>", "<img src=x>")
    assert data["command"] == "minivit inspect '<x>'"


def test_a_map_of_huge_numbers_does_not_overflow() -> None:
    maps = HeatMaps()
    cells = np.array([[-1.7e308, 0.0], [1.7e308, 8.5e307]])
    index = maps.add(Plane(cells, "rows", "columns"), cells.shape)
    assert index == 0
    shown = dict(maps.table[0])
    assert base64.b64decode(str(shown["data"])) == bytes([0, 128, 255, 191])


def test_a_map_of_zeros_has_a_scale_of_zero() -> None:
    maps = HeatMaps()
    assert maps.add(Plane(np.zeros((2, 3)), "rows", "columns"), (2, 3)) == 0
    assert values_of(dict(maps.table[0])) == [[0.0] * 3] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_array_that_is_not_finite_has_no_map(bad: float) -> None:
    maps = HeatMaps()
    assert maps.add(Plane(np.array([[1.0, bad]]), "rows", "columns"), (1, 2)) is None
    assert maps.add_exactly(np.array([[1.0, bad]]), "how") is None
    assert maps.table == []


def test_softmax_of_the_page_is_that_of_the_library(trace: Trace, data: dict[str, Any]) -> None:
    expected, _ = ops.softmax(np.asarray(trace.y).astype(np.float64), keep=False)
    assert data["images"][0]["probabilities"] == expected[0].tolist()
