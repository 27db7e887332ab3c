"""The drawing of the path: widths and places are the norms of the data; what leads from it to the other views."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from .conftest import Open
from .made import Made

pytestmark = pytest.mark.browser

LEAST, MOST = 3.0, 28.0  # pixels, the widths of the least and the largest norm
LANE = 56.0  # pixels, the height of the lane in which the norm of a token is drawn
# The ends of the curves of a shape's first half, which is one edge of a stream.
EDGE = "shapes => shapes.map(shape => shape.getAttribute('d').split('L')[0])"


def parts_of(norms: Sequence[float], known: Sequence[float]) -> list[float]:
    """Return the places of norms on a logarithmic scale, 0 for the least of those known and 1 for the largest."""
    low, high = np.log(min(known)), np.log(max(known))
    return [(np.log(norm) - low) / (high - low) for norm in norms]


def carried(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the stages between which a stream is drawn: of a block its result alone, and not the loss."""
    return [stage for stage in stages if stage["kind"] not in ("attention", "mlp", "loss")]


def points_of(edge: str) -> list[tuple[float, float]]:
    """Return the points that an edge passes through, without those that shape its curves."""
    numbers = [float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", edge)]
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    return [points[0], *points[3::3]]


@pytest.mark.parametrize("name", ["vit_tiny", "digits"])
@pytest.mark.parametrize("width", [360, 1440])
def test_each_stretch_is_as_wide_as_its_norm(open_page: Open, made: Made, name: str, width: int) -> None:
    stages = made.data[name]["images"][0]["path"]
    across = width > 1000
    shapes = open_page(name, width=width).page.locator("path.stream").evaluate_all(EDGE)
    assert len(shapes) == 2
    for edge, norm in zip(shapes, ("y_norm", "dy_norm"), strict=True):
        known = [stage[norm] for stage in stages if stage["kind"] != "loss"]
        drawn = [stage[norm] for stage in carried(stages)]
        widths = [LEAST + (MOST - LEAST) * part for part in parts_of(drawn, known)]
        places = np.array(points_of(edge))
        steps = places[:, 0] if across else -places[:, 1]
        assert (np.diff(steps) > 0).all(), "from the image to the loss: to the right, or upwards"
        half = places[:, 1] if across else places[:, 0]
        expected = -np.repeat(widths, 2) / 2
        np.testing.assert_allclose(half - half[0], expected - expected[0], atol=0.01)


@pytest.mark.parametrize("token", [0, 20])
def test_the_token_is_drawn_at_its_norm_among_all(open_page: Open, made: Made, token: int) -> None:
    data = made.data["vit_tiny"]
    stages = carried(data["images"][0]["path"])
    page = open_page("vit_tiny").page
    page.locator("[role=radio]").nth(token).click()
    every = [stage for stage in data["images"][0]["path"] if stage["kind"] != "loss"]
    dots: list[dict[str, Any]] = page.locator("circle").evaluate_all(
        "dots => dots.map(dot => ({y: Number(dot.getAttribute('cy')), none: dot.classList.contains('none')}))"
    )
    for key in ("y", "dy"):
        known = [norm for stage in every for norm in stage[key] or [] if norm]
        values = [stage[key][token] for stage in stages if stage[key] and stage[key][token] is not None]
        shown, dots = dots[: len(values)], dots[len(values) :]
        assert [dot["none"] for dot in shown] == [value == 0 for value in values]
        heights = np.array([dot["y"] for dot in shown if not dot["none"]])
        parts = np.array(parts_of([value for value in values if value], known))
        np.testing.assert_allclose(heights[0] - heights, LANE * (parts - parts[0]), atol=0.01)
    assert dots == []


def test_a_token_pointed_at_is_shown_until_the_pointer_leaves(open_page: Open) -> None:
    page = open_page("vit_tiny").page
    said = page.locator(".path-token strong")
    before = said.inner_text()
    page.locator("[role=radio]").nth(1).hover()
    assert said.inner_text() == "Following the patch in row 1, column 1"
    page.locator("h1").hover()
    assert said.inner_text() == before != "Following the patch in row 1, column 1"


def test_a_stage_says_its_norms_and_opens_its_layer_with_the_focus_in_it(open_page: Open) -> None:
    opened = open_page("vit_tiny", width=360)
    page = opened.page
    stage = page.get_by_role("button", name="block 0: attention")
    stage.focus()
    assert page.locator(".path-stage").inner_text().startswith("block 0: attention: activation norm ")
    assert page.evaluate("scrollY") > 500
    page.keyboard.press("Enter")
    opened.settle()
    assert page.url.endswith("#layer/blocks.0.attn")
    assert page.evaluate("document.activeElement.id") == "view-layer"
    assert page.evaluate("document.querySelector('[role=tablist]').getBoundingClientRect().top") >= -1
    page.locator(".near a").last.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "blocks.0.attn.qkv"


def test_the_skip_link_leads_to_the_view_that_is_open(open_page: Open) -> None:
    page = open_page("digits", "#depth").page
    page.locator(".skip").press("Enter")
    assert page.url.endswith("#depth")
    assert page.locator("#view-depth").is_visible()
    assert page.evaluate("document.activeElement.id") == "views"


def test_the_path_is_printed_from_another_view(open_page: Open) -> None:
    page = open_page("digits", "#depth").page
    page.emulate_media(media="print")
    page.locator("#view-path path.stream").nth(1).wait_for()
    page.emulate_media(media="screen")
    page.locator("#view-path").wait_for(state="hidden")
