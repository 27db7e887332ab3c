"""The example page of the documents, which `make example` makes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from explored import assert_valid

from minivit.explorer.page import page

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "digits.html"
TEXT = EXAMPLE.read_text(encoding="utf-8")
FOUND = re.search(r'<script type="application/json" id="data">(.*?)</script>', TEXT, re.DOTALL)
DATA = json.loads(FOUND[1]) if FOUND else {}


def test_the_data_follow_the_schema() -> None:
    assert_valid(DATA)


def test_the_page_is_what_the_sources_make_of_its_data() -> None:
    """After a change to the page, run `make example`."""
    assert page(DATA) == TEXT, "run: make example"


def test_it_shows_a_run_with_kept_steps_all_checks_passed_and_all_mistakes_found() -> None:
    assert DATA["subject"]["source"] == "run"
    assert len(DATA["depth"]["steps"]) > 5
    assert {name for name, check in DATA["checks"].items() if not check["passed"]} == set()
    assert DATA["mistakes"]
    assert all(mistake["found"] for mistake in DATA["mistakes"])


def test_it_is_small_and_names_no_folder_of_the_machine_that_made_it() -> None:
    assert EXAMPLE.stat().st_size <= 1_000_000
    assert re.findall(r"(?:/home|/root|/tmp|/work)/", json.dumps(DATA)) == []
