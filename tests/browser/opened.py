"""A page opened in the browser, with all that went wrong in it and all that it asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright

VIEWS = ("path", "layer", "attention", "depth", "mistakes")
HERE = Path(__file__).parent


@cache
def script(name: str) -> str:
    """Return the source of a script of this folder, which is one expression."""
    return (HERE / name).read_text(encoding="utf-8")


def launch(playwright: Playwright) -> Browser:
    """Start Debian's Chromium, or that of $MINIVIT_CHROMIUM."""
    chromium = os.environ.get("MINIVIT_CHROMIUM") or shutil.which("chromium")
    if not chromium:
        raise FileNotFoundError("there is no Chromium: apt-get install chromium, or set MINIVIT_CHROMIUM to its path")
    # Its sandbox refuses to run as root, as which it runs in a container.
    return playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


class Opened:
    """A page in a context of its own, without cache.

    Attributes
    ----------
    page : playwright.sync_api.Page
        The page.
    problems : list of str
        Errors, and warnings and errors of the console.
    requests : list of str
        The addresses that were asked for, without those of ``data:``.
    """

    def __init__(
        self,
        browser: Browser,
        path: Path,
        anchor: str,
        *,
        width: int,
        scheme: str,
        scripts: bool,
        before: Sequence[str],
    ) -> None:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
            java_script_enabled=scripts,
        )
        self.url = path.as_uri()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page: Page = context.new_page()
        for source in before:
            self.page.add_init_script(source)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("crash", lambda _: self.problems.append("the page crashed"))
        context.on("request", lambda request: self._asked(request.url))
        context.on("page", lambda page: self.problems.append(f"another page was opened: {page.url}"))
        self.page.goto(self.url + anchor)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("warning", "error", "assert"):
            self.problems.append(f"{message.type}: {message.text}")

    def _asked(self, url: str) -> None:
        if not url.startswith("data:"):
            self.requests.append(url.partition("#")[0])

    def show(self, anchor: str) -> None:
        """Change the part of the address after ``#`` as a link does, and wait until the page has followed."""
        self.page.evaluate("anchor => { location.hash = anchor; }", anchor)
        self.settle()

    def settle(self) -> None:
        """Wait until what was changed is drawn."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def open_details(self) -> None:
        """Open every part of the page that can be folded away."""
        self.page.evaluate("() => document.querySelectorAll('details').forEach(each => { each.open = true; })")

    def close(self) -> None:
        """Close the page, and check that nothing went wrong in it and that it asked for nothing but itself."""
        self.page.context.close()
        assert self.problems == []
        assert set(self.requests) == {self.url}
