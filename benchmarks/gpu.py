"""minivit on an NVIDIA GPU: python -m benchmarks.gpu [--quick] [--out FILE.json]

    training, prediction    beside PyTorch eager and torch.compile, in bf16 and in float32 by TF32
    kernels                 the bandwidth of each, beside a copy on the device
    products                the rate of matrix products, beside a large square one
    claims                  launches, allocations and waiting in a step, host and device apart
    profile                 what the device does in a step, kernel by kernel (by PyTorch's profiler)

Takes less than eight minutes: what no longer fits is left out and named. After each part the figures so far are
written. The exit status is 1 where something failed, and 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.command import at_least_one, ended
from benchmarks.gpu_parts.budget import Budget
from benchmarks.gpu_parts.card import card
from benchmarks.gpu_parts.compare import compare_all
from benchmarks.gpu_parts.errors import errors_in
from benchmarks.gpu_parts.tables import LEGEND, show_comparison, show_part
from benchmarks.gpu_parts.works import MEASURED, REHEARSED, WORKS, Job
from benchmarks.output import check_writable, write_json
from benchmarks.rounds import WorkerError, run_worker
from benchmarks.rows import OURS
from benchmarks.surroundings import surroundings
from minivit.cli.terminal import Terminal

SECONDS = 450  # of which the last processes may need some more
_TURN, _QUICK_TURN = 0.6, 0.3  # seconds
_PARTS = {"claims": 30.0, "kernels": 35.0, "products": 20.0, "profile": 30.0}  # and the seconds of each, about
_ONCE = ("claims", "profile")  # in the first precision alone
STEPS = ("training", "prediction")
_NEEDS = {"eager": "torch", "compile": "torch", "profile": "torch"}


class Measurement:
    """What was measured so far: shown and written as it comes.

    Parameters
    ----------
    options : argparse.Namespace
        Of the command.
    about : dict
        The card; empty in a rehearsal.
    """

    def __init__(self, options: argparse.Namespace, about: dict[str, str]) -> None:
        self._options = options
        self.terminal = Terminal()
        self.tell = functools.partial(print, file=sys.stderr, flush=True)
        self.budget = Budget(options.seconds)
        self.failed: list[str] = []
        self.report: dict[str, Any] = {
            "card": about,
            "surroundings": surroundings(),
            "versions": {},
            "rehearsal": options.rehearse,
            "quick": options.quick,
            "steps": [],
            **{part: {} for part in _PARTS},
            "not_measured": [],
        }

    def steps(self, precision: str) -> None:
        """Measure training and prediction."""
        names = REHEARSED if self._options.rehearse else MEASURED
        jobs = [Job(WORKS[name], precision) for name in names if WORKS[name].kind in self._options.only]
        turn = _QUICK_TURN if self._options.quick else _TURN
        for comparison in compare_all(jobs, self._systems(), turn, self.budget, self.tell):
            for said in comparison.prepared.values():
                self.report["versions"] |= said["versions"]
            self.report["steps"].append(comparison.to_dict())
            self.failed += [f"{comparison.job.work.name}, {precision}: {what}" for what in comparison.failed]
            show_comparison(self.terminal, comparison)
            self.save()

    def _systems(self) -> dict[str, str]:
        """Return the systems by peer, without those whose library is missing."""
        prefix = "rehearsed-" if self._options.rehearse else ""
        systems = {OURS: f"{prefix}{OURS}", "eager": f"{prefix}eager"}
        if not self._options.quick:
            systems["compile"] = f"{prefix}compile"
        return {peer: system for peer, system in systems.items() if peer == OURS or self._has_what_it_needs(peer)}

    def _has_what_it_needs(self, name: str) -> bool:
        package = _NEEDS.get(name)
        if package is None or importlib.util.find_spec(package):
            return True
        line = f"{name}: not measured: {package} is not installed"
        if line not in self.report["not_measured"]:
            self.report["not_measured"].append(line)
        return False

    def part(self, part: str, precision: str) -> None:
        """Measure one of `_PARTS`."""
        what = f"{part}, {precision}"
        if part not in self._options.only or not self._has_what_it_needs(part):
            return
        if not self.budget.allows(what, _PARTS[part]):
            return
        try:
            said = run_worker(part, precision, timeout=self.budget.left, command=("benchmarks.gpu_parts.part",))
        except WorkerError as error:
            self.report[part][precision] = {"error": str(error)}
            self.failed.append(what)
            self.tell(f"{what} failed: {error}")
        else:
            self.report["versions"] |= said["versions"]
            self.report[part][precision] = said["figures"]
            self.failed += [f"{what}: {name}" for name in errors_in(said["figures"])]
            show_part(self.terminal, part, precision, said["figures"])
        self.save()

    def save(self) -> None:
        """Write what there is."""
        taken = {"seconds": self.budget.spent, "skipped": self.budget.skipped, "failed": self.failed}
        write_json(self._options.out, self.report | taken)


def measure(measurement: Measurement, precisions: Sequence[str], rehearsal: bool) -> None:
    """Measure everything, what matters most first."""
    for precision in precisions:
        measurement.steps(precision)
        for part in () if rehearsal else _PARTS:
            if precision == precisions[0] or part not in _ONCE:
                measurement.part(part, precision)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = (*STEPS, *_PARTS)
    parser.add_argument("--quick", action="store_true", help="bf16 alone, without torch.compile: about two minutes")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="for all figures (default: build/gpu-DATE.json)")
    named = ", ".join(everything)
    parser.add_argument("--only", nargs="+", choices=everything, default=everything, metavar="WHAT", help=f"of {named}")
    parser.add_argument("--seconds", type=at_least_one, default=SECONDS, help=f"for everything (default: {SECONDS})")
    parser.add_argument("--rehearse", action="store_true", help="tiny models on the CPU: the figures say nothing")
    options = parser.parse_args(arguments)
    about = {} if options.rehearse else card()
    if options.out is None and not options.rehearse:
        options.out = Path("build", f"gpu-{datetime.now(UTC):%Y-%m-%d}.json")
    check_writable(options.out)
    measurement = Measurement(options, about)
    terminal = measurement.terminal
    terminal.say(LEGEND)
    precisions = ["float32"] if options.rehearse else ["bfloat16"] if options.quick else ["bfloat16", "tf32"]
    measure(measurement, precisions, options.rehearse)
    measurement.save()

    report = measurement.report
    used = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    where = ", ".join(report["card"].values()) or "a rehearsal on the CPU: these figures say nothing"
    when = f"commit {report['surroundings']['commit']}, {report['surroundings']['date']}"
    terminal.say(f"\n{where}; {used}; {when}; {measurement.budget.spent:.0f} s.")
    for line in (*report["not_measured"], *measurement.budget.skipped):
        terminal.say(line)
    if options.out:
        terminal.say(f"All figures are in {options.out}.")
    if measurement.failed:
        print(f"failed: {', '.join(measurement.failed)}", file=sys.stderr)
    return 1 if measurement.failed else 0


if __name__ == "__main__":
    sys.exit(ended(main))
