"""``minivit runs``: a table of training runs, how their recipes differ, and their curves in one figure."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minivit import explorer
from minivit.cli.common import CommandResult, check_figure
from minivit.cli.reporters import duration, percent
from minivit.cli.terminal import Terminal
from minivit.errors import UserError
from minivit.explorer.measures import run_names
from minivit.tracing.figures import save_figure
from minivit.train.run_folder import RunFolder
from minivit.train.state import best_line

HELP = "list and compare training runs"
DESCRIPTION = """\
List the runs in a folder: their data and model, the epochs that are done, the
accuracy (of pre-training, the loss) on the validation images of the best epoch
and on the test images, the time of training and the images per second. Of two
runs or more that are named, also show the fields of the recipe in which they
differ. --out draws loss and accuracy of all listed runs by epoch."""
EXAMPLES = """\
examples:
  minivit runs
  minivit runs pilots/ --json
  minivit runs runs/cifar10-1 runs/cifar10-2 --out curves.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "runs", metavar="DIR", nargs="*", default=["runs"], help="run folders, or folders of runs (default: runs)"
    )
    parser.add_argument("--out", metavar="FILE", help="draw the curves of the runs into a file .png or .svg")


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    check_figure(args.out)
    paths = [path for text in args.runs for path in _runs_in(Path(text).expanduser())]
    opened, described, errors = [], [], []
    for path in dict.fromkeys(paths):
        try:
            each = RunFolder.open(path)
            described.append(_described(each))
            opened.append(each)
        except UserError as error:  # one damaged run does not hide the others
            errors.append({"run": str(path), "error": str(error)})
    if opened:
        names = run_names(opened)
        columns = ["run", "data", "model", ">epochs", ">validation", ">test", ">time", ">images/s"]
        terminal.table(columns, [_cells(name, values) for name, values in zip(names, described, strict=True)])
    for each_error in errors:
        terminal.show(f"{each_error['run']} cannot be read: {each_error['error']}")
    named = all(RunFolder.exists(Path(text).expanduser()) for text in args.runs)
    differences = _differences(opened) if named and len(opened) > 1 else {}
    if differences:
        terminal.show("")
        rows = [(field, *(_short(value) for value in values)) for field, values in differences.items()]
        terminal.table(["recipe", *names], rows)
    if args.out:
        with_metrics = [each for each, values in zip(opened, described, strict=True) if values["epochs_done"]]
        save_figure(explorer.plot_curves(with_metrics), Path(args.out).expanduser())
        terminal.show(f"the curves are in {args.out}")
    values = {"runs": [*described, *errors], "differences": differences, "figure": args.out}
    return CommandResult(values, 0 if opened else 2)


def _runs_in(path: Path) -> list[Path]:
    """Return the run that `path` is, or the runs in it, in the order of their names and numbers.

    Symbolic links to runs and to folders of runs are followed. A folder that several paths lead to is visited once, if
    possible without a link.

    Raises
    ------
    UserError
        There is none.
    """
    if RunFolder.exists(path):
        return [path]
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; expected a run, or a folder of runs; `minivit train` makes them")
    found, visited, roots = [], set[str](), [str(path)]
    while roots:
        for folder, inner, _ in os.walk(roots.pop(0)):
            if (real := os.path.realpath(folder)) in visited:
                inner.clear()
                continue
            visited.add(real)
            if RunFolder.exists(Path(folder)):
                found.append(Path(folder))
                inner.clear()  # a folder in a run is not a run
            # `os.walk` names links and does not enter them.
            links = [link for name in inner if (link := Path(folder, name)).is_symlink()]
            roots += [str(link) for link in links if any(map(RunFolder.exists, (link, *link.iterdir())))]
    if not found:
        raise UserError(f"there are no runs in {path}; `minivit train` makes them")
    return sorted(found, key=lambda run: [(int(part), "") if part.isdecimal() else (-1, part) for part in _parts(run)])


def _parts(path: Path) -> Iterator[str]:
    return (part for part in re.split(r"([0-9]+)", str(path)) if part)


def _described(run: RunFolder) -> dict[str, Any]:
    """Return what the table shows of a run; null for what it does not have yet."""
    recipe, lines, result = run.recipe, run.metrics(), run.result()
    last = lines[-1] if lines else {}
    best = best_line(recipe, lines, result) or {}
    rates = result or last
    return {
        "run": str(run.path),
        "data": recipe.dataset,
        "model": recipe.model,
        "task": recipe.task,
        "epochs_done": len(lines),
        "epochs": recipe.epochs,
        "val_accuracy": result["best_val_accuracy"] if result else best.get("val_accuracy"),
        "test_accuracy": result and result["test_accuracy"],
        "val_loss": best.get("val_loss") if recipe.task else None,
        "test_loss": result and result.get("test_loss"),
        "seconds": rates.get("seconds"),
        "images_per_second": rates.get("images_per_second"),
    }


def _cells(name: str, values: dict[str, Any]) -> tuple[str, ...]:
    data = Path(values["data"]).name or values["data"]
    scores = [_score(values, part) for part in ("val", "test")]
    time = "" if values["seconds"] is None else duration(values["seconds"])
    rate = "" if values["images_per_second"] is None else f"{values['images_per_second']:,.0f}"
    model = f"{values['model']} ({values['task']})" if values["task"] else values["model"]
    return name, data, model, f"{values['epochs_done']}/{values['epochs']}", *scores, time, rate


def _score(values: dict[str, Any], part: str) -> str:
    """Return the accuracy of a run, of pre-training its loss, or nothing."""
    accuracy, loss = values[f"{part}_accuracy"], values[f"{part}_loss"]
    if accuracy is not None:
        return percent(accuracy)
    return f"loss {loss:.4f}" if values["task"] and loss is not None else ""


def _differences(runs: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Return the fields of the recipe in which the runs differ, with the value of each run."""
    recipes = [run.recipe.to_dict() for run in runs]
    fields = {name: [recipe[name] for recipe in recipes] for name in recipes[0]}
    return {name: values for name, values in fields.items() if any(value != values[0] for value in values)}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 30 else f"{text[:29]}…"
