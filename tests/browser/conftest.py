"""Chromium, the tools of npm, and the pages as fixtures; without one of them a test fails with instructions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .made import Made, make_pages
from .opened import Opened, launch

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Open = Callable[..., Opened]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, or that of $MINIVIT_CHROMIUM."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        pytest.fail(f"the tests of the browser need Playwright: pip install 'minivit[browser]' ({error})")
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The folder of axe-core and temml."""
    path = Path(os.environ.get("MINIVIT_NODE_MODULES", "node_modules"))
    if not (path / "axe-core").is_dir():
        pytest.fail(
            "the tests of the browser need axe-core and temml: npm ci in a copy of tests/browser/package*.json, "
            f"and MINIVIT_NODE_MODULES set to its folder node_modules (it is {path})"
        )
    return path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The pages that the tests open."""
    return make_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture
def open_page(browser: Browser, made: Made) -> Iterator[Open]:
    """Open a page by its name; in the end, nothing may have gone wrong in any."""
    opened: list[Opened] = []

    def open_page(
        name: str = "vit_tiny",
        anchor: str = "",
        *,
        width: int = 1440,
        scheme: str = "light",
        scripts: bool = True,
        before: Sequence[str] = (),
    ) -> Opened:
        path = made.paths[name]
        opened.append(Opened(browser, path, anchor, width=width, scheme=scheme, scripts=scripts, before=before))
        return opened[-1]

    yield open_page
    for each in opened:
        each.close()
