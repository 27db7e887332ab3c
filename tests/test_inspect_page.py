"""The explorer's page as a file: how modules, styles and data are joined; it loads nothing from the network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minivit import create_model
from minivit.errors import RunError
from minivit.explorer import explore, page, write_page

MARKUP = "<img src=x onerror=alert(1)> & </script><script>alert(2)</script>"
MODULES = sorted(page.SOURCES.glob("*.js"))


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text in each script, style and title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag in ("script", "style", "title"):
            self._open = tag
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = "" if tag == self._open else self._open

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    model = create_model(
        "vit_micro_patch4_8", patch_size=4, depth=1, embed_dim=8, num_heads=2, num_classes=3, dtype="float64"
    )
    images = np.random.default_rng(0).standard_normal((1, model.config.height, model.config.width, 1))
    return explore(model, images, [1], class_names=(MARKUP, "two", "three"), names=[MARKUP], title=MARKUP)


@pytest.fixture(scope="module")
def text(data: dict[str, Any]) -> str:
    return page.page(data)


def exported(source: str) -> list[str]:
    return re.findall(r"^export (?:async )?(?:function|const|class) (\w+)", source, re.MULTILINE)


def imported(source: str) -> dict[str, list[str]]:
    """Return the names that a module imports, by module."""
    found = re.findall(r'^import \{([^}]*)\} from "\./(\w+\.js)";$', source, re.MULTILINE)
    return {name: [each.strip() for each in names.split(",") if each.strip()] for names, name in found}


def test_a_name_is_exported_once_in_all_modules() -> None:
    names = [name for path in MODULES for name in exported(path.read_text(encoding="utf-8"))]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_has_only_imports_and_exports_that_are_joined(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    for name, names in imported(source).items():
        assert set(names) <= set(exported((page.SOURCES / name).read_text(encoding="utf-8")))
    assert source.count("import ") - source.count(" import ") == len(imported(source))
    assert len(re.findall(r"^export\b", source, re.MULTILINE)) == len(exported(source))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_imports_what_it_uses_of_the_others(path: Path) -> None:
    """In the page all exports are in reach; from a server of modules only those that are imported."""
    source = path.read_text(encoding="utf-8")
    code = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
    own = {name for names in imported(source).values() for name in names}
    own |= set(re.findall(r"(?:function|const|let|class) (\w+)", code))
    others = {name for other in MODULES if other != path for name in exported(other.read_text(encoding="utf-8"))}
    called = set(re.findall(r"(?<![.\w])(\w+)\(", code))
    assert (called & others) - own == set()


def test_every_module_and_style_of_the_folder_is_in_the_page(text: str) -> None:
    assert sorted(page.modules()) == [path.name for path in MODULES]
    for style in page.SOURCES.glob("*.css"):
        assert style.read_text(encoding="utf-8").strip() in text


def test_a_module_comes_after_those_that_it_imports() -> None:
    order = list(page.modules())
    for name, source in page.modules().items():
        assert all(order.index(needed) < order.index(name) for needed in imported(source))


def test_the_data_in_the_page_are_those_that_were_given(data: dict[str, Any], text: str) -> None:
    (inside,) = [part for part in Elements(text).texts["script"] if part.startswith("{")]
    assert json.loads(inside) == data


def test_markup_in_names_stays_text(text: str) -> None:
    elements = Elements(text)
    assert len(elements.of("script")) == 2
    assert elements.texts["title"] == [MARKUP]
    assert [image for image in elements.of("img") if not (image["src"] or "").startswith("data:")] == []
    assert [image["alt"] for image in elements.of("img")] == [MARKUP]
    assert [attributes for _, attributes in elements.found if "onerror" in attributes] == []


def test_the_policy_allows_the_one_script_and_nothing_from_outside(text: str) -> None:
    elements = Elements(text)
    (policy,) = [meta["content"] or "" for meta in elements.of("meta") if meta.get("http-equiv")]
    (script,) = [part for part in elements.texts["script"] if not part.startswith("{")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert dict(part.split(" ", 1) for part in policy.split("; ")) == {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
    }


def test_the_page_refers_to_nothing_outside_itself(text: str) -> None:
    elements = Elements(text)
    addresses = [
        value or ""
        for tag, attributes in elements.found
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "poster", "data")
    ]
    assert [address for address in addresses if not address.startswith(("data:", "#"))] == []
    assert re.findall(r"url\(|@import", "".join(elements.texts["style"])) == []
    (script,) = [part for part in elements.texts["script"] if not part.startswith("{")]
    addresses = re.findall(r"https?://[^\s\"'`)]+", script)
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}  # the name of SVG's elements; nothing is fetched from it
    assert re.findall(r"\b(?:fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|importScripts|eval)\b", script) == []


def test_without_scripts_the_page_says_so_and_shows_the_image(data: dict[str, Any], text: str) -> None:
    match = re.search(r"<noscript>(.*?)</noscript>", text, re.DOTALL)
    assert match
    assert "scripts are off" in match[1]
    assert data["images"][0]["png"] in match[1]
    assert f"{data['model']['parameters']:,} parameters" in match[1]


def test_names_that_look_like_places_of_the_template_stay_as_they_are(data: dict[str, Any]) -> None:
    text = page.page({**data, "title": r"@script@ \1 @data@"})
    assert Elements(text).texts["title"] == [r"@script@ \1 @data@"]


def test_names_of_files_that_are_no_utf_8_can_be_written(data: dict[str, Any], tmp_path: Path) -> None:
    images = [{**data["images"][0], "name": "caf\udce9.png"}]
    write_page({**data, "images": images, "command": "minivit inspect m --image caf\udce9.png"}, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert r'"name":"caf\udce9.png"' in text
    element = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert element
    assert json.loads(element[1])["images"] == images


def test_writing_returns_the_size_of_the_file(data: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    assert write_page(data, path) == path.stat().st_size
    assert path.read_text(encoding="utf-8") == text


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    path.write_text("the old page", encoding="utf-8")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match=r"page\.html"):
        write_page(data, path)
    assert path.read_text(encoding="utf-8") == "the old page"
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
