"""What the tests of the page look for is found where it is, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from .opened import script

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

BOX = "style='width: 80px; white-space: nowrap; overflow: {}'"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 360, "height": 400})
    yield page
    page.close()


@pytest.mark.parametrize(
    "body",
    [
        f"<p {BOX.format('visible')}>text that is longer than its box</p>",
        f"<p {BOX.format('hidden')}>text that is longer than its box</p>",
        "<p style='white-space: nowrap'>" + "text that is wider than the window " * 3 + "</p>",
        "<p style='height: 20px; overflow: hidden'>" + "text that is cut off below " * 9 + "</p>",
        "<svg width=80 height=20><text x=60 y=15>leaves the drawing</text></svg>",
        "<div style='width: 500px'>a box that is wider than the window</div>",
    ],
)
def test_text_that_overflows_is_found(page: Page, body: str) -> None:
    page.set_content(body)
    assert page.evaluate(script("overflow.js"))


def test_text_that_wraps_or_has_a_scroll_box_is_left_alone(page: Page) -> None:
    page.set_content(
        f"<p>{'text that wraps ' * 20}</p><p {BOX.format('auto')}>text that is longer than its box</p>"
        "<svg width=80 height=20><text x=0 y=15>inside</text></svg>"
        "<p style='position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%)'>read aloud</p>"
        f"<p {BOX.format('visible')} hidden>text that is longer than its box</p>"
    )
    assert page.evaluate(script("overflow.js")) == []


def test_labels_that_lie_on_each_other_are_found(page: Page) -> None:
    labels = "<svg width=300 height=40><text x=0 y=15>one label</text><text x={} y=15>another</text></svg>"
    page.set_content(labels.format(20))
    assert page.evaluate(script("overlap.js")) == ["one label and another lie on each other"]
    page.set_content(labels.format(120))
    assert page.evaluate(script("overlap.js")) == []
