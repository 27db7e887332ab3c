"""The report of a comparison: tables for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.output import markdown_table
from benchmarks.rows import Row
from benchmarks.works import Work

COLUMNS = (
    "system",
    "images/s",
    "ms a step",
    "spread",
    "peak MB",
    "ratio",
    "95 % interval",
    "of bests",
    "memory",
    "bar",
)

LEGEND = (
    "images/s and ms a step: median of the rounds; spread: their range. ratio: the peer's time over ours, of medians "
    "and of the fastest steps; memory: its peak over ours; above 1 ours is faster, or smaller. limit: the matrix "
    "products alone, in the fastest layout; its ratio is the fraction of it that ours reaches. bar: at least (aim); "
    "open where the interval contains it; ratio uncertain: the interval is wider than a tenth of the ratio."
)


def title_of(work: Work) -> str:
    """Return a work in words."""
    config = work.config
    sizes = f"width {config.embed_dim}, depth {config.depth}, {config.num_heads} heads, MLP {config.hidden_dim}"
    what = "training step" if work.trains else "prediction"
    return f"{work.name}: {what}, {sizes}, {config.num_tokens} tokens, batch {work.batch_size}, float32"


def cells(row: Row) -> list[str]:
    """Return the cells of a row.

    A bar is reached or missed where the whole interval lies on one side of it, and open where the interval contains it.
    """
    ratio = row.ratio
    few = " (too few rounds)" if ratio and ratio.interval is None else ""
    verdicts = [f"{verdict}{few if verdict.reached is None else ''}" for verdict in row.verdicts]
    return [
        row.title,
        f"{row.images_per_second:,.1f}",
        f"{row.milliseconds:,.1f}",
        f"{100 * row.spread:.1f} %" if row.spread else "",  # of one round there is none
        f"{row.peak_bytes / 1e6:,.0f}",
        f"{ratio.of_medians:.2f}" if ratio else "",
        f"{ratio.interval[0]:.2f} to {ratio.interval[1]:.2f}" if ratio and ratio.interval else "",
        f"{ratio.of_bests:.2f}" if ratio else "",
        f"{row.memory_ratio:.1f}" if row.memory_ratio is not None else "",
        "; ".join([*verdicts, *(["ratio uncertain"] if ratio and ratio.noisy else [])]),
    ]


def heading(surroundings: Mapping[str, Any], versions: Mapping[str, str], rounds: int) -> str:
    """Return where, when and with what the figures were measured."""
    cores = f"{surroundings['cores']} core{'s' * (surroundings['cores'] > 1)} used"
    where = f"{surroundings['processor']}, {cores}, {surroundings['system']}"
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    when = f"commit {surroundings['commit']}, {surroundings['date']}"
    steered = ", ".join(f"{name}={value}" for name, value in surroundings["environment"].items())
    python = f"Python {surroundings['python']}, {found}" + (f"; with {steered}" if steered else "")
    return f"{where}; {python}; {when}; {rounds} process{'es' * (rounds > 1)} a system, in turn."


def markdown(head: str, parts: Sequence[tuple[Work, Sequence[Row], Sequence[str]]]) -> str:
    """Return the whole report for a document, given each work's rows and notes."""
    lines = [head, "", LEGEND]
    for work, rows, notes in parts:
        lines += ["", f"**{title_of(work)}**", "", markdown_table(COLUMNS, [cells(row) for row in rows])]
        lines += [""] * bool(notes) + [f"- {note}" for note in notes]
    return "\n".join(lines) + "\n"
