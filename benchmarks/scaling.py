"""How the rate changes with batch size, tokens, width, depth and threads: python -m benchmarks.scaling --out FOLDER

Trains and predicts at every point of every axis, minivit and PyTorch eager, each in its own process, in rounds; writes,
after each round, tables (scaling.md), figures (SVG and PNG, with matplotlib) and all numbers (scaling.json). A point's
rate is the best of its rounds, a round's the median of its steps. The exit status is 1 where a system failed somewhere.
"""

import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import command, harness
from benchmarks.baselines import BASELINES
from benchmarks.products import Weights, products
from benchmarks.report import heading, markdown_table, percent, records_table, surroundings
from benchmarks.workloads import WORKLOADS, Workload
from minivit.engine.machine import cores
from minivit.errors import install

OURS, THEIRS = "minivit", BASELINES["eager"].title
BASE = replace(WORKLOADS["train-w96"], batch_size=64)
_HEAD, _PATCH = 24, 4  # the width of a head and the side of a patch, the same everywhere


class Axis(NamedTuple):
    """A quantity that is varied while the others stay."""

    label: str
    values: Sequence[int]
    quick: Sequence[int]  # in a quick run
    place: Callable[[int], Workload] = lambda value: BASE

    def setting(self, value: int, kind: str) -> tuple[Workload, int]:
        """Return the workload and the threads at `value`."""
        return replace(self.place(value), kind=kind), value if self.label == "threads" else cores()


_THREADS = sorted({1 << i for i in range(cores().bit_length())} | {cores()})


def _tokens(count: int) -> Workload:
    return BASE.changed(img_size=_PATCH * math.isqrt(count - 1))


