"""``minivit gradcheck``: verify the gradients of a model, of all ops, of all layers, or of one case."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minivit.checking import Report, Row, gradcheck, gradcheck_model
from minivit.checking.cases import CASES, LAYERS, OPS, Case
from minivit.cli.common import CommandResult, add_backend, check_backend, is_path
from minivit.cli.terminal import Terminal
from minivit.data import ProgressCallback
from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.presets import PRESETS, create_model, get_config
from minivit.nn.summary import summarize
from minivit.nn.vit import ViT
from minivit.weights import load_model

HELP = "verify every gradient of a model, a run, the ops or the layers"
DESCRIPTION = """\
Verify backward passes in float64, by the complex step along random directions
and by the order of the Taylor remainder. A gradient passes if its relative
error is at most the tolerance. TARGET is the name of a model, a run folder, a
model file, `ops`, `layers`, or one of their cases, such as `attention`. Without
TARGET, all ops, all layers and vit_tiny_patch4_32 are checked. Images are
random. A named model is checked near its initial parameters, a run or a file
with its own weights in float64; parameters whose elements are all equal get
random values, because they hide mistakes. All blocks run the same code, so two
blocks of a named model are checked, and of a run or a file as many as take
about a minute; --depth changes the number. --backend cupy checks the ops, the
layers and their kernels on the GPU, and no model."""
EXAMPLES = """\
examples:
  minivit gradcheck
  minivit gradcheck vit_tiny_patch4_32 --depth 12
  minivit gradcheck runs/digits-1
  minivit gradcheck attention"""

DEFAULT_MODEL = "vit_tiny_patch4_32"
DEFAULT_DEPTH = 2
_EVALUATIONS = 67  # forward passes for each parameter, a complex one counted as four; a block has 12
_FLOPS = 1e12  # in a minute, about
_LONG = 3  # minutes, from which on the time is said


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "target", nargs="?", metavar="TARGET", help="a model, a run, a model file, `ops`, `layers`, or a case"
    )
    parser.add_argument("--depth", type=int, help=f"number of blocks (default: {DEFAULT_DEPTH} of a named model)")
    parser.add_argument("--batch", type=int, default=2, help="batch size (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the points and directions (default: 0)")
    add_backend(parser)
    parser.add_argument("--tolerance", type=float, default=1e-11, help="largest relative error (default: 1e-11)")


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command; the exit status is 1 if a gradient is wrong."""
    for name, least in (("batch", 1), ("seed", 0), ("tolerance", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} is {getattr(args, name)}; expected at least {least}")
    model, cases = _targets(args.target)
    if args.backend != "numpy":
        cases = _on(args.backend, model if args.target else None, cases)
        model = None
    reports = _check_cases(cases, args, terminal)
    if model is not None:
        reports.append(_check_model(model, args, terminal))
    passed = all(report.passed for report in reports)
    errors = [report.max_error for report in reports]
    if len(reports) > 1:
        count = sum(len(report.rows) for report in reports)
        terminal.show("", f"{'passed' if passed else 'FAILED'}: {count} gradients, largest error {max(errors):.1e}")
    finite = all(np.isfinite(errors))
    values = {
        "passed": passed,
        "max_error": max(errors) if finite else None,
        "tolerance": args.tolerance,
        "checks": [report.to_dict() for report in reports],
    }
    return CommandResult(values, 0 if passed else 1)


def _targets(target: str | None) -> tuple[str | None, Sequence[Case]]:
    if target is None:
        return DEFAULT_MODEL, CASES
    if target in PRESETS:
        return target, ()
    groups = {"ops": OPS, "layers": LAYERS}
    if target in groups:
        return None, groups[target]
    cases = [case for case in CASES if target in (case.name, case.name.partition("-")[0])]
    if not cases and is_path(target):
        return target, ()
    if not cases:
        known = [*PRESETS, *groups, *(case.name for case in CASES)]
        near = difflib.get_close_matches(target.lower(), known, n=1, cutoff=0.0)[0]
        raise UserError(
            f"there is no model, op, layer, run or file called {target!r}; did you mean {near!r}? "
            f"`minivit info` lists the models; the cases are {', '.join(case.name for case in CASES)}"
        )
    return None, cases


def _on(backend: str, model: str | None, cases: Sequence[Case]) -> list[Case]:
    if model is not None:
        raise UserError(f"on {backend} only ops and layers are checked, not models: leave out {model} or --backend")
    check_backend(backend)
    return [case.on(backend) for case in cases]


def _check_cases(cases: Sequence[Case], args: argparse.Namespace, terminal: Terminal) -> list[Report]:
    reports = []
    with terminal.progress() as progress:
        for done, case in enumerate(cases):
            progress("checking ops and layers", done, len(cases))
            sizes = {"B": args.batch} if args.batch != 2 and "B" in case.sizes else None
            arrays = case.make(args.seed, "float64", sizes)
            options: Any = {"seed": args.seed, "tolerance": args.tolerance}
            reports.append(gradcheck(case.forward, case.backward, *arrays, names=case.names, **options))
    if len(cases) > 1:
        rows = [(*_case_row(case, report),) for case, report in zip(cases, reports, strict=True)]
        terminal.table(("case", ">gradients", ">largest error", "verdict"), rows)
    for report in reports:
        if len(cases) == 1 or not report.passed:
            _show(report, terminal)
    return reports


def _case_row(case: Case, report: Report) -> tuple[str, str, str, str]:
    return case.name, str(len(report.rows)), f"{report.max_error:.1e}", "ok" if report.passed else "FAILED"


def _check_model(name: str, args: argparse.Namespace, terminal: Terminal) -> Report:
    generator = np.random.default_rng(args.seed)
    if name in PRESETS:
        whole = get_config(name)
        depth = min(whole.depth, DEFAULT_DEPTH) if args.depth is None else args.depth
        model = create_model(name, seed=args.seed, dtype="float64", depth=depth)
    else:
        loaded = load_model(Path(name).expanduser(), dtype="float64")
        whole = loaded.config
        depth = affordable_depth(whole, args.batch) if args.depth is None else min(args.depth, whole.depth)
        model = _first_blocks(loaded, depth)
    config = model.config
    if not config.num_classes:
        raise UserError(f"{name} has no head, and so no loss to check: `minivit convert` gives it one with num_classes")
    if (minutes := _minutes(config, args.batch)) > _LONG:
        terminal.say(f"{len(model.parameters)} parameters are checked, which takes some {minutes:.0f} minutes")
    what = f"{name} ({depth} of its {whole.depth} blocks)"
    with terminal.progress() as progress:
        progress(f"checking {what}", 0, 0)
        images = generator.standard_normal((args.batch, config.height, config.width, config.in_chans))
        labels = generator.integers(config.num_classes, size=args.batch)
        on_row = _Rows(f"checking {what}", progress)
        report = gradcheck_model(model, images, labels, seed=args.seed, tolerance=args.tolerance, on_row=on_row)
    report = replace(report, title=report.title.replace(type(model).__name__, what, 1))
    _show(report, terminal)
    return report


def affordable_depth(config: ViTConfig, batch: int) -> int:
    """Return the largest number of blocks whose check takes about a minute, at least one."""
    deep = (depth for depth in range(config.depth, 1, -1) if _minutes(replace(config, depth=depth), batch) <= 1)
    return next(deep, 1)


def _minutes(config: ViTConfig, batch: int) -> float:
    """Return the minutes that a check takes, about; a hybrid has many parameters before its blocks."""
    parameters = len(ViT.without_values(config).declared())
    return _EVALUATIONS * parameters * summarize(config).flops * batch / _FLOPS


def _first_blocks(model: ViT, depth: int) -> ViT:
    """Return `model` with its first `depth` blocks alone."""
    if depth == model.config.depth:
        return model
    short = ViT(replace(model.config, depth=depth), seed=None, dtype="float64")
    short.load_state_dict({name: model.parameters[name].value for name in short.parameters})
    return short


class _Rows:
    """Reports the number of checked rows to a progress callback."""

    def __init__(self, what: str, progress: ProgressCallback) -> None:
        self.what, self.progress, self.done = what, progress, 0

    def __call__(self, row: Row, total: int) -> None:
        self.done += 1
        self.progress(self.what, self.done, total)


def _show(report: Report, terminal: Terminal) -> None:
    if not terminal.json:
        terminal.say()
        report.print(terminal.console)
