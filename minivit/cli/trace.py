"""``minivit trace``: activations and gradients of a model by depth, for one image or several."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivit.arrays import to_host
from minivit.cli.common import CommandResult, add_backend, enough_memory
from minivit.cli.model_fields import add_set
from minivit.cli.terminal import Terminal
from minivit.cli.traced import Subject, class_name, open_subject, parse_factors, parse_replacements, with_labels
from minivit.tracing import Statistics, Trace, trace
from minivit.tracing.diagnosis import Finding, diagnose, healthy
from minivit.tracing.table import Row, effects, norm_of, rows, true_probability

HELP = "show activations and gradients by depth, layer by layer"
DESCRIPTION = """\
Run a model forward and backward once, and show the norms of activations and
gradients by depth, with a sentence about the layer where they vanish or
explode. MODEL is a run folder, a model file, or the name of a model, which then
has its initial parameters. Without --image, the image is a test image of the
run's data set if it is on this machine, otherwise random pixels. Layers and ops
are called as in the model: blocks.3.attn, blocks.3.attn.softmax. In a pattern,
* stands for one part of a name and ** for any number."""
EXAMPLES = """\
examples:
  minivit trace runs/cifar10-1
  minivit trace runs/cifar10-1 --image cat.jpg --label cat --at "blocks.*.attn"
  minivit trace vit_tiny_patch4_32 --zero blocks.3.attn.heads.2
  minivit trace runs/cifar10-1 --scale blocks.2.dy=0.1 --save trace.safetensors"""

_BAR = 8  # characters
_DECADES = 3  # the least range of the bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("target", metavar="MODEL", help="a run folder, a model file, or the name of a model")
    parser.add_argument("--image", nargs="+", default=[], metavar="FILE", help="image files; resized and converted")
    parser.add_argument("--label", nargs="+", default=[], metavar="N", help="the class of each image, or of all")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="number of the test image (default: 0)")
    parser.add_argument("--at", nargs="+", metavar="NAME", help="names or patterns of layers and ops to show")
    parser.add_argument("--zero", nargs="+", default=[], metavar="NAME", help="set these activations or gradients to 0")
    parser.add_argument("--scale", nargs="+", default=[], metavar="NAME=X", help="multiply these by X")
    parser.add_argument("--replace", nargs="+", default=[], metavar="NAME=FILE", help="replace these by arrays (.npy)")
    parser.add_argument("--save", metavar="FILE", help="write all arrays to a safetensors file")
    parser.add_argument("--html", metavar="FILE", help="write the table and all statistics as a page")
    parser.add_argument("--seed", type=int, default=0, help="seed of a named model and of random pixels (default: 0)")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="model of a run (default: best)")
    parser.add_argument("--data", metavar="DIR", help="folder of CIFAR (default: $MINIVIT_DATA, else ./data)")
    add_set(parser)
    add_backend(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    changes = {"zero": args.zero, "scale": parse_factors(args.scale), "replace": parse_replacements(args.replace)}
    subject = open_subject(args, terminal)
    with enough_memory(args.backend):
        subject = with_labels(subject, args.label, terminal)
        # Arrays are kept only where they are needed: those of a large model take gigabytes.
        arrays = bool(args.save) or any(changes.values())
        at = args.at if args.save and args.at else "**"
        traced = trace(subject.model, subject.images, subject.labels, at, statistics=not arrays, **changes)
    found = rows(traced.records, args.at, traced.root)
    findings = diagnose(found)
    _show(traced, found, findings, subject, terminal)
    if args.save:
        traced.save(Path(args.save).expanduser())
        terminal.say(f"the arrays are in {args.save}")
    if args.html:
        traced.to_html(Path(args.html).expanduser(), f"Trace of {args.target}")
        terminal.say(f"the page is {args.html}")
    return CommandResult(_values(traced, found, findings, subject))


def _show(
    traced: Trace, found: Sequence[Row], findings: Sequence[Finding], subject: Subject, terminal: Terminal
) -> None:
    changed = {effect.name: effect for effect in effects(traced, traced.baseline)} if traced.baseline else {}
    bars = [_bars(list(norms), terminal) for norms in zip(*map(_norms, found), strict=True)]
    marks = {(finding.layer, finding.quantity): f"{finding.quantity} {finding.kind}" for finding in findings}
    # In 80 columns there is room for the bars or for the changes.
    columns = ["layer", ">|y|", ">|dy|", ">|dparams|", ">change of y", ">of dy", ""]
    if not changed:
        columns = ["layer", ">|y|", "", ">|dy|", "", ">|dparams|", ""]
    lines = []
    for k, row in enumerate(found):
        y, dy = _norms(row)
        effect = changed.get(row.name)
        numbers = [_number(y), _number(dy), _number(row.gradient)]
        if changed:
            cells = [*numbers, *((_share(effect.y), _share(effect.dy)) if effect else ("", ""))]
        else:
            cells = [numbers[0], bars[0][k], numbers[1], bars[1][k], numbers[2]]
        mark = ", ".join(marks[row.name, quantity] for quantity in ("y", "dy") if (row.name, quantity) in marks)
        lines.append((row.name, *cells, f"<- {mark}" if mark else ""))
    terminal.table(columns, lines)
    terminal.show("", *(_result(each, subject, which) for which, each in _runs(traced)))
    terminal.show("", *([finding.words for finding in findings] or [healthy(found)]))


def _norms(row: Row) -> tuple[float, float | None]:
    return norm_of(row.y), None if row.dy is None else norm_of(row.dy)


def _runs(traced: Trace) -> list[tuple[str, Trace]]:
    if traced.baseline is None:
        return [("", traced)]
    return [(f"with {traced.interventions}: ", traced), ("without: ", traced.baseline)]


def _result(traced: Trace, subject: Subject, which: str) -> str:
    """Return the line about the loss and the probability of the label."""
    names = ", ".join(dict.fromkeys(class_name(subject.opened.class_names, int(n)) for n in _labels(subject)))
    images = subject.names[0] if len(subject.names) == 1 else f"{len(subject.names)} images"
    if traced.loss is None:
        return f"{which}{images}: no loss"
    probability = true_probability(traced)
    of = f", probability of {names} {_percent(probability)}" if probability is not None else ""
    return f"{which}{images}: loss {float(to_host(traced.loss)):.5g}{of}"


def _labels(subject: Subject) -> list[int]:
    return [] if subject.labels is None else [int(label) for label in subject.labels]


def _bars(norms: Sequence[float | None], terminal: Terminal) -> list[str]:
    """Return bars whose lengths are linear in the logarithm, over at least three powers of ten."""
    logs = [math.log10(norm) if norm and math.isfinite(norm) else None for norm in norms]
    known = [log for log in logs if log is not None]
    if not known:
        return [""] * len(logs)
    low = min(*known, max(known) - _DECADES)
    # Encoded in ASCII, a block would be printed as an escape.
    letter = "█" if terminal.console.encoding.lower().startswith("utf") else "#"
    return ["" if log is None else letter * (1 + round((_BAR - 1) * (log - low) / (max(known) - low))) for log in logs]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} times" if value >= 10 else _percent(value)


def _percent(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.1%}"


def _values(traced: Trace, found: Sequence[Row], findings: Sequence[Finding], subject: Subject) -> dict[str, Any]:
    """Return the object for --json."""
    values: dict[str, Any] = {
        "images": subject.names,
        "labels": _labels(subject),
        "loss": _finite(traced.loss),
        "probability": _finite(true_probability(traced)),
        "layers": [
            {
                "name": row.name,
                "kind": row.kind,
                "y": _statistics(row.y),
                "dy": None if row.dy is None else _statistics(row.dy),
                "dparameters": _finite(row.gradient),
                "saturated": row.saturated,
            }
            for row in found
        ],
        "findings": [finding._asdict() for finding in findings],
    }
    if traced.baseline is not None:
        baseline = traced.baseline
        shown = {row.name for row in found}
        changes = [effect for effect in effects(traced, baseline) if effect.name in shown]
        values["interventions"] = traced.interventions
        values["baseline"] = {"loss": _finite(baseline.loss), "probability": _finite(true_probability(baseline))}
        values["changes"] = [{"name": e.name, "y": _finite(e.y), "dy": _finite(e.dy)} for e in changes]
    return values


def _statistics(statistics: Statistics) -> dict[str, Any]:
    return {k: _finite(v) if isinstance(v, float) else v for k, v in statistics.to_dict().items()}


def _finite(value: Any) -> float | None:
    number = float("nan") if value is None else float(to_host(value) if hasattr(value, "dtype") else value)
    return number if math.isfinite(number) else None
