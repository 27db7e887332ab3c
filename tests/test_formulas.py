"""The formulas of the explorer: they mean what the code computes, and their MathML is safe and complete."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from formula_cases import CASES, COMMON, case_of, same

TEXT = (Path(__file__).parent / "formulas.txt").read_text(encoding="utf-8")
MEANINGS = {(kind, role): lines for kind, role, lines in re.findall(r"(?ms)^## (\w+), (\w+)\n(.*?)(?=^## |\Z)", TEXT)}


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
