"""Help for tests of the explorer's data: small pages, the schema, and arrays and maps in plain loops."""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import small_vit
from jsonschema import Draft202012Validator

from minivit import ViT
from minivit.arrays import Array
from minivit.explorer import explore

Rows = list[list[float]]


@functools.cache
def schema() -> dict[str, Any]:
    """Return the schema of the page's data."""
    read: dict[str, Any] = json.loads(files("minivit.explorer").joinpath("schema.json").read_text(encoding="utf-8"))
    return read


def assert_valid(data: dict[str, Any]) -> None:
    """Assert that the data are JSON without NaN, and follow the schema."""
    again = json.loads(json.dumps(data, allow_nan=False))
    assert [
        f"{list(e.absolute_path)}: {e.message[:300]}" for e in Draft202012Validator(schema()).iter_errors(again)
    ] == []


def data_in(page: Path) -> dict[str, Any]:
    """Return the valid data in a page."""
    text = page.read_text(encoding="utf-8")
    element = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert element
    data: dict[str, Any] = json.loads(element[1])
    assert_valid(data)
    return data


def small_page(model: ViT | None = None, count: int = 1, **options: Any) -> dict[str, Any]:
    """Return the valid data of a small model and some images with labels; without gradient checks, which are slow."""
    model = model or small_vit.model(depth=1)
    images, labels, _ = small_vit.batch(count, str(model.parameters.store.values.dtype))
    data = explore(model, images, **{"labels": labels, "checks": False, **options})
    assert_valid(data)
    return data


@functools.cache
def checked_page() -> dict[str, Any]:
    """Return the data of `small_page` with gradient checks, made once with the kernels; a test changes a copy."""
    return small_page(checks=True)


def quantities(data: dict[str, Any], image: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each layer with each of its quantities."""
    for layer in data["images"][image]["layers"]:
        for quantity in layer["quantities"]:
            yield layer["name"], quantity


def layer(data: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a layer of the first image."""
    found: dict[str, Any] = next(each for each in data["images"][0]["layers"] if each["name"] == name)
    return found


def values_of(heat_map: dict[str, Any]) -> Rows:
    """Return what the page reads from a map, and check its bytes."""
    data = base64.b64decode(heat_map["data"], validate=True)
    rows, cols, low, high = (heat_map[key] for key in ("rows", "cols", "low", "high"))
    assert len(data) == rows * cols
    found = []
    for i in range(rows):
        top = heat_map["row_high"][i] if "row_high" in heat_map else high
        bottom = -top if low < 0 else 0.0
        found.append([bottom + data[i * cols + j] / 255 * (top - bottom) for j in range(cols)])
    return found


def in_rows(array: Array, name: str, kind: str) -> Rows:
    """Return an array of a layer in rows and columns, as schema.json and docs/gradients.md say, by plain loops."""
    name, shape = name.removeprefix("d"), array.shape
    if array.ndim == 0:
        return [[float(array)]]
    if array.ndim == 1:
        return [[float(x) for x in array]]
    if array.ndim == 4 and name in ("q", "k", "v"):
        return [[float(array[0, h, t, k]) for h in range(shape[1]) for k in range(shape[3])] for t in range(shape[2])]
    if array.ndim == 4 and (name in ("scores", "weights") or kind == "softmax"):
        H = shape[1]
        return [[sum(float(array[0, h, q, k]) for h in range(H)) / H for k in range(shape[3])] for q in range(shape[2])]
    if array.ndim == 4:
        C = shape[3]
        return [[sum(float(array[0, y, x, c]) for c in range(C)) / C for x in range(shape[2])] for y in range(shape[1])]
    if array.ndim == 3:
        return [[float(array[0, t, d]) for d in range(shape[2])] for t in range(shape[1])]
    return [[float(x) for x in row] for row in array]


def reduced(rows: Rows, most: int) -> Rows:
    """Return the means of equal blocks of rows and columns, so that there are at most `most` of each."""
    high, wide = -(-len(rows) // most), -(-len(rows[0]) // most)
    found: Rows = []
    for i in range(0, len(rows), high):
        found.append([])
        for j in range(0, len(rows[0]), wide):
            block = [x for row in rows[i : i + high] for x in row[j : j + wide]]
            found[-1].append(sum(block) / len(block))
    return found


def assert_within_half_a_step(heat_map: dict[str, Any], expected: Rows) -> None:
    """Assert that a map has the `expected` cells, but for the rounding to 8 bits, and the scale of the largest one."""
    found, largest = values_of(heat_map), max(abs(x) for row in expected for x in row)
    signed = min(x for row in expected for x in row) < 0
    assert [heat_map["rows"], heat_map["cols"]] == [len(expected), len(expected[0])]
    assert abs(heat_map["high"] - largest) <= 1e-12 * largest
    assert heat_map["low"] == (-heat_map["high"] if signed else 0)
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        top = heat_map["row_high"][i] if "row_high" in heat_map else heat_map["high"]
        half = (1 + 1e-9) * (2 if signed else 1) * top / 255 / 2
        assert max(abs(x - y) for x, y in zip(ours, theirs, strict=True)) <= half
