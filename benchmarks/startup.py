"""Time from a command typed to its answer for one image: python -m benchmarks.startup [--repeats N] [--json FILE]

Whole processes in rounds: `minivit predict`, and the same model file and image through timm and through PyTorch alone;
beside them Python with nothing and with the import of NumPy. The first process of each, whose files may still be on the
disk, is not counted. The exit status is 1 where a command failed, or the answers differ.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import minivit
from benchmarks.baselines import OURS
from benchmarks.command import at_least_one, check_writable, ended, parser_of, tell
from benchmarks.compare import report_all
from benchmarks.harness import WorkerError, run_rounds
from benchmarks.report import Comparison
from benchmarks.workloads import Workload

ROOT = Path(__file__).parent.parent
MODELS = ("vit_tiny_patch16_224", "vit_tiny_patch4_32")
GROUPS = {  # of commands, by baseline
    OURS: ["minivit"],
    "timm": ["timm:documented", "timm:hurried"],
    "PyTorch alone": ["torch:alone"],
    "Python, nothing": ["python:nothing"],
    "Python, import numpy": ["python:numpy"],
}


def prepare(folder: Path, config: minivit.ViTConfig) -> tuple[Path, Path]:
    """Write a model with weights from a seed into `folder`, and an image of its size; return both paths."""
    model = minivit.ViT(config, seed=0)
    generator = np.random.default_rng(0)
    head = model.parameters["head.weight"]
    head.value[...] = generator.normal(0.0, 0.2, head.shape)  # its initial values make all classes alike
    names = [f"class{i}" for i in range(config.num_classes)]
    mean_and_std = {"mean": [0.5] * config.in_chans, "std": [0.25] * config.in_chans}
    minivit.save_model(model, folder, extra={"class_names": names, **mean_and_std})
    pixels = generator.integers(0, 256, (config.height, config.width, config.in_chans), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return folder, folder / "image.png"


def commands_for(folder: Path, image: Path) -> dict[str, list[str]]:
    """Return the commands for a model folder and an image."""
    script = Path(sysconfig.get_path("scripts")) / "minivit"
    ours = [str(script)] if script.exists() else [sys.executable, "-m", "minivit"]
    torch = [sys.executable, "-m", "benchmarks.startup_torch", str(folder), str(image)]
    return {
        "minivit": [*ours, "predict", str(folder), str(image)],
        "timm:documented": [*torch, "documented"],
        "timm:hurried": [*torch, "hurried"],
        "torch:alone": [*torch, "alone"],
        "python:nothing": [sys.executable, "-c", "pass"],
        "python:numpy": [sys.executable, "-c", "import numpy"],
    }


def run_command(commands: Mapping[str, Sequence[str]], name: str) -> dict[str, Any]:
    """Run a command; return its seconds, and the class and its probability in percent that it printed first.

    Raises WorkerError where the command failed, or where ours printed no answer.
    """
    # With this variable every process would compile the modules of a clone anew.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    done = subprocess.run(commands[name], capture_output=True, text=True, cwd=ROOT, env=environment)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise WorkerError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    found = re.search(r"([\d.]+) %\s+(\S+)", done.stdout)
    if not found and not name.startswith("python"):
        raise WorkerError("it printed no answer")
    answer, label = (float(found[1]), found[2]) if found else (None, None)
    return {"seconds": [seconds], "answer": answer, "label": label, "peak_bytes": 0, "versions": versions()}


def versions() -> dict[str, str]:
    """Return the versions of what the commands use, as far as it is installed."""
    found = {"minivit": minivit.__version__}
    for name in ("numpy", "pillow", "torch", "torchvision", "timm"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def measure(model: str, rounds: int) -> Comparison:
    """Run all commands once, and then in rounds; the first seconds stand in a note."""
    with tempfile.TemporaryDirectory() as folder:
        run = partial(run_command, commands_for(*prepare(Path(folder), minivit.get_config(model))))
        first = run_rounds(GROUPS, 1, run, tell)
        outcomes = run_rounds(GROUPS, rounds, run, tell)
    seconds = ", ".join(f"{name} {own.median:.3f} s" for name, own in first.items() if own.results)
    workload = Workload("start-up", "prediction", model)
    return Comparison(workload, GROUPS, outcomes, [f"{model}; first processes, not counted: {seconds}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each model, report, and return the exit status."""
    parser = parser_of(__doc__)
    default = f"default: {' '.join(MODELS)}"
    choices = [*minivit.PRESETS, [*MODELS]]  # argparse checks the default as a whole
    parser.add_argument("models", nargs="*", default=[*MODELS], choices=choices, metavar="MODEL", help=default)
    parser.add_argument("--repeats", type=at_least_one, default=7, dest="processes", help="that count (default: 7)")
    parser.set_defaults(threads=None, markdown=None)
    options = parser.parse_args(arguments)
    check_writable(options.json)
    return report_all(options.models, partial(measure, rounds=options.processes), options)


if __name__ == "__main__":
    sys.exit(ended(main))
