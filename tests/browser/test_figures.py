"""The figures of attention, depth and mistakes show the numbers of the page's data."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from .conftest import Open
from .made import Made
from .shown import digits_of, rows_of

pytestmark = pytest.mark.browser

# The pixels of a canvas: red, green and blue of each cell, row by row.
PIXELS = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return Array.from({ length: canvas.width * canvas.height }, (_, i) => [...data.slice(4 * i, 4 * i + 3)]);
}"""
# The places of the marks of each series of a chart.
MARKS = """chart => [...chart.querySelectorAll("svg.plot .series")].map(series =>
  [...series.querySelectorAll(".mark")].map(mark => {
    const { e, f } = mark.transform.baseVal[0].matrix;
    return [e, f];
  }))"""

Floats = NDArray[np.float64]


def cells_of(heat_map: dict[str, Any]) -> Floats:
    """Return the values of a map, as schema.json says that they are to be read."""
    shape = heat_map["rows"], heat_map["cols"]
    share = np.frombuffer(base64.b64decode(heat_map["data"]), np.uint8).reshape(shape) / 255.0
    high = np.array(heat_map.get("row_high", [heat_map["high"]])).reshape(-1, 1)
    low = -high if heat_map["low"] < 0 else 0 * high
    return np.asarray(low + share * (high - low), np.float64)


@pytest.mark.parametrize("side", ["query", "key"])
def test_a_patch_has_its_row_or_column_of_the_weights(open_page: Open, made: Made, side: str) -> None:
    data = made.data["vit_tiny"]
    block = data["images"][0]["attention"][2]
    rows, columns = data["model"]["grid"]
    opened = open_page("vit_tiny", "#attention/2")
    page, token = opened.page, data["model"]["prefix_tokens"] + columns + 3
    page.get_by_role("radio", name="patch row 2, column 4").click()
    page.get_by_role("radio", name=f"as {side}:").check()
    opened.settle()
    heads = page.locator(".head")
    assert heads.count() == len(block["weights"])
    for head, index in enumerate(block["weights"]):
        cells = cells_of(data["maps"][index])
        values = cells[token] if side == "query" else cells[:, token]
        patches = values[data["model"]["prefix_tokens"] :]
        canvas = heads.nth(head).locator("canvas").first
        brightness = np.array(canvas.evaluate(PIXELS)) @ [0.2126, 0.7152, 0.0722]
        assert len(brightness) == rows * columns
        order = np.argsort(patches, kind="stable")
        assert (np.diff(brightness[order]) >= -1).all(), "viridis grows brighter with the value"
        assert np.ptp(brightness) > 0
        most = int(values.argmax()) - data["model"]["prefix_tokens"]
        name = "class token" if most < 0 else f"patch row {most // columns + 1}, column {most % columns + 1}"
        assert f"most: {name}," in heads.nth(head).locator("p").inner_text()


def test_the_gradients_of_the_weights_have_the_colours_of_their_signs(open_page: Open, made: Made) -> None:
    data = made.data["vit_tiny"]
    block, prefix = data["images"][0]["attention"][2], data["model"]["prefix_tokens"]
    page = open_page("vit_tiny", "#attention/2").page
    page.get_by_role("radio", name="patch row 1, column 1").click()
    for head, index in enumerate(block["dweights"]):
        values = cells_of(data["maps"][index])[prefix]
        canvas = page.locator(".head").nth(head).locator("canvas").nth(1)
        colours = np.array(canvas.evaluate(PIXELS))
        strong = np.abs(values[prefix:]) > 0.2 * np.abs(values).max()
        assert strong.any()
        assert ((colours[:, 0] - colours[:, 2])[strong] * values[prefix:][strong] > 0).all(), "orange is positive"


def test_the_charts_of_depth_are_those_of_each_step(open_page: Open, made: Made) -> None:
    depth = made.data["digits"]["depth"]
    opened = open_page("digits", "#depth")
    page = opened.page
    opened.open_details()
    assert len(depth["steps"]) > 2
    for at, step in enumerate(depth["steps"]):
        opened.show(f"#depth/{at}")
        expected = {"Activations and weights": ("y", "weights"), "Gradients": ("dy", "dparameters")}
        for title, keys in expected.items():
            chart = page.locator(".chart", has=page.get_by_text(title, exact=True)).first
            table = chart.locator("tbody tr").evaluate_all(
                "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
            )
            assert [row[1:] for row in table] == [
                [digits_of(step[key][i]) for key in keys] for i in range(len(depth["layers"]))
            ]
            marks = chart.evaluate(MARKS)
            drawn = [[value for value in step[key] if value] for key in keys]
            assert [len(each) for each in marks] == [len(each) for each in drawn]
            heights, logs = np.concatenate(marks)[:, 1], np.log(np.concatenate(drawn))
            slope, offset = np.polyfit(logs, heights, 1)
            assert slope < 0
            assert np.abs(slope * logs + offset - heights).max() < 0.2, "the axis is logarithmic"


def test_a_mistake_shows_its_numbers_and_what_becomes_of_the_gradients(open_page: Open, made: Made) -> None:
    data = made.data["vit_tiny"]
    opened = open_page("vit_tiny")
    page = opened.page
    assert len(data["mistakes"]) >= 12
    for at, mistake in list(enumerate(data["mistakes"]))[::3]:
        opened.show(f"#mistakes/{at}")
        assert page.locator(".mistake h2").inner_text() == mistake["title"]
        assert page.locator(".mistake blockquote").inner_text() == mistake["sentence"]
        code = page.locator(".diff")
        for tag, sign, own, other in (("del", "correct", "before", "after"), ("ins", "wrong", "after", "before")):
            lines = [line for line in mistake[own] if line not in mistake[other]]
            texts = code.locator(tag).all_inner_texts()
            assert [text.rstrip() for text in texts] == [f"{sign:9}{line}" for line in lines or ["(no such line)"]]
        assert [row[0::2] for row in rows_of(page, ".mistake .scroll")] == [
            [each["array"], each["verdict"]] for each in mistake["verdict"]
        ]
        sections = page.locator(".wrong-array")
        assert sections.locator("h4").all_inner_texts() == [each["array"] for each in mistake["arrays"]]
        for section, array in zip(sections.all(), mistake["arrays"], strict=True):
            if not array["changed"]:
                assert "does not change" in section.inner_text()
                continue
            facts = section.locator("dd").all_inner_texts()
            assert facts[:2] == [digits_of(array["right_norm"]), digits_of(array["wrong_norm"])]
            right, wrong = (cells_of(data["maps"][array[name]]) for name in ("right", "wrong"))
            assert section.locator("canvas").count() == (2 if array["difference"] is None else 3)
            if array["difference"] is not None:
                colours = np.array(section.locator("canvas").nth(2).evaluate(PIXELS))
                difference = cells_of(data["maps"][array["difference"]]).reshape(-1)
                strong = np.abs(difference) > 0.2 * max(np.abs(right).max(), np.abs(wrong).max())
                assert ((colours[:, 0] - colours[:, 2])[strong] * difference[strong] > 0).all()
