"""Time from a command typed to its answer for one image: python -m benchmarks.startup [--repeats N] [--json FILE]

Whole processes, one after the other and the sides in turn: `minivit predict`, and the same model file and image through
timm and through PyTorch alone. Beside them, what Python takes to do nothing and to import NumPy. All must give the same
answer. The first process of each side, whose files may still be on the disk, is reported and not counted. The exit
status is 1 where a side did not run, or the answers differ.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import minivit
from benchmarks.command import at_least_one, ended, refused_by
from benchmarks.output import check_writable, write_json
from benchmarks.startup_report import Side, report, table, verdict
from benchmarks.surroundings import surroundings
from benchmarks.tables import heading
from minivit.errors import RunError
from minivit.nn.config import ViTConfig

ROOT = Path(__file__).parent.parent
MODELS = ("vit_tiny_patch16_224", "vit_tiny_patch4_32")


def prepare(folder: Path, config: ViTConfig) -> tuple[Path, Path]:
    """Write a model with weights from a seed into `folder`, and an image of its size; return both paths."""
    model = minivit.ViT(config, seed=0)
    generator = np.random.default_rng(0)
    head = model.parameters["head.weight"]
    head.value[...] = generator.normal(0.0, 0.2, head.shape)  # its first values make all classes alike
    names = [f"class{i}" for i in range(config.num_classes)]
    mean_and_std = {"mean": [0.5] * config.in_chans, "std": [0.25] * config.in_chans}
    minivit.save_model(model, folder, extra={"class_names": names, **mean_and_std})
    pixels = generator.integers(0, 256, (config.height, config.width, config.in_chans), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return folder, folder / "image.png"


def sides(folder: Path, image: Path) -> list[Side]:
    """Return the sides for a model folder and an image, ours first."""
    arguments = [str(folder), str(image)]
    command = Path(sysconfig.get_path("scripts")) / "minivit"
    ours = [str(command)] if command.exists() else [sys.executable, "-m", "minivit"]
    return [
        Side("minivit predict", [*ours, "predict", *arguments]),
        Side("timm", [sys.executable, "-m", "benchmarks.startup_timm", *arguments, "plain"]),
        Side("timm, hurried", [sys.executable, "-m", "benchmarks.startup_timm", *arguments, "hurried"]),
        Side("PyTorch alone", [sys.executable, "-m", "benchmarks.startup_torch", *arguments]),
        Side("Python, nothing", [sys.executable, "-c", "pass"]),
        Side("Python, import numpy", [sys.executable, "-c", "import numpy"]),
    ]


def answer(output: str) -> tuple[str, float] | None:
    """Return the class and the probability in percent that a side printed first, or None where it printed neither."""
    found = re.search(r"([\d.]+) %\s+(\S+)", output)
    return (found[2], float(found[1])) if found else None


def measure(side: Side) -> float:
    """Run one process of a side and return its seconds; a side that fails says so in `failure`."""
    # With this variable every process would compile the modules of a clone anew.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    done = subprocess.run(side.command, capture_output=True, text=True, cwd=ROOT, env=environment)
    seconds = time.perf_counter() - begun
    if done.returncode:
        side.failure = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    side.answer = answer(done.stdout)
    return seconds


def compare(everyone: list[Side], repeats: int) -> None:
    """Run all sides in turn, each round beginning with another one.

    Raises
    ------
    RunError
        Ours fails, or two sides give different answers.
    """
    for side in everyone:
        side.first = measure(side)
    running = [side for side in everyone if not side.failure]
    check_answers(everyone)
    for i in range(repeats):
        for side in running[i % len(running) :] + running[: i % len(running)]:
            side.seconds.append(measure(side))
        check_answers(everyone)


def check_answers(everyone: list[Side]) -> None:
    """Raise RunError unless ours, the first, gave an answer and every other that ran gave the same one, or none."""
    ours = everyone[0]
    if ours.failure or ours.answer is None:
        raise RunError(f"{ours.name} failed: {ours.failure or 'it printed no answer'}")
    answers = {side.name: side.answer for side in everyone if side.answer and not side.failure}
    names, probabilities = zip(*answers.values(), strict=True)
    if len(set(names)) > 1 or max(probabilities) - min(probabilities) > 0.11:  # each is rounded to 0.1
        raise RunError(f"the sides give different answers: {answers}")


def versions() -> dict[str, str]:
    """Return the versions of what the sides use, as far as it is installed."""
    found = {"minivit": minivit.__version__}
    for name in ("numpy", "pillow", "torch", "torchvision", "timm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each model, print the tables, write all numbers where --json says, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = f"default: {' '.join(MODELS)}"
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL", help=f"presets ({default})")
    parser.add_argument("--repeats", type=at_least_one, default=7, help="processes a side that count (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args(arguments)
    with refused_by(parser):
        configs = {name: minivit.get_config(name) for name in options.models}
        check_writable(options.json)
    where, used = surroundings(), versions()
    about = {"surroundings": where, "versions": used, "processes": options.repeats}
    results: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        with tempfile.TemporaryDirectory() as folder:
            everyone = sides(*prepare(Path(folder), config))
            compare(everyone, options.repeats)
        results[name] = report(everyone)
        print(f"{name}:\n\n{table(results[name])}\n\n{verdict(results[name])}\n", flush=True)
        write_json(options.json, about | {"models": results})  # after each model, so that Ctrl-C loses one at most
    print(heading(where, used, options.repeats))
    return 1 if any("failure" in figures for sides in results.values() for figures in sides.values()) else 0


if __name__ == "__main__":
    sys.exit(ended(main))
