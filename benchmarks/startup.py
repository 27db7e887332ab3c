"""Time from a command typed to its answer for one image: python -m benchmarks.startup [--repeats N] [--json FILE]

Whole processes, one after the other: `minivit predict`, and the same model file and image through timm and through
PyTorch alone. Beside them, the time of Python for nothing and for the import of NumPy. All must give the same answer.
The first process of each command, whose files may still be on the disk, is reported and not counted. The exit status is
1 where a command failed, or the answers differ.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import minivit
from benchmarks.command import at_least_one, check_writable, ended, parser_of, refused_by, write_json
from benchmarks.harness import Outcome, WorkerError, run_rounds
from benchmarks.ratios import Ratio, ratio_of_times, spread
from benchmarks.report import heading, markdown_table, percent, surroundings
from minivit.errors import RunError

ROOT = Path(__file__).parent.parent
MODELS = ("vit_tiny_patch16_224", "vit_tiny_patch4_32")
OURS = "minivit predict"
BAR, AIM = 4.0, 8.0  # timm's time over ours

Answer = tuple[str, float]  # a class and its probability in percent
Commands = Mapping[str, list[str]]


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


def commands_for(folder: Path, image: Path) -> Commands:
    """Return the commands for a model folder and an image, ours first."""
    script = Path(sysconfig.get_path("scripts")) / "minivit"
    ours = [str(script)] if script.exists() else [sys.executable, "-m", "minivit"]
    torch = [sys.executable, "-m", "benchmarks.startup_torch", str(folder), str(image)]
    return {
        OURS: [*ours, "predict", str(folder), str(image)],
        "timm": [*torch, "timm"],
        "timm, hurried": [*torch, "hurried"],
        "PyTorch alone": [*torch, "alone"],
        "Python, nothing": [sys.executable, "-c", "pass"],
        "Python, import numpy": [sys.executable, "-c", "import numpy"],
    }


def run_command(commands: Commands, name: str) -> dict[str, Any]:
    """Run a command; return its seconds, and the answer that it printed, or None.

    Raises
    ------
    WorkerError
        It failed.
    """
    # With this variable every process would compile the modules of a clone anew.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    done = subprocess.run(commands[name], capture_output=True, text=True, cwd=ROOT, env=environment)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise WorkerError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    found = re.search(r"([\d.]+) %\s+(\S+)", done.stdout)
    return {"seconds": [seconds], "answer": (found[2], float(found[1])) if found else None}


def check_answers(outcomes: Mapping[str, Outcome]) -> None:
    """Raise RunError unless our command, the first, gave an answer and all others that answered gave the same one."""
    (ours, outcome), *_ = outcomes.items()
    if outcome.stopped:
        raise RunError(f"{ours} {outcome.stopped}")
    if outcome.results[0]["answer"] is None:
        raise RunError(f"{ours} failed: it printed no answer")
    answers = {
        name: result["answer"] for name, outcome in outcomes.items() for result in outcome.results if result["answer"]
    }
    names, probabilities = zip(*answers.values(), strict=True)
    if len(set(names)) > 1 or max(probabilities) - min(probabilities) > 0.11:  # each is rounded to 0.1
        raise RunError(f"the commands give different answers: {answers}")


def measure(commands: Commands, repeats: int) -> dict[str, Any]:
    """Run all commands in turn, and return the figures of each; the ratio is the time of one that answers over ours."""
    groups = {name: [name] for name in commands}
    run = partial(run_command, commands)
    outcomes = run_rounds(groups, repeats + 1, run, lambda line: None, lambda _, outcomes: check_answers(outcomes))
    (ours, *_) = outcomes.values()
    figures: dict[str, Any] = {}
    for name, outcome in outcomes.items():
        if outcome.stopped:
            figures[name] = {"failure": outcome.stopped.removeprefix("failed: ")}
            continue
        (first,), *rounds = outcome.seconds
        seconds = [own for (own,) in rounds]
        compared = outcome.results[0]["answer"] and outcome is not ours
        figures[name] = {
            "seconds": seconds,
            "first": first,
            "median": statistics.median(seconds),
            "best": min(seconds),
            "spread": spread(rounds),
            "ratio": ratio_of_times(ours.seconds[1:], rounds) if compared else None,
        }
    return figures


def table(figures: Mapping[str, Any]) -> str:
    """Return a Markdown table of `measure`'s figures, and notes."""
    head = ("command", "median, s", "best, s", "spread", "first, s", "median over ours", "95 % interval")
    rows, notes, noisy = [], [], []
    for name, f in figures.items():
        if "failure" in f:
            notes.append(f"{name} failed: {f['failure']}.")
            continue
        row = [name, f"{f['median']:.3f}", f"{f['best']:.3f}", percent(f["spread"]), f"{f['first']:.3f}"]
        ratio: Ratio | None = f["ratio"]
        row += [f"{ratio.of_medians:.2f}x", ratio.interval_text, f"{ratio.of_bests:.2f}x"] if ratio else [""] * 3
        noisy += [name] if ratio and ratio.noisy else []
        rows.append(row)
    if noisy:
        notes.append(f"Ratio uncertain, its interval being wider than a tenth of it: {'; '.join(noisy)}.")
    return "\n\n".join([markdown_table([*head, "best over ours"], rows), *notes])


def verdict(figures: Mapping[str, Any]) -> str:
    """Return whether the ratio to the faster of timm's two ways reaches the bar.

    A bar is reached or missed where the whole interval lies on one side of it, and open where the interval contains it.
    """
    ways: list[Ratio] = [f["ratio"] for name, f in figures.items() if name.startswith("timm") and f.get("ratio")]
    if not ways:
        return "timm did not run: whether the bar is reached is not known."
    ratio = min(ways, key=lambda ratio: ratio.of_medians)
    words = {True: "reached", False: "missed", None: "open" if ratio.interval else "open (too few rounds)"}
    marks = ", ".join(f"{name} {x:g}x {words[ratio.reaches(x)]}" for name, x in (("bar", BAR), ("aim", AIM)))
    return f"Against the faster of timm's two ways {ratio.of_medians:.2f}x: {marks}."


def versions() -> dict[str, str]:
    """Return the versions of what the commands use, as far as it is installed."""
    found = {"minivit": minivit.__version__}
    for name in ("numpy", "pillow", "torch", "torchvision", "timm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: f | ({"ratio": asdict(f["ratio"]) | {"noisy": f["ratio"].noisy}} if f.get("ratio") else {})
        for name, f in figures.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each model, print the tables, write all numbers where --json says, and return the exit status."""
    parser = parser_of(__doc__)
    default = f"default: {' '.join(MODELS)}"
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL", help=f"presets ({default})")
    parser.add_argument("--repeats", type=at_least_one, default=7, help="processes a command that count (default: 7)")
    options = parser.parse_args(arguments)
    with refused_by(parser):
        configs = {name: minivit.get_config(name) for name in options.models}
        check_writable(options.json)
    where, used = surroundings(), versions()
    about = {"surroundings": where, "versions": used, "processes": options.repeats}
    results: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(commands_for(*prepare(Path(folder), config)), options.repeats)
        print(f"{name}:\n\n{table(results[name])}\n\n{verdict(results[name])}\n", flush=True)
        plain = {name: _plain(figures) for name, figures in results.items()}
        write_json(options.json, about | {"models": plain})  # after each model, so that Ctrl-C loses one at most
    print(heading(where, used, options.repeats))
    return 1 if any("failure" in f for figures in results.values() for f in figures.values()) else 0


if __name__ == "__main__":
    sys.exit(ended(main))
