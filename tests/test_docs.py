"""The pages of docs/: every Python block runs and prints exactly what the page quotes after it."""

from __future__ import annotations

import ast
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


README = Path(__file__).parent.parent / "README.md"


def without_docstrings(source: str) -> dict[str, str]:
    """Return the code of each function, by name."""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        if ast.get_docstring(function) is not None:
            del function.body[0]
    return {function.name: ast.unparse(function) for function in functions}


def test_the_op_in_the_readme_is_the_op() -> None:
    quoted = next(body for language, body in FENCE.findall(README.read_text(encoding="utf-8")) if language == "python")
    path = README.parent / "minivit" / "ops" / "softmax.py"
    assert without_docstrings(quoted) == without_docstrings(path.read_text(encoding="utf-8"))


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, code = (body for language, body in FENCE.findall(README.read_text(encoding="utf-8")) if language == "python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "page"})
    assert printed.getvalue().count("passed: ") == 2
    assert (tmp_path / "model.safetensors").exists()


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).is_file(), target
