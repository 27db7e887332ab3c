"""How the rate changes with batch size, tokens, width, depth and threads: python -m benchmarks.scaling --out FOLDER

Trains and predicts at every point of every axis, minivit and PyTorch eager in turn, each in its own process, the whole
in two rounds; writes, after each round, tables (scaling.md), figures (SVG and PNG, with matplotlib) and all numbers
(scaling.json). A point's rate is the best of its rounds, a round's the median of its steps. The exit status is 1 where
a side did not run somewhere.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.bars import PEERS
from benchmarks.command import at_least_one, duration, ended, refused_by
from benchmarks.output import check_writable, write_json, write_text
from benchmarks.rounds import WorkerError, run_worker
from benchmarks.scaling_plots import plot_memory, plot_rates
from benchmarks.scaling_points import BASE, HEAD_SIZE, Axis, Setting, axes, base
from benchmarks.scaling_tables import Point, growth_table, memory_table, rate_table
from benchmarks.surroundings import surroundings
from benchmarks.tables import heading, title_of
from minivit.files import read_json

OURS, THEIRS = "minivit", PEERS["eager"].title


def run(system: str, setting: Setting, seconds: float) -> dict[str, Any]:
    """Return what a process of its own measured; see `run_worker`."""
    return run_worker(system, BASE, [*setting.options, "--seconds", str(seconds)])


def rate(result: dict[str, Any]) -> float:
    """Return the images a second of the median step of a process."""
    return float(result["batch_size"] / statistics.median(result["seconds"]))


def faster_variant(kind: str, seconds: float) -> tuple[str | None, dict[str, str]]:
    """Return the faster of PyTorch's eager variants at the base point, and why any did not run, by name."""
    rates, failures = {}, {}
    for system in PEERS["eager"].systems:
        try:
            rates[system] = rate(run(system, base(kind), seconds))
        except WorkerError as error:
            failures[f"{system}, {kind}"] = str(error)
    return max(rates, key=lambda system: rates[system], default=None), failures


def measure(
    settings: Iterable[Setting], systems: dict[str, dict[str, str]], rounds: int, seconds: float
) -> Iterator[tuple[dict[tuple[Any, ...], list[dict[str, Any]]], dict[str, str]]]:
    """Run every setting on the systems of its kind, in turn, `rounds` times over.

    Yields, after each round
    ------------------------
    results : dict
        What the workers printed so far, by setting's key and side.
    failures : dict
        Why a side did not run somewhere; it is left out there.
    """
    distinct = {setting.key: setting for setting in settings}
    results: defaultdict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    failures: dict[str, str] = {}
    for i in range(rounds):
        for done, (key, setting) in enumerate(distinct.items()):
            sides = list(systems[setting.kind].items())
            for side, system in sides if i % 2 == 0 else reversed(sides):
                where = f"{system} {' '.join(setting.options)}"
                print(f"round {i + 1} of {rounds}, {done + 1} of {len(distinct)}: {where}", file=sys.stderr)
                if where in failures:
                    continue
                try:
                    result = run(system, setting, seconds)
                except WorkerError as error:
                    failures[where] = str(error)
                else:
                    results[*key, side].append(result)
        yield dict(results), failures


def points_of(axis: Axis, values: Iterable[int], kinds: Iterable[str], results: dict[Any, Any]) -> list[Point]:
    """Return the points along an axis."""
    found = []
    for kind in kinds:
        for value in values:
            setting = axis.setting(value, kind)
            for side in (OURS, THEIRS):
                runs = results.get((*setting.key, side))
                if runs:
                    peak = max(run["peak_bytes"] for run in runs)
                    flops = setting.flops_an_image
                    found.append(Point(axis.name, kind, side, value, tuple(map(rate, runs)), peak, flops))
    return found


