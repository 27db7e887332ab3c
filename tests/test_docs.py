"""The pages of docs/: every Python block runs and prints exactly what the page quotes after it."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parent.parent / "docs" / "derivations"
DERIVED = ["attention.md", "gelu.md", "layer_norm.md", "softmax_cross_entropy.md"]
ALL = ["README.md", *DERIVED, "../your_own_layer.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(page: str) -> str:
    return (PAGES / page).read_text(encoding="utf-8")


def checks(page: str) -> list[tuple[str, str]]:
    """Return each Python block of the page with the output quoted in the text block that follows it."""
    blocks = FENCE.findall(read(page))
    languages = [language for language, _ in blocks if language]
    assert languages == ["python", "text"] * (len(languages) // 2), f"{page}: blocks are tagged {languages}"
    bodies = [body for language, body in blocks if language]
    return list(zip(bodies[::2], bodies[1::2], strict=True))


@pytest.mark.parametrize("page", ALL)
def test_the_code_on_a_page_prints_what_the_page_quotes(page: str) -> None:
    pairs = checks(page)
    assert pairs, f"{page} has no Python block"
    names = {"__name__": "page"}
    for code, quoted in pairs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), names)
        assert printed.getvalue() == quoted


def test_the_index_links_every_page() -> None:
    assert sorted(path.name for path in PAGES.glob("*.md")) == sorted(["README.md", *DERIVED])
    assert sorted(set(re.findall(r"\]\((\w+\.md)\)", read("README.md")))) == DERIVED


@pytest.mark.parametrize("page", ALL)
def test_every_link_between_pages_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", read(page)):
        assert (PAGES / target).is_file(), f"{page} links {target}"
