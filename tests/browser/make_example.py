"""Makes docs/examples/digits.html and docs/images/explorer.png. Run with: make example."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from minivit.cli import main

from .opened import launch

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE, PICTURE = DOCS / "examples" / "digits.html", DOCS / "images" / "explorer.png"
MODEL = ["--set", "patch_size=2", "--set", "depth=3", "--set", "embed_dim=48"]
RUN = "runs/digits-1"


def write_example() -> None:
    """Train on the digits, and write the page of the run's model for one test image."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # so that the page shows no local path
        for command in (
            ["train", "digits", *MODEL, "--seed", "1", "--keep-every", "150", "--run", RUN],
            ["inspect", RUN, "--index", "3", "--out", PAGE.name],
        ):
            if main(command) != 0:
                raise SystemExit(f"minivit {' '.join(command)} failed")
        PAGE.write_bytes(Path(PAGE.name).read_bytes())


def draw_picture() -> None:
    """Draw the first view of the page, in few colours."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(PAGE.as_uri())
        page.locator("#view-path .stage").first.wait_for()
        page.screenshot(path=PICTURE, clip={"x": 0, "y": 0, "width": 1440, "height": 776})
        browser.close()
    with Image.open(PICTURE) as drawn:
        few = drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(PICTURE, optimize=True)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    write_example()
    draw_picture()
    for path, most in ((PAGE, 1_000_000), (PICTURE, 200_000)):
        size = path.stat().st_size
        if size > most:
            raise SystemExit(f"{path} has {size:,} bytes; expected at most {most:,}")
