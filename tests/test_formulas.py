"""The formulas of the explorer: they mean what the code computes, and their MathML is safe and complete."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from formula_cases import CASES, COMMON, case_of, same

import minivit
from minivit.explorer.explained import find, page_path
from minivit.explorer.formulas import known_formulas

TEXT = (Path(__file__).parent / "formulas.txt").read_text(encoding="utf-8")
MEANINGS = {(kind, role): lines for kind, role, lines in re.findall(r"(?ms)^## (\w+), (\w+)\n(.*?)(?=^## |\Z)", TEXT)}
TAGS = {
    "math",
    "mfrac",
    "mi",
    "mn",
    "mo",
    "mover",
    "mrow",
    "mspace",
    "msqrt",
    "msub",
    "msubsup",
    "msup",
    "mtext",
    "munder",
}
ATTRIBUTES = {
    "fence",
    "form",
    "lspace",
    "mathvariant",
    "maxsize",
    "minsize",
    "movablelimits",
    "rspace",
    "separator",
    "stretchy",
    "symmetric",
    "width",
}


def latex_of(lines: str) -> list[str]:
    return [line for line in lines.splitlines() if line and not line.startswith(" ")]


def code_of(lines: str) -> str:
    return "\n".join(line[4:] for line in lines.splitlines() if line.startswith(" "))


@pytest.mark.parametrize("kind", CASES)
def test_a_formula_gives_what_the_code_computes(kind: str) -> None:
    case = case_of(kind)
    names = {**COMMON, **case.names}
    for role, expected in (("forward", case.forward), ("backward", case.backward)):
        exec(code_of(MEANINGS[kind, role]), names)
        for name, value in expected.items():
            assert np.any(value)
            same(names[name], value)
    for name, value in case.of_parts.items():
        if name in names:
            same(names[name], value)


def test_every_formula_has_a_meaning_and_is_written_as_in_the_file_of_meanings() -> None:
    read = json.loads((Path(minivit.__file__).parent / "explorer" / "formulas.json").read_text(encoding="utf-8"))
    own = {kind: formula for kind, formula in read.items() if isinstance(formula, dict)}
    assert list(own) == list(CASES)
    assert {*MEANINGS} == {(kind, role) for kind in own for role in ("forward", "backward")}
    for (kind, role), lines in MEANINGS.items():
        assert own[kind]["latex"][role] == latex_of(lines)
        assert code_of(lines)
    for kind, other in read.items():
        assert isinstance(other, dict) or (other in own and kind.lower() == other.replace("_", ""))


@pytest.mark.parametrize("kind", known_formulas())
def test_a_formula_has_mathml_of_both_passes_without_anything_but_mathematics(kind: str) -> None:
    formula = known_formulas()[kind]
    for latex, lines in ((formula["latex"][role], formula[role]) for role in ("forward", "backward")):
        assert len(latex) == len(lines) > 0
        for said, line in zip(latex, lines, strict=True):
            tree = ElementTree.fromstring(line)
            assert tree.attrib == {"alttext": said, "display": "block"}
            assert "".join(tree.itertext()).strip()
            assert {element.tag for element in tree.iter()} <= TAGS
            assert {name for element in tree for inner in element.iter() for name in inner.attrib} <= ATTRIBUTES


@pytest.mark.parametrize("kind", known_formulas())
def test_the_page_of_a_formula_is_one_that_derives_it(kind: str) -> None:
    page, found = known_formulas()[kind]["page"], find(kind)
    assert found is not None
    name = page.removeprefix("docs/derivations/") if page else None
    assert name in found.pages if found.pages else name is None
    assert name is None or page_path(name).is_file()
