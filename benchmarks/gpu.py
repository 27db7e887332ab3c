"""minivit on an NVIDIA GPU: python -m benchmarks.gpu [--quick] [--json FILE]

    training, prediction    beside PyTorch eager and torch.compile, in bf16 and in float32 by TF32
    kernels                 the bandwidth of each, beside a copy on the device
    products                the rate of matrix products, beside a large square one
    claims                  launches, allocations and waiting in a step, host and device apart
    profile                 what the device does in a step, kernel by kernel (by PyTorch's profiler)

Takes less than eight minutes: what no longer fits is left out and named. After each part the figures so far are
written. The exit status is 1 where something failed, and 130 after Ctrl-C.
"""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.baselines import OURS
from benchmarks.command import at_least_one, check_writable, ended, parser_of, tell, write_json
from benchmarks.harness import Worker, WorkerError, run_rounds, start_worker
from benchmarks.report import LEGEND, Comparison, figures_text, surroundings
from benchmarks.workloads import GPU_WORKLOADS, PRECISIONS, REHEARSAL, Workload
from minivit.engine.machine import cores
from minivit.errors import UserError

ROUNDS = 5
SECONDS = 450  # of which the last processes may need some more
PARTS = {"claims": 30.0, "kernels": 35.0, "products": 20.0, "profile": 30.0}  # and about the seconds of each
_FIRST_PRECISION_ONLY = ("claims", "profile")
_MEASURED, _QUICK = 0.6, 0.3  # seconds of a turn
_TURN, _TURN_AT_MOST = 1.5, 60.0  # seconds that a turn takes beside what it measures, and at most
_FEWEST_SECONDS, _MOST_SECONDS = 20.0, 150.0  # to prepare
_SYSTEMS = {OURS: "minivit", "eager": "pytorch:plain", "compile": "pytorch:compile-plain"}
GPU_LEGEND = (
    "On a GPU, peak MB is the most taken from the driver, and required ratios are for an H200 in bf16. of_copy: the "
    "bandwidth, by the bytes of a kernel's arrays, over that of a copy on the device that moves as many. of_square: "
    "the rate of products over that of a large square one."
)
_FIELDS = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")
_COMMAND = ("nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader")
_REHEARSE = "benchmarks.gpu needs an NVIDIA GPU; with --rehearse it runs tiny models on the CPU"


class Budget:
    """The seconds that the command may take; `skipped` says what was left out."""

    def __init__(self, seconds: float) -> None:
        self.skipped: list[str] = []
        self._begun, self._seconds = time.monotonic(), seconds

    @property
    def left(self) -> float:
        """Seconds that remain, at least 0."""
        return max(0.0, self._begun + self._seconds - time.monotonic())

    def allows(self, what: str, seconds: float) -> bool:
        """Return whether about `seconds` remain for `what`; else note that it was skipped."""
        if seconds > (left := self.left):
            self.skipped.append(f"{what}: skipped: {left:.0f} of {self._seconds:.0f} s left, {seconds:.0f} needed")
        return seconds <= left


