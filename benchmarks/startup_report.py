"""What the times of starting come to: ratios, a table, and how they stand to the bar."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.output import markdown_table
from benchmarks.ratios import Ratio, ratio_of_times, spread
from minivit.cli.reporters import percent

BAR, AIM = 4.0, 8.0  # timm's time over ours


@dataclass
class Side:
    """A command, and the seconds of its processes; `answer` is the class and its probability in percent."""

    name: str
    command: list[str]
    answer: tuple[str, float] | None = None
    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    failure: str = ""


def report(everyone: list[Side]) -> dict[str, Any]:
    """Return the figures of all sides; the ratio of one that answers is its time over ours, the first one's."""
    figures: dict[str, Any] = {}
    ours = [[seconds] for seconds in everyone[0].seconds]
    for side in everyone:
        if side.failure:
            figures[side.name] = {"failure": side.failure}
            continue
        rounds = [[seconds] for seconds in side.seconds]
        ratio = ratio_of_times(ours, rounds) if side.answer and side is not everyone[0] else None
        figures[side.name] = {
            "seconds": side.seconds,
            "first": side.first,
            "median": statistics.median(side.seconds),
            "best": min(side.seconds),
            "spread": spread(rounds),
            "ratio": asdict(ratio) | {"noisy": ratio.noisy} if ratio else None,
        }
    return figures


def table(figures: dict[str, Any]) -> str:
    """Return a Markdown table of `report`'s figures."""
    head = ["side", "median, s", "best, s", "spread", "first, s", "median over ours", "95 % interval", "best over ours"]
    rows = []
    for name, f in figures.items():
        if "failure" in f:
            continue
        row = [name, f"{f['median']:.3f}", f"{f['best']:.3f}", percent(f["spread"]), f"{f['first']:.3f}"]
        ratios = ["", "", ""]
        if ratio := f["ratio"]:
            interval = "{:.2f} to {:.2f}".format(*ratio["interval"]) if ratio["interval"] else ""
            ratios = [f"{ratio['of_medians']:.2f}x", interval, f"{ratio['of_bests']:.2f}x"]
        rows.append(row + ratios)
    failed = [f"{name} did not run: {f['failure']}." for name, f in figures.items() if "failure" in f]
    noisy = [name for name, f in figures.items() if f.get("ratio") and f["ratio"]["noisy"]]
    notes = [f"Ratio uncertain, its interval being wider than a tenth of it: {'; '.join(noisy)}."] if noisy else []
    return "\n\n".join([markdown_table(head, rows), *failed, *notes])


def verdict(figures: dict[str, Any]) -> str:
    """Return how the ratio to the faster of timm's two ways stands to the bar.

    A bar is reached or missed where the whole interval lies on one side of it, and open where the interval contains it.
    """
    ways = [f["ratio"] for name, f in figures.items() if name.startswith("timm") and f.get("ratio")]
    if not ways:
        return "timm did not run: nothing is said about the bar."
    ratio = Ratio(**{key: value for key, value in min(ways, key=lambda r: r["of_medians"]).items() if key != "noisy"})
    words = {True: "reached", False: "missed", None: "open" if ratio.interval else "open (too few rounds)"}
    marks = ", ".join(f"{name} {x:g}x {words[ratio.reaches(x)]}" for name, x in (("bar", BAR), ("aim", AIM)))
    return f"Against the faster of timm's two ways {ratio.of_medians:.2f}x: {marks}."
