"""The tables of a measurement on a GPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu_parts.compare import Comparison
from benchmarks.gpu_parts.works import PRECISIONS
from benchmarks.tables import COLUMNS, cells
from minivit.cli.terminal import Terminal

LEGEND = (
    "images/s and ms a step: median of the rounds; spread: their range. peak MB: the most taken from the driver, by "
    "either framework's pool. ratio: the peer's time over minivit's, of medians and of the fastest samples; memory: "
    "its peak over minivit's; above 1 minivit is faster, or smaller. bar: at least (aim), for an H200. of copy: the "
    "bandwidth, by the bytes that must be moved, over that of a copy on the device that moves as many. of square: the "
    "rate of products over that of a large square one."
)
_LONGEST, _NAME = 20, 80  # kernels that are shown, and letters of their names
_SLOW = 0.70  # of a copy's bandwidth: the bar of a kernel


def show_comparison(terminal: Terminal, comparison: Comparison) -> None:
    """Show the table of a job and its notes."""
    terminal.say(f"\n{comparison.job.title}", style="bold")
    columns = [COLUMNS[0], *(f">{name}" for name in COLUMNS[1:-1]), COLUMNS[-1]]
    terminal.table(columns, [cells(row) for row in comparison.rows])
    for note in comparison.notes:
        terminal.say(note)


def show_part(terminal: Terminal, part: str, precision: str, figures: Any) -> None:
    """Show the figures of a part of `part`."""
    _SHOWN[part](terminal, PRECISIONS[precision], figures)


def _kernels(terminal: Terminal, precision: str, rows: Sequence[Mapping[str, Any]]) -> None:
    terminal.say(f"\nkernels, {precision}", style="bold")
    shown = [
        [row["name"], "", "", "", "", row["error"]]
        if "error" in row
        else [
            row["name"],
            f"{row['bytes'] / 1e6:,.0f}",
            f"{1e6 * statistics.median(row['seconds']):,.1f}",
            f"{row['bytes_a_second'] / 1e9:,.0f}",
            f"{100 * row['of_copy']:.0f} %",
            "below the bar" if row["of_copy"] < _SLOW else "",
        ]
        for row in rows
    ]
    terminal.table(["kernel", ">MB", ">µs", ">GB/s", ">of copy", ""], shown)


def _products(terminal: Terminal, precision: str, figures: Mapping[str, Any]) -> None:
    square = f"{figures['square']} x {figures['square']}"
    terminal.say(f"\nproducts, {precision}", style="bold")
    terminal.say(f"square product, {square}: {figures['square_flops_a_second'] / 1e12:,.0f} TFLOP/s")
    for work in figures["works"]:
        rows = [
            [row["name"], "", "", "", row["error"]]
            if "error" in row
            else [
                row["name"],
                f"{1e6 * row['seconds']:,.1f}",
                f"{row['flops_a_second'] / 1e12:,.0f}",
                f"{100 * row['of_square']:.0f} %",
                f"{1e3 * row['times'] * row['seconds']:,.2f}",
            ]
            for row in work["rows"]
        ]
        whole = f"{100 * work['of_square']:.0f} %" if "of_square" in work else ""
        rows.append(["all", "", "", whole, f"{1e3 * work['seconds_a_step']:,.2f}"])
        terminal.say(f"{work['preset']}, batch {work['batch_size']}")
        terminal.table(["product", ">µs", ">TFLOP/s", ">of square", ">ms a step"], rows, total=True)


def _of_each_work(
    terminal: Terminal, title: str, precision: str, figures: Mapping[str, Mapping[str, Any]]
) -> Iterator[Mapping[str, Any]]:
    """Yield the figures of each work under its heading; what has an error is shown with that."""
    for work, found in figures.items():
        terminal.say(f"\n{title} of {work}, {precision}", style="bold")
        if "error" in found:
            terminal.say(found["error"])
        else:
            yield found


def _claims(terminal: Terminal, precision: str, figures: Mapping[str, Mapping[str, Any]]) -> None:
    for claims in _of_each_work(terminal, "a step", precision, figures):
        for name, say in _CLAIMS.items():
            claim = claims[name]
            terminal.say(f"{name}: {claim['error'] if 'error' in claim else say(claim)}")


def _profile(terminal: Terminal, precision: str, figures: Mapping[str, Mapping[str, Any]]) -> None:
    for found in _of_each_work(terminal, "the device in a step", precision, figures):
        terminal.say(f"{found['launches']} kernels and copies, busy for {1e3 * found['busy_seconds']:.2f} ms")
        rows = [
            [kernel["name"][:_NAME], str(kernel["calls"]), f"{1e3 * kernel['seconds']:.3f}"]
            for kernel in found["kernels"][:_LONGEST]
        ]
        terminal.table(["kernel", ">launches", ">ms"], rows)


def _of_launches(claim: Mapping[str, Any]) -> str:
    products = claim.get("products", 0)
    return f"{sum(claim.values()) - products} of minivit's kernels, {products} products"


def _of_memory(claim: Mapping[str, Any]) -> str:
    asked = f"{claim['driver_allocations']} allocations from the driver in {claim['steps']} steps after warm-up"
    return f"{asked}, {claim['allocations']} from the pool; peak {claim['peak_used_bytes'] / 1e6:,.0f} MB in use"


def _of_reads(claim: Mapping[str, Any]) -> str:
    return f"a step reads from the device, at {claim['where']}" if claim["found"] else "a step reads nothing back"


def _of_times(claim: Mapping[str, Any]) -> str:
    host, device, both = (1e3 * claim[name] for name in ("host_seconds", "device_seconds", "seconds"))
    ahead = (
        "the host asks for a whole step without waiting"
        if claim["ahead"]
        else "the host waits within a step, or for a place in the queue"
    )
    bound = "launches" if claim["bound_by_launches"] else "the device"
    return f"host {host:.2f} ms, device {device:.2f} ms, together {both:.2f} ms: bound by {bound}; {ahead}"


_SHOWN: dict[str, Callable[[Terminal, str, Any], None]] = {
    "kernels": _kernels,
    "products": _products,
    "claims": _claims,
    "profile": _profile,
}
_CLAIMS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "launches": _of_launches,
    "memory": _of_memory,
    "reads": _of_reads,
    "times": _of_times,
}
