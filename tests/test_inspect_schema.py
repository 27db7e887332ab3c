"""The schema of the page's data: it is one, describes every field, and refuses data that do not follow it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from explored import checked_page, data_in, schema
from jsonschema import Draft202012Validator


def fields(part: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield all fields in a schema, and their paths."""
    if isinstance(part, dict):
        for name, field in part.get("properties", {}).items():
            yield f"{path}/{name}", field
        for name, inner in part.items():
            yield from fields(inner, f"{path}/{name}")


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return checked_page()


def test_it_is_a_schema_of_the_draft_that_it_names() -> None:
    Draft202012Validator.check_schema(schema())
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_field_has_a_description() -> None:
    found = dict(fields(schema()))
    assert len(found) > 100
    defined = schema()["$defs"]
    described = {
        path: field.get("description") or defined[field["$ref"].rpartition("/")[2]]["description"]
        for path, field in found.items()
    }
    assert [path for path, words in described.items() if not words.endswith((".", ")", "base64"))] == []


def test_every_field_of_the_schema_is_in_the_data_or_may_be_left_out(data: dict[str, Any]) -> None:
    for name, part in schema()["$defs"].items():
        if "properties" in part:
            optional = {"row_high"} if name == "heat_map" else set()
            assert set(part["required"]) == set(part["properties"]) - optional
    assert set(schema()["required"]) == set(schema()["properties"]) == set(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("images", 0, "logits", 0), "0.5"),
        (("images", 0, "path", 0, "kind"), "something"),
        (("images", 0, "layers", 0, "quantities", 0, "statistics", "counts"), [1]),
        (("images", 0, "png"), "https://example.org/a.png"),
        (("maps", 0, "rows"), 0),
        (("depth", "steps"), []),
        (("schema",), 2),
        (("something",), 1),
    ],
)
def test_wrong_data_are_refused(data: dict[str, Any], path: tuple[Any, ...], value: object) -> None:
    wrong = copy.deepcopy(data)
    place: Any = wrong
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert not Draft202012Validator(schema()).is_valid(wrong)


def test_the_example_page_follows_the_schema() -> None:
    data = data_in(Path(__file__).parent.parent / "docs" / "examples" / "digits.html")
    assert data["full"]
    assert data["subject"]["source"] == "run"
    assert len(data["depth"]["steps"]) > 2


def test_a_missing_field_is_refused(data: dict[str, Any]) -> None:
    wrong = {key: value for key, value in data.items() if key != "note"}
    assert not Draft202012Validator(schema()).is_valid(wrong)
