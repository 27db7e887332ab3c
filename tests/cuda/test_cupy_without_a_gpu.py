"""CuPy is installed and there is no GPU: minivit imports it only on request, and says what is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cuda

# Without a driver, or with one whose devices are hidden.
NO_GPU = r"backend 'cupy': (there is no NVIDIA driver here|the NVIDIA driver finds no device).* use backend='numpy'"


@pytest.fixture(scope="module", autouse=True)
def cupy_is_installed() -> None:
    if importlib.util.find_spec("cupy") is None:
        pytest.fail("these tests need CuPy: pip install cupy-cuda13x")


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with all GPUs hidden."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_importing_minivit_does_not_import_cupy(tmp_path: Path) -> None:
    done = python("-c", "import sys, minivit; sys.exit('cupy' in sys.modules)", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_model_on_cupy_is_an_error(tmp_path: Path) -> None:
    code = """
import minivit
try:
    minivit.create_model("vit_micro_patch4_8", backend="cupy")
except minivit.UserError as error:
    print(error)
"""
    done = python("-c", code, cwd=tmp_path)
    assert re.fullmatch(NO_GPU, done.stdout.strip()), done


def test_numpy_works_after_that_error(tmp_path: Path) -> None:
    code = """
import minivit, numpy
try:
    minivit.create_model("vit_micro_patch4_8", backend="cupy")
except minivit.UserError:
    images = numpy.zeros((2, 8, 8, 1), numpy.float32)
    print(minivit.create_model("vit_micro_patch4_8")(images).shape)
"""
    assert python("-c", code, cwd=tmp_path).stdout == "(2, 10)\n"


def test_info_says_why_cupy_cannot_be_used(tmp_path: Path) -> None:
    done = python("-m", "minivit", "info", "--json", cwd=tmp_path)
    assert done.returncode == 0, done
    about = json.loads(done.stdout.splitlines()[-1])["backends"]["cupy"]
    assert re.fullmatch(NO_GPU, about["reason"])
    assert about["devices"] == []
    assert about["version"]
    shown = python("-m", "minivit", "info", cwd=tmp_path).stdout
    assert "no NVIDIA driver here" in shown or "finds no device" in shown, shown


def test_training_ends_with_one_message_before_anything_is_written(tmp_path: Path) -> None:
    done = python("-m", "minivit", "train", "digits", "--backend", "cupy", "--run", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(f"minivit: {NO_GPU}\n", done.stderr), done
    assert list(tmp_path.iterdir()) == []