def card(command: Sequence[str] = _COMMAND) -> dict[str, str]:
    """Return name, driver and limits of the first GPU by the driver's own tool, or raise UserError without one."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        fields = done.stdout.strip().splitlines()[0].split(",")
    except FileNotFoundError:
        raise UserError(f"there is no NVIDIA driver here (no nvidia-smi): {_REHEARSE}") from None
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        said = " ".join(str(getattr(error, "stdout", "") or error).split())
        raise UserError(f"nvidia-smi names no GPU ({said}): {_REHEARSE}") from None
    return dict(zip(_FIELDS, map(str.strip, fields), strict=False))


_start = partial(start_worker, TORCHINDUCTOR_COMPILE_THREADS=str(max(1, cores() // 4)))  # several compile at once


def compare_all(
    workloads: Sequence[Workload],
    systems: Mapping[str, str],
    seconds: float,
    budget: Budget,
    start: Callable[[str, Workload], Any] = _start,
) -> Iterator[Comparison]:
    """Measure as many workloads as the budget allows, `seconds` a turn; `systems` are by baseline.

    Compiling takes most of the time and little of the GPU, so that all systems of all workloads do it together. After
    that one process works at a time, while the others wait with little more than their parameters.
    """
    needed = ROUNDS * len(systems) * (seconds + _TURN)
    chosen = [w for i, w in enumerate(workloads) if budget.allows(w.title, _FEWEST_SECONDS + (i + 1) * needed)]
    with ExitStack() as stack:
        workers = [{s: stack.enter_context(closing(start(s, w))) for s in systems.values()} for w in chosen]
        deadline = time.monotonic() + min(_MOST_SECONDS, max(_FEWEST_SECONDS, budget.left - len(chosen) * needed))
        prepared = [{system: _prepared(worker, deadline) for system, worker in own.items()} for own in workers]
        for workload, own, said in zip(chosen, workers, prepared, strict=True):
            if budget.allows(workload.title, needed):
                groups = {name: [system] for name, system in systems.items()}
                outcomes = run_rounds(groups, ROUNDS, partial(_turn, own, said, seconds), tell)
                yield Comparison(workload, groups, outcomes)
            for worker in own.values():
                worker.close()


def _prepared(worker: Worker, deadline: float) -> dict[str, Any] | WorkerError:
    try:
        return worker.reply(deadline - time.monotonic())
    except WorkerError as error:
        return error


def _turn(workers: Mapping[str, Worker], prepared: Mapping[str, Any], seconds: float, system: str) -> dict[str, Any]:
    said = prepared[system]
    if isinstance(said, WorkerError):
        raise said
    return said | workers[system].measure(seconds, _TURN_AT_MOST)


def errors_in(figures: Any, name: str = "") -> list[str]:
    """Return the names of what has an ``error`` in place of its figures, at any depth."""
    if isinstance(figures, list):
        return [error for entry in figures for error in errors_in(entry, name)]
    if not isinstance(figures, dict):
        return []
    if "error" in figures:
        return [figures.get("name", name)]
    return [error for key, entry in figures.items() for error in errors_in(entry, key)]


def measure_part(part: str, precision: str, timeout: float) -> tuple[dict[str, Any], list[str]]:
    """Return the reply of the process of one of `PARTS`, and what failed."""
    try:
        with closing(Worker("benchmarks.gpu_parts", part, precision)) as worker:
            said = worker.reply(timeout)
    except WorkerError as error:
        return {"versions": {}, "figures": {"error": str(error)}}, [f"{part}, {precision}"]
    return said, [f"{part}, {precision}: {name}" for name in errors_in(said["figures"])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return 1 where something failed."""
    parser = parser_of(__doc__)
    everything = ("training", "prediction", *PARTS)
    named = f"of {', '.join(everything)}"
    parser.add_argument("--quick", action="store_true", help="bf16 alone, without torch.compile: about two minutes")
    parser.add_argument("--only", nargs="+", choices=everything, default=everything, metavar="WHAT", help=named)
    parser.add_argument("--out", type=Path, dest="json", metavar="FILE", help="the same as --json")
    parser.add_argument("--seconds", type=at_least_one, default=SECONDS, help=f"for everything (default: {SECONDS})")
    parser.add_argument("--rehearse", action="store_true", help="tiny models on the CPU: the figures mean nothing")
    options = parser.parse_args(arguments)
    about = {} if options.rehearse else card()
    if options.json is None and not options.rehearse:
        options.json = Path("build", f"gpu-{datetime.now(UTC):%Y-%m-%d}.json")
    check_writable(options.json)
    budget = Budget(options.seconds)
    report: dict[str, Any] = {"card": about, "surroundings": surroundings(), "versions": {}, "steps": []}
    report |= {"rehearsal": options.rehearse, "quick": options.quick, **{part: {} for part in PARTS}}
    failed: list[str] = []
    has_torch = importlib.util.find_spec("torch") is not None

    def save() -> None:
        write_json(options.json, report | {"skipped": budget.skipped, "failed": failed})

    print(LEGEND, GPU_LEGEND, sep="\n")
    systems = _SYSTEMS if has_torch else {OURS: _SYSTEMS[OURS]}
    if options.quick:
        systems = {name: system for name, system in systems.items() if name != "compile"}
    if not has_torch:
        budget.skipped.append("eager, compile, profile: not measured: torch is not installed")
    precisions = ["float32"] if options.rehearse else ["bfloat16"] if options.quick else ["bfloat16", "tf32"]
    known = REHEARSAL if options.rehearse else GPU_WORKLOADS
    for precision in precisions:
        workloads = [replace(w, precision=precision) for w in known.values() if w.kind in options.only]
        for comparison in compare_all(workloads, systems, _QUICK if options.quick else _MEASURED, budget):
            print(f"\n{comparison}", flush=True)
            report["versions"] |= comparison.versions
            report["steps"].append(comparison.to_dict())
            failed += [f"{comparison.workload.name}, {precision}: {what}" for what in comparison.failed]
            save()
        for part, seconds in PARTS.items():
            once = part in _FIRST_PRECISION_ONLY and precision != precisions[0]
            if options.rehearse or once or part not in options.only or (part == "profile" and not has_torch):
                continue
            if budget.allows(f"{part}, {precision}", seconds):
                said, errors = measure_part(part, precision, budget.left)
                failed += errors
                report["versions"] |= said["versions"]
                report[part][precision] = said["figures"]
                print(f"\n{figures_text(said['figures'], f'{part}, {PRECISIONS[precision]},')}", flush=True)
                save()
    save()
    where = ", ".join(about.values()) or "a rehearsal on the CPU: these figures mean nothing"
    used = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    when = f"commit {report['surroundings']['commit']}, {report['surroundings']['date']}"
    print(f"\n{where}; {used}; {when}.", *budget.skipped, sep="\n")
    if options.json:
        print(f"All figures are in {options.json}.")
    if failed:
        tell(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(ended(main))
