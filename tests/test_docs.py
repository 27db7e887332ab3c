"""The pages of docs/: every Python block runs and prints exactly what the page quotes after it."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import minivit
from minivit.cli.main import _parse as parse
from minivit.nn.presets import get_config
from minivit.train.groups import first_trained_block
from minivit.train.recipe import Recipe, make_optimizer
from minivit.train.recipes import recipe_names
from minivit.weights.resample import CONVENTIONS

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "derivations"
PAGES_WITH_LINKS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DERIVED = [
    "activations.md", "attention.md", "convolutions.md", "dropout.md", "embeddings.md", "gelu.md", "grad_scaler.md",
    "layer_norm.md", "layer_scale.md", "masking.md", "optimizers.md", "residual.md", "softmax_cross_entropy.md",
]  # fmt: skip
ALL = ["README.md", *DERIVED, "../figures.md", "../gradients.md", "../python_training.md", "../your_own_layer.md"]
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
def test_the_code_on_a_page_prints_what_the_page_quotes(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
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


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: Counter[str] = Counter()
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE):
        shown = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)  # a link is shown as its text
        slug = re.sub(r"[^\w -]", "", shown.lower()).replace(" ", "-")
        found[f"{slug}-{found[slug]}" if found[slug] else slug] += 1
    return set(found)


def broken_links(page: Path) -> list[str]:
    """Return the links of a page to files that do not exist, and to headings that the files do not have."""
    broken = []
    for link in re.findall(r"\]\((?!https?:)(.*?)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES_WITH_LINKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_of_it(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_to_no_file_or_no_heading_is_found(tmp_path: Path) -> None:
    other = "# One `x_y`, and [two](https://a.b)\n## One x_y and two\n```\n# Code\n```\n"
    (tmp_path / "other.md").write_text(other, encoding="utf-8")
    right = ["other.md", "other.md#one-x_y-and-two", "other.md#one-x_y-and-two-1", "#here", "https://a.b/c.md#d"]
    wrong = ["no.md", "no.md#here", "other.md#here", "other.md#code", "other.md#one-x_y-and-two-2", "#there"]
    page = tmp_path / "page.md"
    page.write_text("# Here\n" + "".join(f"[a]({link}), " for link in right + wrong), encoding="utf-8")
    assert broken_links(page) == wrong


SYSTEMS = (PAGES.parent / "systems.md").read_text(encoding="utf-8")


def lines_of(start: str) -> list[str]:
    """Return the code on the page of systems that begins with `start`."""
    return re.findall(rf"`({re.escape(start)}[^`]*)`", SYSTEMS)


@pytest.mark.parametrize("line", lines_of("minivit.create_model("))
def test_the_models_of_systems_are_built_and_compute(line: str) -> None:
    def first_block(name: str, **fields: Any) -> minivit.ViT:
        config = get_config(name, **fields)
        return minivit.ViT(replace(config, depth=1))

    model = eval(line, {"minivit": SimpleNamespace(create_model=first_block)})
    images = np.zeros((1, model.config.height, model.config.width, 3), np.float32)
    assert model(images).shape == (1, model.config.num_classes)


def test_the_lines_that_load_weights_pass_fields_of_a_model() -> None:
    given: list[tuple[Any, ...]] = []

    def load_model(path: str, resample: str = "timm", **fields: Any) -> None:
        given.append((path, resample in CONVENTIONS, get_config("vit_base_patch16_224", **fields)))

    for line in lines_of("minivit.load_model("):
        eval(line, {"minivit": SimpleNamespace(load_model=load_model)})
    assert len(given) >= 10
    assert all(known for _, known, _ in given)


def test_the_command_that_trains_the_last_layers_ends_the_backward_pass_before_them() -> None:
    page = (PAGES.parent / "runs.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    minivit (train DATA .*--freeze .*)$", page, re.MULTILINE)
    recipe = Recipe("DATA", "vit_tiny_patch4_32", freeze=tuple(parse(shlex.split(command)).freeze))
    model = minivit.create_model(recipe.model, embed_dim=6, num_heads=1)
    assert first_trained_block(make_optimizer(recipe, model).groups, model.config.depth) == 9


def test_every_recipe_has_a_row_whose_command_is_one() -> None:
    named = [
        name
        for names in re.findall(r"^\| (`[\w, `-]+`) \|.*`minivit", SYSTEMS, re.MULTILINE)
        for name in re.findall(r"[\w-]+", names)
    ]
    assert sorted(named) == recipe_names()
    rows = re.findall(r"^\| `([\w-]+)`.*? \|.*`minivit ((?:pre)?train .*?)`", SYSTEMS, re.MULTILINE)
    for name, command in rows:
        args = parse(command.split())
        default = "finetune" if getattr(args, "init", None) else {"photos/": "folder"}.get(args.dataset, args.dataset)
        default = "pretrain" if args.command == "pretrain" else default
        assert (args.recipe or default) == name


README = ROOT / "README.md"


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
    blocks = (body for language, body in FENCE.findall(README.read_text(encoding="utf-8")) if language == "python")
    code = "".join([*blocks][1:])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "page"})
    assert printed.getvalue().count("passed: ") == 2
    assert (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "rollout.png").exists()