def _width(width: int) -> Workload:
    return BASE.changed(embed_dim=width, num_heads=width // _HEAD)


_BATCHES = (32, 64, 128, 256, 512, 1024)
AXES = {
    "batch": Axis("images in a batch", _BATCHES, (32, 64, 256), lambda v: replace(BASE, batch_size=v)),
    "tokens": Axis("tokens of an image", (17, 37, 65, 145, 257), (17, 65, 257), _tokens),
    "width": Axis("width of the model", (48, 96, 192, 384), (48, 96, 192), _width),
    "depth": Axis("blocks of the model", (1, 3, 6, 12), (1, 6, 12), lambda v: BASE.changed(depth=v)),
    "threads": Axis("threads", _THREADS, _THREADS),
}


Place = tuple[str, str, str, int]  # axis, kind, system and value of a point


@dataclass(frozen=True)
class Point:
    """What was measured of one system at one place of an axis."""

    axis: str
    kind: str
    system: str  # `OURS` or `THEIRS`
    value: int
    images_a_second: tuple[float, ...]  # one for each round, from the median step of its process
    peak_bytes: int
    flops_an_image: int  # of the matrix products that the mathematics needs

    @property
    def best(self) -> float:
        """Images a second in the best round: what else the machine did can only have slowed the others."""
        return max(self.images_a_second)


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Return the exponent of ``y ~ x ** exponent``, its standard error, and the exponent between the last two points.

    The exponent is the slope of a straight line through the logarithms; two points give no error, but NaN.
    """
    u, v = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    exponent, offset = np.polyfit(u, v, 1)
    last = (v[-1] - v[-2]) / (u[-1] - u[-2])
    residual = float(((v - exponent * u - offset) ** 2).sum())
    error = math.sqrt(residual / (len(x) - 2) / float(((u - u.mean()) ** 2).sum())) if len(x) > 2 else math.nan
    return float(exponent), error, float(last)


def curves(points: Sequence[Point], axis: str) -> dict[str, dict[str, dict[int, Point]]]:
    """Return the points of an axis by kind, system and value, from left to right."""
    own = sorted((p for p in points if p.axis == axis), key=lambda p: p.value)

    def curve(kind: str, system: str) -> dict[int, Point]:
        return {p.value: p for p in own if (p.kind, p.system) == (kind, system)}

    return {
        kind: {name: curve(kind, name) for name in (OURS, THEIRS)} for kind in dict.fromkeys(p.kind for p in points)
    }


def rate_table(points: Sequence[Point], axis: str) -> str:
    """Return images/s of all systems along an axis, ours against the other, and the spread of the rounds."""
    parts = []
    for kind, found in curves(points, axis).items():
        rows = []
        for value, ours in found[OURS].items():
            here = {system: own[value] for system, own in found.items() if value in own}
            row = {AXES[axis].label: str(value)} | {
                f"{system}, images/s": f"{p.best:.0f}" for system, p in here.items()
            }
            row |= {f"against {system}": f"{ours.best / p.best:.2f}x" for system, p in here.items() if system != OURS}
            if len(ours.images_a_second) > 1:  # of one round there is no spread
                row["spread"] = percent(max(1 - min(p.images_a_second) / p.best for p in here.values()))
            rows.append(row)
        parts.append(f"{kind.capitalize()}:\n\n{records_table(rows)}")
    return "\n\n".join(parts)


def growth_table(points: Sequence[Point], axes: Iterable[str]) -> str:
    """Return the exponents with which the seconds of an image grow along each axis, and those of the arithmetic."""
    head = ["axis", "kind", "system", "from, to", "seconds", "arithmetic", "its end", "seconds", "arithmetic"]
    rows = []
    for axis in axes:
        for kind, found in curves(points, axis).items():
            for system, own in found.items():
                if len(own) < 2:
                    continue
                x = list(own)
                exponent, error, last = fit_exponent(x, [1 / p.best for p in own.values()])
                arithmetic, _, last_arithmetic = fit_exponent(x, [p.flops_an_image for p in own.values()])
                numbers = [f"{n:.2f}".replace("-0.00", "0.00") for n in (exponent, arithmetic, last, last_arithmetic)]
                numbers[0] += f" ± {error:.2f}" if len(x) > 2 else ""
                spans = f"{x[0]} to {x[-1]}", f"{x[-2]} to {x[-1]}"
                rows.append([axis, kind, system, spans[0], *numbers[:2], spans[1], *numbers[2:]])
    return markdown_table(head, rows, words=3)


def memory_table(points: Sequence[Point]) -> str:
    """Return the peak memory of each system by batch size, and the line nearest to it."""
    parts = []
    for kind, found in curves(points, "batch").items():
        peaks = {name: {value: p.peak_bytes / 1e6 for value, p in own.items()} for name, own in found.items()}
        rows = [
            {"images in a batch": str(v)} | {f"{name}, MB": f"{own[v]:.0f}" for name, own in peaks.items() if v in own}
            for v in sorted({value for own in peaks.values() for value in own})
        ]
        fits = {name: np.polyfit([*own], [*own.values()], 1) for name, own in peaks.items() if len(own) > 1}
        lines = [f"{name}: {b:.0f} MB and {a:.3f} MB for each image." for name, (a, b) in fits.items()]
        parts.append("\n\n".join([f"{kind.capitalize()}:", records_table(rows), *lines]))
    return "\n\n".join(parts)


def write(points: list[Point], about: Mapping[str, Any], folder: Path) -> None:
    """Write scaling.json, scaling.md and the figures."""
    from benchmarks.scaling_plots import plot

    command.write_json(folder / "scaling.json", {**about, "points": [asdict(point) for point in points]})
    drawn = [axis for axis in AXES if any(p.axis == axis for p in points)]
    method = (
        f"Along each axis the rest stays at {BASE.title.partition('training step, ')[2]}, heads of {_HEAD}, all cores. "
        f"{THEIRS} is at each point the faster of its variants. A rate is the best of the rounds, a round's the median "
        "of the steps of one process; the spread is how far below the best round the worst one lay, of either system. "
        "The arithmetic is the operations of the matrix products that the mathematics needs, which are, in the last "
        "block, those of the class token alone; PyTorch's models do not make use of that."
    )
    parts = ["# Scaling", method, heading(about["surroundings"], about["versions"], about["rounds"])]
    parts += [f"{name} was left out: {why}." for name, why in about["left_out"].items()]
    parts += [f"## {AXES[axis].label.capitalize()}\n\n{rate_table(points, axis)}" for axis in drawn]
    parts += [f"## Memory\n\n{memory_table(points)}"] * ("batch" in drawn)
    parts.append(f"## How the cost grows\n\nSeconds of an image ~ value ** exponent:\n\n{growth_table(points, drawn)}")
    command.write_text(folder / "scaling.md", "\n\n".join(parts) + "\n")
    try:
        for axis in drawn:
            plot(points, axis, "images/s", lambda p: p.best, folder / f"rate_by_{axis}")
        if "batch" in drawn:
            plot(points, "batch", "peak memory, MB", lambda p: p.peak_bytes / 1e6, folder / "memory_by_batch")
    except ImportError as error:
        command.tell(f"no figures, for matplotlib is missing ({error}): {install('matplotlib')}")


def point_of(place: Place, results: Sequence[Mapping[str, Any]]) -> Point:
    """Return the point of what the processes of a system reported."""
    workload, _ = AXES[place[0]].setting(place[3], place[1])
    rates = tuple(workload.batch_size / statistics.median(result["seconds"]) for result in results)
    needed = products(workload.config, Weights(workload.config), 1, workload.trains)
    peak = max(result["peak_bytes"] for result in results)
    return Point(*place, rates, peak, sum(product.flops for product in needed))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the folder, and return 1 where something was left out."""
    parser = command.parser_of(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where tables and figures go")
    parser.add_argument("--quick", action="store_true", help="training alone, at fewer points")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=[*AXES], help="what is varied; all by default")
    parser.add_argument("--rounds", type=command.at_least_one, default=2, help="processes of each point (default: 2)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each process (default: 0.5)")
    options = parser.parse_args(arguments)
    command.check_writable(options.out / "scaling.json")
    where, failures = surroundings(), dict[str, str]()
    processes: dict[str, tuple[str, Workload, int]] = {}
    groups: dict[Place, list[str]] = {}
    for kind in ("training",) if options.quick else ("training", "prediction"):
        for axis in options.axes:
            for value in AXES[axis].quick if options.quick else AXES[axis].values:
                for name, systems in ((OURS, ["minivit"]), (THEIRS, BASELINES["eager"].systems)):
                    keys = {f"{system}, {kind}, {axis} {value}": system for system in systems}
                    groups[axis, kind, name, value] = [*keys]
                    setting = AXES[axis].setting(value, kind)
                    processes |= {key: (system, *setting) for key, system in keys.items()}

    def run(key: str) -> dict[str, Any]:
        system, workload, threads = processes[key]
        return harness.run_worker(system, workload, options.seconds, threads)

    def after_round(rounds: int, outcomes: Mapping[str, harness.Outcome]) -> None:
        failed = {key: own.stopped for key, own in outcomes.items() if own.stopped.startswith("failed")}
        failures.update({key: why.removeprefix("failed: ") for key, why in failed.items()})
        fastest = {place: harness.fastest_of(keys, outcomes) for place, keys in groups.items()}
        points = [point_of(place, outcomes[key].results) for place, key in fastest.items() if key]
        results = [result for outcome in outcomes.values() for result in outcome.results]
        versions = {name: version for result in results for name, version in result["versions"].items()}
        about = {"surroundings": where, "versions": versions, "rounds": rounds, "seconds": options.seconds}
        write(points, {**about, "left_out": failures}, options.out)

    harness.run_rounds({str(p): keys for p, keys in groups.items()}, options.rounds, run, command.tell, after_round)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(command.ended(main))
