"""The MathML of the formulas is what temml makes of their LaTeX."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser


def test_the_mathml_is_what_temml_makes_of_the_latex(node_modules: Path) -> None:
    if not shutil.which("node"):
        pytest.fail("this test needs Node.js: apt-get install nodejs")
    command = ["node", str(Path(__file__).with_name("make_formulas.mjs")), "--check"]
    env = os.environ | {"MINIVIT_NODE_MODULES": str(node_modules)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
