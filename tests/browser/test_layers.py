"""The numbers of the path and of every layer beside the page's data."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Open
from .made import Made
from .opened import script
from .shown import digits_of, rows_of

pytestmark = pytest.mark.browser


def share_of(value: float) -> str:
    return f"{100 * value:.1f} %"


def facts_of(name: str, statistics: dict[str, Any]) -> dict[str, str]:
    """Return the statistics of the array `name` as its card writes them."""
    facts = {name: digits_of(statistics[name]) for name in ("norm", "mean", "std", "min", "max")}
    facts["zeros"] = share_of(statistics["zeros"])
    if statistics["saturated"] is not None:
        rule = "slope below 0.01" if name == "slope" else "weights above 0.99"
        facts[f"saturated: {rule}"] = share_of(statistics["saturated"])
    return {**facts, "numbers": f"{statistics['size']:,}"}


@pytest.mark.parametrize("name", ["vit_tiny", "digits", "statistics"])
def test_every_layer_opens_and_its_numbers_are_those_of_the_data(open_page: Open, made: Made, name: str) -> None:
    data = made.data[name]
    layers = data["images"][0]["layers"]
    page = open_page(name, "#layer").page
    shown = page.evaluate(script("every_layer.js"), [layer["name"] for layer in layers])
    for layer, found in zip(layers, shown, strict=True):
        assert found["title"] == layer["name"]
        quantities = layer["quantities"]
        cards = {card["name"]: card for card in found["cards"]}
        assert sorted(cards) == sorted(quantity["name"] for quantity in quantities)
        for quantity in quantities:
            card, statistics = cards[quantity["name"]], quantity["statistics"]
            assert card["facts"] == facts_of(quantity["name"], statistics)
            assert card["counts"] == [str(count) for count in statistics["counts"] if statistics["min"] is not None]
            assert len(card["maps"]) == (quantity["map"] is not None)
            assert " × ".join(map(str, quantity["shape"])) in card["about"]
            assert quantity["dtype"] in card["about"]
        formulas = data["formulas"].get(layer["kind"], {"forward": [], "backward": []})
        assert found["formulas"] == len(formulas["forward"]) + len(formulas["backward"])
        for source in data["sources"].get(layer["kind"], []):
            assert source["text"].strip() in found["code"]
        rows = data["checks"].get(layer["name"], {"rows": []})["rows"]
        assert [row[0] for row in found["check"]] == [row["array"] for row in rows]
        assert [row[2:4] for row in found["check"]] == [
            [digits_of(row["norm"]), digits_of(row["error"])] for row in rows
        ]


def test_a_text_alternative_of_a_map_has_its_numbers(open_page: Open, made: Made) -> None:
    layer = next(each for each in made.data["digits"]["images"][0]["layers"] if each["name"] == "blocks.0.attn")
    labels = (
        open_page("digits", "#layer/blocks.0.attn")
        .page.locator(".card canvas")
        .evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
    )
    for quantity in layer["quantities"]:
        label = next(each for each in labels if each.startswith(f"heat map of {quantity['name']} "))
        for number in ("norm", "min", "max"):
            assert digits_of(quantity["statistics"][number]) in label


def test_the_path_shows_the_norms_of_each_stage_and_of_the_token(open_page: Open, made: Made) -> None:
    data = made.data["vit_tiny"]
    opened = open_page("vit_tiny")
    token = data["model"]["prefix_tokens"] + data["model"]["grid"][1] + 2
    opened.page.get_by_role("radio", name="patch row 2, column 3").click()
    opened.open_details()
    opened.page.locator("#view-path tbody tr").first.wait_for()
    stages = data["images"][0]["path"]

    def written(value: float | None) -> str:
        return "–" if value is None else digits_of(value)

    assert rows_of(opened.page, "#view-path") == [
        [
            stage["title"],
            digits_of(stage["y_norm"]),
            written(stage["dy_norm"]),
            written(stage["y"][token] if stage["y"] else None),
            written(stage["dy"][token] if stage["dy"] else None),
        ]
        for stage in stages
    ]


def test_the_path_ends_in_the_gradient_of_the_pixels(open_page: Open, made: Made) -> None:
    data = made.data["vit_tiny"]
    heat_map = data["maps"][data["images"][0]["dimage"]]
    shown = open_page("vit_tiny").page.locator(".path-pixels")
    assert digits_of(heat_map["high"]) in shown.locator(".legend").inner_text()
    size = shown.locator("canvas").evaluate("canvas => [canvas.height, canvas.width]")
    assert size == [heat_map["rows"], heat_map["cols"]]


def test_a_label_that_is_the_prediction_is_not_called_a_label(open_page: Open, made: Made) -> None:
    labels = {"vit_tiny": "label: ", "no_steps": "as no label was given: "}
    for name, words in labels.items():
        image, page = made.data[name]["images"][0], open_page(name).page
        assert image["label_predicted"] == (name == "no_steps")
        assert words in page.locator("#about").inner_text()
        first = page.locator(".path-said .class-name").first.inner_text()
        assert ("(label)" in first) == (image["label"] == image["predicted"] and name == "vit_tiny")


def test_another_image_has_other_numbers(open_page: Open, made: Made) -> None:
    data = made.data["digits"]
    opened = open_page("digits", "#layer/blocks.0.norm1")
    card = opened.page.locator(".card", has=opened.page.get_by_role("heading", name="y", exact=True))
    for i, image in enumerate(data["images"]):
        opened.page.locator("#controls select").select_option(str(i))
        layer = next(each for each in image["layers"] if each["name"] == "blocks.0.norm1")
        y = next(each for each in layer["quantities"] if each["name"] == "y")
        assert digits_of(y["statistics"]["norm"]) in card.inner_text()
        assert digits_of(image["loss"]) in opened.page.locator("#about").inner_text()