def method(about: dict[str, Any]) -> str:
    """Return what stays the same along an axis, which of PyTorch's variants is meant, and what a number is."""
    sizes = title_of(base("training").work).partition("training step, ")[2]
    variants = ", ".join(f"{sides[THEIRS]} ({kind})" for kind, sides in about["systems"].items() if THEIRS in sides)
    return (
        f"Along each axis the rest stays at {sizes}, heads of {HEAD_SIZE}, all cores. {THEIRS} is the faster of its "
        f"variants there: {variants or 'none is installed'}. A rate is the best of the rounds, a round's the median of "
        "the steps of one process; the spread is how far below the best round the worst one lay, on either side. The "
        "arithmetic is the operations of the matrix products that the mathematics needs, which are, in the last block, "
        "those of the class token alone; PyTorch's models do not make use of that."
    )


def write(points: list[Point], about: dict[str, Any], folder: Path) -> None:
    """Write scaling.json, scaling.md and the figures."""
    numbers = about | {"points": [asdict(point) for point in points]}
    write_json(folder / "scaling.json", numbers)
    drawn = [axis for axis in axes() if any(p.axis == axis.name for p in points)]
    parts = ["# Scaling", method(about), heading(about["surroundings"], about["versions"], about["rounds"])]
    parts += [f"{name} was left out: {why}." for name, why in about["left_out"].items()]
    parts += [f"## {axis.label.capitalize()}\n\n{rate_table(points, axis.name, axis.label)}" for axis in drawn]
    memory = any(p.axis == "batch" for p in points)
    parts += [f"## Memory\n\n{memory_table(points)}"] * memory
    growth = growth_table(points, [axis.name for axis in drawn])
    parts.append(f"## How the cost grows\n\nSeconds of an image ~ value ** exponent:\n\n{growth}")
    write_text(folder / "scaling.md", "\n\n".join(parts) + "\n")
    try:
        for axis in drawn:
            plot_rates(points, axis.name, axis.label, folder)
        if memory:
            plot_memory(points, axes()[0].label, folder)
    except ImportError as error:
        print(f"no figures, for matplotlib is missing ({error}): pip install 'minivit[plots]'", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the folder, and return 1 where something was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where tables and figures go")
    parser.add_argument("--quick", action="store_true", help="training alone, at fewer points")
    names = [axis.name for axis in axes()]
    parser.add_argument("--axes", nargs="+", choices=names, default=names, help="what is varied; all by default")
    parser.add_argument("--rounds", type=at_least_one, default=2, help="how often each point is measured (default: 2)")
    parser.add_argument("--seconds", type=duration, help="of each process, at least (default: 0.5; quick: 0.3)")
    parser.add_argument("--from", type=Path, metavar="JSON", dest="earlier", help="write anew what a run measured")
    options = parser.parse_args(arguments)
    with refused_by(parser):
        check_writable(options.out / "scaling.json")
    if options.earlier:
        about = read_json(options.earlier)
        points = [Point(**{**p, "images_a_second": tuple(p["images_a_second"])}) for p in about.pop("points")]
        write(points, about, options.out)
        return 0
    seconds = (0.3 if options.quick else 0.5) if options.seconds is None else options.seconds
    where = surroundings()
    kinds = ("training",) if options.quick else ("training", "prediction")
    systems: dict[str, dict[str, str]] = {}
    left_out: dict[str, str] = {}
    for kind in kinds:
        faster, failures = faster_variant(kind, seconds)
        systems[kind] = {OURS: "minivit"} | ({THEIRS: faster} if faster else {})
        left_out |= failures
    chosen = [axis for axis in axes() if axis.name in options.axes]
    places = [(axis, axis.quick if options.quick else axis.values) for axis in chosen]
    settings = [axis.setting(value, kind) for kind in kinds for axis, values in places for value in values]
    failures = {}
    for i, (results, failures) in enumerate(measure(settings, systems, options.rounds, seconds)):
        points = [point for axis, values in places for point in points_of(axis, values, kinds, results)]
        versions: dict[str, str] = {}
        for runs in results.values():
            versions |= runs[0]["versions"]
        method = {"rounds": i + 1, "seconds": seconds, "systems": systems, "left_out": left_out | failures}
        write(points, {"surroundings": where, "versions": versions} | method, options.out)
    return 1 if left_out or failures else 0


if __name__ == "__main__":
    sys.exit(ended(main))
