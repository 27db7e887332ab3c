"""Run commands in this process or in a shell, on small images, and check their output."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import minivit
from minivit.weights import read_tensors

SIZES = ("patch_size=2", "depth=1", "embed_dim=8", "num_heads=2")
TINY = ("--model", "vit_micro_patch4_8", *(text for size in SIZES for text in ("--set", size)))
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Said(NamedTuple):
    """The exit status and the output of a command."""

    status: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return values


Minivit = Callable[..., Said]


def save_squares(folder: Path, count: int = 12) -> Path:
    """Write a folder of 8 x 8 images: noise with a bright left or right half."""
    generator = np.random.default_rng(0)
    for part, n in (("train", count), ("test", 5)):
        for label, name in enumerate(("left", "right")):
            (folder / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = generator.integers(0, 128, (8, 8), dtype=np.uint8)
                pixels[:, 4 * label : 4 * label + 4] += 100
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


def assert_refused(said: Said, status: int, *words: str) -> None:
    """Assert the exit status, no traceback, and one error line that contains all of `words`."""
    assert said.status == status, said
    line, *more = [text for text in said.err.splitlines() if text.startswith("minivit: ")]
    assert not more
    assert "Traceback" not in said.err
    for word in words:
        assert word in line


def weights(run: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in read_tensors(run / "last" / "model.safetensors")[0].items()}


def in_a_shell(*argv: str, cwd: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "minivit", *argv]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
