"""minivit beside its peers: python -m benchmarks.compare [WORK ...] [--against PEER ...] [--json FILE]

Each round runs every system once, in an order of its own, each in a process of its own and never two at once. The exit
status is 1 where minivit or a peer failed with all its systems, and 130 after Ctrl-C, which keeps the works measured.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.bars import PEERS, impossible, systems_of, usual_peers
from benchmarks.command import at_least_one, duration, ended, refused_by
from benchmarks.output import check_writable, write_json, write_text
from benchmarks.rounds import Outcome, fastest_of, run_rounds, run_worker
from benchmarks.rows import OURS, Row, notes_of, rows_of
from benchmarks.sides import missing
from benchmarks.surroundings import surroundings
from benchmarks.tables import COLUMNS, LEGEND, cells, heading, markdown, title_of
from benchmarks.works import WORKS, Work, get_work
from minivit.cli.terminal import Terminal
from minivit.engine.machine import cores


def groups_of(work: Work, peers: Sequence[str], threads: int) -> tuple[dict[str, list[str]], list[str]]:
    """Return the systems to measure, by peer, and a note on each peer or system that cannot be."""
    groups, notes = {OURS: [OURS]}, []
    for peer in peers:
        if reason := impossible(peer, work):
            notes.append(f"{PEERS[peer].title}: not measured: {reason}")
            continue
        lacking = {system: missing(system) for system in systems_of(peer, work, threads)}
        notes += [
            f"{system}: not measured: {', '.join(what)} not installed" for system, what in lacking.items() if what
        ]
        groups[peer] = [system for system, what in lacking.items() if not what]
    return groups, notes


def compare(
    work: Work, options: argparse.Namespace, terminal: Terminal
) -> tuple[list[Row], list[str], dict[str, Outcome], list[str]]:
    """Measure a work; show its table; return its rows, its notes, each system's outcome, and who failed altogether."""
    threads = options.threads or cores()
    groups, notes = groups_of(work, options.against or usual_peers(work), threads)
    arguments = ["--threads", str(threads), "--seconds", str(options.seconds)]
    arguments += [argument for assignment in options.set for argument in ("--set", assignment)]
    run = functools.partial(run_worker, work=work.name, options=arguments)
    tell = functools.partial(print, file=sys.stderr, flush=True)
    outcomes = run_rounds(groups, options.processes, run, lambda line: tell(f"{work.name}: {line}"))
    rows = rows_of(work, groups, outcomes)
    notes += notes_of(groups, outcomes, rows)
    terminal.say(f"\n{title_of(work)}", style="bold")
    terminal.table([COLUMNS[0], *(f">{name}" for name in COLUMNS[1:-1]), COLUMNS[-1]], [cells(row) for row in rows])
    for note in notes:
        terminal.say(note)
    return rows, notes, outcomes, [name for name, group in groups.items() if group and not fastest_of(group, outcomes)]


def _threads(text: str) -> int:
    if (threads := at_least_one(text)) > cores():
        raise argparse.ArgumentTypeError(f"{text!r}; this machine lets a process use {cores()}")
    return threads


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, report, and return 1 where minivit or a peer failed with all its systems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}; all by default")
    parser.add_argument("--against", nargs="+", choices=PEERS, metavar="PEER", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--processes", type=at_least_one, default=5, help="of each system (default: 5)")
    parser.add_argument("--seconds", type=duration, default=2.5, help="that a process measures (default: 2.5)")
    parser.add_argument("--threads", type=_threads, help="processors to use; all by default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change the works: no bars then"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    options = parser.parse_args(arguments)
    with refused_by(parser):
        works = [get_work(name, options.set) for name in options.works or WORKS]
        check_writable(options.json, options.markdown)

    terminal, where = Terminal(), surroundings(options.threads)
    terminal.say(LEGEND)
    versions: dict[str, str] = {}
    parts, report, failed = [], [], []
    head = ""
    for work in works:
        rows, notes, outcomes, without = compare(work, options, terminal)
        failed += [f"{work.name}: {name}" for name in without]
        for outcome in outcomes.values():
            for result in outcome.results:
                versions |= result["versions"]
        parts.append((work, rows, notes))
        report.append(_plain(work, rows, notes, outcomes))
        head = heading(where, versions, options.processes)
        whole = {"surroundings": where, "versions": versions, "processes": options.processes, "works": report}
        write_json(options.json, whole)  # after each work, since all take an hour
        write_text(options.markdown, markdown(head, parts))
    terminal.say(f"\n{head}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _plain(work: Work, rows: Sequence[Row], notes: Sequence[str], outcomes: dict[str, Outcome]) -> dict[str, Any]:
    return {
        "work": asdict(work) | {"overrides": dict(work.overrides)},
        "rows": [row.to_dict() for row in rows],
        "notes": list(notes),
        "systems": {system: vars(outcome) for system, outcome in outcomes.items()},
    }


if __name__ == "__main__":
    sys.exit(ended(main))
