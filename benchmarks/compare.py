"""minivit beside its baselines: python -m benchmarks.compare [WORKLOAD ...] [--against BASELINE ...] [--json FILE]

Each round runs every system once, in an order of its own, each in a process of its own and never two at once. The exit
status is 1 where minivit or a baseline failed with all its systems or computed something else, and 130 after Ctrl-C,
which keeps the workloads measured.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import command, harness
from benchmarks.baselines import BASELINES, OURS, Baseline, impossible, systems_of, usual_baselines
from benchmarks.command import tell
from benchmarks.report import LEGEND, Comparison, heading, surroundings
from benchmarks.workloads import WORKLOADS, Workload
from minivit.engine.machine import cores


def compare(workload: Workload, baselines: Sequence[str], options: argparse.Namespace) -> Comparison:
    """Measure a workload on minivit and the baselines that can run it."""
    threads = options.threads or cores()
    reasons = {baseline: impossible(baseline, workload) for baseline in baselines}
    groups = {name: systems_of(name, workload, threads) for name, reason in reasons.items() if not reason}
    notes = [f"{BASELINES[name].title}: not measured: {reason}" for name, reason in reasons.items() if reason]
    groups = {OURS: [OURS], **groups}
    run = partial(harness.run_worker, workload=workload, seconds=options.seconds, threads=threads)
    outcomes = harness.run_rounds(groups, options.processes, run, lambda line: tell(f"{workload.name}: {line}"))
    return Comparison(workload, groups, outcomes, notes)


def report_all(workloads: Sequence[Any], measure: Callable[[Any], Comparison], options: argparse.Namespace) -> int:
    """Measure workloads, print and write the report after each, since all take an hour; return the exit status."""
    where, versions = surroundings(options.threads), dict[str, str]()
    print(LEGEND)
    done: list[Comparison] = []
    head = ""
    for workload in workloads:
        done.append(measure(workload))
        print(f"\n{done[-1]}", flush=True)
        versions |= done[-1].versions
        head = heading(where, versions, options.processes)
        about = {"surroundings": where, "versions": versions, "processes": options.processes}
        command.write_json(options.json, about | {"workloads": [comparison.to_dict() for comparison in done]})
        command.write_text(options.markdown, "\n\n".join([head, LEGEND, *map(str, done)]) + "\n")
    print(f"\n{head}")
    failed = [f"{comparison.workload.name}: {name}" for comparison in done for name in comparison.failed]
    if failed:
        tell(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _threads(text: str) -> int:
    if (threads := command.at_least_one(text)) > cores():
        raise argparse.ArgumentTypeError(f"{text!r}; this machine lets a process use {cores()}")
    return threads


def main(
    arguments: Sequence[str] | None = None,
    description: str | None = __doc__,
    known: Mapping[str, Baseline] = BASELINES,
    workloads: Sequence[str] = tuple(WORKLOADS),
    seconds: float = 2.5,
) -> int:
    """Compare, report, and return the exit status; the rest are the defaults of a command."""
    parser = command.parser_of(description)
    command.add_workloads(parser, workloads)
    named = f"of {', '.join(known)}; all that can be by default"
    parser.add_argument("--against", nargs="+", choices=known, metavar="BASELINE", help=named)
    parser.add_argument("--processes", "--rounds", type=command.at_least_one, default=5, help="a system (default: 5)")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"of each process (default: {seconds})")
    parser.add_argument("--threads", type=_threads, help="processors to use; all by default")
    options = parser.parse_args(arguments)
    command.check_writable(options.json, options.markdown)
    usual = usual_baselines if known is BASELINES else lambda workload: [*known]

    def measure(workload: Workload) -> Comparison:
        return compare(workload, options.against or usual(workload), options)

    return report_all(options.workloads, measure, options)


if __name__ == "__main__":
    sys.exit(command.ended(main))
